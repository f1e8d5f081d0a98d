"""What leaves the database for a file comes back as it was, here or elsewhere, and nothing of it stays behind."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import isoloss
from isoloss import errors
from isoloss.cli import run
from isoloss.client.blocking import Client, Study
from isoloss.client.locate import Local
from isoloss.store.archive import OF
from isoloss.testing.cluster import wait_until
from isoloss.testing.controller import controller, temporary_home
from isoloss.testing.oracles import violations

SPEC: dict[str, Any] = {
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 9},
}  # fmt: skip
REACHED = """
    WITH RECURSIVE below AS (
        SELECT unnest(ARRAY['study'::regclass, 'campaign'::regclass]) AS relation
        UNION SELECT conrelid::regclass FROM pg_constraint JOIN below ON confrelid = relation WHERE contype = 'f')
    SELECT relation::text FROM below WHERE relation <> 'lease'::regclass"""


@pytest.fixture(scope="module")
def house() -> Iterator[Local]:
    with temporary_home(), controller() as local:
        yield local


@pytest.fixture
def client(house: Local) -> Iterator[Client]:
    with isoloss.connect(house.address, start=False) as client:
        yield client


def searched(client: Client, name: str, trials: int = 12) -> Study:
    """A study that has run, with curves and checkpoints' rows."""
    study = client.create_study(name, **SPEC)
    for _ in range(trials):
        trial = study.ask()
        for step in range(int(trial.budget_from) + 1, int(trial.budget_to) + 1):
            trial.report(step, loss=trial.params["x"] + 1 / step)
        study.tell(trial, loss=trial.params["x"])
    return study


def rows(dsn: str, study_id: int) -> dict[str, list[Any]]:
    """Every row of a study."""
    where = {
        "study": "id = {0}", "snapshot": "study_id = {0}", "preference": "study_id = {0}", "event": "study_id = {0}", "trial": "study_id = {0}",
        "task": "study_id = {0}", "result": "study_id = {0}",
    }  # fmt: skip
    of_tasks = "task_id IN (SELECT id FROM task WHERE study_id = {0})"
    found = {}
    with psycopg.connect(dsn) as conn:
        for table in OF:
            if table in ("campaign", "fit", "forecast"):
                continue
            query = "SELECT to_jsonb(one)::text FROM {1} AS one WHERE " + where.get(table, of_tasks) + " ORDER BY 1"
            found[table] = conn.execute(sql.SQL(query).format(study_id, sql.Identifier(table))).fetchall()
    return found


def study_id_of(dsn: str, name: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT id FROM study WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0])


def answers(study: Study) -> Any:
    """What a user sees of a study."""
    return [(t.number, t.params, [(x.level, x.state, x.values) for x in t.levels]) for t in study.trials()]


def of_whole(client: Client) -> list[str]:
    return sorted(study.name for study in client.studies() if study.name.startswith("whole"))


def test_a_stopped_study_leaves_and_comes_back_row_by_row_as_it_was(
    house: Local, client: Client, tmp_path: Path
) -> None:
    study, file, dsn = searched(client, "leaves"), tmp_path / "leaves.isoloss", ["--dsn", house.dsn]
    seen, curve = answers(study), study.curves(0)
    assert run(["db", "archive", "leaves", str(file), *dsn]) != 0, "it is active"
    study.stop()
    number = study_id_of(house.dsn, "leaves")
    before = rows(house.dsn, number)
    assert all(before[table] for table in ("study", "event", "trial", "task", "attempt", "result", "metric_chunk"))
    assert run(["db", "archive", "leaves", str(tmp_path / "nowhere" / "file"), *dsn]) != 0, "there is no such folder"
    assert rows(house.dsn, number) == before
    assert run(["db", "archive", "leaves", str(file), *dsn]) == 0
    assert not any(rows(house.dsn, number).values())
    with pytest.raises(errors.NotFound):
        client.study("leaves").trials()
    assert run(["db", "restore", str(file), *dsn]) == 0
    assert rows(house.dsn, number) == before
    back = client.study("leaves")
    assert (answers(back), back.curves(0)) == (seen, curve)
    with psycopg.connect(house.dsn) as conn:
        assert violations(conn) == []


def test_a_name_that_was_archived_is_free_and_what_asks_for_it_gets_the_new_study(
    house: Local, client: Client, tmp_path: Path
) -> None:
    searched(client, "again", 2).stop()
    file = tmp_path / "again.isoloss"
    assert run(["db", "archive", "again", str(file), "--dsn", house.dsn]) == 0
    assert client.create_study("again", **SPEC).ask(wait_seconds=5).params
    assert run(["db", "restore", str(file), "--dsn", house.dsn]) != 0, "the name is taken"


def test_in_another_database_it_takes_ids_that_are_free_and_the_next_study_takes_others(
    house: Local, client: Client, tmp_path: Path
) -> None:
    study, file = searched(client, "moves"), tmp_path / "moves.isoloss"
    seen, curve = answers(study), study.curves(3)
    study.stop()
    assert run(["db", "archive", "moves", str(file), "--keep", "--dsn", house.dsn]) == 0
    assert answers(study) == seen, "kept"
    with temporary_home(), controller() as other, isoloss.connect(other.address, start=False) as there:
        for name in ("first", "second"):
            searched(there, name)
        assert run(["db", "restore", str(file), "--dsn", other.dsn]) == 0
        assert (answers(there.study("moves")), there.study("moves").curves(3)) == (seen, curve)
        searched(there, "after", 5)
        with psycopg.connect(other.dsn) as conn:
            assert violations(conn) == []


