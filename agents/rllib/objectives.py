"""Policy objectives: per-token losses, the KL estimate, and how tokens are averaged.

All tensors are [B, T]: `logprob` of the policy being trained (with gradient), `old_logprob` of the
policy that sampled, `advantage`, and `mask`, True (1) on sampled tokens. Entries off the mask may
hold anything, NaN included; losses are 0 there. An objective returns losses that are not averaged:
`loss = (objective(...).loss * token_weights(...)).sum()`, with the weights computed once on the
whole batch, so that micro-batches and shards add up to the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from turnwise.rewards.names import Registry

LOG_RATIO_LIMIT = 20.0
"""Log ratios are clamped to this, so that one stray token cannot overflow a batch (as in verl)."""


class Diagnostics(NamedTuple):
    """Scalars without gradient, over the tokens given. Average them weighted by `tokens`.

    Attributes:
        clip_fraction: share of tokens whose ratio was clipped.
        approx_kl: mean k3 estimate of KL(old policy, new policy).
        max_log_ratio: the largest |log ratio| before clamping.
        tokens: number of tokens.
    """

    clip_fraction: Tensor
    approx_kl: Tensor
    max_log_ratio: Tensor
    tokens: Tensor


class TokenLoss(NamedTuple):
    """What an objective returns.

    Attributes:
        loss: float32[B, T] (float64 for float64 input), 0 off the mask.
        clipped: bool[B, T], tokens whose ratio was clipped.
        diagnostics: scalars to log.
    """

    loss: Tensor
    clipped: Tensor
    diagnostics: Diagnostics


def ppo_clip(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLoss:
    """`max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))`, `rho = exp(logprob - old_logprob)`.

    PPO (Schulman et al. 2017, eq. 7); clip_high 0.28 is DAPO's "clip-higher" (Yu et al. 2025). With
    `dual_clip` c, where A < 0 the loss is at most `-A c` (Ye et al. 2020, eq. 4).

    Args:
        logprob: [B, T], with gradient.
        old_logprob: [B, T].
        advantage: [B, T].
        mask: [B, T].
        clip_low: how far the ratio may fall below 1, in [0, 1].
        clip_high: how far it may rise above 1, at least 0.
        dual_clip: above 1; None: off. verl uses 3.

    Raises:
        ValueError: an option is out of range or shapes differ.
    """
    _check_clip(clip_low, clip_high)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be greater than 1, or None; is {dual_clip}")
    t = _prepare(logprob, old_logprob, advantage, mask)
    ratio = t.log_ratio.exp()
    free = -t.advantage * ratio
    bounded = -t.advantage * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(free, bounded)
    clipped = bounded > free
    if dual_clip is not None:
        ceiling = -t.advantage * dual_clip
        over = (t.advantage < 0) & (ceiling < loss)
        loss = torch.where(over, ceiling, loss)
        clipped = clipped | over
    return _token_loss(t, loss, clipped)


def gspo(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> TokenLoss:
    """PPO's clipped loss with one ratio per sequence, the geometric mean of its token ratios.

    `s_i = exp(mean_t(logprob - old_logprob))`, used as `s_it = sg[s_i] pi_t / sg[pi_t]`: the value
    is s_i, the gradient goes to every token with its own advantage. With one advantage per sequence
    and `seq_mean_token_mean` the gradient is that of the sequence form. GSPO and its token form
    (Zheng et al. 2025); the form and the clip range as in verl and TRL.

    Args:
        logprob: [B, T], with gradient.
        old_logprob: [B, T].
        advantage: [B, T].
        mask: [B, T].
        clip_low: how far s may fall below 1.
        clip_high: how far it may rise above 1.

    Raises:
        ValueError: an option is out of range or shapes differ.
    """
    _check_clip(clip_low, clip_high)
    t = _prepare(logprob, old_logprob, advantage, mask)
    length = t.mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = t.log_ratio.detach().sum(dim=1, keepdim=True) / length
    ratio = (t.logprob - t.logprob.detach() + mean).exp()
    free = -t.advantage * ratio
    bounded = -t.advantage * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(free, bounded)
    return _token_loss(t, loss, bounded > free)


def cispo(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> TokenLoss:
    """`-sg[clip(rho, 1 - clip_low, 1 + clip_high)] A logprob`: clips the weight, not the gradient.

    CISPO (MiniMax-M1 2025, eq. 4). The defaults bound the ratio at 5 from above only, as ScaleRL
    does (Khatri et al. 2025; TRL writes that as `epsilon_high = 5`).

    Args:
        logprob: [B, T], with gradient.
        old_logprob: [B, T].
        advantage: [B, T].
        mask: [B, T].
        clip_low: how far the weight may fall below 1; 1 is no bound.
        clip_high: how far it may rise above 1.

    Raises:
        ValueError: an option is out of range or shapes differ.
    """
    _check_clip(clip_low, clip_high)
    t = _prepare(logprob, old_logprob, advantage, mask)
    ratio = t.log_ratio.detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return _token_loss(t, -weight * t.advantage * t.logprob, weight != ratio)


def k3_kl(logprob: Tensor, ref_logprob: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, T], at least 0: `exp(ref - logprob) - (ref - logprob) - 1`, an estimate of KL.

    KL(policy, reference); the k3 estimator (Schulman 2020, "Approximating KL divergence";
    "low_var_kl" in verl). With the old policy's log-probabilities first it is KL(old, new).

    Args:
        logprob: [B, T] of tokens sampled from the policy.
        ref_logprob: [B, T] of the same tokens under the reference.
        mask: [B, T]; the estimate is 0 off it. None: every token counts.
    """
    difference = ref_logprob.to(_at_least_float32(ref_logprob)) - logprob
    if mask is not None:
        difference = torch.where(mask.bool(), difference, 0.0)
    difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return difference.expm1() - difference


