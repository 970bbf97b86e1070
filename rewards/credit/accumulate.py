"""Discounted returns, over turns and over tokens."""

from __future__ import annotations

import numpy as np

from turnwise.rewards.credit.batch import CreditBatch, Floats


def discounted_return(reward: Floats, gamma: float) -> Floats:
    """float64[..., N]: `G_n = sum_{j >= n} gamma^(j - n) reward_j`, along the last axis.

    Args:
        reward: float64[..., N].
        gamma: in [0, 1].

    Raises:
        ValueError: gamma is not in [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], is {gamma}")
    result = np.array(reward, np.float64)
    # Each pass doubles the number of rewards that every entry already sums.
    reach = 1
    while reach < result.shape[-1]:
        result[..., :-reach] += gamma**reach * result[..., reach:]
        reach *= 2
    return result


def turn_returns(batch: CreditBatch, gamma: float, turn_weight: float) -> Floats:
    """float64[B, max(K, 1)]: the return from each turn on, the outcome paid to the last turn.

    Turns after a rollout's last one repeat its last return, so that column k holds
    `G_{i, min(k, K_i - 1)}`; a rollout without turns holds its outcome.
    """
    rollouts, columns = len(batch.outcome), max(batch.turn_reward.shape[1], 1)
    reward = np.zeros((rollouts, columns))
    reward[:, : batch.turn_reward.shape[1]] = turn_weight * batch.turn_reward
    reward[np.arange(rollouts), batch.last_turn] += batch.outcome
    result = discounted_return(reward, gamma)
    reached = np.minimum(np.arange(columns), batch.last_turn[:, None])
    return np.take_along_axis(result, reached, axis=1)


def token_returns(batch: CreditBatch, reward: Floats, gamma: float) -> Floats:
    """float64[B, T]: the discounted return from each sampled token on; 0 off actions.

    Observation tokens are not steps: the return is carried through them, undiscounted.

    Args:
        batch: says which tokens were sampled.
        reward: float64[B, T]; off actions it is not read.
        gamma: per sampled token.
    """
    row, column = np.nonzero(batch.mask)
    place = (np.cumsum(batch.mask, axis=1) - 1)[row, column]
    packed = np.zeros((len(batch.outcome), int(place.max(initial=-1)) + 1))
    packed[row, place] = reward[row, column]
    result = np.zeros(batch.mask.shape)
    result[row, column] = discounted_return(packed, gamma)[row, place]
    return result
