"""IGPO: a turn is worth what it adds to the probability of the reference answer."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from turnwise.rewards.credit.accumulate import discounted_return
from turnwise.rewards.credit.batch import CreditBatch, Floats
from turnwise.rewards.credit.broadcast import Advantage, over_turns
from turnwise.rewards.credit.statistics import standard_score

Gain = Literal["prob_diff", "log_prob_diff"]
Normalization = Literal["joint", "separate", "turn"]

EPS = 1e-8


def igpo(
    batch: CreditBatch,
    *,
    normalization: Normalization = "separate",
    gain: Gain = "prob_diff",
    gamma: float = 1.0,
    outcome_weight: float = 1.0,
    gain_weight: float = 1.0,
) -> Advantage:
    """float32[B, T]: normalised information gains and outcome, summed from each turn on.

    `r_k = p_{k+1} - p_k` for every turn but the last, which gets the outcome;
    `A_k = sum_{j >= k} gamma^(j - k) w_j z(r_j)`, with `z(x) = (x - mean) / sqrt(var + 1e-8)`, the
    population variance, 0 for a value alone. `turn_reward` is not used. A gain that is not known (a
    NaN on either side) counts as 0 and enters no mean.

    IGPO (Wang et al. 2025, "Information Gain-based Policy Optimization"; released code of February
    2026). There gains of exactly 0 are dropped from the pool; here they are values like any other.
    The weights apply after normalisation (inferred: before it, "separate" would undo them). "turn"
    is the turn-group normalisation of A2TGPO (Chen et al. 2026, arXiv 2605.06200; inferred from its
    abstract), without its division of the sum by the root of the number of terms.

    Args:
        batch: see `CreditBatch`; needs `gold_logprob`.
        normalization: what is compared inside a group. "joint": all gains and outcomes in one pool
            (the paper; rollouts that are alike then need not get 0). "separate": gains in one,
            outcomes in another (the code's default). "turn": gains with those of the same turn.
        gain: p is the probability ("prob_diff") or the log-probability ("log_prob_diff").
        gamma: discount per turn, in [0, 1].
        outcome_weight: weight of the outcome's score.
        gain_weight: weight of the gains' scores. At 0, "separate" and "turn" are `grpo` with the
            population deviation.

    Raises:
        ValueError: the batch has no `gold_logprob`, or an option is out of range.
    """
    if batch.gold_logprob is None:
        raise ValueError(
            "igpo needs the log-probability of the reference answer before each turn: roll out "
            "with probe=True, or pass CreditBatch(..., gold_logprob=[B, K + 1])"
        )
    rollouts, columns = len(batch.outcome), max(batch.turn_reward.shape[1], 1)
    gains = np.full((rollouts, columns), np.nan)
    gains[:, : batch.turn_reward.shape[1]] = _gains(batch.gold_logprob, batch.turns, gain)
    known = np.isfinite(gains) & (np.arange(columns) < batch.last_turn[:, None])
    value = np.where(known, gains, 0.0)
    last = (np.arange(rollouts), batch.last_turn)
    scope = np.repeat(batch.group[:, None], columns, axis=1)

    if normalization == "joint":
        value[last] = batch.outcome
        known[last] = batch.ok
        score = _score(value, scope, known)
    elif normalization in ("separate", "turn"):
        if normalization == "turn":
            _, group = np.unique(batch.group, return_inverse=True)
            scope = group[:, None] * columns + np.arange(columns)
        score = _score(value, scope, known)
        score[last] = _score(batch.outcome, batch.group, batch.ok)
    else:
        raise ValueError(
            f'normalization must be "joint", "separate" or "turn", not {normalization!r}'
        )
    weight = np.full(score.shape, gain_weight)
    weight[last] = outcome_weight
    return over_turns(batch, discounted_return(weight * score, gamma))


def information_gain(
    gold_logprob: ArrayLike, turns: ArrayLike, gain: Gain = "prob_diff"
) -> NDArray[np.float32]:
    """float32[B, K]: what each turn added to the (log-)probability of the reference answer.

    Args:
        gold_logprob: [B, K + 1], mean log-probability of the answer before turn k.
        turns: [B], the number of turns.
        gain: difference of probabilities ("prob_diff") or log-probabilities ("log_prob_diff").

    Returns:
        `p_{k+1} - p_k`; NaN where either was not asked, and after the last turn. The sum over a
        rollout's turns telescopes to `p_K - p_0`.

    Raises:
        ValueError: a shape is wrong or `gain` is unknown.
    """
    logprob, count = np.asarray(gold_logprob, np.float64), np.asarray(turns, np.int64)
    if logprob.ndim != 2 or count.shape != logprob.shape[:1] or logprob.shape[1] < 1:
        raise ValueError(
            f"gold_logprob and turns have shapes {logprob.shape} and {count.shape}, expected "
            f"(B, K + 1) and (B,)"
        )
    return _gains(logprob, count, gain).astype(np.float32)


def _gains(logprob: Floats, turns: NDArray[np.int64], gain: Gain) -> Floats:
    if gain == "prob_diff":
        p = np.exp(logprob)
    elif gain == "log_prob_diff":
        p = logprob
    else:
        raise ValueError(f'gain must be "prob_diff" or "log_prob_diff", not {gain!r}')
    with np.errstate(invalid="ignore"):  # an answer of probability 0 on both sides: not known
        difference = np.diff(p, axis=1)
    return np.where(np.arange(difference.shape[1]) < turns[:, None], difference, np.nan)


def _score(value: Floats, scope: NDArray[np.int64], include: NDArray[np.bool_]) -> Floats:
    return standard_score(value, scope, include, eps=EPS, population=True, eps_under_root=True)
