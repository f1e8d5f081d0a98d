"""The whole scheduler under virtual time, with seeded faults: the real statements and the real decider, on a real Postgres.

Our truth is guarded SQL, so that is what is simulated: only the clock, the network and the workers are made up. Every statement
says ``now()``; a function of that name that comes first in the search path reads the time from a row. Workers are machines
of states on a heap of moments; whatever they say may be lost, repeated, late, or said by one that was thought dead, and a
controller may fall between any two statements. After every few messages the oracles of ``isoloss.testing.oracles`` must
hold; at the end everything that was acknowledged is there, and a study ends as it does undisturbed. A seed is a whole
history: the same seed does the same, and prints what it did.

    python tests/sim/scheduler.py [--seeds 2000] [--first 0] [--jobs 2]        # or `poe sim`
"""

# ruff: noqa: T201  it prints, and it asserts

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psycopg

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.reaper import Reaper
from isoloss.domain.ids import StudyId, TaskId
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.study import StudyState
from isoloss.domain.task import TaskState
from isoloss.errors import StoreUnavailable
from isoloss.search.driver import Driver
from isoloss.search.events import Deepened
from isoloss.search.geometry import plan_of
from isoloss.search.search import Search
from isoloss.store import tasks
from isoloss.store.embedded import Embedded
from isoloss.store.migrate import migrate
from isoloss.store.pool import Conn, Pool
from isoloss.store.tasks import Lease, Want
from isoloss.testing.oracles import violations

TTL: Final = timedelta(seconds=30)
DAY: Final = 1_700_000_000.0  # when it begins
STORM: Final = 900.0  # seconds with faults; afterwards everything heals
LONGEST: Final = 20_000.0  # by then the study must have ended
LOOK_EVERY: Final = 60  # messages
CLOCK: Final = """
    CREATE TABLE IF NOT EXISTS sim_clock (at timestamptz NOT NULL);
    CREATE SEQUENCE IF NOT EXISTS sim_order;
    DELETE FROM sim_clock; INSERT INTO sim_clock VALUES (to_timestamp(0));
    CREATE OR REPLACE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM public.sim_clock';
    CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        'SELECT at + nextval(''public.sim_order'') * interval ''1 microsecond'' FROM public.sim_clock'"""


class Lost(Exception):
    """No answer came."""


@dataclass
class Run:
    """A task in a worker's hands: it ends at a moment, in one way."""

    key: LeaseKey
    lease: Lease
    ends_at: float
    ending: Ending


@dataclass
class Worker:
    """A process with slots; ``asked`` is whether its last ask had no answer."""

    name: str
    slots: int
    incarnation: int = 1
    runs: dict[LeaseKey, Run] = field(default_factory=dict)
    asked: bool = False
    frozen_until: float = 0.0
    cut_until: float = 0.0

    @property
    def identity(self) -> str:
        return f"{self.name}.{self.incarnation}"


def outcome(params: Mapping[str, Any], level: int, seed: int) -> Ending:
    """How a run ends, by its configuration alone: a loss, a divergence, or an error every time (poison)."""
    draw = random.Random(f"{seed}/{sorted(params.items())}")
    fate = draw.random()
    if fate < 0.04:
        return Ending(kind="diverge", step=1, message="loss is nan")
    if fate < 0.08:
        return Ending(kind="fail", retryable=True, message="it always fails")
    return Ending(
        kind="complete",
        values={
            "loss": round(draw.random() + 1 / (level + 1) + 0.1 * random.Random(f"{seed}{level}{params}").random(), 6)
        },
    )


