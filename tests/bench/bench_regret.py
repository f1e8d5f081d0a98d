"""The search on real learning curves, its rivals in the same run: what deepening saves, what asynchrony costs.

    python tests/bench/bench_regret.py sync|exact|anytime|deepen|overhead|models|curves [--seeds N] [--tasks N]

Needs ISOLOSS_DATA_HOME (platform/docs/reference/data.md says where the public gets the sets). Every row is ours or a
rival's on the same pools and clock; means are over tasks of means over seeds, ± the standard error over tasks.
A restart drops what runs at once, in its own favour; that time stays in its "busy".
"""

# ruff: noqa: T201, B023  a bench prints, and its closures run before their loop goes on

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from search_curves import Floats, Task, home, lcbench, taskset

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search.events import Asked, CreateTask, CreateTrial, Decision, Deepened, Event, TaskDone
from isoloss.search.proposals import propose
from isoloss.search.search import Search
from isoloss.search.simulate import play

GEOMETRIES = ((3, 3), (2, 5))  # (eta, top level)
ENDLESS = {"width": "auto"}


def study(size: int | Floats, eta: int, top: int, seed: int, **method: Any) -> StudySpec:
    """A study over a pool by number, or over the unit cube its members lie in."""
    space: dict[str, Any] = (
        {"c": {"type": "int", "low": 0, "high": size - 1}}
        if isinstance(size, int)
        else {f"x{k}": {"type": "float", "low": 0, "high": 1} for k in range(size.shape[1])}
    )
    base = {"min_budget": 1, "max_budget": eta**top, "eta": eta, "sampler": "random"}
    return decode_study(
        {"name": "bench", "space": space, "objective": {"metric": "loss"}, "method": base | method, "seed": seed}
    )


class Machine:
    """A search, its models asked before each task, and which member of the pool every trial is.

    Brackets and iterations draw independently, which a continuum forgives and a pool does not: of 1,000 members some would
    run twice. With ``repeats`` off a trial is the next member nobody had yet; machines that share ``free`` share that.
    """

    def __init__(self, spec: StudySpec, task: Task, *, repeats: bool = False, free: Any = None) -> None:
        self.search, self.task, self.repeats = Search(spec), task, repeats
        self.members: list[int] = []
        self.free = np.ones(len(task.loss), bool) if free is None else free

    @property
    def stopped(self) -> str | None:
        return self.search.stopped

    def apply(self, event: Event) -> tuple[Decision, ...]:
        if not isinstance(event, Asked):
            return self.search.apply(event)
        made: list[Decision] = []
        for _ in range(event.n):
            if (request := self.search.proposal_request()) is not None:
                self.search.apply(propose(self.search.spec, request))
            made += self.search.apply(Asked())
        for one in made:
            if isinstance(one, CreateTrial):
                self.members.append(self._member(one.configuration))
        return tuple(made)

    def _member(self, configuration: dict[str, Any]) -> int:
        if "c" in configuration:
            number = int(configuration["c"])
            return number if self.repeats else following(self.free, number)
        return nearest(self.task.points, self.free, list(configuration.values()))


def following(free: Any, number: int) -> int:
    """This member or the next one not used yet; all are free again once all were used."""
    if not free.any():
        free[:] = True
    member = int((number + np.roll(free, -number).argmax()) % len(free))
    free[member] = False
    return member


def nearest(points: Floats, free: Any, point: Sequence[float]) -> int:
    """The nearest member not used yet; all are free again once all were used."""
    if not free.any():
        free[:] = True
    distance = ((points - np.asarray(point)) ** 2).sum(axis=1)
    distance[~free] = np.inf
    member = int(distance.argmin())
    free[member] = False
    return member


