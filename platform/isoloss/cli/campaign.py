"""``isoloss campaign``: sizes to be searched for a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from isoloss.cli.connection import Address, Project, Set, client, launched
from isoloss.cli.law_plan import Budget, Everything
from isoloss.cli.output import Output, Table, dumps, number, say, show, span
from isoloss.domain.quantity import format_count, parse_count

if TYPE_CHECKING:
    from isoloss.domain.campaign import CampaignSpec

app = App(name="campaign", help="Campaigns: which learning rate, batch and loss for the run you cannot sweep.")
Spec = Annotated[Path, Parameter(help="The campaign spec, YAML or JSON.")]


@app.command
def preview(spec: Spec, *, set_: Set = (), output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Show what each size will run and cost, before anything runs; needs no service."""
    from isoloss.domain.campaign import TARGET, decode_campaign, n_params_of, study_of
    from isoloss.files.spec import load_spec
    from isoloss.search.preview import preview as plan

    campaign = decode_campaign(load_spec(spec, set_))
    own = _own(campaign, spec.parent)
    rows: list[tuple[object, ...]] = []
    value: dict[str, Any] = {"sizes": [], "flops": 0.0, "own_observations": own}
    for size in campaign.sizes:
        study, n_params = study_of(campaign, size), n_params_of(campaign, size, size.name)
        cost = plan(study)
        flops = 6 * n_params * cost["billed_budget"]
        value["sizes"].append({"name": size.name, "n_params": n_params, "flops": flops, **cost})
        value["flops"] += flops
        columns = [rung["budget"] for rung in cost["brackets"][0]["rungs"]]
        rows.append(
            (
                size.name,
                format_count(n_params),
                " ".join(map(format_count, columns)),
                cost["tasks"],
                format_count(cost["billed_budget"]),
                f"{flops:.3g}",
            )
        )
    target = 6 * n_params_of(campaign, campaign.target, TARGET) * campaign.target.n_tokens
    value["target_flops"] = target
    share = f"Searching costs {value['flops']:.3g} FLOPs; one run of the target {target:.3g}."
    lines = [share, *([f"{own} runs of your own cost nothing."] if own else [])]
    show(output, value, Table(("size", "parameters", "columns of D", "tasks", "tokens", "FLOPs"), rows), *lines)


