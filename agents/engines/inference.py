"""Inference mode for engines: no gradients, and any kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """`torch.inference_mode`, with torch's ban on non-deterministic kernels lifted.

    RLlib sets that ban for the whole process when it is given a seed. An engine writes its cache by
    index, every cell once, which is banned and deterministic all the same.
    """
    banned = torch.are_deterministic_algorithms_enabled()
    if banned:
        torch.use_deterministic_algorithms(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        if banned:
            torch.use_deterministic_algorithms(True)
