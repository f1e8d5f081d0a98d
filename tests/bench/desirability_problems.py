"""Test problems whose outcomes are known functions of the unit cube, each with the preference that is searched.

rsm: the response surfaces of Myers & Montgomery's chemical reaction (Kuhn 2016). vehicle, carside: crash-worthiness and
side impact as in Tanabe & Ishibuchi (2020). dtlz2: Deb et al. (2005), three objectives. ``best`` is the D of the optimum,
by differential evolution on the true functions. rf, svm: real models of scikit-learn's digits, 1,200 to learn from and 597 to
validate, whose loss is weighed against their size and the work of a prediction; their best is the best that any run of a
table sees (a search of 1,500 and 2,500 points found D = .7944 and .9567), and without scikit-learn they are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.spec import StudySpec, decode_study

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``outcomes`` maps points (n, d) of the unit cube to (n, metrics), in the order of the preference."""

    name: str
    dimensions: int
    outcomes: Callable[[Array], Array]
    desirability: dict[str, Any]
    best: float | None = None

    @property
    def spec(self) -> StudySpec:
        """A study of the unit cube with this preference."""
        cube = {f"x{place}": {"type": "float", "low": 0.0, "high": 1.0} for place in range(self.dimensions)}
        method = {"name": "fixed", "budget": 1, "sampler": "composite"}
        return decode_study({"name": self.name, "space": cube, "desirability": self.desirability, "method": method})

    def values(self, point: Array) -> dict[str, float]:
        """The metrics at one point."""
        found = self.outcomes(np.asarray(point, float)[None])[0]
        return dict(zip(self.desirability, map(float, found), strict=True))


def _rsm(u: Array) -> Array:
    x1, x2, x3 = (1.682 * (2 * u - 1)).T
    conversion = (
        81.09 + 1.0284 * x1 + 4.043 * x2 + 6.2037 * x3 - 1.8366 * x1**2 + 2.9382 * x2**2 - 5.1915 * x3**2
        + 2.2150 * x1 * x2 + 11.375 * x1 * x3 - 3.875 * x2 * x3
    )  # fmt: skip
    activity = (
        59.85 + 3.583 * x1 + 0.2546 * x2 + 2.2298 * x3 + 0.83479 * x1**2 + 0.07484 * x2**2 + 0.05716 * x3**2
        - 0.3875 * x1 * x2 - 0.375 * x1 * x3 + 0.3125 * x2 * x3
    )  # fmt: skip
    return np.stack([conversion, activity], axis=1)


def _vehicle(u: Array) -> Array:
    t1, t2, t3, t4, t5 = (1 + 2 * u).T
    mass = 1640.2823 + 2.3573285 * t1 + 2.3220035 * t2 + 4.5688768 * t3 + 7.7213633 * t4 + 4.4559504 * t5
    acceleration = (
        6.5856 + 1.15 * t1 - 1.0427 * t2 + 0.9738 * t3 + 0.8364 * t4 - 0.3695 * t1 * t4 + 0.0861 * t1 * t5
        + 0.3628 * t2 * t4 - 0.1106 * t1**2 - 0.3437 * t3**2 + 0.1764 * t4**2
    )  # fmt: skip
    intrusion = (
        -0.0551 + 0.0181 * t1 + 0.1024 * t2 + 0.0421 * t3 - 0.0073 * t1 * t2 + 0.024 * t2 * t3 - 0.0118 * t2 * t4
        - 0.0204 * t3 * t4 - 0.008 * t3 * t5 - 0.0241 * t2**2 + 0.0109 * t4**2
    )  # fmt: skip
    return np.stack([mass, acceleration, intrusion], axis=1)


CAR_LOW = np.array([0.5, 0.45, 0.5, 0.5, 0.875, 0.4, 0.4])
CAR_HIGH = np.array([1.5, 1.35, 1.5, 1.5, 2.625, 1.2, 1.2])


def _carside(u: Array) -> Array:
    x1, x2, x3, x4, x5, x6, x7 = (CAR_LOW + (CAR_HIGH - CAR_LOW) * u).T
    weight = 1.98 + 4.9 * x1 + 6.67 * x2 + 6.98 * x3 + 4.01 * x4 + 1.78 * x5 + 1e-5 * x6 + 2.73 * x7
    force = 4.72 - 0.5 * x4 - 0.19 * x2 * x3
    pillar = 10.58 - 0.674 * x1 * x2 - 0.67275 * x2
    door = 16.45 - 0.489 * x3 * x7 - 0.843 * x5 * x6
    limits = [
        1 - (1.16 - 0.3717 * x2 * x4 - 0.0092928 * x3),
        0.32 - (0.261 - 0.0159 * x1 * x2 - 0.06486 * x1 - 0.019 * x2 * x7 + 0.0144 * x3 * x5 + 0.0154464 * x6),
        0.32 - (
            0.214 + 0.00817 * x5 - 0.045195 * x1 - 0.0135168 * x1 + 0.03099 * x2 * x6 - 0.018 * x2 * x7 + 0.007176 * x3
            + 0.023232 * x3 - 0.00364 * x5 * x6 - 0.018 * x2**2
        ),
        0.32 - (0.74 - 0.61 * x2 - 0.031296 * x3 - 0.031872 * x7 + 0.227 * x2**2),
        32 - (28.98 + 3.818 * x3 - 4.2 * x1 * x2 + 1.27296 * x6 - 2.68065 * x7),
        32 - (33.86 + 2.95 * x3 - 5.057 * x1 * x2 - 3.795 * x2 - 3.4431 * x7 + 1.45728),
        32 - (46.36 - 9.9 * x2 - 4.4505 * x1),
        4 - force, 9.9 - pillar, 15.7 - door,
    ]  # fmt: skip
    violation = sum(np.maximum(0.0, -limit) for limit in limits)
    return np.stack([weight, force, 0.5 * (pillar + door), violation], axis=1)


