"""CreditBatch: coercion, validation, and what it makes unreadable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from turnwise.rewards.credit import CreditBatch


def fields(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "outcome": [1, 0],
        "group": [7, 7],
        "turn": [[-1, 0, 0, -1, 1], [-1, 0, -1, -1, -1]],
        "turn_reward": [[0.5, 0.25], [0.5, 9.0]],
        "turns": [2, 1],
        "ok": [True, True],
    }
    return given | changes


def test_lists_become_arrays_and_padding_becomes_zero() -> None:
    batch = CreditBatch(**fields())
    assert batch.outcome.dtype == np.float64
    assert batch.turn.dtype == batch.group.dtype == batch.turns.dtype == np.int64
    assert batch.ok.dtype == np.bool_
    assert batch.turn_reward.tolist() == [[0.5, 0.25], [0.5, 0.0]]
    assert batch.returns().tolist() == [1.75, 0.5]
    assert batch.returns(0.0).tolist() == [1.0, 0.0]
    assert batch.last_turn.tolist() == [1, 0]
    assert batch.gold_logprob is None
    assert batch.kl is None


def test_defaults() -> None:
    batch = CreditBatch([1, 0, 2], [0, 0, 0], [[0, -1, 1], [0, 0, 0], [-1, -1, -1]])
    assert batch.turns.tolist() == [2, 1, 0]
    assert batch.turn_reward.tolist() == [[0, 0]] * 3
    assert batch.ok.all()


def test_it_does_not_alias_its_input_and_is_read_only() -> None:
    outcome = np.array([1.0, 0.0])
    batch = CreditBatch(**fields(outcome=outcome))
    outcome[0] = 5.0
    assert batch.outcome[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        batch.outcome[0] = 5.0
    with pytest.raises(AttributeError):
        batch.outcome = outcome  # type: ignore[misc]


def test_a_failed_rollout_may_hold_anything_and_none_of_it_is_kept() -> None:
    garbage = fields(
        outcome=[1, np.nan],
        turn_reward=[[0.5, 0.25], [np.inf, -np.inf]],
        ok=[1, 0],
        kl=[[np.nan, 0.1, 0.2, np.nan, 0.3], [np.nan] * 5],
        gold_logprob=[[-1, -2, np.nan], [-1, -2, -3]],
    )
    batch = CreditBatch(**garbage)
    assert batch.outcome.tolist() == [1, 0]
    assert batch.turn_reward[1].tolist() == [0, 0]
    assert batch.kl is not None
    assert batch.kl.tolist() == [[0, 0.1, 0.2, 0, 0.3], [0] * 5]
    assert batch.gold_logprob is not None
    assert np.isnan(batch.gold_logprob[1]).all()
    assert not batch.mask[1].any()


def test_gold_logprob_is_unreadable_after_the_last_turn() -> None:
    batch = CreditBatch(**fields(gold_logprob=[[-1, -2, -3], [-1, -2, -3]]))
    assert batch.gold_logprob is not None
    np.testing.assert_array_equal(batch.gold_logprob, [[-1, -2, -3], [-1, -2, np.nan]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": [[1], [0]]}, r"outcome has shape \(2, 1\), expected \(B,\)"),
        ({"group": [7]}, r"group has shape \(1,\), expected \(2,\)"),
        ({"turn": [0, 1]}, r"turn has shape \(2,\), expected \(2, T\)"),
        ({"turn": [[0], [0], [0]]}, r"turn has shape \(3, 1\), expected \(2, T\)"),
        ({"turn_reward": [0.5, 0.5]}, r"turn_reward has shape \(2,\), expected \(2, K\)"),
        ({"turn_reward": [[1.0], [1.0]]}, r"turn_reward has shape \(2, 1\).*K at least 2"),
        ({"turns": [2]}, r"turns has shape \(1,\), expected \(2,\)"),
        ({"turns": [1, 1]}, "rollout 0 has turns 1 and a token of turn 1"),
        ({"turn": [[-2] * 5] * 2}, "turn must be -1 or more, has -2"),
        ({"ok": [True]}, r"ok has shape \(1,\), expected \(2,\)"),
        ({"gold_logprob": [[-1, -1]] * 2}, r"gold_logprob has shape \(2, 2\), expected \(2, 3\)"),
        ({"kl": [[0.0]] * 2}, r"kl has shape \(2, 1\), expected \(2, 5\)"),
        ({"group": [0.5, 1]}, "group must hold whole numbers, has 0.5"),
        ({"turns": [np.nan, 1]}, "turns must hold whole numbers, has nan"),
        ({"turn": [[0, 1], [0]]}, "turn must be an array of numbers"),
        ({"outcome": ["a", "b"]}, "outcome must be an array of numbers"),
        ({"outcome": [np.nan, 0]}, r"outcome\[0\] is nan.*ok=False"),
        ({"outcome": [0, 1e300]}, r"outcome\[1\] is 1e\+300"),
        ({"turn_reward": [[0, np.inf], [0, 0]]}, r"turn_reward\[0, 1\] is inf"),
        ({"kl": [[0, np.nan, 0, 0, 0], [0] * 5]}, r"kl\[0, 1\] is nan"),
    ],
)
def test_errors_name_the_field_and_the_shapes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CreditBatch(**fields(**change))
