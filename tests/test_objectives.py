"""Policy objectives: hand numbers, gradients, and partitions that add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turnwise.agents.rllib.objectives import (
    AGGREGATIONS,
    OBJECTIVES,
    cispo,
    gspo,
    k3_kl,
    ppo_clip,
    token_weights,
)

EVERY = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def ones(*values: float) -> Tensor:
    return torch.ones_like(row(*values), dtype=torch.bool)


def ratios(*values: float) -> Tensor:
    """Log-probabilities with the given ratios to an old log-probability of 0."""
    return row(*values).log().requires_grad_()


def random_batch(seed: int, rows: int = 5, width: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, width, generator=generator, dtype=torch.float64) - 0.1
    logprob = (old + 0.3 * torch.randn(rows, width, generator=generator)).requires_grad_()
    advantage = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.6
    mask[-1] = False  # a padding row
    return logprob, old, advantage, mask


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad


def test_ppo_by_hand() -> None:
    logprob = ratios(1.5, 1.1, 0.5, 1.5, 0.5)
    advantage = row(2, 2, 2, -2, -2)
    out = ppo_clip(logprob, torch.zeros_like(logprob), advantage, ones(1, 1, 1, 1, 1))
    torch.testing.assert_close(out.loss, row(-2.4, -2.2, -1.0, 3.0, 1.6))
    assert out.clipped.tolist() == [[True, False, False, False, True]]
    grad = gradient(out.loss.sum(), logprob)
    torch.testing.assert_close(grad, row(0, -2.2, -1.0, 3.0, 0))
    assert out.diagnostics.clip_fraction == pytest.approx(0.4)
    assert out.diagnostics.max_log_ratio == pytest.approx(math.log(2))
    assert out.diagnostics.tokens == 5
    k3 = [r - 1 - math.log(r) for r in (1.5, 1.1, 0.5, 1.5, 0.5)]
    assert out.diagnostics.approx_kl == pytest.approx(sum(k3) / 5)


def test_asymmetric_and_dual_clip() -> None:
    logprob = ratios(1.5, 10, 10)
    out = ppo_clip(
        logprob,
        torch.zeros_like(logprob),
        row(1, -1, 1),
        ones(1, 1, 1),
        clip_high=0.28,
        dual_clip=3.0,
    )
    torch.testing.assert_close(out.loss, row(-1.28, 3.0, -1.28))
    assert out.clipped.all()
    assert not gradient(out.loss.sum(), logprob).any()


def test_gspo_by_hand() -> None:
    # Geometric mean of 2 and 0.5 is 1; of 2 and 2 it is 2, beyond the clip range.
    logprob = torch.cat([ratios(2, 0.5), ratios(2, 2)]).detach().requires_grad_()
    advantage = torch.tensor([[1.0, 3.0], [1.0, -1.0]], dtype=torch.float64)
    out = gspo(logprob, torch.zeros_like(logprob), advantage, torch.ones(2, 2, dtype=torch.bool))
    expected = torch.tensor([[-1.0, -3.0], [-1.0004, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(out.loss, expected)
    assert out.clipped.tolist() == [[False, False], [True, False]]
    expected = torch.tensor([[-1.0, -3.0], [0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient(out.loss.sum(), logprob), expected)


@pytest.mark.parametrize("seed", range(5))
def test_gspo_gradient_is_that_of_the_sequence_form(seed: int) -> None:
    logprob, old, advantage, mask = random_batch(seed)
    advantage = advantage[:, :1].expand_as(advantage)  # one per sequence
    low, high = 0.1, 0.1
    out = gspo(logprob, old, advantage, mask, clip_low=low, clip_high=high)
    token_form = gradient((out.loss * token_weights(mask, "seq_mean_token_mean")).sum(), logprob)

    kept = mask.any(dim=1)
    mean = ((logprob - old) * mask).sum(1)[kept] / mask.sum(1)[kept]
    s, a = mean.exp(), advantage[kept, 0]
    sequence_form = torch.maximum(-a * s, -a * s.clamp(1 - low, 1 + high)).mean()
    torch.testing.assert_close(token_form, gradient(sequence_form, logprob), rtol=1e-5, atol=1e-9)


def test_cispo_by_hand() -> None:
    logprob = ratios(10, 2, 0.25)
    out = cispo(logprob, torch.zeros_like(logprob), row(1, 1, -2), ones(1, 1, 1))
    torch.testing.assert_close(
        out.loss, row(-5 * math.log(10), -2 * math.log(2), 0.5 * math.log(0.25))
    )
    assert out.clipped.tolist() == [[True, False, False]]


@pytest.mark.parametrize("seed", range(5))
def test_cispo_gradient_never_vanishes_by_clipping(seed: int) -> None:
    logprob, old, advantage, mask = random_batch(seed)
    out = cispo(logprob, old - 3, advantage, mask, clip_low=0.2, clip_high=0.2)
    assert out.diagnostics.clip_fraction > 0.5
    grad = gradient(out.loss.sum(), logprob)
    weight = (logprob - old + 3).exp().clamp(0.8, 1.2)
    torch.testing.assert_close(grad, torch.where(mask, -weight * advantage, 0.0))
    assert (grad[mask] != 0).all()


@EVERY
def test_at_ratio_one_the_gradient_is_that_of_reinforce(name: str) -> None:
    _, old, advantage, mask = random_batch(0)
    logprob = old.clone().requires_grad_()
    weight = token_weights(mask, "token_mean")
    out = OBJECTIVES[name](logprob, old, advantage, mask)
    grad = gradient((out.loss * weight).sum(), logprob)
    torch.testing.assert_close(grad, torch.where(mask, -advantage * weight, 0.0))
    assert out.diagnostics.clip_fraction == 0
    assert out.diagnostics.approx_kl == 0


@EVERY
def test_what_is_off_the_mask_is_not_read(name: str) -> None:
    logprob, old, advantage, mask = random_batch(1)
    clean = OBJECTIVES[name](logprob, old, advantage, mask)
    clean_gradient = gradient(clean.loss.sum(), logprob)
    for garbage in (math.nan, math.inf, -math.inf):
        dirty = [torch.where(mask, t.detach(), garbage) for t in (logprob, old, advantage)]
        leaf = dirty[0].requires_grad_()
        out = OBJECTIVES[name](leaf, dirty[1], dirty[2], mask.long())
        torch.testing.assert_close(out.loss, clean.loss)
        torch.testing.assert_close(gradient(out.loss.sum(), leaf), clean_gradient)
        assert not out.loss[~mask].any()
        assert not out.clipped[~mask].any()
        assert all(torch.isfinite(d).all() for d in out.diagnostics)


@EVERY
def test_a_stray_token_cannot_overflow(name: str) -> None:
    logprob = torch.tensor([[-500.0, 0.0]], requires_grad=True)
    old = torch.tensor([[0.0, -500.0]])
    out = OBJECTIVES[name](logprob, old, torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2))
    assert torch.isfinite(out.loss).all()
    assert torch.isfinite(gradient(out.loss.sum(), logprob)).all()
    assert out.diagnostics.max_log_ratio == 500


@EVERY
def test_dtypes_and_no_gradient_to_constants(name: str) -> None:
    logprob, old, advantage, mask = random_batch(2)
    old.requires_grad_()
    advantage.requires_grad_()
    out = OBJECTIVES[name](logprob, old, advantage, mask)
    grads = torch.autograd.grad(out.loss.sum(), [old, advantage], allow_unused=True)
    assert [g is None for g in grads] == [True, True]
    half = [t.detach().to(torch.bfloat16) for t in (logprob, old, advantage)]
    assert OBJECTIVES[name](*half, mask).loss.dtype == torch.float32


@EVERY
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 4)])
def test_nothing_to_learn_from(name: str, shape: tuple[int, int]) -> None:
    zeros = torch.zeros(shape)
    out = OBJECTIVES[name](zeros, zeros, zeros, zeros)
    assert out.loss.shape == shape
    assert all(float(d) == 0 for d in out.diagnostics)
    for aggregation in AGGREGATIONS:
        assert not token_weights(zeros, aggregation, 4).any()


@EVERY
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": -0.1}, "clip_low must be in"),
        ({"clip_low": 1.5}, "clip_low must be in"),
        ({"clip_high": -0.1}, "clip_high must be at least 0"),
        ({"clip_high": math.nan}, "clip_high must be at least 0"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name](*random_batch(0), **options)


def test_shapes_and_dual_clip_are_checked() -> None:
    logprob, old, advantage, mask = random_batch(0)
    with pytest.raises(ValueError, match=r"advantage \(5, 1\)"):
        ppo_clip(logprob, old, advantage[:, :1], mask)
    with pytest.raises(ValueError, match="dual_clip"):
        ppo_clip(logprob, old, advantage, mask, dual_clip=1.0)


def test_k3_by_hand() -> None:
    # log ratio ref - policy = log 2: 2 - log 2 - 1.
    logprob = row(-math.log(2), 0.0).requires_grad_()
    value = k3_kl(logprob, row(0.0, 0.0))
    torch.testing.assert_close(value, row(1 - math.log(2), 0.0))
    torch.testing.assert_close(gradient(value.sum(), logprob), row(1 - 2.0, 0.0))
    masked = k3_kl(row(math.nan, 0), row(0, -1), torch.tensor([[False, True]]))
    torch.testing.assert_close(masked, row(0, math.exp(-1)))


def test_k3_is_unbiased_under_the_policy() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    expected = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * k3_kl(policy.log(), reference.log())).sum(), expected)


def test_weights_by_hand() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    expected = {
        "token_mean": [[0.25] * 3 + [0], [0, 0.25, 0, 0], [0] * 4],
        "seq_mean_token_mean": [[1 / 6] * 3 + [0], [0, 0.5, 0, 0], [0] * 4],
        "seq_mean_token_sum_norm": [[0.05] * 3 + [0], [0, 0.05, 0, 0], [0] * 4],
    }
    assert set(expected) == set(AGGREGATIONS)
    for name, weights in expected.items():
        torch.testing.assert_close(token_weights(mask, name, 10), torch.tensor(weights))
    with pytest.raises(ValueError, match="needs max_length"):
        token_weights(mask, "seq_mean_token_sum_norm")
    with pytest.raises(ValueError, match="token_mean"):
        token_weights(mask, "tokenmean")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    cut=st.lists(st.integers(0, 5), max_size=3),
    aggregation=st.sampled_from(sorted(AGGREGATIONS)),
    name=st.sampled_from(sorted(OBJECTIVES)),
)
def test_partitions_add_up(seed: int, cut: list[int], aggregation: str, name: str) -> None:
    logprob, old, advantage, mask = random_batch(seed)
    weights = token_weights(mask, aggregation, 7)
    objective: Callable[..., Any] = OBJECTIVES[name]
    whole = gradient((objective(logprob, old, advantage, mask).loss * weights).sum(), logprob)
    total = torch.zeros_like(whole)
    edges = [0, *sorted(cut), len(mask)]
    for start, end in itertools.pairwise(edges):
        part = slice(start, end)
        out = objective(logprob[part], old[part], advantage[part], mask[part])
        total += gradient((out.loss * weights[part]).sum(), logprob)
    torch.testing.assert_close(total, whole)