class Overlapped:
    """Synchronous Hyperband again and again; an idle worker opens the next iteration, as HpBandSter does."""

    def __init__(self, make: Callable[[int], Machine]) -> None:
        self.make, self.runs = make, [make(0)]
        self.places: list[tuple[int, int]] = []  # trial -> (run, its trial there)
        self.numbers: dict[tuple[int, int], int] = {}
        self.stopped: str | None = None

    @property
    def members(self) -> list[int]:
        return [self.runs[run].members[trial] for run, trial in self.places]

    def apply(self, event: Event) -> tuple[Decision, ...]:
        if isinstance(event, TaskDone):
            run, trial = self.places[event.trial]
            return self.runs[run].apply(
                TaskDone(trial=trial, level=event.level, status=event.status, score=event.score)
            )
        return tuple(task for _ in range(event.n if isinstance(event, Asked) else 0) for task in self._one())

    def _one(self) -> tuple[Decision, ...]:
        for run in range(len(self.runs) + 1):
            if run == len(self.runs):
                self.runs.append(self.make(run))
            made = self.runs[run].apply(Asked())
            if isinstance(task := made[-1], CreateTask):
                if (number := self.numbers.get((run, task.trial))) is None:
                    number = self.numbers[run, task.trial] = len(self.places)
                    self.places.append((run, task.trial))
                return (CreateTask(trial=number, level=task.level, budget_from=task.budget_from,
                                   decay_from=task.decay_from, budget_to=task.budget_to),)  # fmt: skip
        raise AssertionError


@dataclass
class Trace:
    """What a run showed by its horizon: regret of the incumbent under both rules, use of workers, first full result."""

    horizon: float
    workers: int
    highest: tuple[float, float] = (0.0, math.inf)
    lowest: tuple[float, float] = (math.inf, 0.0)
    regret_highest: float = 1.0
    regret_lowest: float = 1.0
    first: float = math.nan
    busy: float = 0.0
    half: float = 1.0  # regret under the lowest-value rule at 70 % of the horizon
    points: list[float] = field(default_factory=list)

    def see(self, clock: float, level: int, top: int, value: float, regret: float) -> None:
        if math.isnan(value):
            return
        if (-level, value) < self.highest:
            self.highest, self.regret_highest = (-level, value), regret
        if (value, -level) < self.lowest:
            self.lowest, self.regret_lowest = (value, -level), regret
        if level == top and math.isnan(self.first):
            self.first = clock
        if clock <= 0.7 * self.horizon:
            self.half = self.regret_lowest

    @property
    def utilization(self) -> float:
        return self.busy / (self.workers * self.horizon)


def run(
    machine: Any, task: Task, eta: int, top: int, workers: int, horizon: float,
    change: tuple[float, Callable[[Any], Any]] | None = None,
) -> Trace:  # fmt: skip
    """Play a machine to the horizon; ``change`` happens once its time has come and may give another machine to go on with."""
    trace, clock = Trace(horizon, workers), 0.0
    while True:

        def value(made: CreateTask) -> float | None:
            found = float(task.loss[machine.members[made.trial], made.budget_to])
            return None if math.isnan(found) else found

        def seconds(made: CreateTask) -> float:
            took = (made.budget_to - made.budget_from) * float(task.pace[machine.members[made.trial]])
            trace.busy += min(took, max(0.0, horizon - clock))
            return took

        before = machine
        for done in play(machine, workers=workers, seconds=seconds, score=value, clock=clock):
            if done.clock > horizon:
                return trace
            clock = done.clock
            member = machine.members[done.task.trial]
            level = round(math.log(done.task.budget_to, eta))
            trace.see(clock, level, top, math.nan if done.score is None else done.score, task.regret(member, eta**top))
            if change is not None and clock >= change[0]:
                machine, change = change[1](machine), None
                if machine is not before:
                    break
        else:
            return trace