class Cut:
    """Makes a connection fall at its n-th statement, as when its controller is killed between two of them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.left: int | None = None

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Conn]:
        async with self._pool.connection() as conn:
            if self.left is None:
                yield conn
                return
            execute, cursor = conn.execute, conn.cursor

            def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
                def call(*given: Any, **named: Any) -> Any:
                    assert self.left is not None
                    self.left -= 1
                    if self.left <= 0:
                        raise StoreUnavailable("the controller was killed here")
                    return inner(*given, **named)

                return call

            conn.execute, conn.cursor = counted(execute), counted(cursor)  # type: ignore[method-assign]
            try:
                yield conn
                if self.left == 1:  # before the commit
                    raise StoreUnavailable("the controller was killed before it committed")
            finally:
                conn.execute, conn.cursor = execute, cursor  # type: ignore[method-assign]


class World:
    """One seed: a study, some workers, two controllers, and what goes wrong between them."""

    def __init__(self, pool: Pool, sync: psycopg.Connection, seed: int) -> None:
        deciding.SNAPSHOT_LEAST = 6  # type: ignore[misc]  # so that many are saved
        self.seed, self.rng = seed, random.Random(seed)
        self.pool, self.cut, self.sync = pool, Cut(pool), sync
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], Awaitable[None]]]] = []
        self.order = 0
        self.faults: Counter[str] = Counter()
        self.messages = 0
        self.acknowledged: dict[TaskId, tuple[int, Ending]] = {}
        self.trace = hashlib.sha256()
        self.bell = Bell()
        self.deciders = [Decider(self.cut, self.bell, TTL) for _ in range(2)]  # type: ignore[arg-type]
        self.workers = [Worker(f"w{n}", self.rng.choice((1, 1, 2, 4))) for n in range(self.rng.randint(1, 5))]
        self.rates = {
            name: self.rng.choice((0, 0.01, 0.03, 0.08)) for name in ("request", "reply", "twice", "late", "crash")
        }
        self.study_id = StudyId(0)
        self.deepening = False  # whether somebody is about to

    # ---- the machinery -----------------------------------------------------------------------------------------

    @property
    def calm(self) -> bool:
        """Whether the storm is over."""
        return self.now > STORM

    def at(self, moment: float, action: Callable[[], Awaitable[None]]) -> None:
        """Do something then."""
        self.order += 1
        heapq.heappush(self.heap, (moment, self.order, action))

    def tick(self) -> None:
        """Let the database know the time."""
        self.sync.execute("UPDATE sim_clock SET at = to_timestamp(%s)", (DAY + self.now,))

    def fault(self, name: str) -> bool:
        """Whether this goes wrong now."""
        wrong = not self.calm and self.rng.random() < self.rates[name]
        self.faults[name] += wrong
        return wrong

    async def call(self, worker: Worker, op: Callable[[Decider], Awaitable[Any]]) -> Any:
        """One request of a worker and its answer; raises ``Lost`` where none comes, whether or not it was served."""
        self.messages += 1
        if self.messages % LOOK_EVERY == 0:
            self.look()
        if self.now < worker.cut_until or self.fault("request"):
            raise Lost
        if self.fault("twice"):
            await self.served(op)
        if self.fault("late"):  # it comes again when nobody expects it

            async def again() -> None:
                with contextlib.suppress(Lost):
                    await self.served(op)

            self.at(self.now + self.rng.uniform(0, 4 * TTL.total_seconds()), again)
        answer = await self.served(op)
        if self.fault("reply"):
            raise Lost
        return answer

    async def served(self, op: Callable[[Decider], Awaitable[Any]]) -> Any:
        """Served by one of the controllers, which may be killed at any of its statements and come again, knowing nothing."""
        place = self.rng.randrange(2)
        self.cut.left = self.rng.randint(1, 9) if self.fault("crash") else None
        try:
            return await op(self.deciders[place])
        except StoreUnavailable:
            if self.rng.random() < 0.5:  # else only its connection fell, and it remembers
                self.deciders[place] = Decider(self.cut, self.bell, TTL)  # type: ignore[arg-type]
            raise Lost from None
        finally:
            self.cut.left = None

    def note(self, *said: object) -> None:
        """What happened, for the fingerprint of the history."""
        self.trace.update(f"{self.now:.3f} {said}\n".encode())

    # ---- controllers -------------------------------------------------------------------------------------------

    async def reap(self) -> None:
        """The reaper's and the decider's pass, of any controller that lives."""
        with contextlib.suppress(Lost):
            await self.served(lambda _: Reaper(self.cut, self.bell, TTL).once())  # type: ignore[arg-type]
        with contextlib.suppress(Lost):
            await self.served(self.decides)
        self.at(self.now + self.rng.uniform(2, 8), self.reap)

    async def decides(self, decider: Decider) -> None:
        """What a decider does by itself: results, and folds that have grown are saved."""
        await decider.decide(self.study_id)
        await decider._save_folds()

    # ---- workers -----------------------------------------------------------------------------------------------

    async def wake(self, worker: Worker) -> None:
        """One round of a worker: beat, tell what ended, ask for more; unless it is frozen or dies."""
        moment = self.now + self.rng.uniform(2, 8)
        if self.now < worker.frozen_until:
            self.at(worker.frozen_until, lambda: self.wake(worker))
            return
        if not self.calm:
            fate = self.rng.random()
            if fate < 0.01:
                await self.dies(worker)
            elif fate < 0.03:  # a pause longer than a lease: it comes back as a zombie
                worker.frozen_until = self.now + self.rng.uniform(0.2, 5) * TTL.total_seconds()
                self.faults["pause"] += 1
            elif fate < 0.05:
                worker.cut_until = self.now + self.rng.uniform(0.2, 3) * TTL.total_seconds()
                self.faults["partition"] += 1
        steps = [self.beats, self.tells]
        if self.rng.random() < 0.3:
            steps.reverse()
        for step in (*steps, self.asks):
            with contextlib.suppress(Lost):
                await step(worker)
        self.at(moment, lambda: self.wake(worker))

    async def dies(self, worker: Worker) -> None:
        """Killed; the process that takes its place says that the former one is gone, if that is heard."""
        self.faults["death"] += 1
        worker.incarnation += 1
        worker.runs.clear()
        worker.asked = False

        async def gone(_: Decider) -> None:
            async with self.cut.connection() as conn:
                await tasks.end_former(conn, worker.name, worker.identity)

        with contextlib.suppress(Lost):
            await self.call(worker, gone)

    async def beats(self, worker: Worker) -> None:
        """Renew; what was lost is stopped, what is cancelled is given back."""
        if not worker.runs:
            return
        keys = list(worker.runs)

        async def beat(_: Decider) -> dict[LeaseKey, TaskState]:
            async with self.cut.connection() as conn:
                return await tasks.heartbeat(conn, keys, ttl=TTL)

        held = await self.call(worker, beat)
        for key in keys:
            if key not in held:
                del worker.runs[key]

    async def tells(self, worker: Worker) -> None:
        """What ended, or is preempted."""
        for run in list(worker.runs.values()):
            ending = run.ending
            if self.now < run.ends_at:
                if self.calm or self.rng.random() > 0.01:
                    continue
                self.faults["preempted"] += 1
                ending = Ending(
                    kind="release",
                    checkpoint=Checkpoint(step=max(1, run.lease.budget_from), path=f"/c/{run.key.task_id}"),
                )

            async def tell(_: Decider, run: Run = run, ending: Ending = ending) -> str:
                async with self.cut.connection() as conn:
                    (verdict,), _studies = await tasks.finish(conn, [(run.key, ending)], owed)
                    return verdict

            verdict = await self.call(worker, tell)
            self.note(worker.name, run.lease.trial_no, run.lease.level, ending.kind, verdict)
            self.faults[f"{verdict} verdicts"] += 1
            if verdict == "accepted" and ending.kind in ("complete", "diverge"):
                before = self.acknowledged.setdefault(run.key.task_id, (run.key.epoch, ending))
                assert before == (run.key.epoch, ending), f"{run.key.task_id} was acknowledged twice: {before}"
            del worker.runs[run.key]

    async def asks(self, worker: Worker) -> None:
        """Fill the free slots; what was granted without an answer is asked for again."""
        free = worker.slots - len(worker.runs)
        if not free:
            return
        want = Want(
            holder=worker.name,
            incarnation=worker.identity,
            n=free,
            holding=[key.task_id for key in worker.runs],
            again=worker.asked,
        )
        worker.asked = True
        decided = await self.call(worker, lambda decider: decider.decide(self.study_id, wants=[want]))
        worker.asked = False
        for _, lease in decided.leases:
            key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
            assert key not in worker.runs, "granted twice under one epoch"
            worker.runs[key] = Run(
                key, lease, self.now + self.rng.uniform(3, 90), outcome(lease.params, lease.level, self.seed)
            )
        for run in list(worker.runs.values())[
            worker.slots :
        ]:  # an ask that was served twice: what has no slot is given back
            self.faults["given back"] += 1
            run.ends_at, run.ending = 0.0, Ending(kind="release")

    # ---- oracles -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """What must be true at any moment."""
        found = violations(self.sync)
        assert not found, found
        rows = self.sync.execute('SELECT task_id, epoch, status::text, "values" FROM result').fetchall()
        stored = {row[0]: row[1:] for row in rows}
        for task_id, (epoch, ending) in self.acknowledged.items():
            assert task_id in stored, f"the acknowledged result of task {task_id} is lost"
            status = "ok" if ending.kind == "complete" else "diverged"
            wanted = (epoch, status, dict(ending.values) if ending.kind == "complete" else stored[task_id][2])
            assert stored[task_id] == wanted, f"task {task_id}: acknowledged {wanted}, stored {stored[task_id]}"

    async def play(self) -> None:
        """From the launch to the end."""
        self.tick()
        spec = decode_study(self.spec())
        async with self.pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="f")
        assert row is not None
        self.study_id = row.id
        for worker in self.workers:
            self.at(self.rng.uniform(0, 5), lambda worker=worker: self.wake(worker))  # type: ignore[misc]
        self.at(self.rng.uniform(0, 5), self.reap)
        if self.rng.random() < 0.5 and spec.method.name != "fixed":
            self.deepening = True
            self.at(self.rng.uniform(20, 300), self.deepens)
        while self.heap:
            moment, _, action = heapq.heappop(self.heap)
            self.now = max(self.now, moment)
            assert self.now < LONGEST, f"the study has not ended after {LONGEST:.0f} seconds"
            self.tick()
            await action()
            if self.ended() and not self.deepening:
                break
        self.look()
        await self.compare()

    async def deepens(self) -> None:
        """The maximum budget is raised in the middle of it; asked again until it is heard."""
        ladder = plan_of(decode_study(self.spec())).ladder
        wanted = ladder.budget(ladder.top) * ladder.eta

        async def once(decider: Decider) -> None:
            ladder = (await decider.search(self.study_id)).ladder
            if ladder.budget(ladder.top) < wanted:
                await decider.decide(self.study_id, events=[Deepened(max_budget=wanted)])

        try:
            await self.call(Worker("client", 0), once)
            self.faults["deepened"] += 1
            self.deepening = False
        except Lost:
            self.at(self.now + 5, self.deepens)

    def ended(self) -> bool:
        """Nothing runs and nothing waits."""
        row = self.sync.execute("SELECT state::text FROM study WHERE id = %s", (self.study_id,)).fetchone()
        return row == (StudyState.IDLE.value,) and not any(worker.runs for worker in self.workers)

    async def search(self) -> Search:
        """The study as a controller that knows nothing finds it."""
        return await Decider(self.pool, self.bell, TTL).search(self.study_id)

    async def compare(self) -> None:
        """The settled rungs are those of a run without faults, unless a task failed for the storm's sake."""
        search = await self.search()
        assert search.idle
        poisoned = sum(
            outcome(search.trial(trial).configuration, level, self.seed).kind != "fail"
            for (trial, level), result in search.tasks.items()
            if result is not None and result.status == "failed"
        )
        self.faults["tasks given up"] += poisoned
        self.note(sorted(map(str, search.tasks.items())))
        if poisoned:
            return
        driver = Driver(self.spec())
        undisturbed(driver, self.seed)
        if search.ladder.top > driver.search.ladder.top:
            driver.deepen(search.ladder.budget(search.ladder.top))
            undisturbed(driver, self.seed)
        assert members(search) == members(driver.search), "other settled rungs than without faults"

    def spec(self) -> dict[str, Any]:
        """A study of this seed."""
        draw = random.Random(f"spec {self.seed}")
        method: dict[str, Any] = {
            "name": "idhb",
            "min_budget": 1,
            "max_budget": draw.choice((3, 9, 9)),
            "sampler": "random",
        }
        if draw.random() < 0.4:
            method["brackets"] = "all"
        return {
            "name": f"seed-{self.seed}", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
            "method": method, "seed": self.seed,
        }  # fmt: skip