def test_a_campaign_goes_with_its_studies_and_no_study_without_its_campaign(
    house: Local, client: Client, tmp_path: Path
) -> None:
    campaign = client.launch_campaign({
        "name": "whole", "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}, "objective": {"metric": "loss"},
        "sizes": [{"name": "s", "n_params": 1000}, {"name": "m", "n_params": 2000}], "tokens": {"min": 1000, "max": 9000, "eta": 3},
        "target": {"n_params": 100_000, "n_tokens": 1_000_000}, "run": {"function": "trainers:none"},
    })  # fmt: skip
    file = tmp_path / "whole.isoloss"
    wait_until(lambda: len(of_whole(client)) == 2, 20, what="the campaign's studies")
    names = of_whole(client)
    assert run(["db", "archive", names[0], str(file), "--dsn", house.dsn]) != 0, "a part of it"
    assert run(["db", "archive", "whole", str(file), "--dsn", house.dsn]) != 0, "it searches"
    campaign.stop()
    assert run(["db", "archive", "whole", str(file), "--dsn", house.dsn]) == 0
    assert not of_whole(client)
    with isoloss.connect(house.address, start=False) as other:
        other.create_study(names[1], **SPEC)
    assert run(["db", "restore", str(file), "--dsn", house.dsn]) != 0, "a name of one of its studies is taken"
    assert of_whole(client) == names[1:]
    client.study(names[1]).stop()
    assert run(["db", "archive", names[1], str(tmp_path / "in-the-way"), "--dsn", house.dsn]) == 0
    assert run(["db", "restore", str(file), "--dsn", house.dsn]) == 0
    assert of_whole(client) == names


def test_what_is_over_for_long_goes_by_itself_and_nothing_else(house: Local, client: Client, tmp_path: Path) -> None:
    for name in ("old-one", "new", "goes-on"):
        searched(client, name, 2)
    for name in ("old-one", "new"):
        client.study(name).stop()
    with psycopg.connect(house.dsn) as conn:
        for name in ("old-one", "goes-on"):
            number = study_id_of(house.dsn, name)
            conn.execute("UPDATE event SET at = at - interval '100 days' WHERE study_id = %s", (number,))
            conn.execute("UPDATE study SET created_at = created_at - interval '100 days' WHERE id = %s", (number,))
    for _ in range(2):
        assert run(["db", "archive-old", str(tmp_path / "old"), "--older-than", "90d", "--dsn", house.dsn]) == 0
        assert [file.name for file in (tmp_path / "old").iterdir()] == ["default.old-one.isoloss"]
    assert {"new", "goes-on"} <= {study.name for study in client.studies()}
    assert run(["db", "restore", str(tmp_path / "old" / "default.old-one.isoloss"), "--dsn", house.dsn]) == 0
    client.study("goes-on").stop()
    assert run(["db", "archive-old", str(tmp_path / "old"), "--older-than", "90d", "--dsn", house.dsn]) == 0
    assert sorted(file.name for file in (tmp_path / "old").iterdir()) == [
        "default.old-one.2.isoloss", "default.old-one.isoloss",
    ]  # fmt: skip
    assert run(["db", "archive-old", str(tmp_path), "--older-than", "long", "--dsn", house.dsn]) != 0


def test_a_file_of_a_release_that_knew_fewer_columns_comes_back(house: Local, client: Client, tmp_path: Path) -> None:
    file, older, dsn = tmp_path / "new", tmp_path / "older", ["--dsn", house.dsn]
    searched(client, "older", trials=2).stop()
    assert run(["db", "archive", "older", str(file), *dsn]) == 0
    with zipfile.ZipFile(file) as new, zipfile.ZipFile(older, "w") as pack:
        contents = json.loads(new.read("contents.json"))
        place = contents["columns"]["study"].index("startable")
        for name in new.namelist():
            body = new.read(name).decode()
            if name == "study.copy":
                fields = body.removesuffix("\n").split("\t")
                body = "\t".join(fields[:place] + fields[place + 1 :]) + "\n"
            elif name == "contents.json":
                del contents["columns"]["study"][place]
                body = json.dumps(contents)
            pack.writestr(name, body)
    assert run(["db", "restore", str(older), *dsn]) == 0
    assert client.study("older").trials()


def test_a_file_that_is_none_of_ours_changes_nothing(
    house: Local, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, foreign = tmp_path / "other", tmp_path / "foreign"
    other.write_text("no zip")
    with zipfile.ZipFile(foreign, "w") as pack:
        pack.writestr("contents.json", '{"format": 1}')
    for file in (other, foreign, tmp_path / "nowhere"):
        assert run(["db", "restore", str(file), "--dsn", house.dsn]) != 0
        assert "accepted is what `isoloss db archive` has written" in capsys.readouterr().err


def test_no_table_below_a_study_or_a_campaign_is_forgotten(house: Local) -> None:
    with psycopg.connect(house.dsn) as conn:
        assert {row[0] for row in conn.execute(REACHED)} == set(OF)
