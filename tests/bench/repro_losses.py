"""Published loss laws, refitted, and the traps in them: oracles of Besiroglu, Clark, Muennighoff, Li and Gadre."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from public_data import chinchilla_points, data_constrained, farseer_pool, nine, routed
from reproduction import Check

from isoloss.laws import mixture
from isoloss.laws.chinchilla import CHINCHILLA, ChinchillaLaw
from isoloss.laws.dataconstrained import DATA_CONSTRAINED
from isoloss.laws.evidence import Fit
from isoloss.laws.farseer import FARSEER, REFERENCE
from isoloss.laws.fit import fit
from isoloss.laws.forecast import forecast
from isoloss.laws.frontier import frontier
from isoloss.laws.lossform import Problem, columns_of, predict
from isoloss.laws.lossforms import FAMILY
from isoloss.laws.losslaw import Settings, held_out_error
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats, RobustLoss, best, solve

TARGET = 5.76e23  # Chinchilla's own training compute
HOFFMANN = np.array([0.5267228, 6.0073404, 6.0179186, 0.33917084, 0.2849083])


def chinchilla(home: Path) -> Iterator[Check]:
    """Besiroglu et al. 2024 on 240 and 245 digitised points, by each loss; 4,000 bootstraps."""
    seen, kept = chinchilla_points(home, outliers=True), chinchilla_points(home)
    published = {
        "240 huber": (kept, "huber:1e-3", (1.81722, 477.83, 2143.4, 0.34731, 0.36717), 1.0182740178e-3, 0.51390),
        "240 lad": (kept, "lad", (1.81686, 482.00, 2085.4, 0.34781, 0.36585), 1.1294828, 0.51264),
        "245 huber": (seen, "huber:1e-3", (1.89134, 495.73, 12845.6, 0.34931, 0.45305), 1.8260105e-3, 0.56464),
    }
    optima = {"240 huber": (7.319e10, 17.92), "240 lad": (7.236e10, 18.34), "245 huber": (1.187e11, 6.82)}
    for label, (rows, loss, figures, objective, a) in published.items():
        made = fit("chinchilla", rows, loss=loss, bootstrap=0)
        tolerances = (5e-4, 0.005 * figures[1], 0.01 * figures[2], 2e-4, 2e-4)
        for name, figure, tolerance in zip(made.estimates, figures, tolerances, strict=True):
            yield Check(f"{label}: {name}", made.estimates[name].value, figure, tolerance)
        yield Check(f"{label}: objective", made.objective, objective, 1e-7 * objective)
        yield Check(f"{label}: a = beta / (alpha + beta)", _share(np.array(made.theta)), a, 2e-4)
        N, D = frontier(CHINCHILLA, made, TARGET)
        yield Check(f"{label}: N*(5.76e23)", N, optima[label][0], 0.003 * optima[label][0])
        yield Check(f"{label}: D/N there", D / N, optima[label][1], 0.05)
    yield from _subsets(kept)
    yield from _likelihood_ratio(kept)
    yield from _bootstrap(kept)


def _share(theta: Floats) -> float:
    return float(theta[4] / (theta[3] + theta[4]))


def _subsets(kept: Observations) -> Iterator[Check]:
    """The exponent moves with δ, with the subset and with the scale of the residuals."""
    for loss, figure in {"lad": 0.513, "huber:1e-3": 0.514, "huber:1e-2": 0.518, "squared": 0.530}.items():
        theta = np.array(fit("chinchilla", kept, loss=loss, bootstrap=0).theta)
        yield Check(f"240 {loss}: a", _share(theta), figure, 5e-4)
    small = kept.select(kept.flops <= 1e21)
    made = fit("chinchilla", small, bootstrap=0)
    N, D = frontier(CHINCHILLA, made, TARGET)
    yield Check("C <= 1e21 huber: a", _share(np.array(made.theta)), 0.548, 5e-4)
    yield Check("C <= 1e21 huber: D/N at 5.76e23", D / N, 8.6, 0.05)
    logs = np.array(fit("chinchilla", small, loss="squared", bootstrap=0).theta)
    figures = {"E": (float(np.exp(logs[0])), 1.8926, 5e-4), "alpha": (float(logs[3]), 0.3522, 2e-4)}
    figures |= {"beta": (float(logs[4]), 0.4430, 2e-4), "a": (_share(logs), 0.5571, 2e-4)}
    for name, (ours, figure, tolerance) in figures.items():
        yield Check(f"217 least squares on ln L: {name}", ours, figure, tolerance)
    yield from _plain_squares(small)


def _plain_squares(small: Observations) -> Iterator[Check]:
    """Least squares on L itself (what VPNLS solves), N in millions and D in billions."""
    problem = Problem(CHINCHILLA, columns_of(CHINCHILLA, small), small.loss, RobustLoss("squared"))

    def residuals(theta: Floats) -> tuple[Floats, Floats]:
        value, jacobian = CHINCHILLA.log_loss(theta, problem.design)
        return np.exp(value) - small.loss, jacobian * np.exp(value)[..., None]

    found = best(solve(residuals, problem.starts(), loss=problem.robust, bounds=problem.bounds()))
    E, A, B, alpha, beta = CHINCHILLA.shift(found.theta, problem.centre - np.log([1e6, 1e9]))
    ours = (float(np.exp(E)), float(np.exp(A)), float(np.exp(B)), float(alpha), float(beta), 2 * found.objective)
    figures = {"E": (1.9051, 5e-4), "A": (4.0005, 0.02), "B": (1.0509, 0.01), "alpha": (0.3511, 2e-4)}
    figures |= {"beta": (0.4587, 2e-4), "RSS": (0.062414, 1e-6)}
    for value, (name, (figure, tolerance)) in zip(ours, figures.items(), strict=True):
        yield Check(f"217 least squares on L: {name}", value, figure, tolerance)


def _likelihood_ratio(kept: Observations) -> Iterator[Check]:
    """Hoffmann's parameters under the likelihood with a free scale, whose optimum is the least absolute deviation."""
    x = columns_of(CHINCHILLA, kept)
    theirs = np.log(predict(CHINCHILLA, HOFFMANN, x)[0] / kept.loss)
    huber = float(RobustLoss().total(theirs, np.ones(len(kept))))
    yield Check("Hoffmann's parameters: objective", huber, 1.2311626e-3, 1e-7 * 1.2311626e-3)
    ours = fit("chinchilla", kept, loss="lad", bootstrap=0).objective
    ratio = 2 * len(kept) * float(np.log(np.sum(np.abs(theirs)) / ours))
    yield Check("Hoffmann's parameters: likelihood ratio", ratio, 84.0, 1.0)


