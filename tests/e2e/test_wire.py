"""Programs of different ages: a newer client is served by this controller, this client reads a newer controller."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

import isoloss
from isoloss.client.pulse import Pulse
from isoloss.client.transport import BlockingTransport
from isoloss.controller.interceptor import Guarded
from isoloss.testing.controller import controller, temporary_home

LATER = b"\xc0\x3e\x07\xca\x3e\x03new"  # field 1000 is a number, field 1001 a text
SPEC: dict[str, Any] = {
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 3},
}  # fmt: skip


def newer(message: Message) -> Message:
    """The message as a later version sends it: with fields that are not known yet, in all its parts too."""
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in [value] if isinstance(value, Message) else value:
                newer(part)
    message.MergeFromString(LATER)
    assert LATER in message.SerializeToString()
    return message


def run(address: str, name: str) -> Any:
    """A small study to its end."""
    with isoloss.connect(address, start=False) as client:
        study = client.create_study(name, **SPEC)

        def train(trial: Any) -> float:
            for step in trial.steps():
                trial.report(step, loss=trial.params["x"] + 1 / step)
            return float(trial.params["x"])

        study.optimize(train)
        trials, info = study.trials(), study.info()
        assert study.best_value == min(
            level.values["loss"] for trial in trials for level in trial.levels if level.budget == 3
        )
        assert len(trials) >= 3 and all(level.state == "ok" for trial in trials for level in trial.levels)
        return info


def test_a_client_that_says_more_than_the_controller_knows_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def grown(inner: Any) -> Any:
        def call(self: Any, method: Any, request: Message) -> Any:
            return inner(self, method, newer(request))

        return call

    monkeypatch.setattr(BlockingTransport, "_once", grown(BlockingTransport._once))
    monkeypatch.setattr(Pulse, "_call", grown(Pulse._call))
    with temporary_home(), controller() as local:
        assert run(local.address, "newer-client").state == "idle"


def test_a_client_reads_a_controller_that_answers_more_than_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Guarded._unary

    def unary(self: Guarded, behaviour: Any, method: str) -> Any:
        answer = inner(self, behaviour, method)

        async def grown(request: Any, context: Any) -> Any:
            reply = await answer(request, context)
            for field in reply.DESCRIPTOR.fields:
                if field.name == "state" and field.enum_type is not None:
                    reply.state = 99
            return newer(reply)

        return grown

    monkeypatch.setattr(Guarded, "_unary", unary)
    with temporary_home(), controller() as local:
        assert run(local.address, "newer-controller").state == "unknown (99)"


def test_what_a_number_of_the_wire_once_meant_it_means_for_ever() -> None:
    file = Path(__file__).parents[2] / ".ci" / "drift.py"
    spec = importlib.util.spec_from_file_location("drift", file)
    assert spec is not None and spec.loader is not None
    drift = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drift)
    landed = {"v1.Lease.study": "2 string", "v1.Lease.old": "3 string", "v1.Verdict.STALE": "2"}
    without = {"v1.Lease.study": "2 string", "v1.Verdict.STALE": "2"}
    assert drift.kept(landed, without | {"v1.Lease.new": "4 string"}) == landed | {"v1.Lease.new": "4 string"}
    for wrong in (
        {"v1.Lease.study": "5 string"},
        {"v1.Lease.study": "2 int64"},
        {"v1.Lease.new": "3 string"},  # old's number
        {"v1.Verdict.STALE": "3"},
    ):
        with pytest.raises(SystemExit, match="old programs would misread it"):
            drift.kept(landed, without | wrong)
