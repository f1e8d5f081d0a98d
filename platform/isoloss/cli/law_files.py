"""What the commands of ``isoloss law`` read: observations from DATA, laws from FIT files, a target from flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.output import warn
from isoloss.domain.quantity import parse_count
from isoloss.errors import InvalidSpec, NotFound

if TYPE_CHECKING:
    from isoloss.laws.campaign import CampaignFit
    from isoloss.laws.evidence import Fit
    from isoloss.laws.observation import Observations

Columns = Annotated[tuple[str, ...], Parameter(help="Their column names: theirs=ours,…", consume_multiple=False)]
Where = Annotated[str, Parameter(help="Keep rows where this holds, such as 'n_tokens >= 2B and loss < 3.2'.")]
Pool = Annotated[bool, Parameter(negative="", help="Allow observations of different recipes in one fit.")]
Params = Annotated[str | None, Parameter(help="Parameters of the run (7B).")]
Tokens = Annotated[str | None, Parameter(help="Tokens of the run (140B).")]
Flops = Annotated[str | None, Parameter(help="Compute of the run; alone, N and D are the frontier's at C = 6 N D.")]

Given = Annotated[
    tuple[str, ...],
    Parameter(help="Further columns of the run that a law needs: unique_tokens=1B,n_experts=8", consume_multiple=False),
]

Recipe = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", help="How the run will be trained: schedule=cosine,parameterization=mup", consume_multiple=False
    ),
]


def observations(data: Path, columns: tuple[str, ...], where: str) -> Observations:
    """The rows of DATA, renamed and filtered; ``InvalidSpec`` when none is left."""
    from isoloss.files.tables import read_observations

    found = read_observations(data, columns)
    kept = found.where(where) if where else found
    warn(kept.cautions())
    if not len(kept):
        raise InvalidSpec(f"where {where!r} keeps none of {len(found)} rows; accepted is some.")
    return kept


def is_campaign(loaded: Any) -> bool:
    """Whether a FIT file held a campaign's joint fit."""
    return hasattr(loaded, "fits")


def load_laws(*paths: Path) -> tuple[list[Fit], list[str]]:
    """Every fit in these FIT files, and the warnings of the campaigns among them."""
    laws: list[Fit] = []
    warnings: list[str] = []
    for path in paths:
        loaded = load(path)
        laws += loaded.fits if is_campaign(loaded) else [loaded]
        warnings += loaded.warnings if is_campaign(loaded) else []
    return laws, warnings


def load(path: Path) -> Any:
    """The Fit or CampaignFit in a FIT file."""
    from isoloss.laws.campaign import CampaignFit
    from isoloss.laws.evidence import Fit

    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no file {path}.", hint="Write one with: isoloss law fit DATA --form F --out FIT"
        ) from error
    except ValueError as error:
        raise InvalidSpec(f"{path} is no FIT file: {error}.") from error
    if not isinstance(mapping, dict):
        raise InvalidSpec(f"{path} is no FIT file; accepted is the JSON of law fit --out.")
    kind: type[Fit | CampaignFit] = CampaignFit if "fits" in mapping else Fit
    return kind.from_mapping(mapping)


def count(text: str, name: str) -> float:
    """A count above 0 from a flag; ``InvalidSpec`` names the flag."""
    value = parse_count(text, name)
    if value <= 0:
        raise InvalidSpec(f"{name} is {text!r}; accepted is a number above 0.")
    return value


def target(laws: list[Fit], n_params: str | None, n_tokens: str | None, flops: str | None) -> tuple[float, float]:
    """N and D from what was given; from C alone, the frontier of the first loss law."""
    N = count(n_params, "--n-params") if n_params else None
    D = count(n_tokens, "--n-tokens") if n_tokens else None
    C = count(flops, "--flops") if flops else None
    if N and D and C:
        raise InvalidSpec("--n-params, --n-tokens and --flops were all given; accepted are two of them, or --flops.")
    if C and (N or D):
        return (N, C / (6 * N)) if N else (C / (6 * (D or 1.0)), D or 1.0)
    if C:
        return frontier_of(laws, C)
    if not (N and D):
        raise InvalidSpec("the target is not complete; accepted are --n-params with --n-tokens, or --flops.")
    return N, D


def further(laws: list[Fit], given: tuple[str, ...]) -> dict[str, float]:
    """The further columns of a run from ``--given``; ``InvalidSpec`` for one that none of the laws knows."""
    from isoloss.files.tables import pairs
    from isoloss.laws.lines import ASKED
    from isoloss.laws.lossform import DERIVED, N_AND_D
    from isoloss.laws.lossforms import LOSS_FORMS
    from isoloss.laws.mixture import components

    columns = dict.fromkeys(name for law in components(laws) for name in LOSS_FORMS[law.form].columns)
    known = [name for name in columns if name not in (*N_AND_D, *DERIVED)]
    known += [name for law in laws for name in ASKED.get(law.form, ())]
    found = pairs(given, "--given", "column=number")
    for name in found:
        if name not in known:
            accepted = ", ".join(known) or "none: these laws need N and D alone"
            raise InvalidSpec(f"--given names {name!r}; accepted is {accepted}.")
    return {name: count(value, f"--given {name}") for name, value in found.items()}


def recipe(stated: tuple[str, ...]) -> dict[str, str]:
    """The recipe from ``--set``; ``InvalidSpec`` for an entry that is no part of one."""
    from isoloss.files.tables import pairs
    from isoloss.laws.observation import RECIPE

    found = pairs(stated, "--set", "entry=word")
    for name in found:
        if name not in RECIPE:
            raise InvalidSpec(f"--set names {name!r}; accepted is one of {', '.join(RECIPE)}.")
    return found


def frontier_of(laws: list[Fit], C: float) -> tuple[float, float]:
    """N and D on the frontier of the first law that has one, at C FLOP; ``InvalidSpec`` when there is no loss law."""
    from isoloss.laws import isoflop
    from isoloss.laws.frontier import mixed_frontier
    from isoloss.laws.lossforms import LOSS_FORMS
    from isoloss.laws.mixture import components

    if read := next((made for made in laws if made.form in isoflop.FORMS), None):
        return isoflop.optimal(read, C)
    losses = components(laws)
    if not losses:
        raise InvalidSpec(f"--flops alone needs a loss law; accepted is a FIT of {', '.join(LOSS_FORMS)}.")
    return mixed_frontier(losses, C)