def optuna_hyperband(task: Task, eta: int, top: int, workers: int, horizon: float, seed: int) -> Trace:
    """Optuna's TPE with its HyperbandPruner on the same clock; a pruned trial is gone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.HyperbandPruner(1, eta**top, eta)
    other = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    space: dict[str, Any] = {f"x{k}": optuna.distributions.FloatDistribution(0, 1) for k in range(task.points.shape[1])}
    free, trace = np.ones(len(task.loss), bool), Trace(horizon, workers)
    running: list[tuple[float, int, Any, int, int]] = []
    clock, count = 0.0, 0

    def launch(trial: Any, member: int, level: int) -> None:
        nonlocal count
        count += 1
        took = (eta**level - (eta ** (level - 1) if level else 0)) * float(task.pace[member])
        heapq.heappush(running, (clock + took, count, trial, member, level))

    while True:
        while len(running) < workers:
            trial = other.ask(space)
            launch(trial, nearest(task.points, free, list(trial.params.values())), 0)
        clock, _, trial, member, level = heapq.heappop(running)
        if clock > horizon:
            trace.busy = workers * horizon
            return trace
        value = float(task.loss[member, eta**level])
        trace.see(clock, level, top, value, task.regret(member, eta**top))
        told = 1e30 if math.isnan(value) else value
        if level == top:
            other.tell(trial, told)
            continue
        trial.report(told, eta**level)
        if trial.should_prune():
            other.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            launch(trial, member, level + 1)


# ---- the subcommands ---------------------------------------------------------------------------------------------------


def horizon_of(workers: int, eta: int, top: int) -> float:
    return (8.0 if workers <= 8 else 1.5) * float(eta**top)


def table(
    tasks: Sequence[Task], seeds: int, rows: dict[str, Callable[[Task, int], Trace]], size: float
) -> dict[str, Any]:
    """Print a row a method, and return its figures: regrets under both rules with their errors."""
    figures: dict[str, Any] = {}
    for name, one in rows.items():
        traces = [[one(task, seed) for seed in range(seeds)] for task in tasks]
        highest, lowest, half = (
            np.array([np.mean([getattr(t, word) for t in row]) for row in traces])
            for word in ("regret_highest", "regret_lowest", "half")
        )
        first = np.nanmean([t.first / size for row in traces for t in row])
        used = np.mean([t.utilization for row in traces for t in row])
        error = float(highest.std(ddof=1) / len(tasks) ** 0.5) if len(tasks) > 1 else math.nan
        figures[name] = {"highest": highest.mean(), "lowest": lowest.mean(), "se": error, "first": first, "used": used}
        print(f"  {name:34} {highest.mean():8.4f} ({lowest.mean():.4f}; at 70 % {half.mean():.4f}) ± {error:.4f}"
              f"  first {first:5.2f} R  busy {used:.3f}", flush=True)  # fmt: skip
    return figures


def verdict(said: str, ok: bool) -> None:
    print(f"  {'✓' if ok else '✗'} {said}")


def spent(ledger: Iterable[CreateTask]) -> tuple[int, int]:
    tasks = list(ledger)
    return sum(t.budget_to for t in tasks), sum(t.budget_to - t.budget_from for t in tasks)


def to_rest(search: Search, task: Task, workers: int = 1) -> list[CreateTask]:
    """Run to quiescence; what ran."""

    def member(made: CreateTask) -> int:
        return int(search.trial(made.trial).configuration["c"])

    def value(made: CreateTask) -> float | None:
        found = float(task.loss[member(made), made.budget_to])
        return None if math.isnan(found) else found

    def seconds(made: CreateTask) -> float:
        return (made.budget_to - made.budget_from) * float(task.pace[member(made)])

    return [done.task for done in play(search, workers=workers, seconds=seconds, score=value)]


def top_regret(search: Search, task: Task) -> float:
    """Of the best at the highest level with a finite result."""
    top = search.ladder.top
    done = [
        (r.score, t) for t in range(search.trials) if (r := search.result(t, top)) is not None and r.score is not None
    ]
    if not done:
        return 1.0
    return task.regret(int(search.trial(min(done)[1]).configuration["c"]), search.ladder.budget(top))


def sync(sets: dict[str, list[Task]], seeds: int) -> None:
    """Synchronous deepening against starting again."""
    for name, tasks in sets.items():
        for eta, low, high in ((2, 4, 5), (3, 2, 3)):
            regrets: dict[str, list[float]] = {}
            budgets: dict[str, list[tuple[int, int]]] = {}
            same = 0
            for task in tasks:
                for seed in range(seeds):
                    ends = {}
                    for variant in ("efficient", "preserving", "discarding"):
                        method = {"sync": True, "variant": variant}
                        search = Search(study(len(task.loss), eta, low, seed, **method))
                        ran = to_rest(search, task)
                        search.apply(Deepened(max_budget=eta**high))
                        ran += to_rest(search, task)
                        ends[variant] = top_regret(search, task)
                        budgets.setdefault(variant, []).append(spent(ran))
                    small, large = (Search(study(len(task.loss), eta, top, seed, sync=True)) for top in (low, high))
                    budgets.setdefault("restart", []).append(spent([*to_rest(small, task), *to_rest(large, task)]))
                    ends["restart"] = top_regret(large, task)
                    same += ends["restart"] == ends["discarding"]
                    for variant, regret in ends.items():
                        regrets.setdefault(variant, []).append(regret)
            runs = len(tasks) * seeds
            print(f"{name}, eta {eta}, R {eta**low} -> {eta**high}: {len(tasks)} tasks x seeds 0..{seeds - 1}")
            for variant, found in regrets.items():
                fresh, resumed = (float(np.mean([b[k] for b in budgets[variant]])) for k in (0, 1))
                most = max(budgets[variant])
                print(
                    f"  {variant:12} regret {np.mean(found):.4f}   budget {fresh:.0f} / {resumed:.0f}, at most {most}"
                )
            verdict(f"discarding = restart in {same} of {runs} runs", same == runs)
            exact = {(2, 5): (1128, 800), (3, 3): (423, 357)}[eta, high]
            verdict(f"efficient never dearer than {exact}", max(budgets["efficient"]) <= exact)
            again = {(2, 5): (1500, 1078), (3, 3): (501, 426)}[eta, high]
            verdict(f"restart never dearer than {again}, its most", max(budgets["restart"]) == again)
            others = [float(np.mean([b[0] for b in budgets[v]])) for v in ("discarding", "preserving")]
            verdict("discarding and preserving <= 1.03 x efficient", max(others) <= 1.03 * exact[0])


def exact(sets: dict[str, list[Task]], seeds: int) -> None:
    """Settled rungs, deepened at random moments with 1, 8 and 64 workers, against Hyperband from scratch at the end."""
    runs = different = 0
    for tasks in sets.values():
        for task in tasks:
            for eta, top in GEOMETRIES:
                for seed in range(seeds):
                    scratch = Search(study(len(task.loss), eta, top, seed, sync=True))
                    to_rest(scratch, task)
                    for workers in (1, 8, 64):
                        runs += 1
                        rng = random.Random(f"{task.name} {seed} {workers}")
                        search = Search(study(len(task.loss), eta, top - 1, seed, brackets="all"))
                        moment, machine = rng.randrange(60), Machine(search.spec, task, repeats=True)
                        machine.search = search
                        for results, _ in enumerate(
                            play(
                                machine,  # type: ignore[arg-type]
                                workers=workers,
                                seconds=lambda m, machine=machine, task=task: (
                                    float(task.pace[machine.members[m.trial]]) * m.budget_to
                                ),  # type: ignore[misc]
                                score=lambda m, machine=machine, task=task: finite(
                                    task.loss[machine.members[m.trial], m.budget_to]
                                ),  # type: ignore[misc]
                            )
                        ):
                            if results == moment:
                                search.apply(Deepened(max_budget=eta**top))
                        if search.ladder.top < top:
                            search.apply(Deepened(max_budget=eta**top))
                            to_rest(search, task)
                        different += by_index(search) != by_index(scratch)
    print(f"settled against from scratch: {runs} runs, {different} different")
    verdict("equal in every run", different == 0)


def finite(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def by_index(search: Search) -> dict[int, dict[int, list[int]]]:
    return {
        b: {j: sorted(search.trial(t).index for t in members) for j, members in levels.items()}
        for b, levels in search.settled().items()
    }


def overhead(sets: dict[str, list[Task]], seeds: int) -> None:
    """Resumed budget over the plan's, one iteration to quiescence, and what exact decisions cost."""
    for name, tasks in sets.items():
        for eta, top in GEOMETRIES:
            plan = spent(to_rest(Search(study(1000, eta, top, 0, sync=True)), tasks[0]))[1]
            plan = {(3, 3): 357, (2, 5): 800}.get((eta, top), plan)
            for workers in (1, 8, 64):
                said = {}
                for variant, order in (("settled", "auto"), ("settled", "eager"), ("efficient", "eager")):
                    over = [
                        spent(to_rest(Search(study(len(task.loss), eta, top, seed, brackets="all", variant=variant,
                                                   order=order)), task, workers))[1] / plan - 1
                        for task in tasks for seed in range(seeds)
                    ]  # fmt: skip
                    said[variant, order] = (float(np.mean(over)), max(over))
                text = ", ".join(
                    f"{v} {o} {100 * m:+.2f} % (worst {100 * w:+.1f} %)" for (v, o), (m, w) in said.items()
                )
                print(f"{name}, eta {eta}, R {eta**top}, {workers} workers: {text}")
                verdict("efficient exactly 0 or less", said["efficient", "eager"][1] <= 0)
                if workers == 8:
                    verdict(
                        "auto <= 1 %, eager <= 11 %",
                        said["settled", "auto"][0] <= 0.01 and said["settled", "eager"][0] <= 0.11,
                    )