def _bootstrap(kept: Observations) -> Iterator[Check]:
    begin = time.process_time()
    made = fit("chinchilla", kept, bootstrap=4000, level=0.95)
    yield Check("4,000 bootstraps, CPU s", time.process_time() - begin, 2.0, 0.0, most=True)
    errors = {"E": 0.0252, "A": 118.6, "B": 1453.0, "alpha": 0.0149, "beta": 0.0203}
    for name, figure in errors.items():
        yield Check(f"bootstrap SE of {name}", made.estimates[name].se or 0.0, figure, 0.1 * figure)
    ends = {"alpha": (0.3165, 0.3717), "beta": (0.3337, 0.4158), "E": (1.7715, 1.8706)}
    found = {name: (made.estimates[name].low or 0.0, made.estimates[name].high or 0.0) for name in ends}
    draws = made.sample()
    laws = [ChinchillaLaw(**_constants(theta)) for theta in draws]
    ratios = [D / N for N, D in (law.optimal(TARGET) for law in laws)]
    ends |= {"a": (0.482, 0.558), "D/N at 5.76e23": (7.3, 35.4)}
    found |= {"a": _ends([_share(theta) for theta in draws]), "D/N at 5.76e23": _ends(ratios)}
    for name, (low, high) in ends.items():
        width = 0.1 * (high - low)
        yield Check(f"bootstrap 95 % low of {name}", found[name][0], low, width)
        yield Check(f"bootstrap 95 % high of {name}", found[name][1], high, width)


def _constants(theta: Floats) -> dict[str, float]:
    values = [*np.exp(theta[:3]), *theta[3:]]
    return {name: float(value) for name, value in zip(CHINCHILLA.names, values, strict=True)}


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def clark(home: Path) -> Iterator[Check]:
    """Routed language models: least squares in log10 L; a to d within two of their standard errors."""
    published = {
        "S-Base": ((-0.082, -0.108, 0.009, 1.104), 0.00323),
        "Hash": ((-0.087, -0.136, 0.012, 1.157), 0.00298),
    }
    for router, (figures, rms) in published.items():
        made = fit("routed", routed(home, router), loss="squared", bootstrap=0)
        for name, figure, error in zip("abcd", figures, (0.002, 0.015, 0.0015, 0.02), strict=True):
            yield Check(f"routed {router}: {name}", made.estimates[name].value, figure, error)
        yield Check(f"routed {router}: rms of log10 L", made.residual_rms / np.log(10), rms, 0.01 * rms)


