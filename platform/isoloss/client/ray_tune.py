"""Ray Tune asks our controller: ``tune.TuneConfig(search_alg=IsolossSearch("study"), num_samples=-1)``.

The controller holds the search; this holds names and leases only, so there is no search to lose with the driver. The trainable
finds its budget in ``config["isoloss"]``: budget_from, budget_to, resume_from, save_to, seed. Leave Tune's scheduler as it is:
a trial stopped before its budget is not ranked beside those that ran to it, it has failed. ``tune.RunConfig(stop=search)`` with
the same object ends trials whose lease is somebody else's by now: a searcher alone can tell Tune to begin trials, never to stop one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Final, TypeGuard
from weakref import WeakValueDictionary

import msgspec
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from isoloss.client.blocking import Client, Study, connect
from isoloss.client.held import Trial
from isoloss.errors import InvalidSpec, IsolossError, LeaseLost, Unreachable

log = logging.getLogger(__name__)
ITERATION: Final = "training_iteration"
KEY: Final = "isoloss"
PAUSE_SECONDS: Final = 0.2  # between two questions that had no trial: Tune asks at each turn of its loop
NOT_METRICS: Final = frozenset((*AUTO_RESULT_KEYS, "done", "trial_id", "experiment_tag"))
# By Ray's trial, for all of a process: what Tune has as its `stop` after a restore is a copy of its searcher.
HELD: Final[WeakValueDictionary[str, Trial]] = WeakValueDictionary()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is saved: the study's name, and by Ray's trial the leases held, some with an ending nobody has heard yet."""

    study: str
    project: str
    held: dict[str, str]
    untold: dict[str, Told]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial ended; a NaN is no number in JSON, hence text."""

    values: dict[str, str] = {}
    failed: str = ""
    retryable: bool = True


class IsolossSearch(Searcher, Stopper):
    """Every suggestion is a lease of a study, which is there already; every result is told to it.

    ``step`` names the result that counts in the study's unit from step 0 of the trial; without it a result's
    ``training_iteration`` counts from the trial's ``budget_from``.
    """

    def __init__(
        self, study: str, *, project: str = "default", address: str | None = None, step: str = ITERATION
    ) -> None:
        super().__init__()
        self._names = {"study": study, "project": project, "address": address, "step": step}
        self._step = step
        self._study: Study | None = None
        self._held: dict[str, Trial] = {}
        self._untold: dict[str, Told] = {}
        self._heard: dict[str, Any] = {}  # the iteration of a trial's last result after which it went on
        self._lost: set[str] = set()  # and still trains
        self._not_before = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune copies its searcher into its own files: the names are enough."""
        return dict(self._names)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # the names are its arguments

    @property
    def study(self) -> Study:
        """The study, from the first use on."""
        if self._study is None:
            client: Client = connect(self._names["address"], start=False)
            self._study = client.study(str(self._names["study"]), project=str(self._names["project"]))
        return self._study

    def set_search_properties(self, metric: str | None, mode: str | None, config: Mapping[str, Any], **_: Any) -> bool:
        """Check what Tune was told against the study; ``InvalidSpec`` where they differ.

        Tune calls this only when it has a ``param_space``, and says its metric to nobody otherwise; constants of the space reach
        the trainable, its domains are refused.
        """
        from ray.tune.search.variant_generator import parse_spec_vars

        _, domains, grids = parse_spec_vars(dict(config))
        if domains or grids:
            name = "/".join(map(str, (*domains, *grids)[0][0]))
            raise InvalidSpec(f"param_space.{name} is to be searched; accepted are constants: the study has the space.")
        if KEY in config:
            raise InvalidSpec(f"param_space has {KEY!r}; accepted is any other name: the budget is handed over in it.")
        self._check(metric, mode)
        return True

    def _check(self, metric: str | None, mode: str | None) -> None:
        objective = self.study.info().spec.get("objective")
        if not objective:
            return  # a preference over several: Tune may name any
        name, goal = objective["metric"], objective.get("goal", "minimize")
        if metric is not None and metric != name:
            raise InvalidSpec(
                f"metric is {metric!r}; accepted is {name!r}, the objective of study {self.study.name!r}."
            )
        if mode is not None and mode != goal[:3]:
            raise InvalidSpec(f"mode is {mode!r}; accepted is {goal[:3]!r}: study {self.study.name!r} has goal {goal}.")

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A configuration; ``None`` when there is none now, ``FINISHED`` when the study is idle or stopped."""
        if time.monotonic() < self._not_before:
            return None
        try:
            self._tell_all()
            trial, idle = self.study.ask_or_idle()
        except Unreachable as error:  # what runs goes on
            log.warning("controller.unreachable: %s", error.message)
            trial, idle = None, False
        if trial is None:
            self._not_before = time.monotonic() + PAUSE_SECONDS
            return str(self.FINISHED) if idle and not self._untold else None
        self._held[trial_id] = HELD[trial_id] = trial
        budget = {
            "budget_from": trial.budget_from, "budget_to": trial.budget_to, "save_to": str(trial.save_to), "seed": trial.seed,
            "resume_from": str(trial.resume_from) if trial.resume_from else None,
        }  # fmt: skip
        return {**trial.params, KEY: budget}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Report; a step that was reported before Ray began the trial again is not reported twice."""
        trial = self._held.get(trial_id)
        if trial is None or trial_id in self._untold:
            return
        self._heard[trial_id] = result.get(ITERATION)
        step = self._at(trial, result)  # where it is missing, the end says so
        if step is None or not trial.reported < step <= trial.budget_to:
            return
        try:
            trial.report(step, **_metrics(result, self._step))
        except LeaseLost as error:
            if trial_id not in self._lost:
                self._lost.add(trial_id)
                log.warning(
                    "lease.lost: %s It trains in vain; tune.RunConfig(stop=search) would end it.", error.message
                )

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:  # noqa: ARG002 - Tune's arguments
        """As Tune's ``stop``: whether somebody else has the trial now, or it was cancelled, so that it trains in vain."""
        trial = HELD.get(trial_id)
        return trial is not None and bool(trial.lost)

    def stop_all(self) -> bool:
        """Never: a study without work is finished, and what runs of it ends by itself."""
        return False

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the result, or the failure; kept and told later when nobody answers."""
        trial = self._held.get(trial_id)
        if trial is None:
            return
        if error or not result:
            told = Told(
                failed="Ray Tune ended the trial with an error."
                if error
                else "Ray Tune ended the trial without a result."
            )
        elif (step := self._at(trial, result)) is None:
            told = Told(
                failed=f"A result lacks the number {self._step!r}; accepted is the step in the study's unit, in every result.",
                retryable=False,
            )
        elif step > trial.budget_to:
            told = Told(
                failed=f"{self._step} is at {step}; accepted is up to {trial.budget_to}, the budget.", retryable=False
            )
        elif step < trial.budget_to and not self._ended_itself(trial_id, result):
            told = Told(
                failed=f"Ray Tune stopped it at step {step} of {trial.budget_to}; accepted are Tune's own scheduler and `stop` "
                "left as they are: the study decides who goes on.",
                retryable=False,
            )
        elif missing := [name for name in trial.metrics if name not in _metrics(result, self._step)]:
            told = Told(
                failed=f"The last result lacks {', '.join(missing)}, which the study asks for.", retryable=False
            )
        else:
            told = Told(values={name: repr(value) for name, value in _metrics(result, self._step).items()})
        self._untold[trial_id] = told
        with contextlib.suppress(Unreachable):
            self._tell_all()

    def _ended_itself(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether its last result is one after which it went on: one at which Tune stops a trial is heard at its end alone."""
        return trial_id in self._heard and self._heard[trial_id] == result.get(ITERATION)

    def save(self, checkpoint_path: str) -> None:
        """Write the names and the leases held, for the owner's eyes: a lease holds its secret."""
        with contextlib.suppress(Unreachable):
            self._tell_all()
        state = State(
            study=str(self._names["study"]), project=str(self._names["project"]),
            held={name: trial.saved for name, trial in self._held.items()},
            untold=self._untold,
        )  # fmt: skip
        with os.fdopen(os.open(checkpoint_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(state))

    def restore(self, checkpoint_path: str) -> None:
        """Take over what was held; what was leased again meanwhile is found out by the pulse, and not told."""
        try:
            state = msgspec.json.decode(Path(checkpoint_path).read_bytes(), type=State)
        except msgspec.DecodeError as error:
            raise InvalidSpec(
                f"{checkpoint_path!r} is no searcher's state ({error}); accepted is one of IsolossSearch."
            ) from None
        if (state.study, state.project) != (self._names["study"], self._names["project"]):
            raise InvalidSpec(
                f"{checkpoint_path!r} is of study {state.study!r} in {state.project!r}; accepted is {self._names['study']!r} in {self._names['project']!r}."
            )
        for name, saved in state.held.items():
            self._held[name] = HELD[name] = self.study.take_over(saved)
        self._untold |= state.untold

    def _at(self, trial: Trial, result: Mapping[str, Any]) -> int | None:
        """The step of a result, from step 0 of the trial; ``None`` when it says none."""
        step = result.get(self._step)
        if not _is_number(step) or not math.isfinite(step):
            return None
        return int(step) + (trial.budget_from if self._step == ITERATION else 0)

    def _tell_all(self) -> None:
        for name, told in list(self._untold.items()):
            trial = self._held[name]
            try:
                if told.failed:
                    self.study.tell_failed(trial, told.failed, retryable=told.retryable)
                else:
                    self.study.tell(trial, **{metric: float(value) for metric, value in told.values.items()})
            except Unreachable:
                raise
            except IsolossError as error:  # somebody else has it, or it was told by the driver before this one
                log.warning("result.not_told: trial %d, level %d: %s", trial.number, trial.level, error)
            del self._untold[name], self._held[name]
            self._heard.pop(name, None)


def _metrics(result: Mapping[str, Any], step: str) -> dict[str, float]:
    """What the trainable itself reported, as numbers."""
    return {
        name: float(value)
        for name, value in result.items()
        if name not in NOT_METRICS and name != step and not name.startswith("config/") and _is_number(value)
    }  # fmt: skip


def _is_number(value: Any) -> TypeGuard[float]:
    """Also by numpy's types; a truth is none."""
    return isinstance(value, Real) and not isinstance(value, bool)