def _dtlz2(u: Array) -> Array:
    g = 1 + ((u[:, 2:] - 0.5) ** 2).sum(axis=1)
    a, b = u[:, 0] * np.pi / 2, u[:, 1] * np.pi / 2
    return np.stack([g * np.cos(a) * np.cos(b), g * np.cos(a) * np.sin(b), g * np.sin(a)], axis=1)


@lru_cache
def _digits() -> tuple[Any, ...]:
    """Training points, their labels, validation points, theirs; scaled to [0, 1]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:1200]] / 16, y[order[:1200]], x[order[1200:]] / 16, y[order[1200:]]


@lru_cache
def _components() -> tuple[Array, Array]:
    """Both sets' principal components."""
    from sklearn.decomposition import PCA

    x, _, held_out, _ = _digits()
    pca = PCA(48, random_state=0).fit(x)
    return pca.transform(x), pca.transform(held_out)


def _forest(u: Array) -> Array:
    """Validation loss, nodes of all trees, and the mean length of a prediction's paths; (trees, depth, features, leaf, bag, pruning)."""
    from sklearn.ensemble import RandomForestClassifier

    x, y, held_out, labels = _digits()
    trees, pruning = round(4 * 40 ** u[0, 0]), 10 ** (-5 + 2.5 * u[0, 5])
    forest = RandomForestClassifier(
        trees, max_depth=round(2 + 14 * u[0, 1]), max_features=0.02 + 0.9 * u[0, 2],
        min_samples_leaf=round(1 + 19 * u[0, 3]), max_samples=0.1 + 0.9 * u[0, 4], ccp_alpha=pruning, random_state=0,
    ).fit(x, y)  # fmt: skip
    chance = np.clip(forest.predict_proba(held_out)[np.arange(len(labels)), labels], 1e-15, 1)
    nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
    lengths = sum(tree.decision_path(held_out.astype(np.float32)).sum() / len(labels) for tree in forest.estimators_)
    return np.array([[-np.log(chance).mean(), nodes, lengths]])


def _machine(u: Array) -> Array:
    """Validation error, support vectors times dimensions, and millions of kernel terms; (C, γ, examples, dimensions, tolerance)."""
    from sklearn.svm import SVC

    (x, held_out), (_, y, _, labels) = _components(), _digits()
    examples, dimensions = round(100 + 1100 * u[0, 2]), round(3 + 45 * u[0, 3])
    machine = SVC(C=10 ** (-2 + 5 * u[0, 0]), gamma=10 ** (-3 + 3.5 * u[0, 1]), tol=10 ** (-4 + 3.5 * u[0, 4]))
    machine.fit(x[:examples, :dimensions], y[:examples])
    error = 1 - machine.score(held_out[:, :dimensions], labels)
    return np.array([[error, machine.n_support_.sum() * dimensions, examples**2 * dimensions / 1e6]])


def smaller(target: float, limit: float, **more: Any) -> dict[str, Any]:
    """A desirability that wants less."""
    return {"shape": "smaller", "target": target, "limit": limit, **more}


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            name="rsm", dimensions=3, outcomes=_rsm, best=0.9425094070843,
            desirability={
                "conversion": {"shape": "larger", "limit": 80, "target": 97},
                "activity": {"shape": "target", "low": 55, "target": 57.5, "high": 60},
            },
        ),
        Problem(
            name="vehicle", dimensions=5, outcomes=_vehicle, best=0.7426243,
            desirability={
                "mass": smaller(1665, 1690), "acceleration": smaller(6.5, 9), "intrusion": smaller(0.05, 0.14)
            },
        ),
        Problem(
            name="carside", dimensions=7, outcomes=_carside, best=0.5667674,
            desirability={
                "weight": smaller(22, 34), "force": smaller(3.6, 4.1), "speed": smaller(10.8, 12),
                "violation": smaller(0, 4),
            },
        ),
        Problem(
            name="dtlz2", dimensions=6, outcomes=_dtlz2, best=0.5957068,
            desirability={
                "f1": smaller(0.2, 1), "f2": {"shape": "target", "low": 0.2, "target": 0.5, "high": 0.9},
                "f3": smaller(0.2, 1, scale=2),
            },
        ),
        Problem(
            name="rf", dimensions=6, outcomes=_forest,
            desirability={"loss": smaller(0.15, 0.6), "nodes": smaller(300, 3000), "path": smaller(40, 250)},
        ),
        Problem(
            name="svm", dimensions=5, outcomes=_machine,
            desirability={"error": smaller(0.02, 0.1), "size": smaller(1000, 6000), "work": smaller(0.5, 6)},
        ),
    )
    if find_spec("sklearn") or problem.name not in ("rf", "svm")
}  # fmt: skip
