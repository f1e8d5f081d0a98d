from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.laws.field import AMPLITUDE, Field
from isoloss.laws.solve import Floats, Prior

TREND = np.array([-9.0, -0.6, 0.3, 18.0, -0.1, 0.5])
VAGUE = Prior(np.array([-9.0, 0.0, 0.0, 18.0, 0.0, 0.0]), np.full(6, 1e-4))


def nodes(shift: Floats | float = 0.0, var: float = 1e-6) -> Floats:
    """Cells on a 4 × 4 grid of octaves, exactly on the trend but for ``shift`` of log2 lr."""
    grid = np.array([(x, y) for x in range(-3, 5, 2) for y in range(-3, 5, 2)], dtype=float)
    u = TREND[0] + grid @ TREND[1:3] + shift
    v = TREND[3] + grid @ TREND[4:6]
    flat = np.tile([var, 0.0, var], (len(grid), 1))
    return np.column_stack([grid, u, v, flat])


def test_a_field_through_a_straight_law_is_that_law() -> None:
    field = Field.given(nodes(), VAGUE)
    assert np.allclose(field.trend, TREND, atol=0.02)
    mean, _ = field.at(np.array([[7.0, 7.0]]))
    assert mean[0] == pytest.approx([TREND[:3] @ [1, 7, 7], TREND[3:] @ [1, 7, 7]], abs=0.15)


def test_near_a_cell_the_field_follows_it_and_far_away_it_returns_to_the_trend() -> None:
    shift = np.zeros(16)
    shift[5] = 0.8
    with_bump, without = Field.given(nodes(shift), VAGUE), Field.given(nodes(), VAGUE)
    at = nodes()[5, :2]
    near, far = (w.at(np.array([at, [20.0, 20.0]]))[0][:, 0] for w in (with_bump, without))
    assert near[0] - far[0] == pytest.approx(0.8, abs=0.1)
    assert abs((with_bump.at(at[None])[0] - without.at(at[None])[0])[0, 1]) < 1e-6
    assert with_bump.at(np.array([[20.0, 20.0]]))[0][0, 0] == pytest.approx(with_bump.trend[:3] @ [1, 20, 20], abs=1e-6)


@given(x=st.floats(-6, 12), y=st.floats(-6, 12))
def test_uncertainty_grows_outwards_and_is_a_covariance(x: float, y: float) -> None:
    field = Field.given(nodes(), VAGUE)
    _, cov = field.at(np.array([[x, y], [x + 3 * np.sign(x or 1), y]]))
    assert np.linalg.eigvalsh(cov).min() > -1e-9
    if abs(x) > 4:
        assert cov[2, 2] >= cov[0, 0] - 1e-9


def test_a_cell_that_knows_nothing_changes_nothing() -> None:
    blind = np.array([[0.0, 0.0, 3.0, 3.0, 1e4, 0.0, 1e4]])
    field, same = Field.given(nodes(), VAGUE), Field.given(np.vstack([nodes(), blind]), VAGUE)
    at = np.array([[5.0, 2.0]])
    assert np.allclose(field.at(at)[0], same.at(at)[0], atol=2e-3)
    assert np.allclose(field.at(at)[1], same.at(at)[1], atol=1e-3)


def test_one_batch_size_follows_its_trend_alone_and_a_restored_field_is_the_same() -> None:
    fixed = Field.given(nodes(), VAGUE, varied=False)
    at = np.array([[30.0, 30.0]])
    assert fixed.at(at)[1][1, 1] < AMPLITUDE**2 < fixed.at(at)[1][0, 0]
    again = Field.restored(fixed.nodes, fixed.trend, fixed.trend_covariance, varied=False)
    assert np.allclose(again.at(at)[0], fixed.at(at)[0])
    assert np.allclose(again.at(at)[1], fixed.at(at)[1])