def token_mean(mask: Tensor, max_length: int | None = None) -> Tensor:
    """float32[B, T]: every token of the batch counts the same (verl's default; DAPO)."""
    del max_length
    weight = mask.bool().float()
    return weight / weight.sum().clamp(min=1)


def seq_mean_token_mean(mask: Tensor, max_length: int | None = None) -> Tensor:
    """float32[B, T]: every sequence counts the same, and every token within it (GRPO)."""
    del max_length
    weight = mask.bool().float()
    length = weight.sum(dim=1, keepdim=True)
    return weight / length.clamp(min=1) / (length > 0).sum().clamp(min=1)


def seq_mean_token_sum_norm(mask: Tensor, max_length: int | None = None) -> Tensor:
    """float32[B, T]: a token counts `1 / (sequences * max_length)`, however long its sequence.

    Dr. GRPO (Liu et al. 2025): a constant in place of the length takes away the bias towards long
    wrong answers. Sequences without sampled tokens (padding rows, failed rollouts) do not count.

    Raises:
        ValueError: `max_length` is missing or not positive.
    """
    if max_length is None or max_length < 1:
        raise ValueError(
            f"seq_mean_token_sum_norm needs max_length, the most tokens a rollout may sample, at "
            f"least 1; it is {max_length}"
        )
    weight = mask.bool().float()
    sequences = (weight.sum(dim=1) > 0).sum().clamp(min=1)
    return weight / (sequences * max_length)


def token_weights(mask: Tensor, aggregation: str, max_length: int | None = None) -> Tensor:
    """float32[B, T]: what each token's loss is multiplied by before summing.

    Compute it once on the whole batch, then slice it along with the batch: `(loss * weight).sum()`
    over any partition into micro-batches and shards adds up to the loss of the whole batch.
    Learners that *average* gradients over N shards multiply by N.

    Args:
        mask: [B, T] of the whole batch.
        aggregation: a name in `AGGREGATIONS`.
        max_length: for `seq_mean_token_sum_norm`.

    Raises:
        ValueError: the name is unknown, or `max_length` is needed and missing.
    """
    return AGGREGATIONS[aggregation](mask, max_length)


OBJECTIVES: Registry[Callable[..., TokenLoss]] = Registry("objective")
"""`f(logprob, old_logprob, advantage, mask, *, option=...) -> TokenLoss` by name."""

OBJECTIVES.add("ppo_clip", ppo_clip)
OBJECTIVES.add("gspo", gspo)
OBJECTIVES.add("cispo", cispo)

AGGREGATIONS: Registry[Callable[[Tensor, int | None], Tensor]] = Registry("aggregation")
"""`f(mask, max_length) -> float32[B, T]` by name."""

AGGREGATIONS.add("token_mean", token_mean)
AGGREGATIONS.add("seq_mean_token_mean", seq_mean_token_mean)
AGGREGATIONS.add("seq_mean_token_sum_norm", seq_mean_token_sum_norm)


class _Tokens(NamedTuple):
    """Inputs with everything off the mask set to 0, and the clamped log ratio."""

    logprob: Tensor
    advantage: Tensor
    mask: Tensor
    log_ratio: Tensor
    unclamped: Tensor


def _prepare(logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor) -> _Tokens:
    shapes = {
        "logprob": logprob.shape,
        "old_logprob": old_logprob.shape,
        "advantage": advantage.shape,
        "mask": mask.shape,
    }
    if logprob.ndim != 2 or len(set(shapes.values())) > 1:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"expected four tensors of one shape (B, T), got {given}")
    keep, dtype = mask.bool(), _at_least_float32(logprob)
    # Masked before the subtraction: infinities off the mask must not become NaN gradients.
    logprob = torch.where(keep, logprob.to(dtype), 0.0)
    old_logprob = torch.where(keep, old_logprob.detach().to(dtype), 0.0)
    advantage = torch.where(keep, advantage.detach().to(dtype), 0.0)
    difference = logprob - old_logprob
    clamped = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return _Tokens(logprob, advantage, keep, clamped, difference.detach())


def _token_loss(t: _Tokens, loss: Tensor, clipped: Tensor) -> TokenLoss:
    count = t.mask.sum()
    some = count.clamp(min=1)
    log_ratio = t.log_ratio.detach()
    clipped = clipped & t.mask
    diagnostics = Diagnostics(
        clip_fraction=clipped.sum() / some,
        approx_kl=(log_ratio.expm1() - log_ratio).sum() / some,
        max_log_ratio=t.unclamped.abs().max() if t.mask.numel() else t.unclamped.sum(),
        tokens=count,
    )
    return TokenLoss(loss, clipped, diagnostics)


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low must be in [0, 1], is {clip_low}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high must be at least 0, is {clip_high}")


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
