"""Properties that every registered credit function has."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from turnwise.rewards.credit import CREDIT, NEEDS_GOLD_LOGPROB, CreditBatch
from turnwise.rewards.names import UnknownNameError

EVERY = pytest.mark.parametrize("name", sorted(CREDIT))
BATCH_WHITENED = {"reinforce_pp", "reinforce_pp_baseline"}

# Dyadic values: shifting and summing them rounds nothing, so that tiny deviations stay tiny.
values = st.integers(-8, 8).map(lambda n: n / 4)


@st.composite
def batches(draw: st.DrawFn, min_size: int = 1, failures: bool = True) -> CreditBatch:
    """Up to 6 rollouts in up to 3 groups, of up to 3 turns of up to 2 tokens, with gaps."""
    size = draw(st.integers(min_size, 6))
    width, turns = 10, draw(hnp.arrays(np.int64, size, elements=st.integers(0, 3)))
    columns = max(int(turns.max()), draw(st.integers(0, 3)))
    turn = np.full((size, width), -1)
    for i, count in enumerate(turns):
        place = 0
        for k in range(count):
            gap, length = draw(st.integers(0, 1)), draw(st.integers(0, 2))
            turn[i, place + gap : place + gap + length] = k
            place += gap + length
    return CreditBatch(
        outcome=draw(hnp.arrays(float, size, elements=values)),
        group=draw(hnp.arrays(np.int64, size, elements=st.integers(-1, 1))),
        turn=turn,
        turn_reward=draw(hnp.arrays(float, (size, columns), elements=values)),
        turns=turns,
        ok=draw(hnp.arrays(bool, size)) if failures else None,
        gold_logprob=draw(
            hnp.arrays(float, (size, columns + 1), elements=st.just(np.nan) | values.map(neg))
        ),
        kl=draw(hnp.arrays(float, (size, width), elements=values)),
    )


def neg(value: float) -> float:
    return -abs(value)


def options(name: str) -> list[dict[str, Any]]:
    """The defaults, and a set of options that reads everything the batch holds."""
    more: dict[str, dict[str, Any]] = {
        "grpo": {"turn_weight": 0.5, "population": True},
        "dr_grpo": {"turn_weight": 0.5},
        "rloo": {"turn_weight": 0.5},
        "reinforce_pp": {"turn_weight": 0.5, "gamma": 0.5, "kl_coef": 0.25},
        "reinforce_pp_baseline": {"turn_weight": 0.5},
        "turn_return": {"gamma": 0.5},
        "mt_grpo": {"alpha": 0.5},
        "igpo": {"normalization": "turn", "gain": "log_prob_diff", "gamma": 0.5},
    }
    return [{}, more.get(name, {})]


def edit(batch: CreditBatch, **changes: Any) -> CreditBatch:
    return replace(batch, **changes)


def close(a: NDArray[Any], b: NDArray[Any]) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@EVERY
@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=batches())
def test_finite_float32_and_zero_off_actions_and_in_failed_rollouts(
    name: str, batch: CreditBatch
) -> None:
    for opts in options(name):
        advantage = CREDIT[name](batch, **opts)
        assert advantage.dtype == np.float32
        assert advantage.shape == batch.turn.shape
        assert np.isfinite(advantage).all()
        assert not advantage[batch.turn < 0].any()
        assert not advantage[~batch.ok].any()


@EVERY
@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=batches(), data=st.data())
def test_observation_tokens_change_nothing(
    name: str, batch: CreditBatch, data: st.DataObject
) -> None:
    rollouts, width = batch.turn.shape
    inserted = data.draw(hnp.arrays(np.int64, (rollouts, width + 1), elements=st.integers(0, 2)))
    longer = np.full((rollouts, 3 * width + 3), -1)
    kl = np.full(longer.shape, 9.0)
    target = np.arange(width) + np.cumsum(inserted, axis=1)[:, :width]
    rows = np.arange(rollouts)[:, None]
    longer[rows, target] = batch.turn
    assert batch.kl is not None
    kl[rows, target] = batch.kl
    for opts in options(name):
        before = CREDIT[name](batch, **opts)
        after = CREDIT[name](edit(batch, turn=longer, kl=kl), **opts)
        np.testing.assert_array_equal(after[rows, target], before)
        assert np.count_nonzero(after) == np.count_nonzero(before)


@EVERY
@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=batches(), data=st.data())
def test_failed_rollouts_move_no_other(name: str, batch: CreditBatch, data: st.DataObject) -> None:
    garbage = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -7.0])
    failed = ~batch.ok
    replaced: dict[str, Any] = {}
    for field in ("outcome", "turn_reward", "gold_logprob", "kl"):
        array = np.array(getattr(batch, field))
        array[failed] = data.draw(hnp.arrays(float, array[failed].shape, elements=garbage))
        replaced[field] = array
    kept = [f.name for f in fields(batch)]
    for opts in options(name):
        before = CREDIT[name](batch, **opts)
        np.testing.assert_array_equal(CREDIT[name](edit(batch, **replaced), **opts), before)
        without = CreditBatch(**{f: np.array(getattr(batch, f))[batch.ok] for f in kept})
        close(CREDIT[name](without, **opts), before[batch.ok])


@EVERY
@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=batches(), value=st.floats(-3, 3), data=st.data())
def test_an_all_equal_group_gets_exactly_zero(
    name: str, batch: CreditBatch, value: float, data: st.DataObject
) -> None:
    equal = batch.ok if name in BATCH_WHITENED else batch.group == batch.group[0]
    flat = edit(
        batch,
        outcome=np.where(equal, value, batch.outcome),
        turn_reward=np.where(equal[:, None], 0.0, batch.turn_reward),
        gold_logprob=np.where(equal[:, None], -0.7, np.array(batch.gold_logprob)),
    )
    assert not CREDIT[name](flat)[equal].any()


@EVERY
@settings(max_examples=30, deadline=None, derandomize=True)
@given(batch=batches(), data=st.data())
def test_permuting_rollouts_permutes_advantages(
    name: str, batch: CreditBatch, data: st.DataObject
) -> None:
    order = np.array(data.draw(st.permutations(range(len(batch.outcome)))))
    permuted = CreditBatch(
        **{f.name: np.array(getattr(batch, f.name))[order] for f in fields(batch)}
    )
    for opts in options(name):
        close(CREDIT[name](permuted, **opts), CREDIT[name](batch, **opts)[order])


@EVERY
@settings(max_examples=30, deadline=None, derandomize=True)
@given(batch=batches(), shift=values)
def test_adding_a_constant_to_outcomes_changes_nothing(
    name: str, batch: CreditBatch, shift: float
) -> None:
    if name == "reinforce_pp":  # compares the whole batch: only a shift of all of it drops out
        shifts = np.full(len(batch.outcome), shift)
    else:
        shifts = shift * (batch.group == batch.group[0])
    shifted = edit(batch, outcome=batch.outcome + shifts)
    close(CREDIT[name](shifted), CREDIT[name](batch))


@EVERY
@pytest.mark.parametrize("shape", [(1, 0), (1, 3), (3, 0), (3, 4), (0, 0), (0, 3)])
def test_zero_everywhere(name: str, shape: tuple[int, int]) -> None:
    turn = np.zeros(shape, int)
    turn[1:] = -1
    batch = CreditBatch(
        np.zeros(shape[0]), np.zeros(shape[0], int), turn, gold_logprob=_no_gold(turn)
    )
    np.testing.assert_array_equal(CREDIT[name](batch), np.zeros(shape, np.float32))


def _no_gold(turn: NDArray[Any]) -> NDArray[Any]:
    return np.full((len(turn), int(turn.max(initial=-1)) + 2), np.nan)


@EVERY
def test_unknown_options_are_refused(name: str) -> None:
    batch = CreditBatch([0.0], [0], [[0]], gold_logprob=[[-1, -1]])
    with pytest.raises(TypeError, match="no_such_option"):
        CREDIT[name](batch, no_such_option=1)
    with pytest.raises(TypeError):
        CREDIT[name](batch, 0.5)


@EVERY
def test_needs_gold_logprob_says_who_needs_it(name: str) -> None:
    batch = CreditBatch([0.0, 1.0], [0, 0], [[0], [0]])
    if name in NEEDS_GOLD_LOGPROB:
        with pytest.raises(ValueError, match="gold_logprob"):
            CREDIT[name](batch)
    else:
        assert np.isfinite(CREDIT[name](batch)).all()


def test_names_are_the_fields_standard_terms() -> None:
    assert {
        *("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"),
        *("turn_return", "mt_grpo", "igpo"),
    } <= set(CREDIT)
    assert NEEDS_GOLD_LOGPROB <= set(CREDIT)
    with pytest.raises(UnknownNameError, match="'grpo'"):
        CREDIT["grop"]
