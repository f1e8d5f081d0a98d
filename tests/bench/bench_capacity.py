"""What one controller carries: leases in batches, heartbeats, curves, a study that grows, many studies, a database
that is large. ``poe bench-capacity``.

``--only lease|heartbeat|curves|growth|studies|tasks``; ``--sizes 100,100000`` are the trials a study has before the cycles are timed,
``--studies 10,5000`` the active studies a worker is dealt tasks of. ``--only tasks --sizes 100000`` runs only when it is named: a hundred
such studies are ten million tasks, 20 GB and half an hour.
Everything goes over gRPC to a controller process, on a private Postgres with fsync on.
"""

# ruff: noqa: T201  a bench prints

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import grpc
import psycopg
from bench_controller import SPACE, our_client, our_study, ours, postgres
from load import Cycle, Latencies, Load, closed_loop, cpu_seconds, timed

BATCH, WORKERS = 50, 2000
STUDIES = 100  # of a large database
RUN_BY_WORKERS: dict[str, Any] = {
    "space": SPACE, "objective": {"metric": "loss"}, "method": {"name": "fixed", "sampler": "random", "budget": 100},
    "run": {"function": "train:main"},
}  # fmt: skip
FOLDED = 200_000  # trials: folding more than these anew takes a controller minutes


def raw_client(number: int, address: str) -> Cycle:
    """A worker of fifty slots that leases all and completes all, two calls a turn."""
    from isoloss.v1 import work_pb2, work_pb2_grpc

    stub = work_pb2_grpc.WorkerServiceStub(grpc.insecure_channel(address))
    name = f"bench-{number}"
    allowed = work_pb2.Allowed(everything=True)
    stub.Register(work_pb2.RegisterRequest(worker_id=name, incarnation="1", slots=BATCH, allowed=allowed))
    lease = work_pb2.LeaseRequest(worker_id=name, incarnation="1", slots=BATCH, wait_seconds=5)

    def cycle(latencies: Latencies) -> int:
        leases = timed(latencies, "lease", stub.Lease, lease).leases
        finish = work_pb2.FinishRequest()
        for one in leases:
            ending = finish.endings.add()
            ending.key.CopyFrom(one.key)
            ending.complete.values["loss"] = random.random()
        timed(latencies, "finish", stub.Finish, finish)
        return len(leases)

    return cycle


def slots_client(number: int, address: str) -> Cycle:
    """A worker of eight slots, all busy: one task ends, and the slot is filled again."""
    from isoloss.v1 import work_pb2, work_pb2_grpc

    stub = work_pb2_grpc.WorkerServiceStub(grpc.insecure_channel(address))
    name, held = f"bench-{number}", list[Any]()
    allowed = work_pb2.Allowed(everything=True)
    stub.Register(work_pb2.RegisterRequest(worker_id=name, incarnation="1", slots=8, allowed=allowed))

    def cycle(latencies: Latencies) -> int:
        lease = work_pb2.LeaseRequest(
            worker_id=name, incarnation="1", slots=8 - len(held), wait_seconds=5, holding=[one.task_id for one in held]
        )
        held.extend(one.key for one in timed(latencies, "lease", stub.Lease, lease).leases)
        finish = work_pb2.FinishRequest()
        ending = finish.endings.add()
        ending.key.CopyFrom(held.pop(0))
        ending.complete.values["loss"] = random.random()
        timed(latencies, "finish", stub.Finish, finish)
        return 1

    return cycle


def curve_client(number: int, address: str, name: str) -> Cycle:
    """An agent of four slots that reports a hundred points of two metrics of each, again and again."""
    import isoloss
    from isoloss.v1 import common_pb2, work_pb2
    from isoloss.wire.values import to_key, to_series

    client = isoloss.connect(address, start=False)
    trials = [client.study(name).ask(wait_seconds=10) for _ in range(4)]
    step = [0]

    def cycle(latencies: Latencies) -> int:
        points = [(step[0] + k, {"loss": 2.0 + random.random(), "grad": random.random()}) for k in range(1, 101)]
        step[0] += 100
        request = work_pb2.ReportRequest(
            batches=[common_pb2.SeriesBatch(key=to_key(trial.key), series=to_series(points)) for trial in trials]
        )
        timed(latencies, "report", client.transport.call, client.transport.trials.Report, request)
        return 800

    return cycle


def lease(home: Any, dsn: str, postmaster: int, seconds: float) -> None:
    """Tasks a second when leased and completed fifty at a time."""
    with ours(home, dsn) as (address, pid):
        import isoloss

        with isoloss.connect(address, start=False) as client:
            client.create_study("leased", **RUN_BY_WORKERS)
        found = closed_loop(
            raw_client, (address,), clients=4, seconds=seconds, watch={"server": pid, "postgres": postmaster}
        )
        said(f"lease and complete, {BATCH} a call, 4 workers", found, "tasks/s", "lease")


