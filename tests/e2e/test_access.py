"""Who may call: every method × role × project on a real listener, tokens, TLS, and what strangers get (I3, I23)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

import isoloss
from isoloss import errors
from isoloss.client.credentials import Credentials
from isoloss.client.locate import Local
from isoloss.controller import access, certs
from isoloss.controller.settings import load
from isoloss.domain.access import Role
from isoloss.store import tokens
from isoloss.store.pool import Pool
from isoloss.testing.controller import controller, temporary_home
from isoloss.v1 import campaign_pb2, campaign_pb2_grpc, study_pb2, study_pb2_grpc, work_pb2, work_pb2_grpc

SERVICES: dict[str, tuple[Any, Any]] = {
    "StudyService": (study_pb2, study_pb2_grpc.StudyServiceStub),
    "CampaignService": (campaign_pb2, campaign_pb2_grpc.CampaignServiceStub),
    "LawService": (campaign_pb2, campaign_pb2_grpc.LawServiceStub),
    "TrialService": (work_pb2, work_pb2_grpc.TrialServiceStub),
    "WorkerService": (work_pb2, work_pb2_grpc.WorkerServiceStub),
}
DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
SPEC: dict[str, Any] = {
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 9},
}  # fmt: skip


@pytest.fixture(scope="module")
def house() -> Iterator[Local]:
    with temporary_home(), controller(tokens=True) as local:
        yield local


def made(house: Local, role: Role, project: str = "", lasts: float = 3600.0) -> str:
    async def make() -> str:
        async with Pool(house.dsn, size=1) as pool, pool.connection() as conn:
            return await tokens.create(conn, role=role, project=project, lasts=timedelta(seconds=lasts))

    return asyncio.run(make())


def as_(house: Local, monkeypatch: pytest.MonkeyPatch, token: str) -> isoloss.Client:
    monkeypatch.setenv("ISOLOSS_TOKEN", token)
    return isoloss.connect(house.address, start=False, patience=1)


def methods() -> list[tuple[str, str, Any]]:
    """Every method of every service the proto files declare, with its descriptor."""
    return [
        (service, method.name, method)
        for service, (module, _) in SERVICES.items()
        for method in module.DESCRIPTOR.services_by_name[service].methods
    ]


def code_of(house: Local, service: str, name: str, request: Any, token: str) -> grpc.StatusCode:
    with grpc.insecure_channel(house.address) as channel:
        call = getattr(SERVICES[service][1](channel), name)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            answer = call(request, timeout=10, metadata=metadata)
            for _ in answer if hasattr(answer, "__next__") else ():
                break
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def empty(descriptor: Any) -> Any:
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(descriptor.input_type)()


def test_every_method_has_a_rule_and_no_rule_is_left_over() -> None:
    assert {f"/isoloss.v1.{service}/{name}" for service, name, _ in methods()} == set(access.METHODS)


def test_every_method_lets_in_its_roles_and_nobody_else(house: Local) -> None:
    shown = {role: made(house, role) for role in Role}
    for service, name, descriptor in methods():
        rule = access.METHODS[f"/isoloss.v1.{service}/{name}"]
        assert code_of(house, service, name, empty(descriptor), "") is UNKNOWN, name
        for role, token in shown.items():
            code = code_of(house, service, name, empty(descriptor), token)
            assert (code is not DENIED) == (role in rule.roles), (name, role, code)
            assert code not in (UNKNOWN, grpc.StatusCode.INTERNAL), (name, role, code)


def test_what_is_anothers_project_does_not_exist_for_any_method(house: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_(house, monkeypatch, made(house, Role.ADMIN)) as admin:
        admin.create_study("theirs", project="b", **SPEC)
    for role, (service, name, descriptor) in itertools.product((Role.CLIENT, Role.VIEWER), methods()):
        rule = access.METHODS[f"/isoloss.v1.{service}/{name}"]
        if role not in rule.roles or rule.scope not in ("named", "spec"):
            continue
        request = empty(descriptor)
        if rule.scope == "spec":
            request.spec_json = '{"name": "theirs", "project": "b"}'
        else:
            named = access._named(request)
            named.project, named.name = "b", "theirs"
        assert code_of(house, service, name, request, made(house, role, "a")) is grpc.StatusCode.NOT_FOUND, name


def test_lists_hold_a_callers_own_project_only(house: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_(house, monkeypatch, made(house, Role.ADMIN)) as admin:
        for project in ("mine", "yours"):
            admin.create_study("listed", project=project, **SPEC)
        assert {study.project for study in admin.studies()} >= {"mine", "yours"}
    with as_(house, monkeypatch, made(house, Role.VIEWER, "mine")) as viewer:
        assert [study.project for study in viewer.studies()] == ["mine"]
        with pytest.raises(errors.NotFound):
            viewer.studies(project="yours")


def test_a_stolen_lease_is_worth_nothing_to_another_project(house: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_(house, monkeypatch, made(house, Role.CLIENT, "a")) as owner:
        study = owner.create_study("leased", project="a", **SPEC)
        trial = study.ask()
        with as_(house, monkeypatch, made(house, Role.CLIENT, "b")) as thief:
            stolen = work_pb2.FinishRequest()
            ending = stolen.endings.add()
            ending.key.task_id, ending.key.epoch, ending.key.secret = (
                trial.key.task_id,
                trial.key.epoch,
                trial.key.secret,
            )
            ending.complete.values["loss"] = 0.0
            reply = thief.transport.call(thief.transport.trials.Tell, stolen)
            assert [ack.verdict for ack in reply.acks] == [2], "stale: nothing was written"
        study.tell(trial, loss=1.0)
        assert study.best_value == 1.0


def test_a_token_that_expired_or_was_revoked_or_is_wrong_says_so(house: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def revoke(token: str) -> None:
        async with Pool(house.dsn, size=1) as pool, pool.connection() as conn:
            await tokens.revoke(conn, token.partition(".")[0])

    gone = made(house, Role.VIEWER)
    asyncio.run(revoke(gone))
    cases = {
        made(house, Role.VIEWER, lasts=-1): "has expired", gone: "was revoked", "nobody.secret": "not known",
        made(house, Role.VIEWER).partition(".")[0] + ".guess": "not known", "garbage": "shows no token", "": "shows no token",
    }  # fmt: skip
    for token, said in cases.items():
        with as_(house, monkeypatch, token) as client, pytest.raises(errors.Unauthenticated, match=said):
            client.studies()


def test_only_hashes_of_secrets_are_stored_and_nothing_prints_one(house: Local) -> None:
    token = made(house, Role.CLIENT)

    async def dump() -> str:
        async with Pool(house.dsn, size=1) as pool, pool.connection() as conn:
            return str(await (await conn.execute("SELECT token::text FROM token")).fetchall())

    assert token.partition(".")[2] not in asyncio.run(dump())
    assert token not in repr(Credentials(token=token, key=b"pem")) and "pem" not in repr(Credentials(key=b"pem"))


def test_beyond_loopback_there_is_no_listener_without_tls_and_the_page_never_leaves_it(tmp_path: Path) -> None:
    with temporary_home():
        with pytest.raises(errors.InvalidSpec, match="without TLS"):
            load(listen="0.0.0.0:0")
        with pytest.raises(errors.InvalidSpec, match="the page has no login"):
            load(dash="0.0.0.0:0")
        with pytest.raises(errors.InvalidSpec, match="set in part"):
            load(tls_cert="x.pem")
        with pytest.raises(errors.InvalidSpec, match="a PEM file that can be read"):
            load(tls_cert="x.pem", tls_key="x.key")
    with pytest.raises(errors.InvalidSpec, match="TLS wherever a token leaves this machine"):
        Credentials(token="a.b").channel("10.0.0.1:7070")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certs.make_ca(tmp_path)
    certs.make_leaf(tmp_path, "server", ("127.0.0.1", "localhost"))
    certs.make_leaf(tmp_path, "gpu-1", ())
    return tmp_path


def credentials(folder: Path, *, client: str = "", ca: str = "ca", token: str = "") -> Credentials:
    own = {
        field: (folder / f"{client}.{end}").read_bytes() for field, end in (("cert", "pem"), ("key", "key")) if client
    }
    return Credentials(token=token, ca=(folder / f"{ca}.pem").read_bytes(), **own)  # type: ignore[arg-type]


def reaches(local: Local, how: Credentials) -> grpc.StatusCode:
    with how.channel(local.address) as channel:
        try:
            study_pb2_grpc.StudyServiceStub(channel).ListStudies(
                study_pb2.ListStudiesRequest(), timeout=5, metadata=how.metadata
            )
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_tls_asks_for_a_token_and_a_certificate_of_the_right_ca_and_takes_a_new_one_without_a_restart(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    certs.make_ca(elsewhere)
    certs.make_leaf(elsewhere, "gpu-1", ())
    certs.make_leaf(folder, "old", (), days=0)
    files = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    with temporary_home(), controller(**{field: str(folder / name) for field, name in files.items()}) as local:
        token = made(local, Role.VIEWER)
        assert reaches(local, credentials(folder, client="gpu-1", token=token)) is grpc.StatusCode.OK
        assert reaches(local, credentials(folder, client="gpu-1")) is UNKNOWN, "TLS never goes without tokens"
        for refused in (
            Credentials(token=token),  # in clear
            credentials(folder, token=token),  # without a certificate of its own
            credentials(elsewhere, client="gpu-1", token=token),  # another CA on both sides
            Credentials(token=token, ca=(folder / "ca.pem").read_bytes(), cert=(elsewhere / "gpu-1.pem").read_bytes(),
                        key=(elsewhere / "gpu-1.key").read_bytes()),
            credentials(folder, client="old", token=token),  # expired
        ):  # fmt: skip
            assert reaches(local, refused) is grpc.StatusCode.UNAVAILABLE
        certs.make_leaf(folder, "server", ("127.0.0.1", "localhost"))
        assert reaches(local, credentials(folder, client="gpu-1", token=token)) is grpc.StatusCode.OK


def test_a_ca_is_never_made_twice_and_a_name_is_no_path(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(errors.AlreadyExists, match="without a CA"):
        certs.make_ca(folder)
    with pytest.raises(errors.NotFound, match="There is no CA"):
        certs.make_leaf(tmp_path_factory.mktemp("none"), "server", ("localhost",))
    for name in ("ca", "../x", "a/b", ""):
        with pytest.raises(errors.InvalidSpec, match="accepted are letters"):
            certs.make_leaf(folder, name, ())
    assert (folder / "ca.key").stat().st_mode & 0o777 == 0o600


def test_who_does_not_speak_as_the_controller_does_is_told_how_it_does(
    house: Local, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(address: str, ca: Path | None) -> str:
        monkeypatch.delenv("ISOLOSS_CA", raising=False)
        if ca is not None:
            monkeypatch.setenv("ISOLOSS_CA", str(ca))
        with pytest.raises(errors.Unreachable) as caught:
            isoloss.connect(address, patience=0.1, start=False).studies()
        return str(caught.value)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    certs.make_ca(elsewhere)
    files = {"tls_cert": "server.pem", "tls_key": "server.key"}
    assert "It speaks no TLS" in said(house.address, folder / "ca.pem")
    with temporary_home(), controller(**{field: str(folder / name) for field, name in files.items()}) as local:
        assert "ISOLOSS_CA has to name its ca.pem" in said(local.address, None)
        assert "not of the CA in ISOLOSS_CA" in said(local.address, elsewhere / "ca.pem")


def test_a_script_in_a_loop_is_slowed_to_its_tokens_rate_and_notices_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_home(), controller(tokens=True, calls_per_second=20) as house:
        token, other = made(house, Role.CLIENT), made(house, Role.CLIENT)
        asked = [
            code_of(house, "StudyService", "ListStudies", study_pb2.ListStudiesRequest(), token) for _ in range(60)
        ]
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in asked[40:]
        assert (
            code_of(house, "StudyService", "ListStudies", study_pb2.ListStudiesRequest(), other) is grpc.StatusCode.OK
        )
        beat = work_pb2.HeartbeatRequest()
        assert code_of(house, "TrialService", "Heartbeat", beat, token) is grpc.StatusCode.OK, "what runs is renewed"
        monkeypatch.setenv("ISOLOSS_TOKEN", token)
        with isoloss.connect(house.address, start=False, patience=5) as client:
            begun = time.monotonic()
            for _ in range(30):
                client.studies()
            assert time.monotonic() - begun > 1.0


def test_who_guesses_tokens_is_held_back_and_who_has_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_home(), controller(tokens=True) as house:
        token, request = made(house, Role.CLIENT), study_pb2.ListStudiesRequest()
        assert code_of(house, "StudyService", "ListStudies", request, token) is grpc.StatusCode.OK
        said = {code_of(house, "StudyService", "ListStudies", request, f"id{n}.guess") for n in range(40)}
        assert said == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert code_of(house, "StudyService", "ListStudies", request, token) is grpc.StatusCode.OK
