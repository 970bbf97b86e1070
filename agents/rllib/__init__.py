"""RLlib training of language-model agents: `TurnwiseConfig().environment(...).build_algo()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnwise.agents.rllib.algorithm import Turnwise
    from turnwise.agents.rllib.config import TurnwiseConfig

__all__ = ["Turnwise", "TurnwiseConfig"]

_HOMES = {
    "Turnwise": "turnwise.agents.rllib.algorithm",
    "TurnwiseConfig": "turnwise.agents.rllib.config",
}


def __getattr__(name: str) -> Any:
    """Import Ray only when a class that needs it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