def heartbeat(home: Any, dsn: str, postmaster: int, seconds: float) -> None:
    """The share of a core that 2,000 workers take that beat every ten seconds."""
    from isoloss.v1 import work_pb2, work_pb2_grpc

    with ours(home, dsn) as (address, pid), grpc.insecure_channel(address) as channel:
        stub = work_pb2_grpc.WorkerServiceStub(channel)
        for number in range(WORKERS):
            stub.Register(work_pb2.RegisterRequest(worker_id=f"w{number}", incarnation="1", slots=1))
        before, begun, slow = cpu_seconds(pid), time.monotonic(), []
        beats = int(seconds * WORKERS / 10)
        for number in range(beats):
            due = begun + number * 10 / WORKERS
            time.sleep(max(0.0, due - time.monotonic()))
            at = time.monotonic()
            stub.Heartbeat(work_pb2.HeartbeatRequest(worker_id=f"w{number % WORKERS}"))
            slow.append(time.monotonic() - at)
        wall = time.monotonic() - begun
        used = sum(value - before.get(one, 0.0) for one, value in cpu_seconds(pid).items())
        slow.sort()
        print(
            f"{WORKERS} workers beating every 10 s: {100 * used / wall:.1f} % of a core, p99 {1e3 * slow[int(0.99 * beats)]:.1f} ms"
        )


def curves(home: Any, dsn: str, postmaster: int, seconds: float) -> None:
    """Points a second, bytes a point, and one curve read back."""
    with ours(home, dsn) as (address, pid):
        name = our_study(address, "random", 0)
        import isoloss

        with isoloss.connect(address, start=False) as client:
            client.study(name)
        found = closed_loop(
            curve_client, (address, name), clients=4, seconds=seconds, watch={"server": pid, "postgres": postmaster}
        )
        said("points of curves, 800 a call, 4 clients", found, "points/s", "report")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("VACUUM ANALYZE metric_chunk")
            size, points = conn.execute(
                "SELECT pg_total_relation_size('metric_chunk'), sum(cardinality(\"values\")) FROM metric_chunk"
            ).fetchone() or (0, 1)
            task = conn.execute("SELECT task_id FROM metric_chunk LIMIT 1").fetchone()
            begun = time.perf_counter()
            read = conn.execute(
                'SELECT unnest(chunk_steps(step0, stride, steps, cardinality("values"))) FROM metric_chunk '
                "WHERE task_id = %s AND metric = 'loss' AND step0 <= 1000", task,
            ).fetchall()  # fmt: skip
            print(
                f"  {size / points:.1f} bytes a point; {len(read)} points of a curve read in {1e3 * (time.perf_counter() - begun):.1f} ms"
            )


def growth(home: Any, dsn: str, postmaster: int, seconds: float, sizes: Sequence[int]) -> None:
    """CPU a trial and the first ask, in a study of so many finished trials."""
    for size in sizes:
        with ours(home, dsn) as (address, pid):
            name = our_study(address, "random", 0)
            history(dsn, name, size)
            watch = {"server": pid, "postgres": postmaster}
            begun = time.perf_counter()
            closed_loop(our_client, (address, name, 0, True), clients=1, seconds=0.1, watch=watch)
            cold = time.perf_counter() - begun
            found = closed_loop(our_client, (address, name, 0, True), clients=8, seconds=seconds, watch=watch)
            said(f"trial cycles in a study of {size:,} trials", found, "trials/s", "tell_and_ask")
        with ours(home, dsn) as (address, pid):
            begun = time.perf_counter()
            closed_loop(our_client, (address, name, 0, True), clients=1, seconds=0.1, watch={"server": pid})
            warm = time.perf_counter() - begun
        print(
            f"  a new client's first ask {found.first_ms:.0f} ms; the controller's first look at the study {cold:.1f} s "
            f"({'from the saved fold' if size > FOLDED else 'every event folded'}), after a restart {warm:.1f} s (from the fold it saved)",
            flush=True,
        )  # fmt: skip


