"""Credit: from scores of rollouts and turns to one advantage per token.

Pure functions on arrays: `f(batch: CreditBatch, *, option=...) -> float32[B, T]`, 0 off actions.
`CREDIT` finds them by name.
"""

from collections.abc import Callable

from turnwise.rewards.credit.batch import CreditBatch
from turnwise.rewards.credit.broadcast import Advantage
from turnwise.rewards.credit.group import dr_grpo, grpo, reinforce_pp, reinforce_pp_baseline, rloo
from turnwise.rewards.credit.information_gain import igpo, information_gain
from turnwise.rewards.credit.turn import mt_grpo, turn_return
from turnwise.rewards.names import Registry

CreditFunction = Callable[..., Advantage]
"""`f(batch: CreditBatch, *, option=...) -> float32[B, T]`; options are named and have defaults."""

CREDIT: Registry[CreditFunction] = Registry("credit function")
"""Every credit function by name."""

CREDIT.add("grpo", grpo)
CREDIT.add("dr_grpo", dr_grpo)
CREDIT.add("rloo", rloo)
CREDIT.add("reinforce_pp", reinforce_pp)
CREDIT.add("reinforce_pp_baseline", reinforce_pp_baseline)
CREDIT.add("turn_return", turn_return)
CREDIT.add("mt_grpo", mt_grpo)
CREDIT.add("igpo", igpo)

NEEDS_GOLD_LOGPROB = frozenset({"igpo"})
"""Names whose batch must have `gold_logprob`: rollouts ask for it before every turn."""

__all__ = [
    "CREDIT",
    "NEEDS_GOLD_LOGPROB",
    "Advantage",
    "CreditBatch",
    "CreditFunction",
    "dr_grpo",
    "grpo",
    "igpo",
    "information_gain",
    "mt_grpo",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "rloo",
    "turn_return",
]