def anytime(sets: dict[str, list[Task]], seeds: int, rivals: bool = True) -> None:
    """Regret at a horizon under one clock."""
    for name, tasks in sets.items():
        for workers in (8, 64):
            for eta, top in GEOMETRIES:
                horizon = horizon_of(workers, eta, top)

                def ours(task: Task, seed: int, **method: Any) -> Trace:
                    spec = study(len(task.loss), eta, top, seed, **method)
                    return run(Machine(spec, task), task, eta, top, workers, horizon)

                def overlapped(task: Task, seed: int) -> Trace:
                    free = np.ones(len(task.loss), bool)
                    machine = Overlapped(
                        lambda k: Machine(study(len(task.loss), eta, top, 1000 * seed + k, sync=True), task, free=free)
                    )
                    return run(machine, task, eta, top, workers, horizon)

                rows: dict[str, Callable[[Task, int], Trace]] = {
                    "settled, all brackets": lambda t, s: ours(t, s, brackets="all", **ENDLESS),
                    "settled, bracket 0": lambda t, s: ours(t, s, order="eager", **ENDLESS),
                    "settled, bracket 0, auto": lambda t, s: ours(t, s, **ENDLESS),
                    "efficient, bracket 0": lambda t, s: ours(t, s, variant="efficient", **ENDLESS),
                    "rival: asha": lambda t, s: ours(t, s, name="asha"),
                    "rival: synchronous, overlapped": overlapped,
                }
                if rivals and workers == 8 and eta == 3:
                    rows["rival: optuna tpe + hyperband"] = lambda t, s: optuna_hyperband(
                        t, eta, top, workers, horizon, s
                    )
                print(f"{name}, {len(tasks)} tasks x seeds 0..{seeds - 1}, eta {eta}, R {eta**top}, {workers} workers, "
                      f"{horizon / eta**top:g} R: highest-level rule (lowest-value rule)")  # fmt: skip
                found = table(tasks, seeds, rows, eta**top)
                asha, zero = found["rival: asha"], found["settled, bracket 0"]
                verdict("bracket 0 <= asha + 1 s.e.", zero["highest"] <= asha["highest"] + asha["se"])
                other = found["rival: synchronous, overlapped"]
                verdict(
                    "all brackets <= overlapped + 1 s.e.",
                    found["settled, all brackets"]["highest"] <= other["highest"] + other["se"],
                )
                for row, goal in (("settled, bracket 0", 1.05), ("settled, bracket 0, auto", 1.4)):
                    ratio = found[row]["first"] / asha["first"]
                    verdict(f"{row}: first full result at {ratio:.2f}x of asha's time (goal <= {goal})", ratio <= goal)
                verdict("busy >= .99", min(found[n]["used"] for n in list(rows)[:4]) >= 0.99)
                if "rival: optuna tpe + hyperband" in found:
                    ratio = zero["highest"] / found["rival: optuna tpe + hyperband"]["highest"]
                    goal = 0.6 if name == "taskset" else 0.85
                    verdict(f"bracket 0 is {ratio:.2f}x of Optuna's (goal <= {goal})", ratio <= goal)


