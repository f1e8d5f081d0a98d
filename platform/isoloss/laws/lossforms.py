"""The loss laws there are."""

from __future__ import annotations

from typing import Final

from isoloss.laws.chinchilla import CHINCHILLA
from isoloss.laws.dataconstrained import DATA_CONSTRAINED, DATA_CONSTRAINED_FREE
from isoloss.laws.farseer import FARSEER, SIMPLIFIED
from isoloss.laws.interaction import INTERACTION
from isoloss.laws.kaplan import KAPLAN
from isoloss.laws.lossform import LossForm
from isoloss.laws.moesparsity import MOE_SPARSITY
from isoloss.laws.overtraining import OVERTRAINING
from isoloss.laws.powersum import PowerSum
from isoloss.laws.routed import ROUTED

BELIEVED: Final[dict[str, PowerSum]] = {form.name: form for form in (CHINCHILLA, KAPLAN, INTERACTION)}
FAMILY: Final[dict[str, LossForm]] = {**BELIEVED, SIMPLIFIED.name: SIMPLIFIED}
LOSS_FORMS: Final[dict[str, LossForm]] = {
    **FAMILY,
    **{
        form.name: form
        for form in (FARSEER, OVERTRAINING, DATA_CONSTRAINED, DATA_CONSTRAINED_FREE, ROUTED, MOE_SPARSITY)
    },
}
