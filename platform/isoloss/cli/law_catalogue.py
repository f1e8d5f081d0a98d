"""``isoloss law catalogue``: the forms that can be fitted, and what published laws say, beside one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.law_files import Params, Tokens, count, load_laws
from isoloss.cli.output import Output, Table, number, show, warn
from isoloss.errors import InvalidSpec

if TYPE_CHECKING:
    from isoloss.laws.literature import Published

FAR = 3.0  # times outside a law's own range
SHOWN = ("lr", "batch_tokens", "critical_batch_tokens", "loss", "n_params")


def catalogue(
    *,
    n_params: Params = None,
    n_tokens: Tokens = None,
    fit: Annotated[Path | None, Parameter(help="A FIT of your own, forecast beside them.")] = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """List the laws that can be fitted and those that were published; at a target (N, D), what each says of it."""
    from isoloss.laws.fit import CATALOGUE
    from isoloss.laws.literature import LITERATURE

    if n_params or n_tokens:
        if not (n_params and n_tokens):
            raise InvalidSpec("the target is not complete; accepted are --n-params with --n-tokens.")
        _at_target(output, count(n_params, "--n-params"), count(n_tokens, "--n-tokens"), fit)
        return
    forms = [(form.name, form.equation, form.gives, form.source) for form in CATALOGUE.values()]
    published = [(one.name, one.equation, one.n_count, _range(one), one.note) for one in LITERATURE.values()]
    names = ("equation", "gives", "needs", "source")
    value = {
        "forms": [{"form": f.name, **{name: getattr(f, name) for name in names}} for f in CATALOGUE.values()],
        "published": [one.to_mapping() for one in LITERATURE.values()],
    }
    show(
        output,
        value,
        Table(("form", "equation", "gives", "source"), forms, "forms for law fit"),
        Table(("law", "equation", "N is", "seen at", "mind"), published, "published laws"),
    )


def _at_target(output: Output, n_params: float, n_tokens: float, fit: Path | None) -> None:
    from isoloss.laws.literature import LITERATURE

    said: list[dict[str, Any]] = []
    warnings = []
    if fit is not None:
        from isoloss.laws.forecast import forecast

        found = forecast(load_laws(fit)[0], n_params, n_tokens)
        said.append(
            {
                "law": "your fit",
                "beyond": found.extrapolation,
                **{k: getattr(found, k) for k in ("lr", "batch_tokens", "loss")},
            }
        )
    for one in LITERATURE.values():
        beyond = one.beyond(n_params, n_tokens)
        said.append({"law": one.name, "beyond": beyond, **one.at(n_params, n_tokens)})
        if far := [f"{name} ×{number(times, 3)}" for name, times in beyond.items() if times > FAR]:
            warnings.append(f"{one.name} was never seen there: {', '.join(far)} beyond its own runs")
    warn(warnings)
    rows = [
        (
            one["law"],
            *(number(one.get(name), 3) for name in SHOWN),
            ", ".join(f"{k[2:]} ×{number(v, 3)}" for k, v in one["beyond"].items() if v > 1),
        )
        for one in said
    ]
    title = f"N {number(n_params)}, D {number(n_tokens)}; their tokenizer, schedule and count of N, not yours"
    show(
        output,
        {"n_params": n_params, "n_tokens": n_tokens, "laws": said, "warnings": warnings},
        Table(("law", "lr", "batch tokens", "critical batch", "loss", "N* at 6 N D", "beyond its range"), rows, title),
    )


def _range(one: Published) -> str:
    spans = (("N", one.n_params), ("D", one.n_tokens))
    return (
        ", ".join(f"{name} {number(span[0], 3)} to {number(span[1], 3)}" for name, span in spans if span) or "not said"
    )
