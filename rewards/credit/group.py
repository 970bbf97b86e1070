"""Group and batch baselines: one advantage per rollout, or per token return.

Each function takes a `CreditBatch` and returns float32[B, T], 0 off actions. `turn_weight` adds the
process reward to what is compared: `R_i = outcome_i + turn_weight * sum_k turn_reward_ik`.
"""

from __future__ import annotations

import numpy as np

from turnwise.rewards.credit.accumulate import token_returns
from turnwise.rewards.credit.batch import CreditBatch, Floats
from turnwise.rewards.credit.broadcast import Advantage, at_turn_ends, over_rollouts
from turnwise.rewards.credit.statistics import (
    Singleton,
    centred,
    keep_singletons,
    leave_one_out,
    standard_score,
    whitened,
)

WHITENING_EPS = 1e-8


def grpo(
    batch: CreditBatch,
    *,
    turn_weight: float = 0.0,
    eps: float = 1e-6,
    population: bool = False,
    singleton: Singleton = "zero",
) -> Advantage:
    """`A_i = (R_i - mean_g) / (std_g + eps)`.

    GRPO (Shao et al. 2024, DeepSeekMath, section 4.1); eps and the unbiased deviation as in verl.

    Args:
        batch: see `CreditBatch`.
        turn_weight: weight of the process reward in R.
        eps: keeps the divisor from 0.
        population: divide by n in the variance instead of n - 1.
        singleton: what a rollout alone in its group gets: 0, or R ("value", as in verl).
    """
    value = batch.returns(turn_weight)
    score = standard_score(value, batch.group, batch.ok, eps=eps, population=population)
    return _per_rollout(batch, score, value, singleton)


def dr_grpo(
    batch: CreditBatch, *, turn_weight: float = 0.0, singleton: Singleton = "zero"
) -> Advantage:
    """`A_i = R_i - mean_g`.

    Dr. GRPO (Liu et al. 2025, "Understanding R1-Zero-like training"); as in its code, verl and TRL.
    To be used with the aggregation `seq_mean_token_sum_norm`.

    Args:
        batch: see `CreditBatch`.
        turn_weight: weight of the process reward in R.
        singleton: what a rollout alone in its group gets: 0, or R ("value").
    """
    value = batch.returns(turn_weight)
    return _per_rollout(batch, centred(value, batch.group, batch.ok), value, singleton)


def rloo(
    batch: CreditBatch, *, turn_weight: float = 0.0, singleton: Singleton = "zero"
) -> Advantage:
    """`A_i = R_i - mean_{j != i} R_j`.

    RLOO (Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics"); as in verl and OpenRLHF.

    Args:
        batch: see `CreditBatch`.
        turn_weight: weight of the process reward in R.
        singleton: what a rollout alone in its group gets: 0, or R ("value", as in verl).
    """
    value = batch.returns(turn_weight)
    return _per_rollout(batch, leave_one_out(value, batch.group, batch.ok), value, singleton)


def reinforce_pp(
    batch: CreditBatch, *, turn_weight: float = 0.0, gamma: float = 1.0, kl_coef: float = 0.0
) -> Advantage:
    """The return from each token on, whitened over all action tokens of the batch.

    REINFORCE++ (Hu 2025). `r_t = -kl_coef kl_t`, plus the process reward at the end of each turn
    and the outcome at the last sampled token; `G_t = r_t + gamma G_{t'}`, t' the next *sampled*
    token. Whitening is `(G - mean) / sqrt(var + 1e-8)` with the unbiased variance, as in verl.

    Args:
        batch: see `CreditBatch`; `kl` is read where `kl_coef` is not 0.
        turn_weight: weight of the process reward.
        gamma: discount per sampled token, in [0, 1]. Observation tokens do not discount.
        kl_coef: weight of the KL penalty.

    Raises:
        ValueError: `kl_coef` is not 0 and the batch has no `kl`, or gamma is out of range.
    """
    per_turn = np.zeros((len(batch.outcome), max(batch.turn_reward.shape[1], 1)))
    per_turn[:, : batch.turn_reward.shape[1]] = turn_weight * batch.turn_reward
    per_turn[np.arange(len(per_turn)), batch.last_turn] += batch.outcome
    reward = at_turn_ends(batch, per_turn)
    if kl_coef:
        if batch.kl is None:
            raise ValueError(
                "kl_coef needs the per-token KL: pass CreditBatch(..., kl=logprob - ref_logprob)"
            )
        reward -= kl_coef * batch.kl
    return _whitened(batch, token_returns(batch, reward, gamma))


def reinforce_pp_baseline(batch: CreditBatch, *, turn_weight: float = 0.0) -> Advantage:
    """`R_i - mean_g`, whitened over all action tokens of the batch.

    REINFORCE++-baseline (Hu 2025; `reinforce_baseline` in OpenRLHF). A rollout alone in its group
    has the baseline R_i here, where verl takes 0.

    Args:
        batch: see `CreditBatch`.
        turn_weight: weight of the process reward in R.
    """
    value = centred(batch.returns(turn_weight), batch.group, batch.ok)
    return _whitened(batch, np.broadcast_to(value[:, None], batch.turn.shape))


def _per_rollout(
    batch: CreditBatch, advantage: Floats, value: Floats, singleton: Singleton
) -> Advantage:
    kept = keep_singletons(advantage, value, batch.group, batch.ok, singleton)
    return over_rollouts(batch, kept)


def _whitened(batch: CreditBatch, value: Floats) -> Advantage:
    """float32[B, T]: the values of all action tokens, to mean 0 and variance 1."""
    return whitened(value, batch.mask, eps=WHITENING_EPS).astype(np.float32)
