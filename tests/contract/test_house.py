"""Promises that no single room can keep alone: one set of words, SQL that fits the schema, light imports."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

import isoloss
import isoloss.store
from isoloss.domain.study import CampaignState, StudyState
from isoloss.domain.task import AttemptOutcome, ResultStatus, TaskState
from isoloss.errors import IsolossError
from isoloss.store.migrate import load
from isoloss.store.pool import Pool
from isoloss.testing.invariants import INVARIANTS
from isoloss.v1 import campaign_pb2, study_pb2
from isoloss.wire.errors import CODES, from_rpc_error, to_status

ROOT = Path(__file__).parents[2]
InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]


def test_the_source_roots_are_no_packages() -> None:
    for root in ("platform", "workers", "proto", "migrations", "tests"):
        loose = [*(ROOT / root).glob("__init__.py"), *((ROOT / root).glob("*.py"))]
        assert loose == [], f"{root}/ must hold no module of its own: it would shadow another"
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    ("enum", "name"),
    [
        (TaskState, "task_state"), (StudyState, "study_state"), (CampaignState, "campaign_state"),
        (ResultStatus, "result_status"), (AttemptOutcome, "attempt_outcome"),
    ],
)  # fmt: skip
def test_the_words_of_an_enum_are_postgres_own(cluster: Any, enum: type[StrEnum], name: str) -> None:
    with psycopg.connect(cluster.dsn) as conn:
        row = conn.execute(f"SELECT enum_range(NULL::{name})::text[]".encode()).fetchone()
    assert row is not None and row[0] == [member.value for member in enum]


@pytest.mark.parametrize(
    ("enum", "message"), [(StudyState, study_pb2.StudyState), (CampaignState, campaign_pb2.CampaignState)]
)
def test_the_words_of_an_enum_are_the_wires_own(enum: type[StrEnum], message: Any) -> None:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.__name__).upper()
    assert message.keys() == [f"{prefix}_UNSPECIFIED", *(f"{prefix}_{member.name}" for member in enum)]


def test_every_statement_fits_the_schema(cluster: Any) -> None:
    found = {}
    for module in pkgutil.iter_modules(isoloss.store.__path__):
        loaded = importlib.import_module(f"isoloss.store.{module.name}")
        for name, value in vars(loaded).items():
            if (
                name.isupper()
                and isinstance(value, str)
                and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", value)
            ):
                found[f"{module.name}.{name}"] = value
    assert len(found) > 40
    with psycopg.connect(cluster.dsn, autocommit=True) as conn:
        for where, statement in found.items():
            numbered = _numbered(statement)
            try:
                conn.execute(f"PREPARE probe AS {numbered}".encode(), prepare=False)
            except psycopg.errors.IndeterminateDatatype:
                continue  # a bare parameter whose type only the driver knows
            except psycopg.Error as error:
                pytest.fail(f"{where}: {error}")
            conn.execute("DEALLOCATE probe")


def _numbered(statement: str) -> str:
    """``%(name)s`` as ``$1``: what PREPARE reads."""
    names: dict[str, int] = {}
    return re.sub(r"%\((\w+)\)s", lambda m: f"${names.setdefault(m[1], len(names) + 1)}", statement)


def _classes(root: type[IsolossError]) -> list[type[IsolossError]]:
    return [root, *(c for child in root.__subclasses__() for c in _classes(child))]


@pytest.mark.parametrize("kind", _classes(IsolossError))
def test_every_error_crosses_the_wire_and_comes_back_as_itself(kind: type[IsolossError]) -> None:
    status = to_status(kind("It went wrong.", hint="Do better."))

    class Call(grpc.aio.AioRpcError):
        """What a client sees of that status."""

    error = Call(status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), details=status.details)
    back = from_rpc_error(error)
    assert (type(back), back.message, back.hint) == (kind, "It went wrong.", "Do better.")
    assert kind in CODES


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    probe = (
        "import sys; sys.argv = ['isoloss', '--help']\n"
        "from isoloss.cli import run\nrun(['--help'])\n"
        "heavy = {'grpc', 'psycopg', 'numpy', 'scipy', 'optuna', 'torch', 'ray', 'statsmodels', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, stdout=subprocess.DEVNULL)
    for command in (["study", "--help"], ["campaign", "launch", "--help"], ["law", "fit", "--help"], ["up", "--help"]):
        words = f"import sys\nfrom isoloss.cli import run\nrun({command!r})\n" + probe.rsplit("run(['--help'])\n", 1)[1]
        subprocess.run([sys.executable, "-c", words], check=True, stdout=subprocess.DEVNULL)


def test_importing_the_sdk_costs_nothing() -> None:
    probe = "import sys, isoloss; assert not {'grpc', 'numpy', 'msgspec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_migrations_apply_once_whoever_starts_first_and_are_never_edited(in_store: InStore) -> None:
    from dataclasses import replace

    from isoloss.errors import StoreUnavailable
    from isoloss.store.migrate import migrate

    async def body(pool: Pool) -> None:
        assert await migrate(pool) == []
        edited = [replace(m, sql=m.sql + "-- edited") for m in load()]
        with pytest.raises(StoreUnavailable, match="forward only"):
            await migrate(pool, edited)
        with pytest.raises(StoreUnavailable, match="newer than this isoloss"):
            await migrate(pool, load()[:0] + load()[:-1])

    in_store(body)


def test_public_names_are_all_there() -> None:
    assert all(getattr(isoloss, name) is not None for name in isoloss.__all__)
    assert set(isoloss.aio.__all__) <= set(isoloss.__all__)


def test_every_test_that_an_invariant_names_is_there() -> None:
    for invariant in INVARIANTS:
        for test in invariant.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(), f"{invariant.id}: {test}"
    assert [invariant.id for invariant in INVARIANTS] == [f"I{number}" for number in range(1, 24)]