def deepen(sets: dict[str, list[Task]], seeds: int) -> None:
    """The maximum was one level too small until half time: in place, starting again, and right from the start."""
    clear = 0
    for name, tasks in sets.items():
        for workers in (8, 64):
            eta, top = GEOMETRIES[0]
            horizon = horizon_of(workers, eta, top)
            for brackets in ("all", "first:1"):

                def make(task: Task, seed: int, top: int) -> Machine:
                    return Machine(study(len(task.loss), eta, top, seed, brackets=brackets, **ENDLESS), task)

                def in_place(machine: Machine) -> Machine:
                    machine.apply(Deepened(max_budget=eta**top))
                    return machine

                rows: dict[str, Callable[[Task, int], Trace]] = {
                    "right from the start": lambda t, s: run(make(t, s, top), t, eta, top, workers, horizon),
                    "deepened at half time": lambda t, s: run(
                        make(t, s, top - 1), t, eta, top, workers, horizon, (horizon / 2, in_place)
                    ),
                    "rival: restarted at half time": lambda t, s: run(
                        make(t, s, top - 1), t, eta, top, workers, horizon,
                        (horizon / 2, lambda _: make(t, s + 500, top)),
                    ),
                }  # fmt: skip
                print(
                    f"{name}, {len(tasks)} tasks x seeds 0..{seeds - 1}, R {eta ** (top - 1)} -> {eta**top}, {workers} workers, brackets {brackets}"
                )
                found = table(tasks, seeds, rows, eta**top)
                right, here, again = found.values()
                verdict(f"lowest value: deepened - restarted = {here['lowest'] - again['lowest']:+.4f} (<= .005)",
                        here["lowest"] <= again["lowest"] + 0.005)  # fmt: skip
                verdict("within 1 s.e. of right from the start", here["lowest"] <= right["lowest"] + right["se"])
                if workers == 8:
                    after = here["first"] - horizon / 2 / eta**top
                    verdict(f"first full result {after:.2f} R after the event (goal <= .55)", after <= 0.55)
                clear += here["lowest"] <= again["lowest"] - 0.015
    verdict(f"at least .015 below restarting in {clear} cells (goal 5 of 8)", clear >= 5)