@app.command
def launch(
    spec: Spec,
    *,
    set_: Set = (),
    watch: bool = False,
    load_if_exists: bool = False,
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Launch the campaign; the controller does the rest."""
    with client(address) as connection:
        body = launched(connection, spec, set_)
        campaign = connection.launch_campaign(body, load_if_exists=load_if_exists, folder=spec.parent)
        if watch:
            for info in campaign.watch():
                say(line(info))
        info = campaign.info()
    show(output, info, line(info))


@app.command(name="ls")
def list_(*, project: str = "", address: Address = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """List campaigns."""
    with client(address) as connection:
        found = connection.campaigns(project=project)
    rows = [
        (c["name"], c["state"], len(c["studies"]), c["observations"], format_count(c["max_tokens"]), c["reason"])
        for c in found
    ]
    show(output, {"campaigns": found}, Table(("campaign", "state", "studies", "observations", "tokens", ""), rows))


@app.command(name="show")
def show_(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Show a campaign: its studies, its forecast, its outcome."""
    from isoloss.domain.campaign import decode_campaign, next_column

    with client(address) as connection:
        info = connection.campaign(name, project=project).info()
    rows = [
        (s["name"], format_count(s["n_params"]), s["state"], s["tasks_done"], s["tasks_open"], number(s["best"]))
        for s in info["studies"]
    ]
    lines = [line(info), *forecast_lines(info["forecast"])]
    if info["verdict"]:
        lines.append(f"verdict: {info['verdict']} — {info['verdict_reason']}")
    if info["state"] != "stopped":
        flag = next_column(decode_campaign(info["spec"]), info["max_tokens"])
        lines.append(f"next: isoloss campaign deepen {name} {flag}   buys the next column of D")
    show(output, info, Table(("study", "parameters", "state", "done", "open", "best"), rows), *lines)


@app.command
def watch(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Follow a campaign until it is done (with --json, one object a line)."""
    with client(address) as connection:
        for info in connection.campaign(name, project=project).watch():
            if output.json:
                print(dumps(info), flush=True)
            else:
                say(line(info))


@app.command
def deepen(
    name: str,
    *,
    max_tokens: Annotated[
        str | None, Parameter(help="The new largest D: eta times the present one, or a power of it.")
    ] = None,
    max_per_param: Annotated[
        str | None, Parameter(help="The new largest D / N, for a spec with tokens: per_param.")
    ] = None,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Buy the next columns of D in every size."""
    with client(address) as connection:
        info = connection.campaign(name, project=project).deepen(
            parse_count(max_tokens or 0, "--max-tokens"),
            max_per_param=parse_count(max_per_param or 0, "--max-per-param"),
        )
    show(output, info, line(info))


@app.command
def forecast(
    name: str,
    *,
    n_params: str | None = None,
    n_tokens: str | None = None,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Forecast a cell, the target's when none is named."""
    cell = [
        parse_count(text, flag) if text else 0.0 for text, flag in ((n_params, "--n-params"), (n_tokens, "--n-tokens"))
    ]
    with client(address) as connection:
        value = connection.campaign(name, project=project).forecast(*cell)
    show(output, value, *forecast_lines(value))


@app.command
def plan(
    name: str,
    *,
    budget: Budget,
    spend_all: Everything = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Say which single runs of the campaign's cells to buy next for its target; `plan:` in the spec buys them."""
    import numpy as np

    from isoloss.cli.law_plan import show_plan
    from isoloss.domain.campaign import TARGET, decode_campaign, n_params_of
    from isoloss.domain.space import Choice
    from isoloss.laws.design import affordable
    from isoloss.laws.evidence import Fit
    from isoloss.search.geometry import campaign_cells

    with client(address) as connection:
        campaign = connection.campaign(name, project=project)
        info, mapping = campaign.info(), campaign.fit("lr-batch")
    spec = decode_campaign(info["spec"])
    target = n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens)
    cells = affordable(np.array(list(campaign_cells(spec, info["max_tokens"]).values())), target)
    batch = spec.space.get("batch_tokens")
    choices = [float(choice) for choice in batch.choices] if isinstance(batch, Choice) else []
    show_plan(output, Fit.from_mapping(mapping), target, cells, budget, choices=choices, spend_all=spend_all)


@app.command
def why(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Say what a campaign waits for, study by study."""
    with client(address) as connection:
        info = connection.campaign(name, project=project).info()
        waits = {s["size"]: connection.study(s["name"], project=project).why() for s in info["studies"]}
    rows = [(size, reason) for size, reasons in waits.items() for reason in reasons]
    show(
        output,
        {"state": info["state"], "reason": info["reason"], "studies": waits},
        Table(("size", "why"), rows),
        line(info),
    )


@app.command
def pause(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Lease nothing more of a campaign's studies; what runs is finished, and nothing new is bought."""
    _each(name, project, address, output, "pause")


@app.command
def resume(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Go on with a paused campaign."""
    _each(name, project, address, output, "resume")


def _each(name: str, project: str, address: str | None, output: Output, verb: str) -> None:
    with client(address) as connection:
        campaign = connection.campaign(name, project=project)
        for study in campaign.info()["studies"]:
            getattr(connection.study(study["name"], project=project), verb)()
        info = campaign.info()
    show(output, info, line(info))


@app.command
def confirm(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Run the target's cell, or the largest affordable, at the forecast and at two neighbours: go, widen, or buy."""
    with client(address) as connection:
        info = connection.campaign(name, project=project).confirm()
    show(output, info, line(info))


@app.command
def report(
    name: str,
    *,
    out: Annotated[Path, Parameter(help="The HTML file to write; it needs nothing beside it.")],
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Write the campaign's report."""
    from isoloss.cli.report import write_report

    with client(address) as connection:
        campaign = connection.campaign(name, project=project)
        write_report(out, campaign.info(), list(campaign.observations()))
    show(output, {"report": str(out)}, f"report in {out}")


@app.command
def stop(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """End a campaign and its studies for good."""
    with client(address) as connection:
        info = connection.campaign(name, project=project).stop()
    show(output, info, line(info))


@app.command
def export(
    name: str,
    *,
    out: Annotated[Path, Parameter(help="Where to: .csv, .jsonl or .parquet.")],
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Write the campaign's observations as a table for `isoloss law`."""
    from isoloss.files.tables import write_rows

    with client(address) as connection:
        rows = list(connection.campaign(name, project=project).observations())
    write_rows(out, rows)
    show(output, {"rows": len(rows), "out": str(out)}, f"{len(rows)} rows in {out}")


def _own(campaign: CampaignSpec, folder: Path) -> int:
    """How many runs the files under ``observations`` hold."""
    if not campaign.observations:
        return 0  # and numpy is not needed
    from isoloss.files.tables import read_own

    return len(read_own(campaign, folder))


def line(info: dict[str, Any]) -> str:
    """A campaign in one line."""
    done = sum(study["tasks_done"] for study in info["studies"])
    running = sum(study["tasks_open"] for study in info["studies"])
    found = info["forecast"]
    said = f" · forecast loss {number(found['loss'])} [{span(found['loss_interval'])}]" if found else ""
    why = f" ({info['reason']})" if info["reason"] else ""
    own = f" ({info['own_observations']} your own)" if info["own_observations"] else ""
    return (
        f"{info['name']}: {info['state']}{why} · D to {format_count(info['max_tokens'])} · {done} runs done, {running} open · "
        f"{info['observations']} observations{own}{said}"
    )


def forecast_lines(found: dict[str, Any] | None) -> list[str]:
    """A forecast in words."""
    if not found:
        return ["no forecast yet"]
    percent = f"{100 * found['level']:.0f} %"
    lines = [
        f"forecast for N = {format_count(found['n_params'])}, D = {format_count(found['n_tokens'])} [{percent}]: "
        f"lr {number(found['lr'], 3)} [{span(found['lr_interval'], 3)}] · "
        f"batch {number(found['batch_tokens'])} tokens [{span(found['batch_tokens_interval'])}] · "
        f"loss {number(found['loss'])} [{span(found['loss_interval'])}]"
    ]
    return [*lines, *(f"warning: {text}" for text in found["warnings"])]
