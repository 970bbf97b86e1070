"""Interrupts: Ctrl-C as a request to stop in an orderly way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


class Interrupts:
    """Ctrl-C asks to stop after the iteration under way; a second one abandons it."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """Args: note: tells the user what the first one did."""
        self.asked = False
        self._note = note
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        """Take SIGINT over."""
        self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back."""
        signal.signal(signal.SIGINT, self._before)

    def _interrupted(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._note("stopping after this iteration; Ctrl-C once more abandons it")
