"""``isoloss study curves`` and ``study forward``: what trials reported, here and where a team already looks."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from isoloss.cli.connection import Address, Project, client
from isoloss.cli.output import Output, Table, number, say, show
from isoloss.client.locate import home
from isoloss.errors import InvalidSpec


def curves(
    name: str, trial: int, *, project: Project = "default", address: Address = None, output: Output = Output()  # noqa: B008
) -> None:  # fmt: skip
    """Show what a trial reported: its metrics at each step, in the study's unit."""
    with client(address) as connection:
        points = connection.study(name, project=project).curves(trial)
    metrics = sorted({metric for _, values in points for metric in values})
    rows = [(step, *(number(values[m]) if m in values else "" for m in metrics)) for step, values in points]
    show(output, {"trial": trial, "points": [{"step": step} | values for step, values in points]},
         Table(("step", *metrics), rows))  # fmt: skip


def forward(
    name: str,
    *,
    to: Annotated[
        tuple[str, ...],
        Parameter(help="tensorboard:FOLDER, wandb:[ENTITY/]PROJECT or mlflow:URI; again for another.", consume_multiple=False),
    ],
    follow: Annotated[bool, Parameter(negative="", help="Go on until the study is idle or stopped.")] = False,
    seconds: Annotated[float, Parameter(help="Between two looks.")] = 5.0,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:  # fmt: skip
    """Send the curves of every trial to TensorBoard, Weights & Biases or MLflow, a run for each trial.

    Started again it goes on where it ended: what was sent is remembered below ISOLOSS_HOME.
    """
    from isoloss.client.forward import Forwarder, answering, memory_of, sink_of

    if not seconds > 0:
        raise InvalidSpec(f"--seconds is {seconds:g}; accepted is a number above 0.")
    with client(address) as connection:
        study = connection.study(name, project=project)
        sinks = {one: sink_of(one, study.name) for one in to}
        forwarders = {one: Forwarder(study, sink, memory_of(home(), study, one)) for one, sink in sinks.items()}
        sent, rests = dict.fromkeys(sinks, 0), False
        try:
            while not rests:
                rests = not follow or study.info().state in ("idle", "stopped")
                for one, forwarder in forwarders.items():
                    with answering(one):
                        sent[one] += forwarder.forward()
                if not rests:
                    say(f"{name}: {', '.join(f'{count} points to {one}' for one, count in sent.items())}")
                    time.sleep(seconds)
        finally:
            for sink in sinks.values():
                sink.close()
    show(output, {"study": name, "points": sent}, *(f"{count} points to {one}" for one, count in sent.items()))