def studies(home: Any, dsn: str, postmaster: int, seconds: float, counts: Sequence[int]) -> None:
    """What a lease costs among so many active studies: all of them hungry, or all but ten waiting for the one task they run."""
    import isoloss
    from isoloss.v1 import work_pb2, work_pb2_grpc

    for waiting in (False, True):
        for count in counts:
            with ours(home, dsn) as (address, pid), psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("TRUNCATE study, worker CASCADE")
                with isoloss.connect(address, start=False) as client, grpc.insecure_channel(address) as channel:
                    client.create_study("waits", **RUN_BY_WORKERS, limits={"trials": 1})
                    stub, allowed = work_pb2_grpc.WorkerServiceStub(channel), work_pb2.Allowed(everything=True)
                    stub.Register(work_pb2.RegisterRequest(worker_id="w", incarnation="1", slots=1, allowed=allowed))
                    stub.Lease(work_pb2.LeaseRequest(worker_id="w", incarnation="1", slots=1, wait_seconds=5))
                    client.create_study("hungry", **RUN_BY_WORKERS)
                copies(conn, "hungry", (10 if waiting else count - 1) - 1)
                copies(conn, "waits", count - 11 if waiting else 0)
                conn.execute("UPDATE lease SET worker_id = 'w' || task_id / 8, expires_at = now() + interval '1 day'")
                conn.execute("ANALYZE")
                found = closed_loop(
                    slots_client, (address,), clients=1, seconds=seconds, watch={"server": pid, "postgres": postmaster}
                )
                label = f"all but ten of {count:,} active studies waiting" if waiting else f"{count:,} hungry studies"
                said(f"one task after another, {label}", found, "tasks/s", "lease")


def tasks(home: Any, dsn: str, postmaster: int, seconds: float, size: int) -> None:
    """Tasks a second in a fresh study and in one of so many trials, alone and among a hundred of those."""
    import isoloss

    with ours(home, dsn) as (address, pid), isoloss.connect(address, start=False) as client:
        watch = {"server": pid, "postgres": postmaster}
        client.create_study("large", **RUN_BY_WORKERS).pause()
        history(dsn, "large", size)
        for among in ("alone", f"among {STUDIES} that have"):
            fresh = client.create_study(f"fresh-{among[:5]}", **RUN_BY_WORKERS)
            fresh.pause()
            for name in ("large", fresh.name) * 2:
                client.study(name).resume()
                found = closed_loop(raw_client, (address,), clients=4, seconds=seconds, watch=watch)
                client.study(name).pause()
                label = f"in a study of {size:,} trials" if name == "large" else "in a fresh study"
                said(f"lease and complete {label}, {among} {size:,}", found, "tasks/s", "lease")
            if among == "alone":
                with psycopg.connect(dsn, autocommit=True) as conn:
                    begun = time.monotonic()
                    copies(conn, "large", STUDIES - 1)
                    conn.execute("VACUUM ANALYZE")
                    conn.execute("CHECKPOINT")
                    (count, used) = conn.execute(
                        "SELECT (SELECT count(*) FROM task), pg_database_size(current_database())"
                    ).fetchone() or (0, 0)
                    print(
                        f"  {count:,} tasks, {used / 1e9:.1f} GB, written in {time.monotonic() - begun:.0f} s",
                        flush=True,
                    )


def copies(conn: psycopg.Connection, name: str, times: int) -> None:
    """So many studies more, each with every row of one, as a controller would have written them."""
    (study_id,) = conn.execute("SELECT id FROM study WHERE name = %s", (name,)).fetchone() or (0,)
    (studies_,) = conn.execute("SELECT max(id) FROM study").fetchone() or (0,)
    (tasks,) = conn.execute("SELECT max(id) FROM task").fetchone() or (0,)
    conn.execute("SET session_replication_role = replica")  # what is copied refers to what is copied beside it
    for table in ("study", "event", "trial", "task", "attempt", "lease", "result", "snapshot"):
        study, task = "id" if table == "study" else "study_id", "id" if table == "task" else "task_id"
        names = [
            row[0] for row in conn.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
                "AND attgenerated = '' ORDER BY attnum", (table,),
            )
        ]  # fmt: skip
        moved = {study: f"{studies_} + k", task: f"{task} + k::bigint * {tasks}"} | (
            {"name": "name || k"} if table == "study" else {}
        )
        where = (
            f"{study} = {study_id}"
            if study in names
            else f"{task} IN (SELECT id FROM task WHERE study_id = {study_id})"
        )
        listed = ", ".join(f'"{one}"' for one in names)
        made = ", ".join(moved.get(one, f'"{one}"') for one in names)
        conn.execute(
            f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE "
            f"WITH one AS MATERIALIZED (SELECT * FROM {table} WHERE {where}) SELECT {made} FROM generate_series(1, {times}) AS k, one".encode()
        )
    conn.execute("SET session_replication_role = origin")
    for table in ("study", "task"):
        conn.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))".encode())


