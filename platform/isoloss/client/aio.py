"""The SDK, async. The blocking face (``blocking.py``) is generated from this file and checked for drift.

client = isoloss.connect()
study = client.create_study("tiny-lr", space={"lr": isoloss.Float(low=1e-4, high=1e-1, log=True)},
                            objective=isoloss.minimize("val_loss"), method=isoloss.IDHB(min_budget=1, max_budget=27))
study.optimize(train)
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from google.protobuf import json_format

from isoloss.client import answers
from isoloss.client.answers import BestTrial, StudyInfo, TrialInfo
from isoloss.client.held import Trial, ending_of
from isoloss.client.locate import find_address, start_local
from isoloss.client.own import own_runs
from isoloss.client.pulse import Pulse
from isoloss.client.transport import AsyncTransport, Turns, new_key
from isoloss.domain.lease import Ending
from isoloss.domain.spec import encode
from isoloss.errors import IsolossError, LeaseLost, NotFound, Unreachable, WrongState
from isoloss.v1 import campaign_pb2, common_pb2, study_pb2, work_pb2
from isoloss.wire.values import to_ending, to_values

JSON = msgspec.json.Encoder()
WAIT_SECONDS = 20.0


async def connect(address: str | None = None, *, start: bool = True, patience: float = 30.0) -> Client:
    """A client of the controller at ``address``, else ``ISOLOSS_ADDRESS``, else this user's local one.

    With ``start`` a local controller is started when there is none. Raises ``Unreachable``.
    """
    try:
        found = find_address(address)
    except Unreachable:
        if not start:
            raise
        found = start_local().address
    return Client(AsyncTransport(found, patience=patience))


class Client:
    """A connection to a controller."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport
        self._pulse: Pulse | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the heartbeats and give the connection back."""
        if self._pulse is not None:
            self._pulse.close()
        await self.transport.close()

    @property
    def pulse(self) -> Pulse:
        """The heartbeat thread, started when it is first needed."""
        if self._pulse is None:
            self._pulse = Pulse(self.transport.address)
        return self._pulse

    # ---- studies -----------------------------------------------------------------------------------------------

    async def create_study(self, name: str, *, load_if_exists: bool = False, **spec: Any) -> Study:
        """Create a study; the keywords are the keys of the study spec.

        Raises ``InvalidSpec``, or ``AlreadyExists`` when the name is taken (by another spec, with ``load_if_exists``).
        """
        return await self.launch_study({"name": name, **encode(spec)}, load_if_exists=load_if_exists)

    async def launch_study(self, spec: Mapping[str, Any], *, load_if_exists: bool = False) -> Study:
        """Create a study from a spec as a mapping."""
        request = study_pb2.CreateStudyRequest(
            idempotency=common_pb2.Idempotency(key=new_key()), spec_json=JSON.encode(spec).decode(),
            load_if_exists=load_if_exists,
        )  # fmt: skip
        reply = await self.transport.call(self.transport.studies.CreateStudy, request)
        return Study(self, reply.project, reply.name)

    async def study(self, name: str, *, project: str = "default") -> Study:
        """A study there is already; ``NotFound`` otherwise."""
        reference = study_pb2.StudyName(project=project, name=name, brief=True)
        await self.transport.call(self.transport.studies.GetStudy, reference)
        return Study(self, project, name)

    async def studies(self, *, project: str = "") -> list[StudyInfo]:
        """All studies of a project, or of all."""
        request = study_pb2.ListStudiesRequest(project=project)
        reply = await self.transport.call(self.transport.studies.ListStudies, request)
        return [answers.study(message) for message in reply.studies]

    async def workers(self) -> list[dict[str, Any]]:
        """The workers, the most recently heard of first."""
        reply = await self.transport.call(self.transport.workers.ListWorkers, work_pb2.ListWorkersRequest())
        return [answers.plain(message) for message in reply.workers]

    async def drain_worker(self, worker_id: str) -> None:
        """Ask a worker to finish what it holds and leave."""
        await self.transport.call(self.transport.workers.Drain, work_pb2.DrainRequest(worker_id=worker_id))

    # ---- campaigns ---------------------------------------------------------------------------------------------

    async def launch_campaign(
        self, spec: Mapping[str, Any], *, load_if_exists: bool = False, folder: str | Path = "."
    ) -> Campaign:
        """Launch a campaign from its spec; the files that ``observations`` names lie in ``folder`` and are read here."""
        request = campaign_pb2.LaunchCampaignRequest(
            idempotency=common_pb2.Idempotency(key=new_key()), spec_json=JSON.encode(spec).decode(),
            load_if_exists=load_if_exists, observations_json=own_runs(spec, Path(folder)),
        )  # fmt: skip
        reply = await self.transport.call(self.transport.campaigns.LaunchCampaign, request)
        return Campaign(self, reply.project, reply.name)

    async def campaign(self, name: str, *, project: str = "default") -> Campaign:
        """A campaign there is already; ``NotFound`` otherwise."""
        campaign = Campaign(self, project, name)
        await campaign.info()
        return campaign

    async def campaigns(self, *, project: str = "") -> list[dict[str, Any]]:
        """All campaigns of a project, or of all."""
        request = campaign_pb2.ListCampaignsRequest(project=project)
        reply = await self.transport.call(self.transport.campaigns.ListCampaigns, request)
        return [answers.campaign(message) for message in reply.campaigns]


class Study:
    """One study. Names and columns are Optuna's where Optuna has them."""

    def __init__(self, client: Client, project: str, name: str) -> None:
        self.client = client
        self.transport = client.transport
        self.project = project
        self.name = name
        self._reference = study_pb2.StudyName(project=project, name=name)
        self._holder = f"{socket.gethostname()}-{os.getpid()}"

    async def info(self) -> StudyInfo:
        """The study as it stands."""
        return answers.study(await self.transport.call(self.transport.studies.GetStudy, self._reference))

    async def deepen(self, max_budget: float) -> Self:
        """Raise the maximum budget; everything that ran is reused."""
        request = study_pb2.DeepenStudyRequest(
            idempotency=common_pb2.Idempotency(key=new_key()), study=self._reference, max_budget=max_budget
        )
        await self.transport.call(self.transport.studies.DeepenStudy, request)
        return self

    async def widen(self, width: int) -> Self:
        """Pool so many iterations of Hyperband, more than before: more configurations under the same maximum."""
        return await self._change(width=width)

    async def change_space(self, space: Mapping[str, Any]) -> Self:
        """Search a larger space from now on; every configuration there is must be a point of it."""
        return await self._change(space_json=JSON.encode(encode(space)).decode())

    async def enqueue(self, configurations: Sequence[Mapping[str, Any]]) -> Self:
        """Put configurations in line: they are started next, inside the brackets."""
        lines = [study_pb2.Configuration(params=to_values(one)) for one in configurations]
        return await self._change(enqueue=study_pb2.Configurations(configurations=lines))

    async def prefer(self, desirability: Mapping[str, Any]) -> Self:
        """Change limits, weights and shapes, by metric: everything that ran is scored anew, nothing runs again.

        ``info().preference`` says how many trials the new limits leave something of.
        """
        return await self._change(desirability_json=JSON.encode(encode(desirability)).decode())

    async def confirm(self, *, finalists: int = 4, delta: float = 0.05, runs: int = 40) -> Self:
        """Run the best trials again with other seeds until one is the best with confidence 1 - ``delta``.

        At most ``runs`` times in all; ``best_of`` then says who leads. ``WrongState`` below two results.
        """
        wanted = {"finalists": finalists, "delta": delta, "runs": runs}
        return await self._change(confirm_json=JSON.encode(wanted).decode())

    async def retry_failed(self, trials: Sequence[int] = ()) -> Self:
        """Run failed tasks again: of these trials, or of all."""
        return await self._change(retry=study_pb2.TrialNumbers(trials=trials))

    async def preview_change(self, *, max_budget: float | None = None, width: int | None = None) -> dict[str, Any]:
        """What deepening or widening now would add to what was created; changes nothing."""
        change: dict[str, Any] = {"width": width} if max_budget is None else {"max_budget": max_budget}
        request = study_pb2.PreviewChangeRequest(study=self._reference, **change)
        reply = await self.transport.call(self.transport.studies.PreviewChange, request)
        return msgspec.json.decode(reply.preview_json, type=dict[str, Any])

    async def _change(self, **change: Any) -> Self:
        key = common_pb2.Idempotency(key=new_key())
        request = study_pb2.ChangeStudyRequest(idempotency=key, study=self._reference, **change)
        await self.transport.call(self.transport.studies.ChangeStudy, request)
        return self

    async def enqueue_trial(self, params: Mapping[str, Any]) -> int:
        """Add one configuration outside brackets and quotas; returns the trial's number."""
        request = study_pb2.AddTrialRequest(
            idempotency=common_pb2.Idempotency(key=new_key()), study=self._reference, params=to_values(params)
        )
        reply = await self.transport.call(self.transport.studies.AddTrial, request)
        return int(reply.trial)

    async def pause(self) -> StudyInfo:
        """Lease nothing more until ``resume``; what runs goes on."""
        return answers.study(await self.transport.call(self.transport.studies.PauseStudy, self._reference))

    async def resume(self) -> StudyInfo:
        """Go on after ``pause``."""
        return answers.study(await self.transport.call(self.transport.studies.ResumeStudy, self._reference))

    async def stop(self, reason: str = "stopped by hand") -> StudyInfo:
        """End the study for good; what runs is cancelled."""
        request = study_pb2.StopStudyRequest(
            idempotency=common_pb2.Idempotency(key=new_key()), study=self._reference, reason=reason
        )
        return answers.study(await self.transport.call(self.transport.studies.StopStudy, request))

    async def why(self) -> list[str]:
        """What keeps the study from running, one sentence each."""
        reply = await self.transport.call(self.transport.studies.ExplainStudy, self._reference)
        return list(reply.sentences)

    async def reasons(self) -> list[dict[str, Any]]:
        """Why each trial that is not running is not: trial, level, code and a sentence."""
        reply = await self.transport.call(self.transport.studies.ExplainStudy, self._reference)
        return [answers.plain(reason) for reason in reply.trials]

    async def trials(self) -> list[TrialInfo]:
        """All trials with their levels."""
        reply = await self.transport.call(self.transport.studies.ListTrials, self._reference)
        return [answers.trial(message) for message in reply.trials]

    async def curves(self, trial: int, *, from_step: int = 0) -> list[tuple[int, dict[str, float]]]:
        """What a trial reported: its metrics at each step, over all levels, in the study's unit; ``NotFound`` without it."""
        found: list[tuple[int, dict[str, float]]] = []
        more = True
        while more:
            request = study_pb2.GetCurvesRequest(
                project=self._reference.project, name=self._reference.name, trial=trial, from_step=from_step
            )
            reply = await self.transport.call(self.transport.studies.GetCurves, request)
            found += answers.points(reply.series)
            more, from_step = reply.more, found[-1][0] + 1 if found else 0
        return found

    async def logs(self, trial: int | None = None) -> list[dict[str, Any]]:
        """What the newest attempts said, of one trial or of all: trial, level, attempt, worker, state, text."""
        request = study_pb2.GetLogsRequest(project=self._reference.project, name=self._reference.name, trial=trial)
        reply = await self.transport.call(self.transport.studies.GetLogs, request)
        return [answers.plain(message) for message in reply.logs]

    async def trials_dataframe(self) -> Any:
        """All trials as a pandas frame in Optuna's columns: number, value, params_*, state, and level and budget."""
        import pandas as pd

        metric = (await self.info()).metric
        return pd.DataFrame(answers.frame_rows(await self.trials(), metric))

    async def watch(self, *, after: int = 0, until_idle: bool = False) -> AsyncIterator[dict[str, Any]]:
        """The study's events after a cursor, without gaps, as they are decided."""
        request = study_pb2.WatchStudyRequest(study=self._reference, after=after, until_idle=until_idle)
        async for message in self.transport.stream(self.transport.studies.WatchStudy, request):
            yield answers.event(message)

    # ---- answers -----------------------------------------------------------------------------------------------

    @property
    async def best_params(self) -> Mapping[str, Any]:
        """The configuration of the best trial."""
        return (await self.best_trial).params

    @property
    async def best_value(self) -> float:
        """The objective's value of the best trial, or its overall desirability."""
        return (await self.best_trial).value

    @property
    async def best_trial(self) -> BestTrial:
        """The best trial: the lowest score at any level; ``NotFound`` while there is no result."""
        return await self.best_of(settled=False)

    async def best_of(self, *, settled: bool) -> BestTrial:
        """The best trial; with ``settled`` the best of the highest settled rung, ``NotFound`` while there is none."""
        request = study_pb2.GetBestRequest(project=self.project, name=self.name, settled=settled)
        reply = await self.transport.call(self.transport.studies.GetBest, request)
        if not reply.found:
            raise NotFound(f"Study {self.name!r} has no result yet.")
        return answers.best(reply)

    # ---- asking and telling ------------------------------------------------------------------------------------

    async def ask(self, *, wait_seconds: float = 0.0) -> Trial:
        """A trial to run; ``WrongState`` when there is nothing to run now."""
        trial, idle = await self._ask(wait_seconds)
        if trial is None:
            why = "is idle: everything it asked for has run" if idle else "waits for results of running trials"
            raise WrongState(f"Study {self.name!r} {why}.", hint="Deepen it, or ask again later.")
        return trial

    async def ask_or_idle(self, *, wait_seconds: float = 0.0) -> tuple[Trial | None, bool]:
        """A trial to run, or ``None``, and then whether the study is idle or stopped, so that asking again is in vain."""
        return await self._ask(wait_seconds)

    async def take_over(self, saved: str) -> Trial:
        """A trial that another process held, from its ``trial.saved``; it is lost soon if it was leased again meanwhile."""
        trial = Trial(json_format.Parse(saved, common_pb2.Lease()), self.client.pulse)
        self.client.pulse.hold(trial.key, trial.ttl_seconds, trial.lose)
        return trial

    async def tell(self, trial: Trial, **metrics: float) -> None:
        """End a trial with its final metrics; a NaN means that it diverged. Raises ``LeaseLost``."""
        await self._tell(trial, ending_of(trial, metrics))

    async def tell_and_ask(self, trial: Trial, *, wait_seconds: float = 0.0, **metrics: float) -> Trial | None:
        """End a trial with its final metrics and ask for the next in the same call; ``None`` when there is none now.

        Raises ``LeaseLost`` when the trial was no longer this process's; then nothing was asked for.
        """
        following, _ = await self._ask(wait_seconds, (trial, ending_of(trial, metrics)))
        return following

    async def tell_failed(self, trial: Trial, message: str, *, retryable: bool = True) -> None:
        """End a trial without a result."""
        await self._tell(trial, Ending(kind="fail", message=message, retryable=retryable))

    async def optimize(self, function: Callable[[Trial], Any], *, n_jobs: int = 1, n_trials: int | None = None) -> Self:
        """Run trials in this process until the study is idle, or ``n_trials`` tasks have run.

        ``function(trial)`` reports through ``trial.report``; the last report's metrics, or a returned mapping (or a
        number, for the one objective), are the result. An exception fails the attempt, which is tried twice more.
        Ctrl-C, or a controller that is gone, ends all ``n_jobs`` after the trials they are at.
        """
        turns = Turns(n_trials)

        async def work() -> None:
            ended: tuple[Trial, Ending] | None = None
            while turns.take():
                try:
                    trial, idle = await self._ask(WAIT_SECONDS, ended)
                except LeaseLost:  # of what has ended: somebody else runs it
                    trial, idle = None, False
                ended = None
                if trial is None:
                    turns.give_back()
                    if idle:
                        return
                elif turns.ended:  # meanwhile
                    await self._tell(trial, Ending(kind="release"))
                else:
                    ended = await self._execute(function, trial)
            if ended is not None:
                with contextlib.suppress(LeaseLost):
                    await self._tell(*ended)

        await self.transport.parallel(n_jobs, work, turns.end)
        return self

    async def _execute(self, function: Callable[[Trial], Any], trial: Trial) -> tuple[Trial, Ending] | None:
        """Run one trial; how it ended, which is still to be told, or ``None`` when it was lost meanwhile."""
        try:
            if inspect.iscoroutinefunction(function):
                returned = await function(trial)
            else:
                returned = await self.transport.run(function, trial)
            return trial, ending_of(trial, returned)
        except LeaseLost:
            self.client.pulse.forget(trial.key)
            return None
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises is its result
            return trial, Ending(kind="fail", message=f"{type(error).__name__}: {error}")
        except BaseException:  # Ctrl-C: the trial is given back unharmed
            with contextlib.suppress(IsolossError):
                await self._tell(trial, Ending(kind="release"))
            raise

    async def _ask(self, wait_seconds: float, ended: tuple[Trial, Ending] | None = None) -> tuple[Trial | None, bool]:
        holder = (
            f"{self._holder}/{new_key()[:12]}"  # one a call: asked again after a lost reply, it gets the same lease
        )
        request = work_pb2.AskRequest(study=self._reference, holder=holder, wait_seconds=wait_seconds)
        if ended is None:
            reply = await self.transport.call(self.transport.trials.Ask, request)
        else:
            both = work_pb2.TellAndAskRequest(tell=self._told(*ended), ask=request)
            reply = await self.transport.call(self.transport.trials.TellAndAsk, both)
            _check_accepted(ended[0], reply)
        if not reply.HasField("lease"):
            return None, bool(reply.idle)
        trial = Trial(reply.lease, self.client.pulse)
        self.client.pulse.hold(trial.key, reply.lease.ttl_seconds, trial.lose)
        return trial, False

    async def _tell(self, trial: Trial, ending: Ending) -> None:
        _check_accepted(trial, await self.transport.call(self.transport.trials.Tell, self._told(trial, ending)))

    def _told(self, trial: Trial, ending: Ending) -> work_pb2.FinishRequest:
        """An ending with the points that were not delivered yet."""
        return work_pb2.FinishRequest(endings=[to_ending(trial.key, ending, self.client.pulse.drop(trial.key))])


