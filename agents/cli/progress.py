"""Progress of a training run: live on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = (
    ("success", "success", "{:.3f}"),
    ("reward_per_turn", "reward/turn", "{:.3f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("kl", "KL", "{:.4f}"),
    ("tokens_per_s", "tokens/s", "{:.0f}"),
)
"""Column of a metrics row, its name on the screen and its format."""
PLAIN_LINES = 20
"""About so many plain lines in a run."""


class Progress(Protocol):
    """Shows how a run is doing."""

    def __enter__(self) -> Progress:
        """Begin to show."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing."""

    def update(self, row: Mapping[str, Any], remaining_s: float) -> None:
        """An iteration is done; the rest will take about `remaining_s`."""

    def note(self, text: str) -> None:
        """Say something else."""


def make_progress(steps: int, stream: TextIO) -> Progress:
    """The live one on a terminal, where rich is installed; else the plain one."""
    if stream.isatty():
        try:
            return LiveProgress(steps, stream)
        except ImportError:
            pass  # rich is a convenience: the numbers are the same without it
    return PlainProgress(steps, stream)


class PlainProgress:
    """One line every few iterations, for logs."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        """Args: steps: iterations in all; stream: where to write."""
        self._steps = steps
        self._every = max(1, steps // PLAIN_LINES)
        self._stream = stream
        self._any = False

    def __enter__(self) -> PlainProgress:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to close."""

    def update(self, row: Mapping[str, Any], remaining_s: float) -> None:
        """Write a line if it is time for one."""
        iteration = int(row["iteration"])
        if not self._any or iteration % self._every == 0 or iteration == self._steps:
            self._any = True
            cells = "  ".join(f"{name} {shown(row, key, form)}" for key, name, form in COLUMNS)
            self.note(f"step {iteration:>4}/{self._steps}  {cells}  {duration(remaining_s)} left")

    def note(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)


class LiveProgress:
    """A bar, the numbers and a curve of the success so far, redrawn in place."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        """Args: steps: iterations in all; stream: a terminal. ImportError without rich."""
        from rich.console import Console
        from rich.live import Live

        self._steps = steps
        self._rows: list[Mapping[str, Any]] = []
        self._remaining_s = 0.0
        self._since = time.monotonic()
        self._live = Live(
            console=Console(file=stream), get_renderable=self._view, refresh_per_second=4
        )

    def __enter__(self) -> LiveProgress:
        """Begin to draw."""
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last picture standing."""
        self._live.__exit__(kind, error, traceback)

    def update(self, row: Mapping[str, Any], remaining_s: float) -> None:
        """Take a row; the picture redraws itself."""
        self._rows.append(row)
        self._remaining_s = remaining_s
        self._since = time.monotonic()

    def note(self, text: str) -> None:
        """Write above the picture."""
        self._live.console.print(text, markup=False, highlight=False)

    def _view(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self._rows:
            return Text("first iteration ...", style="dim")
        row = self._rows[-1]
        done = int(row["iteration"])
        left = max(0.0, self._remaining_s - (time.monotonic() - self._since))
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"step {done}/{self._steps}", style="bold"),
            ProgressBar(total=self._steps, completed=done, width=32),
            Text(f"{duration(left)} left", style="dim"),
            Text(sparkline([r.get("success") for r in self._rows]), style="cyan"),
        )
        numbers = Table.grid(padding=(0, 3))
        numbers.add_row(*(Text(name, style="dim") for _, name, _ in COLUMNS))
        numbers.add_row(*(Text(shown(row, key, form), style="bold") for key, _, form in COLUMNS))
        return Group(head, numbers)


def sparkline(values: Sequence[float | None], width: int = 32) -> str:
    """Values in [0, 1] as one line of bars, the last `width` of them; a gap where there is none."""
    top = len(BARS) - 1
    return "".join(
        " " if v is None else BARS[min(top, max(0, round(v * top)))] for v in values[-width:]
    )


def shown(row: Mapping[str, Any], key: str, form: str) -> str:
    """A number of a row, or a dash where it was not measured."""
    value = row.get(key)
    return "-" if value is None else form.format(value)


def duration(seconds: float) -> str:
    """Such as `3 min 12 s`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
