"""What the demo runs: one scaling campaign on real text, and one desirability search beside it.

Three widths of a byte-level transformer on the standard library's source, each searched over learning rate and batch
size by iterative-deepening Hyperband with all brackets, deepened once by the campaign itself; then the cell of a larger
width at more tokens is run at the forecast. ``quick`` is the same machinery on too few tokens to mean anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Scale(NamedTuple):
    """How much the demo trains; ``unit`` is the smallest rung, in tokens, ``top`` the largest D before the deepening."""

    unit: int
    top: int
    widths: tuple[int, ...]
    target_width: int
    target_units: int
    eval_tokens: int
    trade_unit: int


FULL = Scale(
    unit=30720, top=4, widths=(32, 48, 64), target_width=96, target_units=16, eval_tokens=32768, trade_unit=15360
)
QUICK = Scale(
    unit=12288, top=2, widths=(16, 32, 48), target_width=64, target_units=8, eval_tokens=8192, trade_unit=8192
)
BATCHES = (64, 128, 256, 512)
NAME = "demo"
TRADE = "demo-loss-against-cpu"


def campaign(scale: Scale) -> dict[str, Any]:
    """The campaign: rungs that double, deepened once by itself, confirmed at the target."""
    return {
        "name": NAME,
        "target": {"n_tokens": scale.target_units * scale.unit, "set": {"width": scale.target_width}},
        "sizes": [{"name": f"w{width}", "set": {"width": width}} for width in scale.widths],
        "tokens": {"min": scale.unit, "max": scale.top * scale.unit, "eta": 2, "deepen_to": 2 * scale.top * scale.unit},
        "fidelity": {"mode": "branch", "decay": 0.2},
        "space": {
            "lr": {"type": "float", "low": 2**-10.5, "high": 2**-5.5, "log": True},
            "batch_tokens": {"type": "ordinal", "choices": list(BATCHES)},
        },
        "recipe": {"parameterization": "sp", "optimizer": "adamw", "schedule": "wsd", "data": "python-stdlib"},
        "run": {"gpt": _gpt(scale, scale.unit // 10)},
        "confirm": True,
        "seed": 1,
    }


def trade(scale: Scale) -> dict[str, Any]:
    """The desirability search: held-out loss against CPU time a token, one stated preference over both."""
    return {
        "name": TRADE,
        "space": {
            "width": {"type": "ordinal", "choices": [16, 32, 48, 64, 96]},
            "lr": {"type": "float", "low": 2**-9, "high": 2**-5, "log": True},
            "batch_tokens": {"type": "ordinal", "choices": list(BATCHES)},
        },
        "desirability": {
            "val_loss": {"shape": "smaller", "target": 2.2, "limit": 3.2},
            "cpu_us_per_token": {"shape": "smaller", "target": 8, "limit": 60, "importance": 0.5},
        },
        "method": {
            "name": "idhb",
            "min_budget": scale.trade_unit,
            "max_budget": 4 * scale.trade_unit,
            "eta": 2,
            "brackets": "all",
        },
        "budget": {"unit": "tokens", "multiple": max(BATCHES)},
        "fidelity": {"mode": "resume"},
        "run": {"gpt": _gpt(scale, scale.trade_unit // 10)},
        "seed": 2,
    }


def _gpt(scale: Scale, warmup_tokens: int) -> dict[str, Any]:
    return {"width": 32, "depth": 2, "context": 64, "data": "stdlib", "eval_tokens": scale.eval_tokens,
            "warmup_tokens": warmup_tokens, "weight_decay": 0.1}  # fmt: skip
