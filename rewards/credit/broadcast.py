"""From rollouts and turns to tokens, and from turns to the tokens that end them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from turnwise.rewards.credit.batch import CreditBatch, Floats

Advantage = NDArray[np.float32]
"""float32[B, T]; 0 off actions and in failed rollouts."""


def over_rollouts(batch: CreditBatch, value: Floats) -> Advantage:
    """float32[B, T]: `value[B]` of the rollout at each of its sampled tokens, 0 elsewhere."""
    return np.where(batch.mask, value[:, None], 0.0).astype(np.float32)


def over_turns(batch: CreditBatch, value: Floats) -> Advantage:
    """float32[B, T]: `value[B, >= K]` of the turn at each of its sampled tokens, 0 elsewhere."""
    at = np.take_along_axis(value, np.maximum(batch.turn, 0), axis=1)
    return np.where(batch.mask, at, 0.0).astype(np.float32)


def at_turn_ends(batch: CreditBatch, value: Floats) -> Floats:
    """float64[B, T]: `value[B, K]` summed onto the last sampled token of each turn.

    What a turn without tokens was paid goes to the last token sampled before it; where there is
    none, no token could have earned it and it is left out.
    """
    rollouts, columns = value.shape
    row, column = np.nonzero(batch.mask)
    last = np.full((rollouts, columns), -1)
    np.maximum.at(last, (row, batch.turn[row, column]), column)
    last = np.maximum.accumulate(last, axis=1)
    owner, turn = np.nonzero(last >= 0)
    result = np.zeros(batch.mask.shape)
    np.add.at(result, (owner, last[owner, turn]), value[owner, turn])
    return result
