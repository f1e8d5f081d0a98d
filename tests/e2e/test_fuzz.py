"""Messages nobody would send, built from the descriptors: never INTERNAL, never a crash in the log, nothing corrupted.

``ISOLOSS_FUZZ`` says how many (`poe fuzz`: 100,000), ``ISOLOSS_SEED`` which.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from typing import Any, Final

import grpc
import msgspec
import psycopg
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from isoloss import errors
from isoloss.controller import limits
from isoloss.testing.controller import controller, temporary_home
from isoloss.testing.oracles import violations
from isoloss.v1 import campaign_pb2, common_pb2, study_pb2, work_pb2

MESSAGES: Final = int(os.environ.get("ISOLOSS_FUZZ", "1500"))
SEED: Final = int(os.environ.get("ISOLOSS_SEED", "7"))
METHODS: Final = [
    (f"/{service.full_name}/{method.name}", method)
    for module in (study_pb2, campaign_pb2, work_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
NUMBERS: Final = (0, 1, 2, 3, -1, 27, 2**31 - 1, -(2**31), 2**53, 2**63 - 1, -(2**63))
REALS: Final = (0.0, -0.0, 1.0, 27.0, math.nan, math.inf, -math.inf, 5e-324, -1.0, 1e308)
SPEC: Final = {
    "name": "fuzzed", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 9}, "limits": {"trials": 30},
}  # fmt: skip
TEXTS: Final = (
    "", "fuzzed", "default", "x", "loss", "a" * 201, "a" * 70_000, "nul\0", "'; DROP TABLE study; --", "\N{RIGHT-TO-LEFT OVERRIDE}x",
    "../../etc/passwd", "{}", "[" * 3000, '{"lr": NaN}', "{" * 200, "1e999", "\N{GRINNING FACE}" * 60, "%s%n", "\\u0000",
)  # fmt: skip


def value(field: Any, rng: random.Random, depth: int) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING if field.name.endswith("_json"):
            return mutated(rng)
        case FieldDescriptor.TYPE_STRING:
            return rng.choice(TEXTS)
        case FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.TYPE_DOUBLE:
            return rng.choice(REALS)
        case FieldDescriptor.TYPE_MESSAGE:
            return built(field.message_type, rng, depth + 1)
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_ENUM:
            return rng.choice([n for n in NUMBERS if -(2**31) <= n < 2**31])
        case FieldDescriptor.TYPE_UINT64:
            return rng.choice([n for n in NUMBERS if n >= 0])
    return rng.choice(NUMBERS)


def mutated(rng: random.Random) -> str:
    """A spec with something strange somewhere in it, or no spec at all."""
    if rng.random() < 0.3:
        return rng.choice(TEXTS)
    spec = msgspec.json.decode(msgspec.json.encode(SPEC))
    place = spec
    for _ in range(rng.randrange(3)):
        key = rng.choice([*place, "unknown"])
        if not isinstance(place.get(key), dict):
            break
        place = place[key]
    strange: list[Any] = [*NUMBERS, *TEXTS[:6], None, [], {}, [[]], {"type": "float"}, "1e-3", "27K", True, 0.5]
    place[rng.choice([*place, "unknown"])] = rng.choice(strange)
    return msgspec.json.encode(spec).decode()


def built(descriptor: Any, rng: random.Random, depth: int = 0) -> Any:
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if rng.random() < 0.3 or depth > 6:
            continue
        if field.is_repeated:
            count = rng.choice((0, 1, 1, 2, 3, 1001 if depth == 0 and rng.random() < 0.02 else 1))
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                held = field.message_type.fields_by_name["value"]
                for _ in range(count):
                    key, found = rng.choice(TEXTS[:12]), value(held, rng, depth)
                    if held.type == FieldDescriptor.TYPE_MESSAGE:
                        getattr(message, field.name)[key].CopyFrom(found)
                    else:
                        getattr(message, field.name)[key] = found
            else:
                getattr(message, field.name).extend(value(field, rng, depth) for _ in range(count))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(value(field, rng, depth))
        else:
            setattr(message, field.name, value(field, rng, depth))
    if "wait_seconds" in descriptor.fields_by_name and not message.wait_seconds <= 0:
        message.wait_seconds = rng.choice((0.01, math.nan, -1.0))
    return message


def test_no_message_is_answered_by_a_crash_and_none_corrupts_anything(capfd: pytest.CaptureFixture[str]) -> None:
    rng, codes = random.Random(SEED), Counter[str]()
    with temporary_home(), controller(lease_seconds=1.0) as local:
        with grpc.insecure_channel(local.address, options=(("grpc.max_send_message_length", 8 << 20),)) as channel:
            ways: dict[str, Any] = {path: channel.unary_unary(path) for path, _ in METHODS}
            streams: dict[str, Any] = {
                path: channel.unary_stream(path) for path, method in METHODS if method.server_streaming
            }
            create = study_pb2.CreateStudyRequest(spec_json=msgspec.json.encode(SPEC).decode())
            ways["/isoloss.v1.StudyService/CreateStudy"](create.SerializeToString())
            for number in range(MESSAGES):
                path, method = rng.choice(METHODS)
                data = built(method.input_type, rng).SerializeToString()
                if rng.random() < 0.1:  # bytes that are no message
                    data = bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
                try:
                    if path in streams:
                        for _ in streams[path](data, timeout=0.05):
                            break
                        code = "OK"
                    else:
                        ways[path](data, timeout=20)
                        code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                codes[code] += 1
                assert code not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE"), (number, SEED, path, data[:300])
        with psycopg.connect(local.dsn) as conn:
            assert violations(conn) == []
    assert "crashed" not in capfd.readouterr().err
    print(dict(codes))  # noqa: T201 - with -s
    assert codes["OK"] > 0.05 * MESSAGES and codes["INVALID_ARGUMENT"] > 0.2 * MESSAGES, codes


def test_what_is_too_large_is_refused_by_name() -> None:
    for message, said in (
        (study_pb2.StudyName(name="x" * 201), "name has 201 characters; accepted are at most 200 bytes"),
        (study_pb2.StudyName(name="\N{GRINNING FACE}" * 51), "accepted are at most 200 bytes"),
        (study_pb2.StudyName(project="a\0b"), "project holds the character NUL"),
        (study_pb2.CreateStudyRequest(spec_json=" " * (64 * 1024 + 1)), "spec_json has 65537 characters"),
        (work_pb2.FinishRequest(endings=[common_pb2.Ending()] * 1001), "endings has 1001 entries; accepted are at most 1000"),
        (work_pb2.FinishRequest(endings=[common_pb2.Ending(complete=common_pb2.Ending.Complete(values={str(n): 0.0 for n in range(65)}))]),
         r"endings\[0\].complete.values has 65 entries"),
    ):  # fmt: skip
        with pytest.raises(errors.InvalidSpec, match=said):
            limits.check_limits(message)
