"""Records: an episode with its tokens, log-probabilities and advantages as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnwise.agents.trajectory import Trajectory

REPLACEMENT = "�"
"""What a decoder writes for the bytes of an unfinished character."""


def episode_record(
    trajectory: Trajectory,
    advantages: NDArray[np.float32] | None,
    tokenizer: Any,
    *,
    iteration: int | None = None,
) -> dict[str, Any]:
    """One line of `episodes.jsonl`, which is what the report reads.

    Args:
        trajectory: T tokens.
        advantages: float32[T], or None where there was no training.
        tokenizer: of the policy.
        iteration: in which it was played.

    Raises:
        ValueError: there is not one advantage for each token.
    """
    length = len(trajectory.tokens)
    if advantages is not None and len(advantages) != length:
        raise ValueError(f"{len(advantages)} advantages for {length} tokens")
    return {
        "iteration": iteration,
        "env_id": trajectory.env_id,
        "task_id": trajectory.task_id,
        "group": trajectory.group,
        "status": trajectory.status,
        "verdict": None if trajectory.verdict is None else trajectory.verdict.to_json(),
        "outcome": _rounded(trajectory.outcome),
        "error": trajectory.error,
        "prompt": trajectory.prompt,
        "weights_version": trajectory.weights_version,
        "token_ids": trajectory.tokens.tolist(),
        "token_texts": token_texts(trajectory.tokens.tolist(), tokenizer),
        "logprobs": [_rounded(x) for x in trajectory.logprobs.tolist()],
        "advantages": (
            None if advantages is None else [_rounded(x) for x in np.asarray(advantages).tolist()]
        ),
        "turns": [
            {
                "index": turn.index,
                "action_span": list(turn.action_span),
                "observation_span": list(turn.observation_span),
                "text": turn.text,
                "observation": turn.observation,
                "reward": _rounded(turn.reward),
                "scores": {name: _rounded(score) for name, score in turn.scores.items()},
                "info": dict(turn.info),
            }
            for turn in trajectory.turns
        ],
    }


def token_texts(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the decoded text; joined, they are that text.

    A token's text depends on its neighbours: some tokenizers drop a leading space, and a character
    may be spread over several byte tokens. So every token is decoded behind the ones before it,
    and the token that completes a character gets all of it.
    """
    texts: list[str] = []
    start, shown = 0, 0
    for end in range(1, len(tokens) + 1):
        before = _decode(tokenizer, tokens[start:shown])
        after = _decode(tokenizer, tokens[start:end])
        unfinished = after.endswith(REPLACEMENT) and end < len(tokens) and end - shown < 4
        if unfinished:
            texts.append("")
            continue
        texts.append(after[len(before) :])
        start, shown = shown, end
    return texts


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    if not tokens:
        return ""
    return tokenizer.decode(
        list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _rounded(value: float) -> float | None:
    """Four digits after the point are what a reader can use; JSON has no NaN."""
    return round(float(value), 4) if math.isfinite(value) else None