def muennighoff(home: Path) -> Iterator[Check]:
    """Repeated data: the published point, the better optimum, and that neither R* is known."""
    seen = data_constrained(home)
    x = columns_of(DATA_CONSTRAINED, seen)

    def score(repeats: tuple[float, float]) -> tuple[float, float]:
        loss = predict(DATA_CONSTRAINED, np.log(repeats), x)[0]
        spread = np.sum((seen.loss - seen.loss.mean()) ** 2)
        objective = RobustLoss().total(np.log(loss / seen.loss), np.ones(len(seen)))
        return float(objective), float(1 - np.sum((loss - seen.loss) ** 2) / spread)

    objective, explained = score((15.387756, 5.309743))
    yield Check("data-constrained published point: objective", objective, 0.0158259353, 1e-10)
    yield Check("data-constrained published point: R2", explained, 0.772205, 1e-6)
    objective, explained = score((46.99, 2.330))
    yield Check("data-constrained (46.99, 2.330): objective", objective, 0.0158074, 1e-7)
    yield Check("data-constrained (46.99, 2.330): R2", explained, 0.787, 5e-4)
    made = fit("data-constrained", seen, bootstrap=400, level=0.95)
    yield Check("data-constrained: our objective", made.objective, 0.0158074, 0.0, most=True)
    repeats = made.estimates["R_D*"]
    yield Check("data-constrained: R_D* bootstrap 95 % low", repeats.low or 0.0, 6.3, 0.7)
    yield Check("data-constrained: R_D* not identified", float(repeats.verdict == "not identified"), 1.0, 0.0)
    yield Check("data-constrained: R_N* weak at best", float(made.estimates["R_N*"].verdict != "identified"), 1.0, 0.0)


def farseer(home: Path) -> Iterator[Check]:
    """Farseer's published constants on its 404 pool runs, errors in %."""
    S, s, q, Q, B, b, E, A, a = (
        *(0.12848807, -0.06246547, 0.13),
        *(-1.54420955, 230.734371, -0.1729),
        *(3.133347, -1.66563082, 0.0459),
    )
    seen = farseer_pool(home)
    parts = [[level + factor * np.exp(c * REFERENCE), factor * c * np.exp(c * REFERENCE), c]
             for level, factor, c in ((S, s, q), (Q, B, b), (E, A, a))]  # fmt: skip
    ratio = 100 * (predict(FARSEER, np.ravel(parts), columns_of(FARSEER, seen))[0] / seen.loss - 1)
    yield Check("Farseer's constants: mean |error| %", float(np.mean(np.abs(ratio))), 0.226, 5e-4)
    yield Check("Farseer's constants: greatest |error| %", float(np.max(np.abs(ratio))), 1.44, 5e-3)
    yield Check("Farseer's constants: bias %", float(np.mean(ratio)), -0.06, 5e-3)
    made = fit("farseer", seen, bootstrap=0)
    ours = 100 * made.residual_rms
    yield Check("Farseer refitted: rms %, at most the constants'", ours, float(np.std(ratio)), 0.0, most=True)


def which_law(home: Path) -> Iterator[Check]:
    """``auto`` against the best single law on nine data sets, and the coverage of its 90 % intervals."""
    for name, (train, test) in nine(home).items():
        made = fit("auto", train, bootstrap=100)
        error = 100 * float(np.mean(np.abs(mixture.held_out(made.components, test))))
        single = {form: 100 * held_out_error(law, train, test, Settings()).error for form, law in FAMILY.items()}
        form = min(single, key=lambda key: single[key])
        yield Check(f"{name}: auto, % (1.1x {form})", error, 1.1 * single[form], 0.0, most=True)
        yield Check(f"{name}: 90 % interval misses", _misses(made, test), 0.2, 0.0, most=True)


def _misses(made: Fit, test: Observations) -> float:
    outside = 0
    for row in test:
        low, high = forecast([made], row.n_params, row.n_tokens).loss_interval or (0.0, 0.0)
        outside += not low <= row.loss <= high
    return outside / len(test)
