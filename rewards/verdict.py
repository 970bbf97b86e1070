"""Verdict: what a verifier says of a finished episode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Status = Literal["correct", "wrong", "unparsable", "timeout", "crash"]
"""`timeout` and `crash` are failures of the grader or the infrastructure, never a score of 0:
such an episode is left out of the loss and of every baseline."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged episode.

    Attributes:
        score: in [0, 1]; what the episode is worth. Meaningless when not `ok`.
        status: one of `Status`.
        detail: further JSON-able facts, such as `{"em": 1.0, "f1": 1.0}`.
    """

    score: float
    status: Status
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status must be one of {get_args(Status)}, not {self.status!r}")
        if not math.isfinite(self.score):
            raise ValueError(f"score must be finite, not {self.score!r}")

    @property
    def ok(self) -> bool:
        """Whether the grader could judge at all."""
        return self.status in ("correct", "wrong", "unparsable")

    def to_json(self) -> dict[str, Any]:
        """A plain dict, for `info["verdict"]` and for files."""
        return {"score": self.score, "status": self.status, "detail": dict(self.detail)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`."""
        return cls(float(data["score"]), data["status"], dict(data.get("detail", {})))