def undisturbed(driver: Driver, seed: int) -> None:
    """Run everything once, one after the other."""
    while (ask := driver.ask()) is not None:
        ending = outcome(ask.params, ask.level, seed)
        values = {"complete": dict(ending.values), "diverge": {"loss": math.nan}, "fail": None}[ending.kind]
        driver.tell(ask.trial, ask.budget_to, values)


def members(search: Search) -> dict[tuple[int, int], set[int]]:
    """Who is in each settled rung, by the index in its bracket."""
    return {
        (bracket, level): {search.trial(trial).index for trial in trials}
        for bracket, levels in search.settled().items()
        for level, trials in levels.items()
    }


async def owed(*_: object) -> tuple[str, ...]:
    """The metrics a study owes."""
    return ("loss",)


@dataclass(frozen=True)
class History:
    """What a seed did: the fingerprint, the messages, the faults; or why it failed."""

    seed: int
    fingerprint: str
    messages: int
    faults: Mapping[str, int]
    failed: str = ""


@contextlib.contextmanager
def database() -> Iterator[str]:
    """A cluster of its own whose time is ours, migrated."""
    folder = Path(tempfile.mkdtemp(prefix="isoloss-sim-"))
    folder.chmod(0o711)
    embedded = Embedded(home=folder / "postgres", fsync=False)
    keeper = embedded.start()
    try:
        with psycopg.connect(embedded.dsn, autocommit=True) as conn:
            conn.execute(CLOCK)
            name = conn.info.dbname
            conn.execute(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog'.encode())

        async def migrated() -> None:
            async with Pool(embedded.dsn, size=1) as pool:
                await migrate(pool)

        asyncio.run(migrated())
        yield embedded.dsn
    finally:
        embedded.stop(keeper)
        shutil.rmtree(folder, ignore_errors=True)


TABLES: Final = """
    SELECT string_agg(format('%I', relname), ', ') FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
      AND relname NOT IN ('migration', 'control_plane', 'sim_clock')"""


def play(dsn: str, seed: int) -> History:
    """One seed on an empty database."""
    with psycopg.connect(dsn, autocommit=True) as sync:
        row = sync.execute(TABLES).fetchone()
        assert row is not None
        sync.execute(f"TRUNCATE {row[0]} RESTART IDENTITY CASCADE".encode())
        sync.execute("UPDATE sim_clock SET at = to_timestamp(%s)", (DAY,))
        sync.execute("UPDATE control_plane SET beat_at = to_timestamp(%s)", (DAY,))

        async def body() -> History:
            async with Pool(dsn, size=2) as pool:
                world = World(pool, sync, seed)
                failed = ""
                try:
                    await world.play()
                except AssertionError as error:
                    failed = f"at {world.now:.1f} s: {error}"
                return History(seed, world.trace.hexdigest()[:16], world.messages, dict(world.faults), failed)

        return asyncio.run(body())


def many(seeds: range) -> list[History]:
    """Seeds one after the other, on one cluster."""
    found = []
    with database() as dsn:
        for seed in seeds:
            found.append(play(dsn, seed))
            if found[-1].failed:
                print(f"seed {seed}, commit {commit()}: {found[-1].failed}", flush=True)
                print(f"  again: python tests/sim/scheduler.py --first {seed} --seeds 1", flush=True)
    return found


def commit() -> str:
    """What was simulated."""
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def main() -> None:
    """Play seeds and print what they did."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    begun = time.monotonic()
    last = options.first + options.seeds
    shares = [range(options.first + job, last, options.jobs) for job in range(options.jobs)]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = [history for part in pool.map(many, shares) for history in part]
    seconds, totals = time.monotonic() - begun, Counter[str]()
    for history in found:
        totals.update(history.faults)
    failed = [history.seed for history in found if history.failed]
    print(
        f"{len(found)} seeds in {seconds:.0f} s, {sum(h.messages for h in found)} messages, {len(failed)} failed {failed[:20]}"
    )
    print(", ".join(f"{name} {n}" for name, n in sorted(totals.items())))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
