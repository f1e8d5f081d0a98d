"""Every call that writes may be made twice: who heard no answer makes it again, and nothing happens twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from isoloss.client.locate import Local
from isoloss.controller import access
from isoloss.domain.access import Role
from isoloss.testing.controller import controller, temporary_home
from isoloss.v1 import campaign_pb2, campaign_pb2_grpc, study_pb2, study_pb2_grpc, work_pb2, work_pb2_grpc

MODULES: dict[str, tuple[Any, Any]] = {
    "Study": (study_pb2, study_pb2_grpc), "Campaign": (campaign_pb2, campaign_pb2_grpc), "Law": (campaign_pb2, campaign_pb2_grpc),
    "Trial": (work_pb2, work_pb2_grpc), "Worker": (work_pb2, work_pb2_grpc),
}  # fmt: skip
S, C, HELD = {"project": "p", "name": "s"}, {"project": "p", "name": "c"}, {"project": "p", "name": "held"}
SPEC = {
    **S, "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 3},
}  # fmt: skip
CAMPAIGN = {
    **C, "target": {"n_tokens": 4608, "set": {"width": 32}}, "sizes": [{"name": "a"}], "tokens": {"min": 512, "max": 1024},
    "run": {"gpt": {"width": 16, "depth": 1}}, "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
    "fidelity": {"mode": "resume"}, "confirm": False,
}  # fmt: skip
WORKER = {"workerId": "w", "incarnation": "i", "slots": 1}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (  # in this order, on one controller; LEASE is what was leased last
    ("Study.CreateStudy", {"specJson": json.dumps(SPEC)}),
    ("Study.AddTrial", {"study": S, "params": {"x": {"number": 0.5}}}),
    ("Study.ChangeStudy", {"study": S, "width": 2}),
    ("Study.DeepenStudy", {"study": S, "maxBudget": 9}),
    ("Study.PauseStudy", S),
    ("Study.ResumeStudy", S),
    ("Trial.Ask", {"study": S, "holder": "me/1"}),
    ("Trial.Heartbeat", {"keys": ["LEASE"]}),
    (
        "Trial.Report",
        {"batches": [{"key": "LEASE", "series": [{"metric": "loss", "first": 1, "stride": 1, "samples": [0.5]}]}]},
    ),
    ("Trial.Tell", {"endings": [{"key": "LEASE", "complete": {"values": {"loss": 0.5}}}]}),
    ("Trial.Ask", {"study": S, "holder": "me/2"}),
    (
        "Trial.TellAndAsk",
        {"tell": {"endings": [{"key": "LEASE", "fail": {"message": "?"}}]}, "ask": {"study": S, "holder": "me/3"}},
    ),
    ("Study.StopStudy", {"study": S, "reason": "enough"}),
    ("Study.CreateStudy", {"specJson": json.dumps(SPEC | HELD | {"run": {"gpt": {}}})}),
    ("Worker.Register", WORKER | {"allowed": {"gpt": True}}),
    ("Worker.Lease", {"workerId": "w", "incarnation": "i", "slots": 1, "waitSeconds": 5}),
    ("Worker.Heartbeat", {"workerId": "w", "keys": ["LEASE"]}),
    (
        "Worker.Report",
        {"checkpoints": [{"key": "LEASE", "checkpoint": {"step": 1, "path": "/c", "manifestJson": '{"a": 1}'}}]},
    ),
    ("Worker.Finish", {"endings": [{"key": "LEASE", "complete": {"values": {"loss": 0.5}}}]}),
    ("Worker.Drain", {"workerId": "w"}),
    ("Campaign.LaunchCampaign", {"specJson": json.dumps(CAMPAIGN)}),
    ("Campaign.DeepenCampaign", {"campaign": C, "maxTokens": 8192}),
    ("Campaign.ConfirmCampaign", C),
    ("Law.FitLaw", {"campaign": C, "form": "chinchilla"}),
    ("Campaign.StopCampaign", C),
)
ROWS = """
    WITH study AS (SELECT * FROM study WHERE campaign_id IS NULL), -- a campaign launches its own meanwhile
         task AS (SELECT task.* FROM task JOIN study ON study.id = study_id)
    SELECT (SELECT count(*) FROM result WHERE decided_seq IS NULL), (SELECT count(*) FROM campaign),
           (SELECT count(*) FROM event JOIN study ON study.id = study_id), (SELECT count(*) FROM trial JOIN study ON study.id = study_id),
           (SELECT json_agg(t ORDER BY t) FROM (SELECT id, state::text, epoch, failures FROM task) AS t),
           (SELECT json_agg(a ORDER BY a) FROM (SELECT task_id, epoch, outcome::text FROM attempt) AS a),
           (SELECT json_agg(s ORDER BY s) FROM (SELECT id, state::text, reserved, spent, max_budget FROM study) AS s),
           (SELECT count(*) FROM result), (SELECT sum(cardinality("values")) FROM metric_chunk), (SELECT count(*) FROM checkpoint),
           (SELECT json_agg(c ORDER BY c) FROM (SELECT id, state::text, max_tokens FROM campaign) AS c)"""


@pytest.fixture(scope="module")
def house() -> Iterator[Local]:
    with temporary_home(), controller() as local:
        yield local


def test_every_method_that_writes_is_called_twice() -> None:
    reads = {name for name, rule in access.METHODS.items() if Role.VIEWER in rule.roles}
    called = {f"/isoloss.v1.{name.replace('.', 'Service/')}" for name, _ in CALLS}
    assert called == set(access.METHODS) - reads


def test_a_call_made_twice_happens_once_and_is_answered_the_same(house: Local) -> None:
    lease: dict[str, Any] = {}
    with grpc.insecure_channel(house.address) as channel, psycopg.connect(house.dsn, autocommit=True) as conn:
        for number, (name, body) in enumerate(CALLS):
            answers, rows = [], []
            for _ in range(2):
                answers.append(answered(channel, name, filled(body, lease), f"key-{number}"))
                rows.append(decided(conn))
            assert rows[0] == rows[1], name
            assert answers[0] == answers[1] or same_task(*answers), (name, answers)
            found = answers[1].get("lease") or next(iter(answers[1].get("leases", ())), None)
            lease = found["key"] if found else lease
        deepened = "SELECT count(*) FROM event JOIN study ON study.id = study_id WHERE kind = 'deepened' AND campaign_id IS NULL"
        assert conn.execute(deepened).fetchone() == (1,)


def decided(conn: psycopg.Connection) -> tuple[Any, ...]:
    """What there is, once every result is decided upon."""
    while (found := conn.execute(ROWS.encode()).fetchone()) is None or found[0]:
        time.sleep(0.02)
    return found


def answered(channel: grpc.Channel, name: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """The reply, or the error, without what a clock changes."""
    service, _, method = name.partition(".")
    messages, stubs = MODULES[service]
    kind = messages.DESCRIPTOR.services_by_name[f"{service}Service"].methods_by_name[method].input_type._concrete_class
    request = ParseDict(body, kind())
    if "idempotency" in kind.DESCRIPTOR.fields_by_name:
        request.idempotency.key = key
    call = getattr(getattr(stubs, f"{service}ServiceStub")(channel), method)
    try:
        reply: dict[str, Any] = MessageToDict(call(request, timeout=20))
    except grpc.RpcError as error:
        if name != "Law.FitLaw":  # nothing ran yet that a law could be fitted to
            raise
        return {"error": error.details()}
    return {name: value for name, value in reply.items() if not name.endswith(("At", "SecondsAgo"))}


def filled(body: Any, lease: dict[str, Any]) -> Any:
    if isinstance(body, dict):
        return {name: filled(value, lease) for name, value in body.items()}
    if isinstance(body, list):
        return [filled(value, lease) for value in body]
    return lease if body == "LEASE" else body


def same_task(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """The same lease told again, under another secret: the answer that was lost is worth nothing; or what was told is known."""
    leases = [[one["key"]["taskId"], one["key"]["epoch"]] for said in (first, second) for one in leases_of(said)]
    verdicts = {ack["verdict"] for said in (first, second) for ack in said.get("acks", ())}
    return leases[: len(leases) // 2] == leases[len(leases) // 2 :] and verdicts <= {
        "VERDICT_ACCEPTED",
        "VERDICT_ALREADY_DONE",
    }


def leases_of(said: dict[str, Any]) -> list[dict[str, Any]]:
    return said.get("leases") or ([said["lease"]] if "lease" in said else [])
