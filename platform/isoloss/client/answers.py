"""What the SDK answers: frozen values and plain mappings, never messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict

from isoloss.domain.space import Scalar
from isoloss.v1 import campaign_pb2, common_pb2, study_pb2
from isoloss.wire.states import word
from isoloss.wire.values import from_values


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyInfo:
    """A study as it stands; budgets in its unit. ``next_deepening``: (max_budget, added, from scratch instead).

    ``agreement`` is Spearman's rank correlation of ``level`` with the one below, over so many ``trials``.
    ``codes``: attempts by the version of the trainer's code that git told.
    ``checkpoints``: how many are kept and dropped, their bytes, and how many dropped ones still lie there.
    """

    name: str
    project: str
    state: str
    spec: Mapping[str, Any]
    max_budget: int
    trials: int
    tasks: Mapping[str, int]
    spent: float
    reserved: float
    seq: int
    rungs: Sequence[Mapping[str, Any]]
    next_deepening: Mapping[str, float] | None
    width: int
    agreement: Mapping[str, float] | None
    checkpoints: Mapping[str, int]
    codes: Mapping[str, int]
    preference: Mapping[str, Any] | None  # version, measured, vetoed, vetoes by metric, drawn, alive, sentence

    @property
    def metric(self) -> str | None:
        """The objective's metric; ``None`` for a preference over several."""
        objective = self.spec.get("objective")
        return objective["metric"] if objective else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelInfo:
    """A trial at one level; ``state`` is the result's status once there is one."""

    level: int
    budget: int
    state: str
    values: Mapping[str, float]
    score: float | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialInfo:
    """A configuration and its life across levels."""

    number: int
    bracket: int
    index: int
    source: str
    params: Mapping[str, Scalar]
    levels: Sequence[LevelInfo]
    repeat: int = 0  # added to the seed: a finalist's further run


@dataclass(frozen=True, slots=True, kw_only=True)
class BestTrial:
    """The best trial: its value is the metric, or the hard overall desirability with its parts.

    ``expected`` is the D that another run is expected to have, where there were results enough to model. ``confirmation``
    has the finalists that ran again (trial, runs, mean, behind, behind_at_least), whether one is separated, and a sentence.
    """

    number: int
    level: int
    budget: int
    value: float
    values: Mapping[str, float]
    params: Mapping[str, Scalar]
    desirability: Mapping[str, float]
    limiting: str
    near: Sequence[
        Mapping[str, Any]
    ]  # within 0.05 of its overall desirability, best first, itself among them; or the front
    expected: float | None = None
    confirmation: Mapping[str, Any] | None = None


def study(message: study_pb2.Study) -> StudyInfo:
    """A study of its message."""
    deeper = message.next_deepening
    return StudyInfo(
        name=message.name, project=message.project, state=word(study_pb2.StudyState, message.state),
        spec=msgspec.json.decode(message.spec_json), max_budget=message.max_budget, trials=message.trials,
        tasks=dict(message.tasks), spent=message.spent, reserved=message.reserved, seq=message.seq,
        rungs=[plain(rung) for rung in message.rungs],
        next_deepening={
            "max_budget": deeper.max_budget, "added_budget": deeper.added_budget, "restart_budget": deeper.restart_budget
        } if message.HasField("next_deepening") else None,
        width=message.width, agreement=plain(message.agreement) if message.HasField("agreement") else None,
        checkpoints=plain(message.checkpoints), codes=dict(message.codes),
        preference=plain(message.preference) | {"vetoes": dict(message.preference.vetoes)} if message.HasField("preference") else None,
    )  # fmt: skip


def trial(message: study_pb2.Trial) -> TrialInfo:
    """A trial of its message."""
    return TrialInfo(
        number=message.no, bracket=message.bracket, index=message.index, source=message.source,
        params=from_values(message.params), repeat=message.repeat,
        levels=[
            LevelInfo(
                level=level.level, budget=level.budget, state=level.state, values=dict(level.values),
                score=level.score if level.has_score else None, message=level.message,
            )
            for level in message.levels
        ],
    )  # fmt: skip


