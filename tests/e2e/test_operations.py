"""What an operator has: metrics, readiness, a backup that is whole, a database that refuses, replies that are forgotten."""

from __future__ import annotations

import asyncio
import subprocess
import urllib.error
import urllib.request
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import isoloss
from isoloss import errors
from isoloss.cli import run
from isoloss.client.locate import Local
from isoloss.controller.janitor import Janitor
from isoloss.controller.line import Line
from isoloss.store.embedded import Embedded
from isoloss.store.pool import Pool
from isoloss.testing.controller import controller, temporary_home
from isoloss.testing.oracles import violations

SPEC: dict[str, Any] = {
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 9},
}  # fmt: skip


@pytest.fixture(scope="module")
def house() -> Iterator[tuple[Local, Path]]:
    with temporary_home() as home, controller() as local:
        yield local, home


def read(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_count_calls_by_method_and_code_and_say_what_waits(house: tuple[Local, Path]) -> None:
    local, _ = house
    with isoloss.connect(local.address, start=False) as client:
        study = client.create_study("counted", **SPEC)
        trial = study.ask()
        with pytest.raises(errors.NotFound):
            client.study("nobody")
        _, text = read(f"{local.dash}/metrics")
        study.tell(trial, loss=1.0)
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['isoloss_calls_total{code="OK",method="Ask"}']) == 1
    assert float(lines['isoloss_calls_total{code="NOT_FOUND",method="GetStudy"}']) == 1
    assert float(lines["isoloss_leases"]) == 1 and float(lines["isoloss_database_up"]) == 1
    assert float(lines['isoloss_call_seconds_count{method="Ask"}']) == 1


def test_metrics_say_how_many_slots_there_is_work_for_and_forget_what_has_ended(house: tuple[Local, Path]) -> None:
    local, _ = house
    with isoloss.connect(local.address, start=False) as client:
        more = {"run": {"function": "m:f", "gpus": 2}, "limits": {"trials": 4}}
        study = client.create_study("wanted", **SPEC | more)
        _, text = read(f"{local.dash}/metrics")
        assert 'isoloss_slots_wanted{gpus="2",project="default",trainable="function:m:f"} 8.0' in text.splitlines()
        study.stop()
    assert "isoloss_slots_wanted{" not in read(f"{local.dash}/metrics")[1]


def test_a_controller_is_ready_while_postgres_answers(house: tuple[Local, Path]) -> None:
    assert read(f"{house[0].dash}/readyz") == (200, "ready\n")
    assert read(f"{house[0].dash}/healthz") == (200, "ok\n")


def test_a_dump_restored_elsewhere_is_the_same_and_can_be_gone_on_with(
    house: tuple[Local, Path], tmp_path: Path
) -> None:
    local, home = house
    tools = Embedded(home=home / "postgres").binaries()
    with isoloss.connect(local.address, start=False) as client:
        study = client.create_study("saved", **SPEC).optimize(lambda trial: {"loss": trial.params["x"]}, n_trials=5)
        study.info()  # every result there is has its place in the ledger now
    file, copy = tmp_path / "all.dump", make_conninfo(local.dsn, dbname="restored")
    subprocess.run([tools / "pg_dump", "--format=custom", f"--file={file}", f"--dbname={local.dsn}"], check=True)
    with psycopg.connect(local.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE restored")
    subprocess.run([tools / "pg_restore", "--no-owner", f"--dbname={copy}", file], check=True)

    def content(dsn: str) -> list[Any]:
        with psycopg.connect(dsn) as conn:
            assert violations(conn) == []
            return [
                conn.execute(f"SELECT t::text FROM {table} t ORDER BY 1".encode()).fetchall()
                for table in ("trial", "task", "result", "event", "attempt", "migration")
            ]

    assert content(copy) == content(local.dsn)
    with temporary_home(), controller(dsn=copy) as other, isoloss.connect(other.address, start=False) as client:
        study = client.study("saved")
        before = len(study.trials())
        study.optimize(lambda trial: {"loss": trial.params["x"]})
        assert study.info().state == "idle" and len(study.trials()) > before
    with psycopg.connect(copy) as conn:
        assert violations(conn) == []


def test_a_database_that_cannot_be_written_is_said_in_words_and_loses_nothing(house: tuple[Local, Path]) -> None:
    local, _ = house
    with isoloss.connect(local.address, start=False, patience=3) as client:
        study = client.create_study("refused", **SPEC)
        trial = study.ask()
        set_read_only(local, on=True)
        try:
            with pytest.raises(errors.StoreUnavailable, match="does not let this controller write"):
                study.tell(trial, loss=1.0)
        finally:
            set_read_only(local, on=False)
        study.tell(trial, loss=1.0)
        assert study.best_value == 1.0


def set_read_only(local: Local, *, on: bool) -> None:
    """For every connection from now on; those there are end, and the pool opens others."""
    with psycopg.connect(local.dsn, autocommit=True) as conn:
        conn.execute("SET default_transaction_read_only = off")
        conn.execute(f"ALTER DATABASE postgres SET default_transaction_read_only = {'on' if on else 'off'}".encode())
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'isoloss controller'"
        )