def models(sets: dict[str, list[Task]], seeds: int) -> None:
    """Models inside the machine against its streams; a proposal becomes the nearest member of the pool not used yet."""
    eta, top, workers = 3, 3, 8
    horizon = horizon_of(workers, eta, top)
    for name, tasks in sets.items():

        def ours(task: Task, seed: int, sampler: str) -> Trace:
            spec = study(task.points, eta, top, seed, sampler=sampler, order="eager", **ENDLESS)
            return run(Machine(spec, task), task, eta, top, workers, horizon)

        rows: dict[str, Callable[[Task, int], Trace]] = {
            sampler: partial(ours, sampler=sampler) for sampler in ("random", "sobol", "tpe", "cma")
        }
        print(
            f"{name}, {len(tasks)} tasks x seeds 0..{seeds - 1}, eta {eta}, R {eta**top}, {workers} workers, bracket 0, {horizon / eta**top:g} R"
        )
        found = table(tasks, seeds, rows, eta**top)
        for sampler in ("tpe", "cma"):
            ratio = found[sampler]["highest"] / found["random"]["highest"]
            verdict(f"{sampler} is {ratio:.2f}x of random streams (goal <= .80)", ratio <= 0.8)


def plain(row: Floats, budget: int) -> float:
    return float(row[budget])


