from __future__ import annotations

import numpy as np
import pytest

from isoloss.laws.campaign import fit_campaign
from isoloss.laws.chinchilla import ChinchillaLaw
from isoloss.laws.observation import Observation, Observations
from isoloss.laws.pictures import pictures

LAW = ChinchillaLaw(E=1.7, A=400, B=400, alpha=0.34, beta=0.3)
TARGET = (4e8, 8e9)


def runs() -> Observations:
    rng = np.random.default_rng(0)
    rows = []
    for N in (2e7, 5e7, 1.2e8):
        for D in (4e8, 1e9, 2.5e9):
            for _ in range(8):
                u, v = rng.uniform(-12, -7), rng.uniform(16, 20)
                excess = 0.004 * (u + 9.5) ** 2 + 0.003 * (v - 18) ** 2 + 0.001 * rng.normal()
                rows.append(
                    Observation(
                        n_params=N, n_tokens=D, lr=2.0**u, batch_tokens=2.0**v, loss=LAW.loss(N, D) * np.exp(excess)
                    )
                )
    return Observations(tuple(rows))


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[str, float, float, float | None, float | None, str | None]]]:
    seen = runs()
    return pictures(fit_campaign(seen, bootstrap=2).fits, seen, TARGET)


def test_every_picture_is_drawn_with_finite_points(drawn: dict[str, list[tuple[object, ...]]]) -> None:
    assert set(drawn) == {"plane", "optima", "residuals", "rollouts", "profiles", "spend"}
    for name, rows in drawn.items():
        assert rows, name
        assert all(np.isfinite([float(x) for x in row[1:3]]).all() for row in rows), name  # type: ignore[arg-type]


def test_contours_fall_and_the_frontier_is_near_the_laws_own(drawn: dict[str, list[tuple[object, ...]]]) -> None:
    lines: dict[object, list[tuple[float, float]]] = {}
    for series, x, y, _, _, line in drawn["plane"]:
        if series == "iso-loss":
            lines.setdefault(line, []).append((float(x), float(y)))  # type: ignore[arg-type]
    assert len(lines) > 5
    for points in lines.values():
        tokens = [y for _, y in sorted(points)]
        assert tokens == sorted(tokens, reverse=True), "a larger model reaches the same loss with fewer tokens"
    frontier = [(float(x), float(y)) for series, x, y, *_ in drawn["plane"] if series == "frontier"]  # type: ignore[arg-type]
    N, D = frontier[len(frontier) // 2]
    assert LAW.optimal(6 * N * D)[0] == pytest.approx(N, rel=1.0)


def test_a_plan_only_lowers_regret_and_ellipses_close(drawn: dict[str, list[tuple[object, ...]]]) -> None:
    regrets = [float(y) for _, _, y, *_ in drawn["spend"]]  # type: ignore[arg-type]
    assert regrets == sorted(regrets, reverse=True)
    target = [row for row in drawn["optima"] if row[0] == "target"]
    assert target[0][1:3] == pytest.approx(target[-1][1:3])


def test_without_fits_there_is_nothing_to_draw() -> None:
    assert not any(pictures([], runs(), TARGET).values())