def history(dsn: str, name: str, size: int) -> None:
    """So many finished trials, as a controller would have written them, by COPY; of very many the fold too, which it saves as it grows."""
    from isoloss.domain.spec import decode_study
    from isoloss.search import events as ev
    from isoloss.search.search import Search
    from isoloss.store.ledger import packed

    with psycopg.connect(dsn) as conn:
        study_id, mapping = conn.execute("SELECT id, spec FROM study WHERE name = %s", (name,)).fetchone() or (0, {})
        search, rng, seq = Search(decode_study(mapping)), random.Random(1), 0
        first = conn.execute("SELECT coalesce(max(id), 0) + 1 FROM task").fetchone()
        task_id = first[0] if first else 1
        rows: dict[str, list[tuple[Any, ...]]] = {"event": [], "trial": [], "task": [], "attempt": [], "result": []}
        for number in range(size):
            loss = rng.random()
            for event in (ev.Asked(), ev.TaskDone(trial=number, level=0, score=loss)):
                seq += 1
                made = search.apply(event)
                body = ev.to_mapping(event)
                rows["event"].append(
                    (study_id, seq, body["kind"], json.dumps(body), json.dumps([ev.to_mapping(d) for d in made]))
                )
                for one in made:
                    if isinstance(one, ev.CreateTrial):
                        rows["trial"].append(
                            (study_id, one.trial, one.bracket, one.index, json.dumps(one.configuration), one.source)
                        )
            rows["task"].append((task_id + number, study_id, number, 0, 0, 100, 100, "done", 1, "now"))
            rows["attempt"].append((task_id + number, 1, "copied", "now", "ok"))
            rows["result"].append((task_id + number, study_id, 1, "ok", json.dumps({"loss": loss}), loss, seq))
        columns = {
            "event": "study_id, seq, kind, body, decisions", "trial": "study_id, no, bracket, index, params, source",
            "task": "id, study_id, trial_no, level, budget_from, decay_from, budget_to, state, epoch, ended_at",
            "attempt": "task_id, epoch, worker_id, ended_at, outcome",
            "result": 'task_id, study_id, epoch, status, "values", score, decided_seq',
        }  # fmt: skip
        for table, made_rows in rows.items():
            with conn.cursor().copy(f"COPY {table} ({columns[table]}) FROM STDIN".encode()) as copy:
                for row in made_rows:
                    copy.write_row(row)
        conn.execute("SELECT setval(pg_get_serial_sequence('task', 'id'), %s)", (task_id + size,))
        conn.execute("UPDATE study SET next_seq = %s, spent = %s WHERE id = %s", (seq + 1, 100 * size, study_id))
        if size > FOLDED:
            conn.execute(
                "INSERT INTO snapshot (body, seq, study_id) VALUES (%s, %s, %s)",
                (packed(search.snapshot()), seq, study_id),
            )
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ANALYZE")


def said(label: str, found: Load, unit: str, latency: str) -> None:
    """One line of a run."""
    each = " + ".join(f"{name} {value:.3f}" for name, value in found.cpu_ms.items())
    errors = f"  ERRORS {found.errors[:2]}" if found.errors else ""
    print(
        f"{label}: {found.rate:,.0f} {unit}, CPU {found.cpu:.3f} ms each ({each}), {latency} p50 "
        f"{found.latency(latency, 0.5):.1f} p99 {found.latency(latency, 0.99):.1f} ms{errors}", flush=True,
    )  # fmt: skip


def main() -> None:
    """Run the cases in turn."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", choices=["lease", "heartbeat", "curves", "growth", "studies", "tasks"])
    ask.add_argument("--seconds", type=float, default=8.0)
    ask.add_argument("--sizes", default="100,10000,100000")
    ask.add_argument("--studies", default="10,1000,5000")
    given = ask.parse_args()
    for name, case in (("lease", lease), ("heartbeat", heartbeat), ("curves", curves)):
        if given.only in (None, name):
            with postgres() as (home, dsn, postmaster):
                case(home, dsn, postmaster, given.seconds)
    if given.only in (None, "growth"):
        with postgres() as (home, dsn, postmaster):
            growth(home, dsn, postmaster, given.seconds, [int(size) for size in given.sizes.split(",")])
    if given.only in (None, "studies"):
        with postgres() as (home, dsn, postmaster):
            studies(home, dsn, postmaster, given.seconds, [int(count) for count in given.studies.split(",")])
    if given.only == "tasks":
        with postgres() as (home, dsn, postmaster):
            tasks(home, dsn, postmaster, given.seconds, int(given.sizes.split(",")[-1]))


if __name__ == "__main__":
    main()
