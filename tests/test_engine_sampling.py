"""Sampling from logits by numbers given."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.engines.sampling import Knobs, sample, truncated, uniforms


def logits(*probs: float) -> torch.Tensor:
    return torch.tensor([probs]).log()


def test_the_cumulative_distribution_is_inverted() -> None:
    table = logits(0.2, 0.0, 0.5, 0.3).expand(6, -1)
    numbers = torch.tensor([[0.0], [0.19], [0.21], [0.69], [0.71], [0.999]])
    token, logprob = sample(table, numbers, Knobs())
    assert token[:, 0].tolist() == [0, 0, 2, 2, 3, 3]
    expected = np.log([0.2, 0.2, 0.5, 0.5, 0.3, 0.3])
    np.testing.assert_allclose(logprob[:, 0].numpy(), expected, atol=1e-6)


def test_temperature_and_greedy() -> None:
    table = logits(0.2, 0.8).expand(3, -1)
    knobs = Knobs(
        temperature=torch.tensor([[0.5], [1.0], [1.0]]),
        greedy=torch.tensor([[False], [True], [False]]),
    )
    token, logprob = sample(table, torch.tensor([[0.05], [0.0], [0.1]]), knobs)
    assert token[:, 0].tolist() == [0, 1, 0]
    # At temperature 1/2 the odds are squared: 0.04 to 0.64.
    np.testing.assert_allclose(logprob[:, 0].numpy(), np.log([0.04 / 0.68, 0.8, 0.2]), atol=1e-5)


def test_truncation_by_hand() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])

    def kept(top_p: float, top_k: int) -> list[int]:
        out = truncated(probs, torch.tensor([[top_p]]), torch.tensor([[top_k]]))
        assert torch.equal(out[out > 0], probs[out > 0])
        return out[0].nonzero()[:, 0].tolist()

    assert kept(1.0, 4) == [0, 1, 2, 3]
    assert kept(1.0, 2) == [1, 3]
    assert kept(0.39, 4) == [1]
    assert kept(0.41, 4) == [1, 3]
    assert kept(0.75, 4) == [1, 2, 3]
    # Of the top two's mass 0.7, the first has 4/7 = 0.571.
    assert kept(0.57, 2) == [1]
    assert kept(0.58, 2) == [1, 3]


def test_equal_probabilities_are_cut_at_the_higher_id() -> None:
    out = truncated(torch.full((1, 4), 0.25), None, torch.tensor([[2]]))
    assert out[0].nonzero()[:, 0].tolist() == [0, 1]


def test_truncation_leaves_the_reported_logprob_alone() -> None:
    knobs = Knobs(top_k=torch.tensor([[1]]))
    token, logprob = sample(logits(0.4, 0.6), torch.tensor([[0.1]]), knobs)
    assert token.item() == 1
    np.testing.assert_allclose(logprob.item(), np.log(0.6), atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-80, 80) | st.just(float("-inf")), min_size=2, max_size=40).filter(
        lambda xs: max(xs) > float("-inf")
    ),
    st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-22, float(np.float32(1 - 2**-24) * (1 - 2**-22))]),
)
def test_what_is_sampled_has_probability(values: list[float], number: float) -> None:
    table = torch.tensor([values], dtype=torch.float32)
    token, logprob = sample(table, torch.tensor([[number]], dtype=torch.float32), Knobs())
    assert 0 <= token.item() < len(values)
    assert torch.softmax(table, -1)[0, token.item()] > 0 and torch.isfinite(logprob).all()


def test_uniforms_are_a_function_of_the_seed() -> None:
    assert np.array_equal(uniforms(3, 5), uniforms(3, 9)[:5])
    assert not np.array_equal(uniforms(3, 5), uniforms(4, 5))
    for seed in (0, -1, 2**63, 2**64 + 1):
        draws = uniforms(seed, 1000)
        assert draws.dtype == np.float32 and 0 <= draws.min() and draws.max() < 1
        assert abs(draws.mean() - 0.5) < 0.05