def best(message: study_pb2.Best) -> BestTrial:
    """The best trial of its message."""
    return BestTrial(
        number=message.trial, level=message.level, budget=message.budget, value=message.value, values=dict(message.values),
        params=from_values(message.params), desirability=dict(message.desirability), limiting=message.limiting,
        near=[
            {"number": one.trial, "value": one.value, "params": from_values(one.params), "desirability": dict(one.desirability),
             "values": dict(one.values), "expected": one.expected if one.HasField("expected") else None}
            for one in message.near
        ],
        expected=message.expected if message.HasField("expected") else None,
        confirmation=plain(message.confirmation) if message.HasField("confirmation") else None,
    )  # fmt: skip


def event(message: study_pb2.StudyEvent) -> dict[str, Any]:
    """An event of its message."""
    return {
        "seq": message.seq, "kind": message.kind, "body": msgspec.json.decode(message.body_json),
        "decisions": msgspec.json.decode(message.decisions_json), "state": word(study_pb2.StudyState, message.state),
    }  # fmt: skip


def campaign(message: campaign_pb2.Campaign) -> dict[str, Any]:
    """A campaign of its message."""
    return {
        "name": message.name, "project": message.project, "state": word(campaign_pb2.CampaignState, message.state),
        "spec": msgspec.json.decode(message.spec_json), "max_tokens": message.max_tokens,
        "observations": message.observations, "own_observations": message.own_observations, "searched_flops": message.searched_flops, "target_flops": message.target_flops,
        "deepened": message.deepened, "reason": message.reason, "deepened_tokens": message.deepened_tokens, "restart_tokens": message.restart_tokens,
        "forecast": msgspec.json.decode(message.forecast_json) if message.forecast_json else None,
        "confirmed": msgspec.json.decode(message.confirmed_json) if message.confirmed_json else None,
        "verdict": message.verdict,
        "verdict_reason": message.verdict_reason,
        "studies": [
            {
                "name": s.name, "size": s.size, "n_params": s.n_params, "state": s.state, "trials": s.trials,
                "tasks_done": s.tasks_done, "tasks_open": s.tasks_open, "best": s.best if s.has_best else None,
                "max_budget": s.max_budget,
            }
            for s in message.studies
        ],
        "outcomes": [
            {"index": o.index, "loss": o.loss if o.HasField("loss") else None, "status": o.status, **from_values(o.params)}
            for o in sorted(message.outcomes, key=lambda o: o.index)
        ],
    }  # fmt: skip


def points(series: Iterable[common_pb2.Series]) -> list[tuple[int, dict[str, float]]]:
    """Curves as metrics at each step, in its order."""
    found: dict[int, dict[str, float]] = {}
    for one in series:
        for place, value in enumerate(one.samples):
            step = one.steps[place] if one.steps else one.first + one.stride * place
            found.setdefault(int(step), {})[one.metric] = value
    return sorted(found.items())


def frame_rows(trials: Sequence[TrialInfo], metric: str | None) -> list[dict[str, Any]]:
    """One row a trial, at its highest level with a result, in Optuna's columns."""
    rows = []
    for one in trials:
        done = [level for level in one.levels if level.values] or list(one.levels)
        last = done[-1]
        value = last.values.get(metric) if metric else None
        rows.append(
            {
                "number": one.number, "value": value, **{f"params_{name}": v for name, v in one.params.items()},
                "state": last.state.upper(), "level": last.level, "budget": last.budget, "bracket": one.bracket,
            }
        )  # fmt: skip
    return rows


def plain(message: Any) -> dict[str, Any]:
    """A message as a mapping with all its fields."""
    mapping: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {name: int(v) if isinstance(v, str) and v.lstrip("-").isdecimal() else v for name, v in mapping.items()}
