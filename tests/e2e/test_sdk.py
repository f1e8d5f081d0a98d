"""The SDK against a real controller on loopback: what a notebook does, and what it is told when it is wrong."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import isoloss
from isoloss import errors
from isoloss.client.locate import Local
from isoloss.testing.cluster import wait_until
from isoloss.testing.controller import controller, temporary_home
from isoloss.v1 import study_pb2, study_pb2_grpc

SPACE = {"lr": isoloss.Float(1e-4, 1e-1, log=True)}
LOSS = isoloss.minimize("val_loss")


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with temporary_home(), controller() as found:
        yield found


@pytest.fixture
def client(local: Local) -> Iterator[isoloss.Client]:
    with isoloss.connect(local.address, patience=5.0) as found:
        yield found


def loss(lr: float, epoch: int) -> float:
    return abs(math.log(lr / 3e-3)) + 1 / epoch


def train(trial: isoloss.Trial) -> None:
    for epoch in trial.steps():
        trial.report(epoch, val_loss=loss(trial.params["lr"], epoch))


def test_a_study_is_optimized_deepened_and_answers_in_optunas_words(client: isoloss.Client) -> None:
    study = client.create_study("words", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9))
    study.optimize(train, n_jobs=2)
    before = study.trials()
    assert study.info().state == "idle" and len(before) == 9
    study.deepen(max_budget=27).optimize(train)
    after = study.trials()
    assert [t.params for t in after[:9]] == [t.params for t in before]
    assert study.best_value == pytest.approx(loss(study.best_params["lr"], study.best_trial.budget))
    frame = study.trials_dataframe()
    assert {"number", "value", "params_lr", "state"} <= set(frame.columns) and len(frame) == len(after)
    assert study.info().reserved == 0
    rungs = {(r["bracket"], r["level"]): r for r in study.info().rungs}
    assert all(rung["settled"] and rung["results"] >= rung["quota"] for rung in rungs.values())


def test_a_curve_is_whole_with_the_result_of_its_trial(client: isoloss.Client) -> None:
    study = client.create_study("whole", space=SPACE, objective=LOSS, method={"name": "fixed", "budget": 9})
    trial = study.ask()
    train(trial)
    following = study.tell_and_ask(trial, val_loss=1.0)
    assert [step for step, _ in study.curves(trial.number)] == list(range(1, 10)), "told and asked in one call"
    assert following is not None
    train(following)
    study.tell(following, val_loss=2.0)
    assert [step for step, _ in study.curves(following.number)] == list(range(1, 10)), "told"


def test_one_process_or_four_end_with_the_same_settled_rungs(client: isoloss.Client) -> None:
    def finish(name: str, n_jobs: int) -> list[Any]:
        study = client.create_study(
            name, space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9), seed=3
        )
        study.optimize(train, n_jobs=n_jobs)
        best = sorted(
            (t.levels[-1].score or math.inf, t.params["lr"]) for t in study.trials() if t.levels[-1].level == 2
        )
        return best[:1]

    assert finish("alone", 1) == finish("together", 4)


def test_ask_and_tell_hold_a_lease_and_a_nan_is_a_result(client: isoloss.Client) -> None:
    study = client.create_study("told", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9))
    first, second = study.ask(), study.ask()
    study.tell(first, val_loss=1.0)
    second.report(1, val_loss=float("nan"))
    study.tell(second)
    with pytest.raises(errors.LeaseLost):
        study.tell(first, val_loss=2.0)
    states = {t.number: t.levels[0].state for t in study.trials()}
    assert states == {0: "ok", 1: "diverged"}
    assert study.best_trial.number == 0


def test_telling_and_asking_is_one_call_that_gives_the_next_trial_and_refuses_a_lost_one(
    client: isoloss.Client,
) -> None:
    study = client.create_study(
        "both", space=SPACE, objective=LOSS, method=isoloss.Fixed(budget=1), limits={"trials": 2}
    )
    first = study.ask()
    first.report(1, val_loss=0.5)
    second = study.tell_and_ask(first)
    assert second is not None and second.number == 1
    assert study.best_value == 0.5
    with pytest.raises(errors.LeaseLost):
        study.tell_and_ask(first, val_loss=0.1)
    assert study.tell_and_ask(second, val_loss=0.7) is None
    assert study.info().state == "idle" and [t.levels[0].state for t in study.trials()] == ["ok", "ok"]


def test_an_exception_is_retried_and_then_named_in_the_logs(client: isoloss.Client) -> None:
    study = client.create_study(
        "fails", space=SPACE, objective=LOSS, method=isoloss.Fixed(budget=1), limits={"trials": 1}
    )

    def explode(trial: isoloss.Trial) -> None:
        raise RuntimeError("out of cheese")

    study.optimize(explode)
    (trial,) = study.trials()
    assert trial.levels[0].state == "failed" and "RuntimeError: out of cheese" in trial.levels[0].message
    with pytest.raises(errors.NotFound, match="has no result yet"):
        assert study.best_params


def test_a_result_that_is_no_number_fails_the_attempt_and_anything_like_a_number_counts(client: isoloss.Client) -> None:
    def create(name: str) -> isoloss.Study:
        return client.create_study(
            name, space=SPACE, objective=LOSS, method=isoloss.Fixed(budget=1), limits={"trials": 1}
        )

    study = create("words-for-numbers").optimize(lambda _: {"val_loss": "n/a"})
    (trial,) = study.trials()
    assert trial.levels[0].state == "failed"
    assert "metric val_loss is 'n/a'; accepted is a number" in trial.levels[0].message
    assert create("numpy").optimize(lambda _: np.float32(0.5)).best_value == 0.5


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, errors.Unreachable])
def test_what_ends_one_of_several_threads_ends_the_others_after_their_trial(
    client: isoloss.Client, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    study = client.create_study(
        f"ended-{interrupt.__name__}", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=81)
    )
    together, told, asked = threading.Barrier(2), study._told, []

    def telling(trial: isoloss.Trial, ending: Any) -> Any:
        if trial.number == 0 and ending.kind == "complete":
            raise interrupt("now")
        return told(trial, ending)

    def pair(trial: isoloss.Trial) -> float:
        asked.append(trial.number)
        if len(asked) <= 2:
            together.wait(timeout=10)
        if trial.number != 0:
            threading.Event().wait(0.5)
        return 1.0

    monkeypatch.setattr(study, "_told", telling)
    with pytest.raises(interrupt):
        study.optimize(pair, n_jobs=2)
    assert sorted(asked) == [0, 1]


def test_n_trials_is_exact_with_several_threads(client: isoloss.Client) -> None:
    study = client.create_study("seven", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=81))
    ran: list[int] = []

    def count(trial: isoloss.Trial) -> float:
        ran.append(trial.number)
        return 1.0

    study.optimize(count, n_jobs=4, n_trials=7)
    assert len(ran) == 7


def test_an_enqueued_trial_runs_beside_the_brackets(client: isoloss.Client) -> None:
    study = client.create_study(
        "enqueued", space=SPACE, objective=LOSS, method=isoloss.Fixed(budget=3), limits={"trials": 0}
    )
    assert study.info().state == "idle"
    number = study.enqueue_trial({"lr": 3e-3})
    study.optimize(train)
    assert study.best_trial.number == number and study.best_value == pytest.approx(1 / 3)
    with pytest.raises(errors.InvalidSpec, match="lr"):
        study.enqueue_trial({"lr": 5.0})


def test_a_watch_resumes_from_its_cursor_with_nothing_missed(client: isoloss.Client) -> None:
    study = client.create_study("watched", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=3))
    seen: list[dict[str, Any]] = []
    watcher = threading.Thread(target=lambda: seen.extend(study.watch(until_idle=True)))
    watcher.start()
    study.optimize(train)
    watcher.join(timeout=20)
    assert [event["seq"] for event in seen] == list(range(1, study.info().seq + 1))
    assert [event["seq"] for event in study.watch(after=3, until_idle=True)] == [e["seq"] for e in seen[3:]]


def test_a_desirability_search_answers_with_the_limiting_objective(client: isoloss.Client) -> None:
    wishes = {
        "val_loss": isoloss.Smaller(target=0, limit=5),
        "seconds": isoloss.Smaller(target=1, limit=10, importance=0.5),
    }
    study = client.create_study(
        "wishes", space=SPACE, desirability=wishes, method=isoloss.IDHB(min_budget=1, max_budget=3)
    )
    study.optimize(lambda trial: {"val_loss": loss(trial.params["lr"], 1), "seconds": 2.0})
    best = study.best_trial
    assert 0 < best.value <= 1 and set(best.desirability) == set(wishes) and best.limiting in wishes


def test_another_preference_scores_the_history_anew_and_trains_nothing(client: isoloss.Client) -> None:
    wishes = {"val_loss": isoloss.Smaller(target=0, limit=9), "seconds": isoloss.Smaller(target=1, limit=10)}
    method = isoloss.IDHB(min_budget=1, max_budget=3, sampler="random")
    study = client.create_study("fickle", space=SPACE, desirability=wishes, method=method)
    study.optimize(lambda trial: {"val_loss": loss(trial.params["lr"], 1), "seconds": -math.log10(trial.params["lr"])})
    before, events = study.trials(), study.info().seq
    fast = {
        "val_loss": isoloss.Smaller(target=0, limit=9, importance=0.01),
        "seconds": isoloss.Smaller(target=1, limit=10, importance=10),
    }
    after = study.prefer(fast).trials()
    assert [[level.values for level in t.levels] for t in after] == [
        [level.values for level in t.levels] for t in before
    ]
    assert [t.levels[0].score for t in after] != [t.levels[0].score for t in before]
    assert study.info().preference["version"] == 2 and study.info().preference["sentence"] == ""  # type: ignore[index]
    measured = [t for t in after if t.levels[-1].level == study.best_trial.level]
    assert study.best_trial.number == max(measured, key=lambda t: t.params["lr"]).number
    assert study.best_trial.near[0]["number"] == study.best_trial.number
    seen = list(study.watch(after=events, until_idle=True))
    assert [event["kind"] for event in seen if event["kind"] != "asked"] == ["rescored"]
    none = (
        study.prefer({"val_loss": isoloss.Smaller(target=-2, limit=-1), "seconds": fast["seconds"]}).info().preference
    )
    assert none is not None and none["vetoed"] == none["measured"] and none["vetoes"] == {"val_loss": none["measured"]}
    assert "veto 100%" in none["sentence"] and "nothing is worth anything yet" in none["sentence"]
    with pytest.raises(errors.InvalidSpec, match=r"desirability\.f1 is a metric that not every result has"):
        study.prefer({"f1": isoloss.Larger(limit=0, target=1)})
    with pytest.raises(errors.InvalidSpec, match=r"desirability\.seconds has target 3, limit 2"):
        study.prefer({"seconds": isoloss.Smaller(target=3, limit=2)})
    assert study.info().preference["version"] == 3  # type: ignore[index]
    same = client.create_study("fickle", space=SPACE, desirability=wishes, method=method, load_if_exists=True)
    assert same.info().preference["version"] == 3, "the spec it was launched with stays its own"  # type: ignore[index]
    study.stop()
    assert (
        study.prefer(fast).info().state == "stopped"
        and study.best_trial.number == max(measured, key=lambda t: t.params["lr"]).number
    )
    with pytest.raises(errors.WrongState, match="has no desirability"):
        client.create_study("single", space=SPACE, objective=LOSS, method=method).prefer(fast)


def test_finalists_run_again_with_other_seeds_until_one_is_separated(client: isoloss.Client) -> None:
    wishes = {"val_loss": isoloss.Smaller(target=0, limit=9)}
    method = isoloss.IDHB(min_budget=1, max_budget=3, sampler="random")
    study = client.create_study(
        "confirmed", space=SPACE, desirability=wishes, method=method, seed=5, confirm={"finalists": 2, "runs": 12}
    )
    seeds: dict[int, set[int]] = {}

    def run(trial: isoloss.Trial) -> dict[str, float]:
        seeds.setdefault(trial.number, set()).add(trial.seed)
        noise = math.sin(trial.seed * 7 + trial.params["lr"] * 1e4) / 1e4
        return {"val_loss": loss(trial.params["lr"], trial.budget_to) + noise}

    study.optimize(run)
    best, again = study.best_trial, {t.number: t.repeat for t in study.trials() if t.repeat}
    assert best.confirmation is not None and best.confirmation["separated"]
    assert len(again) >= 4 and all(seeds[number] == {5 + repeat} for number, repeat in again.items())
    assert all(seeds[t.number] == {5} for t in study.trials() if not t.repeat)
    assert (
        best.number == best.confirmation["finalists"][0]["trial"] and "confidence 0.95" in best.confirmation["sentence"]
    )
    assert study.info().state == "idle" and {r["code"] for r in study.reasons()} >= {"confirm", "at_top"}
    again_values = [t.levels[-1].values["val_loss"] for t in study.trials() if t.repeat and t.params == best.params]
    assert best.values["val_loss"] == pytest.approx(sum(again_values) / len(again_values)), "not what it was chosen for"
    before = len(study.trials())
    study.confirm(finalists=3, runs=9).optimize(run)
    assert len(study.trials()) > before and len(study.best_trial.confirmation["finalists"]) == 3  # type: ignore[index]
    with pytest.raises(errors.InvalidSpec, match=r"confirm\.runs is 2"):
        study.confirm(runs=2)


def test_a_finalist_that_never_reached_the_top_may_be_the_best(client: isoloss.Client) -> None:
    method = isoloss.IDHB(min_budget=1, max_budget=9, sampler="random")
    study = client.create_study(
        "overtaken", space=SPACE, objective=LOSS, method=method, confirm={"finalists": 2, "runs": 12}
    )

    def run(trial: isoloss.Trial) -> dict[str, float]:
        lr = float(trial.params["lr"])
        return {"val_loss": lr if trial.seed == 0 else 1 - lr + 1e-7 * math.sin(trial.seed)}

    study.optimize(run)
    top, best = next(t for t in study.trials() if t.levels[-1].level == 2 and not t.repeat), study.best_trial
    assert best.confirmation is not None and best.confirmation["separated"] and best.number != top.number
    assert best.level == 2 and study.trials()[best.number].levels[-1].level < 2, "it ran there only again"
    assert best.value == pytest.approx(1 - float(best.params["lr"]), abs=1e-6)


def test_what_a_formula_vetoes_is_never_leased(client: isoloss.Client) -> None:
    wishes = {
        "val_loss": isoloss.Smaller(target=0, limit=9),
        "rate": isoloss.Smaller(target=1e-4, limit=3e-3, kind="static", formula="lr"),
    }
    method = isoloss.IDHB(min_budget=1, max_budget=9, sampler="random")
    study = client.create_study("vetoed", space=SPACE, desirability=wishes, method=method)
    ran: list[float] = []

    def run(trial: isoloss.Trial) -> dict[str, float]:
        ran.append(trial.params["lr"])
        return {"val_loss": loss(trial.params["lr"], 1)}

    study.optimize(run)
    assert ran and max(ran) < 3e-3
    states = [level.state for t in study.trials() for level in t.levels]
    assert states.count("cancelled") == sum(float(t.params["lr"]) >= 3e-3 for t in study.trials()) > 0
    assert study.info().reserved == 0 and study.info().state == "idle"


def test_a_front_is_searched_and_answered(client: isoloss.Client) -> None:
    method = isoloss.IDHB(min_budget=1, max_budget=9, sampler="motpe")
    both = {"val_loss": "minimize", "speed": "maximize"}
    study = client.create_study("front", space=SPACE, objectives=both, method=method)
    study.optimize(lambda trial: {"val_loss": loss(trial.params["lr"], trial.budget_to), "speed": trial.params["lr"]})
    best = study.best_trial
    assert best.near[0]["number"] == best.number and best.value == best.values["speed"]
    losses, speeds = ([one["values"][metric] for one in best.near] for metric in both)
    assert losses == sorted(losses, reverse=True) and speeds == sorted(speeds, reverse=True)


def test_a_composite_study_proposes_from_what_its_trials_measured(client: isoloss.Client) -> None:
    wishes = {"val_loss": isoloss.Smaller(target=0, limit=5), "seconds": isoloss.Smaller(target=1, limit=10)}
    method = isoloss.IDHB(min_budget=1, max_budget=27, sampler="composite")
    study = client.create_study("composite", space=SPACE, desirability=wishes, method=method)
    with pytest.raises(errors.InvalidSpec, match="composite without a desirability"):
        client.create_study("none", space=SPACE, objective=LOSS, method=method)

    def measured(trial: isoloss.Trial) -> dict[str, float]:
        return {"val_loss": loss(trial.params["lr"], trial.budget_to), "seconds": 2.0}

    study.optimize(measured, n_trials=4)
    wait_until(lambda: "proposed" in kinds(study), seconds=60, what="a proposal")
    study.optimize(measured, n_trials=6)
    assert {"random", "composite"} <= {t.source for t in study.trials()}


def kinds(study: isoloss.Study) -> set[str]:
    """The kinds of all events so far."""
    seen = set()
    for event in study.watch():
        seen.add(event["kind"])
        if event["seq"] >= study.info().seq:
            break
    return seen


def test_model_based_proposals_are_made_ahead_and_recorded(client: isoloss.Client) -> None:
    method = isoloss.IDHB(min_budget=1, max_budget=27, sampler="tpe")
    study = client.create_study("tpe", space=SPACE, objective=LOSS, method=method)

    def slow(trial: isoloss.Trial) -> float:
        threading.Event().wait(0.15)
        return loss(trial.params["lr"], trial.budget_to)

    study.optimize(slow)
    sources = {trial.source for trial in study.trials()}
    kinds = {event["kind"] for event in study.watch(until_idle=True)}
    assert "tpe" in sources and "proposed" in kinds


def test_pause_and_stop_do_what_they_say(client: isoloss.Client) -> None:
    study = client.create_study("paused", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9))
    study.pause()
    with pytest.raises(errors.WrongState, match="nothing|waits"):
        study.ask()
    assert "paused" in study.why()[0]
    study.resume()
    trial = study.ask()
    study.stop("enough")
    with pytest.raises(errors.WrongState, match="is stopped"):
        study.deepen(max_budget=27)
    assert study.info().state == "stopped"
    study.tell(trial, val_loss=1.0)
    assert study.trials()[0].levels[0].state == "cancelled"


BAD = [
    ({"space": {"lr": {"type": "float", "low": 1, "high": 0}}}, r"space\.lr has low 1 and high 0; accepted is low < high"),
    ({"space": {"lr": {"type": "float", "low": 0, "high": 1, "log": True}}}, r"space\.lr\.low is 0 with log: true"),
    ({"space": {"lr": {"type": "float", "low": "a", "high": 1}}}, r"lr\.low|low"),
    ({"space": {"lr": {"type": "float", "low": 0, "high": 1, "hihg": 2}}}, "unknown key `hihg`"),
    ({"method": {"min_budget": 1, "max_budget": 9, "eta": 1}}, r"method\.eta"),
    ({"method": {"min_budget": 1, "max_budget": 9, "eeta": 3}}, r"method: unknown key `eeta`"),
    ({"method": {"min_budget": 9, "max_budget": 1}}, "accepted is min ≤ max"),
    ({"method": {"min_budget": 2, "max_budget": 9, "eta": 2}, "budget": {"multiple": 4}}, "nearest"),
    ({"objective": None}, "neither of objective and desirability"),
    ({"name": "a/b"}, "name is 'a/b'"),
    ({"run": {"command": [], "gpus": 1}}, "run.command is empty"),
    ({"run": {"gpt": {}, "function": "a:b"}}, "run names function, gpt"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named_with_its_path_and_nothing_is_created(
    client: isoloss.Client, change: dict[str, Any], message: str
) -> None:
    spec = {"name": "bad", "space": {"lr": {"type": "float", "low": 0.1, "high": 1}}, "objective": {"metric": "loss"},
            "method": {"min_budget": 1, "max_budget": 9}} | change  # fmt: skip
    with pytest.raises(errors.InvalidSpec, match=message):
        client.launch_study(spec)
    assert "bad" not in {study.name for study in client.studies()}


def test_names_are_taken_once_unless_the_spec_is_equal(client: isoloss.Client) -> None:
    method = isoloss.IDHB(min_budget=1, max_budget=9)
    client.create_study("taken", space=SPACE, objective=LOSS, method=method)
    client.create_study("taken", space=SPACE, objective=LOSS, method=method, load_if_exists=True)
    with pytest.raises(errors.AlreadyExists, match="accepted is a free name"):
        client.create_study("taken", space=SPACE, objective=LOSS, method=method)
    with pytest.raises(errors.AlreadyExists, match="another seed"):
        client.create_study("taken", space=SPACE, objective=LOSS, method=method, seed=9, load_if_exists=True)


@pytest.mark.parametrize(("wanted", "message"), [(9, "more|above|9"), (3, "3"), (20, "27 and 81|27")])
def test_deepening_to_a_smaller_or_unreachable_budget_is_refused(
    client: isoloss.Client, wanted: int, message: str
) -> None:
    study = client.create_study(
        "deep", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9), load_if_exists=True
    )
    before = study.info().seq
    with pytest.raises((errors.InvalidSpec, errors.WrongState), match=message):
        study.deepen(max_budget=wanted)
    assert study.info().seq == before


def test_a_study_is_found_without_anybody_counting_its_trials(local: Local, client: isoloss.Client) -> None:
    study = client.create_study("long", space=SPACE, objective=LOSS, method={"name": "fixed", "budget": 1})
    study.optimize(train, n_trials=3)
    study.info()  # every result is taken up now
    assert client.study("long").info() == study.info()
    with grpc.insecure_channel(local.address) as channel:
        stub = study_pb2_grpc.StudyServiceStub(channel)
        whole = stub.GetStudy(study_pb2.StudyName(project="default", name="long"))
        brief = stub.GetStudy(study_pb2.StudyName(project="default", name="long", brief=True))
    assert (whole.trials, brief.trials, len(brief.rungs)) == (3, 0, 0)
    assert (brief.spec_json, brief.state, brief.seq) == (whole.spec_json, whole.state, whole.seq)


def test_unknown_names_and_unreachable_controllers_are_typed(client: isoloss.Client) -> None:
    with pytest.raises(errors.NotFound, match="There is no study 'nope'"):
        client.study("nope")
    with pytest.raises(errors.NotFound, match="There is no campaign 'nope'"):
        client.campaign("nope")
    with isoloss.connect("127.0.0.1:1", patience=0.5) as nobody, pytest.raises(errors.Unreachable):
        nobody.studies()


def test_a_call_made_twice_under_one_key_happens_once(client: isoloss.Client) -> None:
    from isoloss.v1 import common_pb2, study_pb2

    spec = '{"name": "once", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "l"}, "method": {"name": "fixed", "budget": 1}, "limits": {"trials": 0}}'
    key = common_pb2.Idempotency(key="k1")
    stub = client.transport.studies
    first = client.transport.call(stub.CreateStudy, study_pb2.CreateStudyRequest(idempotency=key, spec_json=spec))
    again = client.transport.call(stub.CreateStudy, study_pb2.CreateStudyRequest(idempotency=key, spec_json=spec))
    assert first == again
    with pytest.raises(errors.AlreadyExists, match="was used for another request"):
        client.transport.call(
            stub.CreateStudy, study_pb2.CreateStudyRequest(idempotency=key, spec_json=spec.replace("once", "twice"))
        )


def test_the_async_face_has_the_same_names(local: Local) -> None:
    async def body() -> float:
        async with await isoloss.aio.connect(local.address) as client:
            study = await client.create_study(
                "async", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=3)
            )
            await study.optimize(train, n_jobs=2)
            found: float = await study.best_value
            return found

    assert asyncio.run(body()) < 10


def test_a_study_is_widened_its_space_changed_and_known_configurations_go_first(client: isoloss.Client) -> None:
    study = client.create_study("grows", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9))
    study.enqueue([{"lr": 3e-3}, {"lr": 4e-3}]).optimize(train)
    assert [t.params["lr"] for t in study.trials()[:2]] == [3e-3, 4e-3] and study.trials()[0].source == "enqueued"
    said = study.preview_change(width=2)
    before = study.info()
    assert said["added_tasks"] == 13 and before.width == 1
    study.widen(2).change_space({"lr": isoloss.Float(1e-5, 1e-1, log=True)}).optimize(train)
    after = study.info()
    assert after.width == 2 and after.trials == 18 and after.spent >= before.spent + said["added_budget"]
    assert len(study.reasons()) == 18 and {"at_top", "outranked"} == {r["code"] for r in study.reasons()}
    assert study.best_of(settled=True).level == 2
    with pytest.raises(errors.InvalidSpec, match=r"space\.lr\.low is 0\.0001; accepted is at most 1e-05"):
        study.change_space(SPACE)
    with pytest.raises(errors.InvalidSpec, match="width is 2; accepted is a whole number above"):
        study.widen(2)
    assert study.info().seq == after.seq


def test_what_failed_runs_again_and_counts_as_if_it_never_had(client: isoloss.Client) -> None:
    study = client.create_study("again", space=SPACE, objective=LOSS, method=isoloss.IDHB(min_budget=1, max_budget=9))
    broken = True

    def flaky(trial: isoloss.Trial) -> None:
        if broken and trial.number in (1, 4):
            raise RuntimeError("no disk")
        train(trial)

    study.optimize(flaky)
    failed = study.info().tasks["failed"]
    assert failed == 2 and study.info().state == "idle"
    with pytest.raises(errors.WrongState, match="retry.trials has 0, which did not fail"):
        study.retry_failed([0])
    broken = False
    assert study.retry_failed([1]).info().reserved == 1.0
    study.optimize(flaky)
    assert study.info().tasks["failed"] == 1
    study.retry_failed().optimize(flaky)
    info = study.info()
    assert "failed" not in info.tasks and info.reserved == 0 and info.state == "idle"
    lowest = [t.levels[0] for t in study.trials()]
    ranked = sorted(lowest, key=lambda level: level.score or 0.0)
    settled = {t.number for t in study.trials() if len(t.levels) > 1}
    assert {lowest.index(level) for level in ranked[:3]} <= settled


def test_asha_and_hyperband_are_the_same_machine(client: isoloss.Client) -> None:
    asha = client.create_study(
        "asha", space=SPACE, objective=LOSS, method=isoloss.ASHA(min_budget=1, max_budget=9), limits={"trials": 12}
    ).optimize(train)
    assert asha.info().trials == 12 and not any(rung["settled"] for rung in asha.info().rungs)
    hyperband = client.create_study(
        "hyperband", space=SPACE, objective=LOSS, method=isoloss.Hyperband(min_budget=1, max_budget=9)
    ).optimize(train, n_jobs=2)
    info = hyperband.info()
    assert info.trials == 17 and all(rung["results"] == rung["quota"] for rung in info.rungs)
    assert info.spec["method"]["variant"] == "discarding" and hyperband.deepen(27).info().max_budget == 27


def test_tasks_wait_for_a_slot_when_the_method_says_so(client: isoloss.Client) -> None:
    method = isoloss.IDHB(min_budget=1, max_budget=9, ahead=3)
    study = client.create_study("ahead", space=SPACE, objective=LOSS, method=method)
    trial = study.ask()
    assert study.info().tasks == {"leased": 1, "ready": 3}
    study.tell(trial, val_loss=1.0)
    assert study.ask().number == 1
    assert study.info().tasks["ready"] >= 3, "filled up again"


def test_a_report_back_in_time_or_past_the_budget_is_refused_where_it_is_made(client: isoloss.Client) -> None:
    study = client.create_study("steps", space=SPACE, objective=LOSS, method=isoloss.Fixed(budget=5))
    trial = study.ask()
    trial.report(2, val_loss=1.0)
    with pytest.raises(errors.InvalidSpec, match=r"report.step is 1; accepted are 2 \(the last one reported\) to 5"):
        trial.report(1, val_loss=1.0)
    with pytest.raises(errors.InvalidSpec, match="report.step is 6"):
        trial.report(6, val_loss=1.0)
    study.tell(trial, val_loss=0.5)
