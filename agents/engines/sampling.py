"""Sampling: logits and one uniform number per row to tokens and their log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A uniform is below 1 - 2**-22, so that times the total mass it stays below the total in float32,
# and the first index whose cumulative mass exceeds it always has a positive probability.
_SHRINK = np.float32(1 - 2**-22)


@dataclass(frozen=True, slots=True)
class Knobs:
    """Per-row sampling parameters; a part that no row uses is None and costs nothing.

    Attributes:
        temperature: float32[n, 1], 1 where the row is greedy; None where it is 1 for all.
        greedy: bool[n, 1].
        top_p: float32[n, 1].
        top_k: int64[n, 1], the vocabulary's size where it is off.
    """

    temperature: Tensor | None = None
    greedy: Tensor | None = None
    top_p: Tensor | None = None
    top_k: Tensor | None = None


def uniforms(seed: int, count: int) -> NDArray[np.float32]:
    """float32[count] in [0, 1): the random numbers of one completion, a function of its seed."""
    return np.random.default_rng(seed & (2**64 - 1)).random(count, dtype=np.float32) * _SHRINK


def sample(logits: Tensor, uniform: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution.

    A row's token depends on its own logits and number alone; Gumbel noise, the usual way, would
    need a number per vocabulary entry, the most expensive step of decoding a small model.

    Args:
        logits: [n, vocabulary].
        uniform: float32[n, 1], from `uniforms`.
        knobs: how to sample each row.

    Returns:
        int64[n, 1] tokens and float32[n, 1] log-probabilities, with the temperature applied but
        before top-p and top-k; greedy rows report those of temperature 1.
    """
    scaled = logits.float()
    if knobs.temperature is not None:
        scaled = scaled / knobs.temperature
    probs = torch.softmax(scaled, -1)
    kept = probs
    if knobs.top_p is not None or knobs.top_k is not None:
        kept = truncated(probs, knobs.top_p, knobs.top_k)
    mass = kept.cumsum(-1)
    token = torch.searchsorted(mass, uniform * mass[:, -1:], right=True)
    if knobs.greedy is not None:
        token = torch.where(knobs.greedy, scaled.argmax(-1, keepdim=True), token)
    return token, probs.gather(1, token).log_()


def truncated(probs: Tensor, top_p: Tensor | None, top_k: Tensor | None) -> Tensor:
    """The probabilities with the tail set to 0, not renormalised.

    Top-k first, then the smallest set of the most probable tokens whose mass, among the top k, is
    at least top_p (Holtzman et al. 2020, arXiv:1904.09751, section 3.1); ties go to the lower id.

    Args:
        probs: float32[n, vocabulary].
        top_p: float32[n, 1] or None.
        top_k: int64[n, 1] or None.
    """
    ordered, index = probs.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        rank = torch.arange(probs.shape[1], device=probs.device)
        ordered = ordered.masked_fill(rank >= top_k, 0.0)
    if top_p is not None:
        before = ordered.cumsum(-1) - ordered
        total = ordered.sum(-1, keepdim=True)
        ordered = ordered.masked_fill((before >= top_p * total) & (top_p < 1), 0.0)
    return torch.zeros_like(probs).scatter_(1, index, ordered)
