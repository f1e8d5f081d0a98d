"""Several loss laws as one prediction.

No form wins everywhere: on nine public data sets the best of four changes with the data, and one law's bootstrap
covers a fraction of what it claims. So laws fitted to the same runs are mixed by how they did when they were rolled
out: fitted to the cheaper runs and asked for the dearer ones, at several splits. Each roll-out is a vote for a law with
weight error^−VOTE, and votes multiply: a law that foretells the largest runs best at every split gets nearly
everything, and where splits disagree the laws share. The point is the weighted mean of ln L. Its interval is wider
than the laws' own: it takes the runners-up more seriously, and adds the noise of a run and each law's roll-out error,
grown with the distance to the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from isoloss.laws.evidence import Fit
from isoloss.laws.lossform import columns_of, predict, target
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

SAMPLES: Final = 4000
VOTE: Final = 10.0
LEAST_ERROR: Final = 0.001  # a roll-out error under this is luck
TO_SD: Final = 1.25  # the sd of a normal error of mean size 1


def components(fits: Sequence[Fit]) -> list[Fit]:
    """The loss laws among ``fits``, those of a mixture one by one."""
    return [part for fit in fits for part in (fit.components or (fit,)) if part.form in LOSS_FORMS]


def weights(laws: Sequence[Fit]) -> Floats:
    """What each law counts in the mixture (they sum to 1): the product of its votes, one a roll-out.

    Without roll-outs, as in a campaign of few cells, one back-test may only lean.
    """
    if not all(law.rollouts for law in laws):
        return leanings(laws)
    return _shares(-VOTE * np.log(_errors(laws)).sum(axis=1))


def leanings(laws: Sequence[Fit]) -> Floats:
    """Softer weights, by the mean error alone: for questions where no law should speak alone."""
    return _shares(-2 * np.log(_errors(laws).mean(axis=1)))


def mean_log_loss(laws: Sequence[Fit], x: Mapping[str, Floats]) -> Floats:
    """The mixture's ln L (n,) at the logarithms ``x[form]`` (columns, n) that each law needs."""
    logs = [np.log(predict(LOSS_FORMS[law.form], np.array(law.theta), x[law.form])[0]) for law in laws]
    return np.asarray(weights(laws) @ np.array(logs))


def held_out(laws: Sequence[Fit], test: Observations) -> Floats:
    """The mixture's predicted / observed − 1 (n,) for runs it has not seen."""
    x = {law.form: columns_of(LOSS_FORMS[law.form], test) for law in laws}
    return np.asarray(np.exp(mean_log_loss(laws, x)) / test.loss - 1)


def sample(
    laws: Sequence[Fit], n_params: float, n_tokens: float, given: Mapping[str, float], regret: Floats
) -> tuple[float, Floats]:
    """The mixture's point and predictive draws (SAMPLES,) of the loss of one run.

    ``regret`` (m,) is a sample of the ln loss given away by the run's hyper-parameters. Deterministic.
    """
    rng = np.random.default_rng(laws[0].seed)
    x = {law.form: target(LOSS_FORMS[law.form], n_params, n_tokens, given) for law in laws}
    point = float(np.exp(mean_log_loss(laws, x)[0]))
    drawn = [np.log(predict(LOSS_FORMS[law.form], law.sample(), x[law.form])[:, 0]) for law in laws]
    errors = np.array([model_error(law, n_params, n_tokens) for law in laws])
    chosen = rng.choice(len(laws), size=SAMPLES, p=_shares(-2 * np.log(errors)))
    ln_draws = np.array([rng.choice(drawn[k]) for k in chosen])
    noise = float(np.mean([law.noise for law in laws]))
    spread = np.hypot(noise, errors[chosen]) * rng.standard_normal(SAMPLES)
    return point, np.exp(ln_draws + spread + rng.choice(regret, size=SAMPLES))


def model_error(law: Fit, n_params: float, n_tokens: float) -> float:
    """A law's error at the target as an sd of ln loss: that of its roll-outs, grown with the distance to the data."""
    rolled = law.rollouts or (law.backtest,)
    tests = [test for test in rolled if test is not None]
    if not tests:
        return _plain_error(law)
    error = max(float(np.mean([test.error for test in tests])), LEAST_ERROR)
    reach = [(test, test.largest_trained_flops) for test in tests]
    tried = float(np.mean([np.log((test.held_out_flops or 2 * trained) / trained) for test, trained in reach]))
    times = {**law.support.beyond(n_params, n_tokens), "flops": 6 * n_params * n_tokens / _greatest_flops(law)}
    asked = float(np.log(max(times.values())))
    return TO_SD * error * float(np.clip(asked / max(tried, 0.3), 1.0, 4.0))


def _greatest_flops(law: Fit) -> float:
    return law.support.flops or 6 * law.support.n_params[1] * law.support.n_tokens[1]


def _errors(laws: Sequence[Fit]) -> Floats:
    """Errors (laws, roll-outs) at the roll-outs that all laws have, their back-tests or what stands for both."""
    shared = min(len(law.rollouts) for law in laws)
    if shared:
        found = [[test.error for test in law.rollouts[-shared:]] for law in laws]
    else:
        found = [[law.backtest.error if law.backtest else _plain_error(law)] for law in laws]
    return np.asarray(np.maximum(found, LEAST_ERROR))


def _plain_error(law: Fit) -> float:
    return max(2 * law.residual_rms, 2 * law.noise, LEAST_ERROR)


def _shares(log_weights: Floats) -> Floats:
    found = np.exp(log_weights - log_weights.max())
    return np.asarray(found / found.sum())