def test_replies_are_kept_for_a_week(house: tuple[Local, Path]) -> None:
    local, _ = house

    async def body() -> list[Any]:
        async with Pool(local.dsn, size=1) as pool:
            async with pool.connection() as conn:
                await conn.execute("DELETE FROM dedup")
                for key, age in (("old", 8), ("new", 6)):
                    await conn.execute(
                        "INSERT INTO dedup VALUES ('m', %s, '', '', now() - make_interval(days => %s))", (key, age)
                    )
            await Janitor(pool).once()
            async with pool.connection() as conn:
                return await (await conn.execute("SELECT idem_key FROM dedup")).fetchall()

    assert asyncio.run(body()) == [("new",)]


def test_a_line_serves_together_who_comes_together_and_an_error_finds_whom_it_is_meant_for() -> None:
    passes: list[list[int]] = []

    async def serve(wants: Any) -> list[int | None]:
        passes.append(list(wants))
        await asyncio.sleep(0.01)
        if 13 in wants:
            raise errors.InvalidSpec("13 is refused.")
        return [None if want == 99 and len(passes) < 6 else want * 2 for want in wants]

    async def body() -> None:
        line = Line[int, int](serve)
        together: list[Awaitable[Any]] = [line.stand(n) for n in (1, 2, 13)]
        one, two, refused = await asyncio.gather(*together, return_exceptions=True)
        assert (one, two) == (2, 4) and isinstance(refused, errors.InvalidSpec)
        assert passes == [[1, 2, 13], [1], [2], [13]]
        patient, hasty = await asyncio.gather(line.stand(99, seconds=5), line.stand(99))
        assert (patient, hasty) == (198, None), "who has patience is looked at again"
        line.close()
        assert await line.stand(99, seconds=60) == 198

    asyncio.run(body())


def test_a_project_at_its_quota_leases_nothing_more_and_says_so(
    house: tuple[Local, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with isoloss.connect(house[0].address, patience=5.0) as client:
        for name, most in (("bounded", "0"), ("free", "")):
            assert (
                run(
                    [
                        "project",
                        "set",
                        name,
                        "--weight",
                        "2",
                        *(["--most", most] if most else []),
                        "--dsn",
                        house[0].dsn,
                    ]
                )
                == 0
            )
        capsys.readouterr()
        study = client.create_study(
            "q", project="bounded", space={"x": isoloss.Float(0, 1)}, objective=isoloss.minimize("loss"),
            method=isoloss.Fixed(budget=1), run={"function": "m:f"},
        )  # fmt: skip
        assert any("runs 0 tasks of at most 0" in sentence for sentence in study.why())
        assert run(["project", "set", "x", "--weight", "0"]) != 0 and "--weight is 0.0" in capsys.readouterr().err
