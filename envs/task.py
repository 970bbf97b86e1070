"""Task: one problem, and the sources that problems come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    Attributes:
        id: stable and unique within its source.
        prompt: what the policy is asked.
        reference: what the verifier compares with; it never reaches the policy.
        data: whatever else the environment needs, such as passages or tests.
    """

    id: str
    prompt: str
    reference: Any
    data: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class TaskSource(Protocol):
    """Problems by index: item i is a pure function of the source's settings and i."""

    @property
    def size(self) -> int | None:
        """How many tasks there are; None is unlimited."""

    def __getitem__(self, index: int) -> Task:
        """Task `index` (from 0). IndexError past the end."""
        ...
