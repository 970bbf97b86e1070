"""Trajectories to advantages to the padded arrays that the Learner trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from turnwise.agents.rllib.objectives import token_weights
from turnwise.agents.trajectory import Trajectory
from turnwise.rewards.credit import CREDIT, CreditBatch

# Columns of the training batch; B rows (one per trajectory), T tokens, padded on the right.
# None is called `seq_lens` or `loss_mask`: RLlib gives those names a meaning of its own.
TOKENS = "tokens"  # int32[B, T]
ACTION_MASK = "action_mask"  # bool[B, T], True where the policy sampled the token
LOGPROBS = "logprobs"  # float32[B, T], under the policy that sampled
ADVANTAGES = "advantages"  # float32[B, T]
WEIGHTS = "weights"  # float32[B, T], what each token's loss counts; the whole batch adds up
LENGTHS = "lengths"  # int32[B]

MIN_LENGTH = 2
"""The first token has no prediction, so a row needs two."""

SIGNAL = 1e-8
"""An advantage below this is none."""


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """The trajectories of an iteration and what their tokens were worth.

    Attributes:
        iteration: 0, 1, ...
        trajectories: N of them, failed ones too.
        advantages: N arrays, float32[T] each; all 0 for a failed trajectory.
    """

    iteration: int
    trajectories: tuple[Trajectory, ...]
    advantages: tuple[NDArray[np.float32], ...]


def pad(rows: Sequence[NDArray[Any]], width: int, fill: Any, dtype: Any) -> NDArray[Any]:
    """Ragged rows to [B, width], padded on the right with `fill`."""
    out = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def credit_batch(trajectories: Sequence[Trajectory]) -> CreditBatch:
    """The arrays that credit functions read; [B, T] over tokens, [B, K] over turns."""
    tokens = max((len(t.tokens) for t in trajectories), default=0)
    turns = max((len(t.turns) for t in trajectories), default=0)
    gold = None
    if any(t.gold_logprob is not None for t in trajectories):
        unasked = np.zeros(0, np.float32)
        rows = [unasked if t.gold_logprob is None else t.gold_logprob for t in trajectories]
        gold = pad(rows, turns + 1, np.nan, np.float32)
    return CreditBatch(
        outcome=np.array([t.outcome for t in trajectories], np.float32),
        group=np.array([t.group for t in trajectories], np.int64),
        turn=pad([t.turn_of_token for t in trajectories], tokens, -1, np.int32),
        turn_reward=pad([t.turn_rewards for t in trajectories], turns, 0.0, np.float32),
        turns=np.array([len(t.turns) for t in trajectories], np.int32),
        ok=np.array([t.ok for t in trajectories], np.bool_),
        gold_logprob=gold,
    )


def score(
    iteration: int, trajectories: Sequence[Trajectory], credit: str, options: Mapping[str, Any]
) -> ScoredBatch:
    """Give every token its advantage. Whole groups go in, before anything is sharded or dropped.

    Args:
        iteration: for the record.
        trajectories: N, groups complete as far as their rollouts came back.
        credit: a name in `CREDIT`.
        options: keyword arguments for it.

    Raises:
        ValueError: an advantage is not finite.
    """
    # Rollouts come back in any order; the rounding of sums over them must not depend on it.
    ordered = tuple(sorted(trajectories, key=lambda t: (t.group, t.tokens.tobytes())))
    if not ordered:
        return ScoredBatch(iteration, (), ())
    advantages = CREDIT[credit](credit_batch(ordered), **options)
    if not np.isfinite(advantages).all():
        raise ValueError(f"The credit function {credit!r} gave an advantage that is not finite.")
    rows = tuple(advantages[i, : len(t.tokens)].astype(np.float32) for i, t in enumerate(ordered))
    return ScoredBatch(iteration, ordered, rows)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """What the Learners get.

    Attributes:
        columns: arrays with B rows, by the column names above. Learner i of L takes rows
            [i * B / L, (i + 1) * B / L).
        minibatch_size: rows of one optimiser step on one Learner; divides B / L.
        minibatches: optimiser steps in an epoch.
        rows: how many are trajectories; the others are filler without weight.
        usable: how many trajectories did not fail.
    """

    columns: dict[str, NDArray[Any]]
    minibatch_size: int
    minibatches: int
    rows: int
    usable: int


def training_rows(
    batch: ScoredBatch,
    *,
    aggregation: str,
    max_length: int | None,
    learners: int,
    minibatch_size: int | None,
    drop_rows_without_signal: bool,
    seed: int,
) -> TrainingRows | None:
    """Pad the trajectories that can be learned from; None where there is none.

    The weights are those of the whole batch, `aggregation`'s normaliser included, times
    `learners * minibatches`: DDP averages the gradients of the Learners, and every minibatch is an
    optimiser step of its own. So one step over everything has the batch's own gradient, for any
    number of Learners and micro-batches, and minibatches have that gradient on average. A row
    without signal keeps its place in the normaliser when it is dropped, so that dropping it saves
    time and changes nothing.

    Args:
        batch: the trajectories and their advantages.
        aggregation: a name in `AGGREGATIONS`.
        max_length: the normaliser of the aggregations that want one.
        learners: L.
        minibatch_size: at most so many rows per Learner and optimiser step; None takes all.
        drop_rows_without_signal: leave out rows whose advantages are all 0; right only if they
            enter the loss in no other way (no KL term).
        seed: of the order of the rows, where there are minibatches.
    """
    usable = [i for i, t in enumerate(batch.trajectories) if t.ok and t.action_mask.any()]
    if not usable:
        return None
    trajectories = [batch.trajectories[i] for i in usable]
    width = max(max(len(t.tokens) for t in trajectories), MIN_LENGTH)
    mask = pad([t.action_mask for t in trajectories], width, False, np.bool_)
    columns: dict[str, NDArray[Any]] = {
        TOKENS: pad([t.tokens for t in trajectories], width, 0, np.int32),
        ACTION_MASK: mask,
        LOGPROBS: pad([t.logprobs for t in trajectories], width, 0.0, np.float32),
        ADVANTAGES: pad([batch.advantages[i] for i in usable], width, 0.0, np.float32),
        WEIGHTS: token_weights(torch.from_numpy(mask), aggregation, max_length).numpy(),
        LENGTHS: np.array([len(t.tokens) for t in trajectories], np.int32),
    }
    kept = np.arange(len(usable))
    if drop_rows_without_signal:
        kept = np.flatnonzero(np.abs(columns[ADVANTAGES]).max(1) > SIGNAL)
        if not len(kept):
            return None
    per_learner = -(-len(kept) // learners)
    minibatches = -(-per_learner // minibatch_size) if minibatch_size else 1
    # Even minibatches: 9 rows at 8 a piece are 5 and 4, not 8 and 1.
    size = -(-per_learner // minibatches)
    if minibatch_size:
        kept = np.random.default_rng(seed).permutation(kept)
    else:
        # Dealing rows out by length gives every Learner about as many tokens.
        kept = kept[np.argsort(-columns[LENGTHS][kept], kind="stable")]
    total = size * minibatches * learners
    # Row j of the order goes to Learner j % L; -1 is filler, which so ends up spread evenly.
    order = np.concatenate([kept, np.full(total - len(kept), -1)])
    order = order.reshape(-1, learners).T.reshape(-1)
    filler = order < 0
    columns = {name: column[order] for name, column in columns.items()}
    for name in (TOKENS, ACTION_MASK, LOGPROBS, ADVANTAGES, WEIGHTS):
        columns[name][filler] = 0
    columns[LENGTHS][filler] = MIN_LENGTH
    columns[LENGTHS] = np.maximum(columns[LENGTHS], MIN_LENGTH)
    width = int(columns[LENGTHS].max())
    columns = {n: c[:, :width] if c.ndim == 2 else c for n, c in columns.items()}
    columns[WEIGHTS] = columns[WEIGHTS] * np.float32(learners * minibatches)
    return TrainingRows(columns, size, minibatches, len(kept), len(usable))
