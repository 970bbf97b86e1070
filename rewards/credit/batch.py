"""CreditBatch: the arrays every credit function reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, init=False, eq=False)
class CreditBatch:
    """B rollouts of up to K turns and T tokens.

    The return of a rollout is `outcome + sum(turn_reward)`. Entries that mean nothing (turns after
    the last one, observation tokens, everything of a failed rollout) may hold any value, NaN
    included: they are stored as 0 (`gold_logprob`: NaN), so no credit function can read them.

    Attributes:
        outcome: float64[B], what the finished episode was worth.
        group: int64[B]; rollouts of one group share a task and are compared with one another.
        turn: int64[B, T], the turn a sampled token belongs to; -1 off actions.
        turn_reward: float64[B, K], the process reward of each turn, without the outcome.
        turns: int64[B], the number of turns of each rollout, at most K.
        ok: bool[B], False where the infrastructure failed: such a rollout gets no credit and
            enters no baseline.
        gold_logprob: float64[B, K + 1] or None, mean log-probability of the reference answer
            before turn k; NaN where it was not asked (in particular after the last turn).
        kl: float64[B, T] or None, per-token estimate of KL(policy, reference), for methods that
            put the KL penalty into the reward.
    """

    outcome: Floats
    group: Ints
    turn: Ints
    turn_reward: Floats
    turns: Ints
    ok: Bools
    gold_logprob: Floats | None
    kl: Floats | None

    def __init__(
        self,
        outcome: ArrayLike,
        group: ArrayLike,
        turn: ArrayLike,
        turn_reward: ArrayLike | None = None,
        turns: ArrayLike | None = None,
        ok: ArrayLike | None = None,
        gold_logprob: ArrayLike | None = None,
        kl: ArrayLike | None = None,
    ) -> None:
        """Takes anything NumPy makes an array of; see the attributes for shapes.

        Args:
            outcome: [B].
            group: [B], whole numbers.
            turn: [B, T], whole numbers from -1 on.
            turn_reward: [B, K]; None: no process reward.
            turns: [B]; None: one more than the largest turn in each row of `turn`.
            ok: [B]; None: no rollout failed.
            gold_logprob: [B, K + 1] or None.
            kl: [B, T] or None.

        Raises:
            ValueError: a shape is wrong, a whole number is not one, a token's turn is not below its
                rollout's number of turns, or a rollout that is `ok` holds a reward or KL that is
                not finite in float32.
        """
        outcome_ = _array("outcome", outcome, ("B",), {})
        size = {"B": len(outcome_)}
        group_ = _whole("group", _array("group", group, ("B",), size))
        turn_ = _whole("turn", _array("turn", turn, ("B", "T"), size))
        size["T"] = turn_.shape[1]
        if (turn_ < -1).any():
            raise ValueError(f"turn must be -1 or more, has {turn_.min()}")
        played = turn_.max(axis=1, initial=-1) + 1
        turns_ = played if turns is None else _whole("turns", _array("turns", turns, ("B",), size))
        if (turns_ < played).any():
            row = int(np.argmax(turns_ < played))
            raise ValueError(
                f"turn must be smaller than turns: rollout {row} has turns {turns_[row]} and a "
                f"token of turn {played[row] - 1}"
            )
        if turn_reward is None:
            turn_reward_ = np.zeros((size["B"], int(turns_.max(initial=0))))
        else:
            turn_reward_ = _array("turn_reward", turn_reward, ("B", "K"), size)
        size["K"] = turn_reward_.shape[1]
        if (turns_ > size["K"]).any():
            raise ValueError(
                f"turn_reward has shape {turn_reward_.shape}, but a rollout has "
                f"{turns_.max()} turns: expected (B, K) with K at least {turns_.max()}"
            )
        if ok is None:
            ok_ = np.ones(size["B"], bool)
        else:
            ok_ = _array("ok", ok, ("B",), size).astype(bool)

        played_turns = ok_[:, None] & (np.arange(size["K"] + 1) < turns_[:, None])
        _set(self, "outcome", _finite("outcome", outcome_, ok_))
        _set(self, "group", group_)
        _set(self, "turn", turn_)
        _set(self, "turn_reward", _finite("turn_reward", turn_reward_, played_turns[:, :-1]))
        _set(self, "turns", turns_)
        _set(self, "ok", ok_)
        if gold_logprob is not None:
            gold = _array(
                "gold_logprob", gold_logprob, ("B", "K + 1"), size | {"K + 1": size["K"] + 1}
            )
            after_last = np.arange(size["K"] + 1) <= turns_[:, None]
            _set(self, "gold_logprob", np.where(ok_[:, None] & after_last, gold, np.nan))
        else:
            _set(self, "gold_logprob", None)
        if kl is not None:
            _set(self, "kl", _finite("kl", _array("kl", kl, ("B", "T"), size), self.mask))
        else:
            _set(self, "kl", None)

    @property
    def mask(self) -> Bools:
        """bool[B, T], the tokens that receive credit: sampled, in a rollout that did not fail."""
        return (self.turn >= 0) & self.ok[:, None]

    @property
    def last_turn(self) -> Ints:
        """int64[B], the turn that is paid the outcome (0 for a rollout without turns)."""
        return np.maximum(self.turns, 1) - 1

    def returns(self, turn_weight: float = 1.0) -> Floats:
        """float64[B], `outcome + turn_weight * sum(turn_reward)`."""
        return self.outcome + turn_weight * self.turn_reward.sum(axis=1)


def _set(batch: CreditBatch, name: str, value: object) -> None:
    """Set a field of the frozen dataclass; the arrays are made read-only with it."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    object.__setattr__(batch, name, value)


def _array(name: str, value: ArrayLike, shape: tuple[str, ...], size: dict[str, int]) -> Floats:
    """A new float64 array of `value`, of as many axes as `shape` and the sizes known so far."""
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array of numbers [{', '.join(shape)}]: {error}"
        ) from error
    expected = tuple(size.get(axis, axis) for axis in shape)
    fits = array.ndim == len(shape) and all(
        axis not in size or size[axis] == n for axis, n in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(n) for n in expected) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has shape {array.shape}, expected ({wanted})")
    return array


def _whole(name: str, array: Floats) -> Ints:
    """The array as integers; ValueError where it holds anything else."""
    whole = np.isfinite(array) & (np.trunc(array) == array)
    if not whole.all():
        raise ValueError(f"{name} must hold whole numbers, has {array[~whole][0]}")
    return array.astype(np.int64)


def _finite(name: str, array: Floats, meaningful: Bools) -> Floats:
    """The array, 0 where not `meaningful`; ValueError where it is meaningful and not finite."""
    bad = meaningful & ~(np.abs(array) <= np.finfo(np.float32).max)
    if bad.any():
        where = ", ".join(str(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}[{where}] is {array[bad][0]}; a rollout that could not be judged is marked "
            f"ok=False"
        )
    return np.where(meaningful, array, 0.0)