def smooth(row: Floats, budget: int) -> float:
    return float(np.mean(row[max(1, budget - budget // 3) : budget + 1]))


def slope(row: Floats, budget: int) -> float:
    """The last value carried on by half the gain of the last third, over the doublings that are left."""
    gain = float(row[max(1, budget - max(1, budget // 3))] - row[budget])
    return float(row[budget]) - 0.5 * max(0.0, gain) * math.log(27 / budget, 3)


def best(row: Floats, budget: int) -> float:
    return float(np.min(row[1 : budget + 1]))


def final(row: Floats, _budget: int) -> float:
    """A perfect forecast: how much room there is for any rule."""
    return float(row[27])


RULES: dict[str, Callable[[Floats, int], float]] = {
    "mean of the last third": smooth,
    "carried on": slope,
    "best so far": best,
    "the final value itself": final,
}


def curves(sets: dict[str, list[Task]], seeds: int) -> None:
    """Rungs that rank a forecast of the final value, from the curve so far, against plain values at equal budget."""
    eta, top, workers = 3, 3, 8
    horizon = horizon_of(workers, eta, top)

    for name, tasks in sets.items():
        wins = dict.fromkeys(RULES, 0.0)
        sums = dict.fromkeys(("value", *RULES), 0.0)
        for task in tasks:
            ranked = {}
            for rule, score in ({"value": plain} | RULES).items():
                bent = Task(task.name, task.loss.copy(), task.pace, task.points)
                for level in range(top):
                    budget = eta**level
                    bent.loss[:, budget] = [score(row, budget) for row in task.loss]
                traces = [
                    scored(
                        task, bent, study(len(task.loss), eta, top, seed, order="eager", **ENDLESS), workers, horizon
                    )
                    for seed in range(seeds)
                ]
                ranked[rule] = float(np.mean(traces))
                sums[rule] += ranked[rule] / len(tasks)
            for rule in RULES:
                wins[rule] += 1.0 if ranked[rule] < ranked["value"] else 0.5 if ranked[rule] == ranked["value"] else 0.0
        print(f"{name}, {len(tasks)} tasks x seeds 0..{seeds - 1}: value {sums['value']:.4f}")
        for rule, won in wins.items():
            verdict(
                f"{rule}: {sums[rule]:.4f}, better on {won:g} of {len(tasks)} tasks (goal 3/4)",
                won >= 0.75 * len(tasks),
            )


def scored(task: Task, bent: Task, spec: StudySpec, workers: int, horizon: float) -> float:
    """Regret of the best finished run (highest-level rule) when rungs rank what ``bent`` says."""
    machine, top, best = Machine(spec, task), 27, (math.inf, 1.0)
    for done in play(
        machine,  # type: ignore[arg-type]
        workers=workers,
        seconds=lambda m: float(task.pace[machine.members[m.trial]]) * (m.budget_to - m.budget_from),
        score=lambda m: finite(bent.loss[machine.members[m.trial], m.budget_to]),
    ):
        if done.clock > horizon:
            break
        if done.task.budget_to == top and done.score is not None:
            best = min(best, (done.score, task.regret(machine.members[done.task.trial], top)))
    return best[1]


COMMANDS: dict[str, tuple[Callable[[dict[str, list[Task]], int], None], int, int | None]] = {  # seeds, lcbench tasks
    "sync": (sync, 5, None), "exact": (exact, 2, None), "anytime": (anytime, 10, 12), "deepen": (deepen, 10, 12),
    "overhead": (overhead, 5, 12), "models": (models, 3, 12), "curves": (curves, 10, None),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--tasks", type=int, help="so many tasks of each set")
    parser.add_argument("--no-optuna", action="store_true", help="anytime without its slowest rival")
    asked = parser.parse_args()
    folder = home()
    if folder is None:
        print("skipped: ISOLOSS_DATA_HOME is not set; platform/docs/reference/data.md says where the data are")
        return 0
    warnings.filterwarnings("ignore")
    command, seeds, limit = COMMANDS[asked.command]
    sets = {"taskset": taskset(folder, asked.tasks), "lcbench": lcbench(folder, asked.tasks or limit)}
    if asked.no_optuna and command is anytime:
        command = partial(anytime, rivals=False)
    command(sets, asked.seeds or seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
