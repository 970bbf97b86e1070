"""Turn rewards to turn advantages: the return from each turn on, and MT-GRPO."""

from __future__ import annotations

import numpy as np

from turnwise.rewards.credit.accumulate import turn_returns
from turnwise.rewards.credit.batch import CreditBatch
from turnwise.rewards.credit.broadcast import Advantage, over_turns
from turnwise.rewards.credit.statistics import leave_one_out, standard_score


def turn_return(batch: CreditBatch, *, gamma: float = 1.0, turn_weight: float = 1.0) -> Advantage:
    """float32[B, T]: the return from each turn on, minus that of the group's other rollouts.

    `G_ik = sum_{j >= k} gamma^(j - k) r_ij`, the outcome added to the last turn's r;
    `A_ik = G_ik - mean_{i' != i} G_{i', min(k, K_i' - 1)}` over the rollouts of the group that did
    not fail; 0 for a rollout alone. The baseline depends on the other rollouts only, so the
    gradient is unbiased, and a turn is never charged for what was earned before it. Without turn
    rewards and with gamma 1 it is `rloo`. The leave-one-out baseline is RLOO's (Kool et al. 2019);
    clamping it to the last turn of shorter rollouts is this library's choice.

    Args:
        batch: see `CreditBatch`.
        gamma: discount per turn, in [0, 1].
        turn_weight: weight of the process reward.

    Raises:
        ValueError: gamma is out of range.
    """
    value = turn_returns(batch, gamma, turn_weight)
    columns = value.shape[1]
    _, group = np.unique(batch.group, return_inverse=True)
    scope = group[:, None] * columns + np.arange(columns)
    include = np.broadcast_to(batch.ok[:, None], value.shape)
    return over_turns(batch, leave_one_out(value, scope, include))


def mt_grpo(batch: CreditBatch, *, alpha: float = 1.0, eps: float = 1e-4) -> Advantage:
    """float32[B, T]: the first turn gets `z(O) + alpha z(T)`, later turns get `z(O)`.

    MT-GRPO (Zeng et al. 2025, "Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Reward
    Design"), exactly as in its released code for two turns, its later-turn rule applied to every
    further turn. O is the outcome, T the first turn's reward, z the standard score in the group
    (unbiased deviation); a rollout of one turn gets `z(T + O)`.

    The rule is biased in three ways that `turn_return` is not: z divides T and O by their own
    deviations, so what is maximised is not the return `O + alpha T`; one-turn rollouts are scaled
    by another deviation than the rest of their group, so a group's advantages need not sum to 0;
    and rewards of turns after the first are not used.

    Args:
        batch: see `CreditBatch`.
        alpha: weight of the first turn's score.
        eps: keeps the divisor from 0.
    """
    columns = max(batch.turn_reward.shape[1], 1)
    first = np.zeros(len(batch.outcome))
    if batch.turn_reward.shape[1]:
        first = batch.turn_reward[:, 0]
    outcome_score = standard_score(batch.outcome, batch.group, batch.ok, eps=eps)
    first_score = standard_score(first, batch.group, batch.ok, eps=eps)
    sum_score = standard_score(first + batch.outcome, batch.group, batch.ok, eps=eps)
    value = np.repeat(outcome_score[:, None], columns, axis=1)
    value[:, 0] = np.where(batch.turns > 1, outcome_score + alpha * first_score, sum_score)
    return over_turns(batch, value)
