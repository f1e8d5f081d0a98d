from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.errors import FitFailed
from isoloss.laws.chinchilla import ChinchillaLaw
from isoloss.laws.fit import fit
from isoloss.laws.isoflop import budgets, diagnose, estimated_bias, optimal, vertices
from isoloss.laws.observation import Observation, Observations

SYMMETRIC = ChinchillaLaw(E=1.69, A=400, B=400, alpha=0.31, beta=0.31)
LOPSIDED = ChinchillaLaw(E=1.69, A=400, B=400, alpha=0.465, beta=0.155)


def runs(
    law: ChinchillaLaw, *, width: float = 4.0, drift: float = 1.0, noise: float = 0.0, sizes: int = 9
) -> Observations:
    rng = np.random.default_rng(0)
    rows = []
    for C, centre in zip(np.logspace(17, 21, 5), np.geomspace(1.0, drift, 5), strict=True):
        for N in law.optimal(C)[0] * centre * np.geomspace(1 / width, width, sizes):
            D = C / (6 * N)
            loss = law.loss(N, D) * float(np.exp(noise * rng.normal()))
            rows.append(Observation(n_params=N, n_tokens=D, loss=loss, flops=C))
    return Observations(tuple(rows))


@pytest.mark.parametrize("form", ["isoflop", "isoflop-akima"])
def test_a_symmetric_valley_gives_back_its_frontier(form: str) -> None:
    made = fit(form, runs(SYMMETRIC), bootstrap=50)
    assert made.estimates["a"].value == pytest.approx(0.5, abs=0.01)
    assert made.estimates["a"].value + made.estimates["b"].value == pytest.approx(1.0)
    N, D = optimal(made, 1e22)
    assert SYMMETRIC.optimal(1e22)[0] == pytest.approx(N, rel=0.05)
    assert pytest.approx(1e22 / 6) == N * D


@settings(max_examples=6, deadline=None)
@given(alpha=st.floats(0.15, 0.5), beta=st.floats(0.15, 0.5), width=st.floats(2, 16))
def test_the_estimated_bias_is_the_error_that_parabolas_make(alpha: float, beta: float, width: float) -> None:
    law = ChinchillaLaw(E=1.7, A=400, B=400, alpha=alpha, beta=beta)
    seen = runs(law, width=width, sizes=15)
    made = fit("isoflop", seen, bootstrap=0)
    error = optimal(made, 1e24)[1] / law.optimal(1e24)[1] - 1
    assert estimated_bias(budgets(seen), law, 1e24) == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_a_lopsided_valley_on_a_wide_grid_is_warned_about_and_the_frontier_switches() -> None:
    seen = runs(LOPSIDED, width=8.0, sizes=15)
    made = fit("isoflop", seen, bootstrap=0)
    assert any("wrong by" in warning for warning in made.warnings)
    switched = fit("frontier", seen, bootstrap=0)
    assert switched.form == "chinchilla"
    assert "not isoflop's" in switched.warnings[0]
    assert fit("frontier", runs(SYMMETRIC), bootstrap=0).form == "isoflop"


def test_the_diagnosis_sees_drift_and_edges() -> None:
    groups = budgets(runs(SYMMETRIC, drift=3.0))
    found = diagnose(groups, vertices(groups))
    assert found.drift == pytest.approx(3.0, rel=0.25)
    assert found.width == pytest.approx(4.0, rel=0.01)
    above = budgets(runs(SYMMETRIC, width=1.5, drift=3.0))
    assert diagnose(above, vertices(above)).edge > 0
    assert any("no minimum" in w for w in fit("isoflop", runs(SYMMETRIC, width=1.9, drift=3.0), bootstrap=0).warnings)


def test_the_envelope_reads_training_curves() -> None:
    rows = [
        Observation(n_params=N, n_tokens=D, loss=SYMMETRIC.loss(N, D), run=f"{N:.3g}")
        for N in np.geomspace(1e7, 1e10, 13)
        for D in np.geomspace(2 * N, 200 * N, 40)
    ]
    made = fit("envelope", Observations(tuple(rows)), bootstrap=20)
    assert made.estimates["a"].value == pytest.approx(0.5, abs=0.05)
    nameless = Observations(tuple(Observation(n_params=r.n_params, n_tokens=r.n_tokens, loss=r.loss) for r in rows))
    with pytest.raises(FitFailed, match="training curves"):
        fit("envelope", nameless)


def test_runs_without_common_budgets_are_refused_with_the_way_out() -> None:
    rows = [Observation(n_params=n, n_tokens=d, loss=2.0 + 1e8 / n) for n in (1e8, 2e8, 5e8) for d in (1e9, 3e9)]
    with pytest.raises(FitFailed, match="same compute") as raised:
        fit("isoflop", Observations(tuple(rows)))
    assert "chinchilla" in (raised.value.hint or "")


@pytest.mark.parametrize("form", ["isoflop", "isoflop-akima"])
def test_reruns_of_a_size_count_once_and_no_budget_is_an_error_not_a_crash(form: str) -> None:
    seen = runs(SYMMETRIC)
    twice = Observations((*seen.rows, *(replace(row, loss=1.1 * row.loss, seed=1) for row in seen.rows)))
    again, once = (fit(form, one, bootstrap=0).estimates["a"].value for one in (twice, seen))
    assert again == pytest.approx(once, abs=1e-9)
    scattered = Observations(tuple(replace(row, flops=row.flops * (1.1**n)) for n, row in enumerate(seen.rows)))
    with pytest.raises(FitFailed, match="same compute"):
        fit(form, scattered)
