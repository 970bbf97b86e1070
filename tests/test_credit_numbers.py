"""Worked numbers, identities, and slow references written rollout by rollout."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from turnwise.rewards.credit import (
    CreditBatch,
    dr_grpo,
    grpo,
    igpo,
    information_gain,
    mt_grpo,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    turn_return,
)

FOUR = CreditBatch([1, 0, 0, 1], [0] * 4, [[0]] * 4)


def first_tokens(advantage: Any) -> Any:
    return np.asarray(advantage)[:, 0]


def test_group_baselines_by_hand() -> None:
    np.testing.assert_allclose(first_tokens(grpo(FOUR)), [0.8660, -0.866, -0.866, 0.866], atol=1e-4)
    np.testing.assert_allclose(first_tokens(grpo(FOUR, population=True)), [1, -1, -1, 1], atol=1e-5)
    np.testing.assert_allclose(first_tokens(rloo(FOUR)), np.array([2, -2, -2, 2]) / 3, atol=1e-6)
    np.testing.assert_array_equal(first_tokens(dr_grpo(FOUR)), [0.5, -0.5, -0.5, 0.5])


def test_turn_weight_adds_the_process_reward() -> None:
    batch = CreditBatch([1, 0], [0, 0], [[0, 1], [0, -1]], [[1, 1], [2, 0]])
    np.testing.assert_array_equal(dr_grpo(batch), [[0.5, 0.5], [-0.5, 0]])
    # Returns 1 + 0.5 * 2 = 2 and 0 + 0.5 * 2 = 1.
    np.testing.assert_array_equal(dr_grpo(batch, turn_weight=0.5), [[0.5, 0.5], [-0.5, 0]])
    np.testing.assert_array_equal(dr_grpo(batch, turn_weight=2.0), [[0.5, 0.5], [-0.5, 0]])
    batch = CreditBatch([1, 0], [0, 0], [[0, 1], [0, -1]], [[1, 1], [4, 0]])
    np.testing.assert_array_equal(dr_grpo(batch, turn_weight=1.0), [[-0.5, -0.5], [0.5, 0]])


@pytest.mark.parametrize("method", [grpo, dr_grpo, rloo])
def test_a_rollout_alone_in_its_group(method: Any) -> None:
    batch = CreditBatch([3, 1, 0], [0, 1, 1], [[0]] * 3)
    assert method(batch)[0, 0] == 0
    assert method(batch, singleton="value")[0, 0] == 3
    assert method(batch, singleton="value")[1, 0] == method(batch)[1, 0]
    with pytest.raises(ValueError, match="singleton"):
        method(batch, singleton="outcome")


def test_groups_are_not_mixed() -> None:
    mixed = CreditBatch([1, 5, 0, 7], [3, -1, 3, -1], [[0]] * 4)
    np.testing.assert_array_equal(first_tokens(dr_grpo(mixed)), [0.5, -1, -0.5, 1])


def test_reinforce_pp_carries_the_return_through_observations() -> None:
    # Two rollouts of two action tokens; returns with gamma 0.5: [0.5, 1] and [0, 0].
    plain = CreditBatch([1, 0], [0, 1], [[0, 1], [0, 1]])
    spaced = CreditBatch([1, 0], [0, 1], [[0, -1, -1, 1], [-1, 0, 1, -1]])
    returns = np.array([0.5, 1, 0, 0])
    white = (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(reinforce_pp(plain, gamma=0.5).ravel(), white, rtol=1e-6)
    advantage = reinforce_pp(spaced, gamma=0.5)
    np.testing.assert_allclose(advantage[0, [0, 3]], white[:2], rtol=1e-6)
    np.testing.assert_allclose(advantage[1, [1, 2]], white[2:], rtol=1e-6)


def test_reinforce_pp_places_turn_rewards_at_turn_ends() -> None:
    # Turn 1 has no tokens: what it was paid goes to the last token before it.
    batch = CreditBatch([1], [0], [[0, 0, -1, 2, -1]], [[0.5, 0.25, 0.125]])
    returns = np.array([1.875, 1.875, 1.125])
    white = (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8)
    advantage = reinforce_pp(batch, turn_weight=1.0)
    np.testing.assert_allclose(advantage[0, [0, 1, 3]], white, rtol=1e-6)


def test_reinforce_pp_puts_the_kl_into_the_reward() -> None:
    kl = [[0.5, 9.0, 0.25]]
    batch = CreditBatch([1], [0], [[0, -1, 1]], kl=kl)
    returns = np.array([1 - 0.2 * 0.75, 1 - 0.2 * 0.25])
    white = (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(reinforce_pp(batch, kl_coef=0.2)[0, [0, 2]], white, rtol=1e-5)
    with pytest.raises(ValueError, match="kl_coef needs"):
        reinforce_pp(FOUR, kl_coef=0.1)


def test_reinforce_pp_baseline_whitens_over_tokens() -> None:
    batch = CreditBatch([1, 0], [0, 0], [[0, 0, 0], [0, -1, -1]])
    value = np.array([0.5, 0.5, 0.5, -0.5])
    white = (value - value.mean()) / np.sqrt(value.var(ddof=1) + 1e-8)
    advantage = reinforce_pp_baseline(batch)
    np.testing.assert_allclose([*advantage[0], advantage[1, 0]], white, rtol=1e-6)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_is_checked(gamma: float) -> None:
    for method in (reinforce_pp, turn_return):
        with pytest.raises(ValueError, match="gamma"):
            method(FOUR, gamma=gamma)


def test_turn_return_by_hand() -> None:
    # Returns from each turn: A [1.75, 1.25] (0.5, then 0.25 + 1), B [0.5] (0.5 + 0).
    batch = CreditBatch([1, 0], [0, 0], [[0, -1, 1], [0, -1, -1]], [[0.5, 0.25], [0.5, 0]])
    np.testing.assert_allclose(turn_return(batch), [[1.25, 0, 0.75], [-1.25, 0, 0]], atol=1e-6)
    # gamma 0.5: A [0.5 + 0.625, 1.25].
    np.testing.assert_allclose(
        turn_return(batch, gamma=0.5), [[0.625, 0, 0.75], [-0.625, 0, 0]], atol=1e-6
    )


def test_mt_grpo_by_hand() -> None:
    first = [[0.5, 0.0], [0.0, 0.0], [0.5, 0.0], [0.0, 0.0]]
    batch = CreditBatch([1.5, 0, 0, 0], [0] * 4, [[0, -1, 1]] * 4, first)
    expected = [[2.366, 0, 1.5], [-1.366, 0, -0.5], [0.366, 0, -0.5], [-1.366, 0, -0.5]]
    np.testing.assert_allclose(mt_grpo(batch), expected, atol=1e-3)
    np.testing.assert_allclose(mt_grpo(batch, alpha=0), grpo(batch, eps=1e-4), atol=1e-6)


def test_mt_grpo_scores_a_rollout_of_one_turn_by_the_sum() -> None:
    batch = CreditBatch([1, 0, 0], [0] * 3, [[0, 1], [0, 1], [0, -1]], [[1, 0], [0, 0], [1, 0]])
    total = np.array([2.0, 0, 1])
    expected = (total[2] - total.mean()) / (total.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(mt_grpo(batch)[2, 0], expected, atol=1e-6)


TWO = CreditBatch(
    [1, 0],
    [0, 0],
    [[0, -1, 1, -1, 2]] * 2,
    gold_logprob=np.log([[0.2, 0.5, 0.6, np.nan], [0.1, 0.2, 0.7, np.nan]]),
)


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ("joint", [[1.177, 1.275, 1.961], [-1.177, -0.490, -0.981]]),
        ("separate", [[0.397, 0.0955, 1.0], [-0.397, 0.5075, -1.0]]),
        ("turn", [[1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]]),
    ],
)
def test_igpo_by_hand(normalization: Any, expected: list[list[float]]) -> None:
    advantage = igpo(TWO, normalization=normalization)
    np.testing.assert_allclose(advantage[:, [0, 2, 4]], expected, atol=1e-3)


def test_information_gain_by_hand() -> None:
    gold = [[-1.0, -0.3, np.nan]]
    np.testing.assert_allclose(information_gain(gold, [2]), [[0.3729, np.nan]], atol=1e-4)
    np.testing.assert_allclose(
        information_gain(gold, [2], "log_prob_diff"), [[0.7, np.nan]], atol=1e-6
    )
    assert information_gain(gold, [2]).dtype == np.float32
    # After the last turn there is no gain, whatever the padding holds.
    assert np.isnan(information_gain([[-1.0, -0.3, -0.1]], [1])[0, 1])
    # Probability 0 on both sides: the log difference is not known, that of probabilities is 0.
    zero = [[-np.inf, -np.inf]]
    assert np.isnan(information_gain(zero, [1], "log_prob_diff")[0, 0])
    assert information_gain(zero, [1])[0, 0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: igpo(TWO, normalization="group"), 'normalization must be "joint"'),  # type: ignore[arg-type]
        (lambda: igpo(TWO, gain="ratio"), 'gain must be "prob_diff"'),  # type: ignore[arg-type]
        (lambda: information_gain([[0.0]], [1, 2]), r"shapes \(1, 1\) and \(2,\)"),
        (lambda: information_gain([0.0], [1]), r"expected \(B, K \+ 1\)"),
        (lambda: igpo(FOUR), "roll out with probe=True"),
    ],
)
def test_igpo_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_igpo_leaves_gains_that_were_not_asked_out_of_the_pool() -> None:
    gold = np.log([[0.2, 0.5, np.nan, np.nan], [0.1, 0.2, 0.7, np.nan]])
    batch = CreditBatch([1, 0], [0, 0], [[0, 1, 2]] * 2, gold_logprob=gold)
    pool = np.array([0.3, 0.1, 0.5])
    z = (pool - pool.mean()) / np.sqrt(pool.var() + 1e-8)
    expected = [[z[0] + 1, 1, 1], [z[1] + z[2] - 1, z[2] - 1, -1]]
    np.testing.assert_allclose(igpo(batch), expected, atol=1e-5)


# --- identities and references ---------------------------------------------------------------

dyadic = st.integers(-8, 8).map(lambda n: n / 4)


@st.composite
def full_batches(draw: st.DrawFn) -> CreditBatch:
    """1 to 7 rollouts of 1 to 4 turns of one token each, followed by an observation."""
    size = draw(st.integers(1, 7))
    turns = draw(hnp.arrays(np.int64, size, elements=st.integers(1, 4)))
    turn = np.full((size, 8), -1)
    for i, count in enumerate(turns):
        turn[i, : 2 * count : 2] = np.arange(count)
    return CreditBatch(
        outcome=draw(hnp.arrays(float, size, elements=dyadic)),
        group=draw(hnp.arrays(np.int64, size, elements=st.integers(0, 1))),
        turn=turn,
        turn_reward=draw(hnp.arrays(float, (size, 4), elements=dyadic)),
        turns=turns,
        ok=draw(hnp.arrays(bool, size)),
        gold_logprob=draw(
            hnp.arrays(float, (size, 5), elements=st.integers(-12, 0).map(lambda n: n / 4))
        ),
        kl=draw(hnp.arrays(float, (size, 8), elements=dyadic)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=full_batches())
def test_turn_return_without_turn_rewards_is_rloo(batch: CreditBatch) -> None:
    np.testing.assert_allclose(turn_return(batch, turn_weight=0.0), rloo(batch), atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=full_batches(), normalization=st.sampled_from(["separate", "turn"]))
def test_igpo_without_gains_is_grpo(batch: CreditBatch, normalization: Any) -> None:
    bare = igpo(batch, gain_weight=0.0, normalization=normalization)
    value = batch.outcome
    for i, j in itertools.product(range(len(value)), range(8)):
        others = value[batch.ok & (batch.group == batch.group[i])]
        if batch.mask[i, j]:
            expected = (value[i] - others.mean()) / np.sqrt(others.var() + 1e-8)
            assert bare[i, j] == pytest.approx(expected, abs=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=full_batches())
def test_information_gains_telescope(batch: CreditBatch) -> None:
    gold = np.array(batch.gold_logprob)[batch.ok]
    turns = batch.turns[batch.ok]
    for gain, value in (("prob_diff", np.exp(gold)), ("log_prob_diff", gold)):
        total = np.nansum(information_gain(gold, turns, gain), axis=1)  # type: ignore[arg-type]
        ends = value[np.arange(len(turns)), turns]
        np.testing.assert_allclose(total, ends - value[:, 0], atol=1e-5)


def members(batch: CreditBatch, i: int) -> list[int]:
    return [j for j in range(len(batch.ok)) if batch.ok[j] and batch.group[j] == batch.group[i]]


def naive_returns(rewards: list[float], gamma: float) -> list[float]:
    total, result = 0.0, []
    for reward in reversed(rewards):
        total = reward + gamma * total
        result.append(total)
    return result[::-1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=full_batches(), gamma=st.sampled_from([0.0, 0.5, 1.0]))
def test_turn_return_equals_a_rollout_by_rollout_reference(
    batch: CreditBatch, gamma: float
) -> None:
    returns = []
    for i, count in enumerate(batch.turns):
        rewards = list(batch.turn_reward[i, :count])
        rewards[-1] += batch.outcome[i]
        returns.append(naive_returns(rewards, gamma))
    expected = np.zeros(batch.turn.shape)
    for i, k in itertools.product(range(len(returns)), range(4)):
        others = [returns[j][min(k, len(returns[j]) - 1)] for j in members(batch, i) if j != i]
        if batch.ok[i] and k < batch.turns[i] and others:
            expected[i, 2 * k] = returns[i][k] - np.mean(others)
    np.testing.assert_allclose(turn_return(batch, gamma=gamma), expected, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=full_batches(), gamma=st.sampled_from([0.5, 1.0]))
def test_reinforce_pp_equals_a_rollout_by_rollout_reference(
    batch: CreditBatch, gamma: float
) -> None:
    assert batch.kl is not None
    returns = np.zeros(batch.turn.shape)
    for i, count in enumerate(batch.turns):
        rewards = [0.5 * batch.turn_reward[i, k] - 0.25 * batch.kl[i, 2 * k] for k in range(count)]
        rewards[-1] += batch.outcome[i]
        returns[i, : 2 * count : 2] = naive_returns(rewards, gamma)
    chosen = returns[batch.mask]
    expected = np.zeros(batch.turn.shape)
    if len(chosen) > 1:
        expected[batch.mask] = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    advantage = reinforce_pp(batch, turn_weight=0.5, gamma=gamma, kl_coef=0.25)
    np.testing.assert_allclose(advantage, expected, atol=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=full_batches(),
    gamma=st.sampled_from([0.5, 1.0]),
    normalization=st.sampled_from(["joint", "separate", "turn"]),
)
def test_igpo_equals_a_rollout_by_rollout_reference(
    batch: CreditBatch, gamma: float, normalization: Any
) -> None:
    p = np.exp(np.array(batch.gold_logprob))

    def gains(i: int) -> list[float]:
        return [p[i, k + 1] - p[i, k] for k in range(batch.turns[i] - 1)]

    def score(x: float, pool: list[float]) -> float:
        return float((x - np.mean(pool)) / np.sqrt(np.var(pool) + 1e-8))

    expected = np.zeros(batch.turn.shape)
    for i in map(int, np.flatnonzero(batch.ok)):
        group = members(batch, i)
        outcomes = [float(batch.outcome[j]) for j in group]
        pooled = [g for j in group for g in gains(j)]
        if normalization == "joint":
            pooled, outcomes = pooled + outcomes, pooled + outcomes
        scores = []
        for k, x in enumerate(gains(i)):
            same_turn = [gains(j)[k] for j in group if batch.turns[j] - 1 > k]
            scores.append(score(x, same_turn if normalization == "turn" else pooled))
        scores.append(score(batch.outcome[i], outcomes))
        expected[i, : 2 * batch.turns[i] : 2] = naive_returns(scores, gamma)
    advantage = igpo(batch, gamma=gamma, normalization=normalization)
    np.testing.assert_allclose(advantage, expected, atol=1e-4)