def _check_accepted(trial: Trial, reply: work_pb2.AckReply | work_pb2.AskReply) -> None:
    if reply.acks[0].verdict != common_pb2.VERDICT_ACCEPTED:
        raise LeaseLost(f"Trial {trial.number} at level {trial.level} is no longer leased to this process.")


class Campaign:
    """One campaign."""

    def __init__(self, client: Client, project: str, name: str) -> None:
        self.transport = client.transport
        self.project = project
        self.name = name
        self._reference = campaign_pb2.CampaignName(project=project, name=name)

    async def info(self) -> dict[str, Any]:
        """The campaign as it stands: studies, observations, forecast, outcomes, costs."""
        return answers.campaign(await self.transport.call(self.transport.campaigns.GetCampaign, self._reference))

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """The campaign each time it changes, until it is done or stopped."""
        async for message in self.transport.stream(self.transport.campaigns.WatchCampaign, self._reference):
            yield answers.campaign(message)

    async def deepen(self, max_tokens: float = 0.0, *, max_per_param: float = 0.0) -> dict[str, Any]:
        """Buy the next columns of D, up to ``max_tokens``, or to ``max_per_param`` where the spec has tokens per_param."""
        request = campaign_pb2.DeepenCampaignRequest(
            idempotency=common_pb2.Idempotency(key=new_key()), campaign=self._reference, max_tokens=max_tokens,
            max_per_param=max_per_param,
        )  # fmt: skip
        return answers.campaign(await self.transport.call(self.transport.campaigns.DeepenCampaign, request))

    async def confirm(self) -> dict[str, Any]:
        """Run the target's cell at the forecast and at two neighbours, once the search is done."""
        return answers.campaign(await self.transport.call(self.transport.campaigns.ConfirmCampaign, self._reference))

    async def stop(self) -> dict[str, Any]:
        """End the campaign and its studies for good."""
        return answers.campaign(await self.transport.call(self.transport.campaigns.StopCampaign, self._reference))

    async def observations(self) -> Sequence[dict[str, Any]]:
        """What was observed, in the columns of `isoloss law`."""
        reply = await self.transport.call(self.transport.campaigns.ListObservations, self._reference)
        return [msgspec.json.decode(row) for row in reply.rows_json]

    async def forecast(self, n_params: float = 0.0, n_tokens: float = 0.0) -> dict[str, Any]:
        """The forecast for a cell (the target's, when none is named); ``FitFailed`` while there is no fit."""
        request = campaign_pb2.ForecastRequest(campaign=self._reference, n_params=n_params, n_tokens=n_tokens)
        reply = await self.transport.call(self.transport.laws.Forecast, request)
        return msgspec.json.decode(reply.forecast_json, type=dict[str, Any])

    async def fit(self, form: str) -> dict[str, Any]:
        """Refit now, and answer the fit of a form as `law fit --json` does."""
        request = campaign_pb2.FitLawRequest(campaign=self._reference, form=form)
        reply = await self.transport.call(self.transport.laws.FitLaw, request)
        return msgspec.json.decode(reply.fit_json, type=dict[str, Any])
