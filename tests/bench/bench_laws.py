"""How fast laws are fitted, beside the reference procedures, on one thread.

    ISOLOSS_DATA_HOME=… OMP_NUM_THREADS=1 python tests/bench/bench_laws.py loss

CPU seconds. A reference that takes minutes is run for a few starts or draws and extrapolated.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from public_data import chinchilla_points
from reproduction import Check, show
from scipy.optimize import minimize

from isoloss.laws.chinchilla import CHINCHILLA
from isoloss.laws.inference import multinomial_weights
from isoloss.laws.lossform import Problem, columns_of
from isoloss.laws.losslaw import DRAW_TOLERANCE
from isoloss.laws.solve import Floats, RobustLoss

DRAWS, STARTS = 4000, 4500
SOME = 12  # reference draws (starts) that are run
HOFFMANN = np.array([0.5267228, 6.0073404, 6.0179186, 0.33917084, 0.2849083])


def loss_law_speed(home: Path) -> Iterator[Check]:
    """Chinchilla's law on 240 points: the point fit and 4,000 bootstraps."""
    seen = chinchilla_points(home)
    x = columns_of(CHINCHILLA, seen)

    def point() -> tuple[Problem, Floats, float]:
        problem = Problem(CHINCHILLA, x, seen.loss, RobustLoss())
        solution = problem.solve(problem.starts())[1]
        return problem, solution.theta, solution.objective

    seconds = _median(point, times=15)
    problem, theta, objective = point()
    yield Check("point fit, ms", 1e3 * seconds, 20.0, 0.0, most=True)
    yield Check("point fit, objective", objective, 1.018274018e-3, 0.0, most=True)
    weights = multinomial_weights(np.random.default_rng(0), DRAWS, np.arange(len(seen)))

    def draws() -> Floats:
        return problem.solve(np.tile(theta, (DRAWS, 1)), weights=weights, tolerance=DRAW_TOLERANCE)[0]

    ours = _median(draws, times=3)
    yield Check("4,000 bootstraps, s", ours, 2.0, 0.0, most=True)
    reference = _Reference(x, seen.loss)
    goals = {"exact": 50.0, "numeric": 100.0}  # exact: our Jacobian, without what autograd costs
    for gradients, goal in goals.items():
        theirs = _cpu(lambda: [reference.bfgs(weights[row], gradients) for row in range(SOME)]) * DRAWS / SOME  # noqa: B023
        yield Check(
            f"BFGS bootstraps, {gradients} gradients, over ours (negated)", -theirs / ours, -goal, 0.0, most=True
        )
    starts = np.random.default_rng(1).choice(_hoffmann_grid(), size=SOME, replace=False)
    theirs = _cpu(lambda: [reference.numeric(start) for start in starts]) * STARTS / SOME
    yield Check("4,500 L-BFGS-B starts over ours (negated)", -theirs / seconds, -1000.0, 0.0, most=True)


class _Reference:
    """Besiroglu et al.'s procedure: one row-wise objective for scipy, uncentred, from Hoffmann's values or grid."""

    def __init__(self, x: Floats, loss: Floats) -> None:
        self.design, self.loss = CHINCHILLA.design(x), loss

    def bfgs(self, weights: Floats, gradients: str) -> Floats:
        """One bootstrap: BFGS from Hoffmann's values."""
        if gradients == "exact":
            return np.asarray(minimize(self._objective, HOFFMANN, args=(weights,), jac=True, method="BFGS").x)

        def objective(theta: Floats) -> float:
            return self._objective(theta, weights)[0]

        return np.asarray(minimize(objective, HOFFMANN, method="BFGS").x)

    def numeric(self, start: Floats) -> Floats:
        """One start: L-BFGS-B with numeric gradients."""
        weights = np.ones(len(self.loss))

        def objective(theta: Floats) -> float:
            return self._objective(theta, weights)[0]

        found = minimize(objective, start, method="L-BFGS-B")
        return np.asarray(found.x)

    def _objective(self, theta: Floats, weights: Floats) -> tuple[float, Floats]:
        value, jacobian = CHINCHILLA.log_loss(theta[None], self.design)
        residuals = value[0] - np.log(self.loss)
        slope = weights * np.clip(residuals, -1e-3, 1e-3)
        return float(RobustLoss().total(residuals, weights)), slope @ jacobian[0]


def _hoffmann_grid() -> Floats:
    axes = ([-1, -0.5, 0, 0.5, 1], [0, 5, 10, 15, 20, 25], [0, 5, 10, 15, 20, 25], *[[0, 0.5, 1, 1.5, 2]] * 2)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 5)


def _cpu(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _median(work: Callable[[], object], *, times: int) -> float:
    return float(np.median([_cpu(work) for _ in range(times)]))


PARTS: dict[str, Callable[[Path], Iterator[Check]]] = {"loss": loss_law_speed}


def main() -> int:
    """Run the parts named (all without any); 0 when every goal is met or there are no data."""
    folder = os.environ.get("ISOLOSS_DATA_HOME")
    if not folder:
        sys.stderr.write("skipped: ISOLOSS_DATA_HOME is not set; it names the folder with the public tables.\n")
        return 0
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        sys.stderr.write(f"no part {unknown[0]!r}; accepted are {', '.join(PARTS)}.\n")
        return 2
    return 0 if show(check for name in wanted for check in PARTS[name](Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
