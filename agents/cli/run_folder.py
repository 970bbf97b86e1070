"""RunFolder: what a training run leaves behind, and what it is continued from.

```
config.json         the settings and the versions they ran with
metrics.jsonl       one line for each iteration
evaluations.jsonl   one line for each evaluation; iteration 0 is before training
checkpoints/        RLlib's, the last two
model/              the trained model in Hugging Face format
episodes.jsonl      some episodes of the last iteration
report.html
summary.json        what came of it, as `turnwise train --json` prints it
```
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from turnwise.agents.cli.errors import UsageError

KEPT = 2
"""Checkpoints that are kept: should writing one be cut short, there is another."""

Row = dict[str, Any]


class RunFolder:
    """Files of one run. Whole files are replaced at once, so that none is ever half there."""

    def __init__(self, path: Path) -> None:
        """Args: path: of the folder; see `check_is_new` and `open`."""
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.evaluations_file = path / "evaluations.jsonl"
        self.episodes_file = path / "episodes.jsonl"
        self.report_file = path / "report.html"
        self.summary_file = path / "summary.json"
        self.model_folder = path / "model"
        self.checkpoints = path / "checkpoints"

    def check_is_new(self) -> None:
        """Raise a UsageError where there is something already."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(
                f"{self.path} exists already. Continue it with --resume {self.path}, give this "
                "run another --name, or replace it with --overwrite."
            )

    def clear(self) -> None:
        """Delete what an earlier run has left here, and nothing else."""
        for file in (
            self.config_file,
            self.metrics_file,
            self.evaluations_file,
            self.episodes_file,
            self.report_file,
            self.summary_file,
        ):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.model_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def make(self) -> None:
        """Make the folders that are missing."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run to go on with.

        Raises:
            UsageError: `path` is no run.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            raise UsageError(f"{path} is not a run: it has no config.json.")
        return folder

    def read_config(self) -> Row:
        """What `write_config` wrote."""
        try:
            config: Row = json.loads(self.config_file.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise UsageError(f"{self.config_file} is not JSON: {error}") from error
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace config.json."""
        replace_text(self.config_file, json.dumps(config, indent=2) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json."""
        replace_text(self.summary_file, json.dumps(summary, indent=2) + "\n")

    # ------------------------------------------------------------------ rows

    def append(self, file: Path, row: Mapping[str, Any]) -> None:
        """Add one line to a file of rows; it is on disk when this returns."""
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def rows(self, file: Path, *, until: int | None = None) -> list[Row]:
        """The rows of a file, those of iterations up to `until`.

        A last line that was cut short by a crash is left out.
        """
        if not file.is_file():
            return []
        found = []
        for line in file.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return [r for r in found if until is None or (r.get("iteration") or 0) <= until]

    def forget_after(self, iteration: int) -> None:
        """Drop the rows of later iterations: they will be played again."""
        for file in (self.metrics_file, self.evaluations_file):
            if file.is_file():
                self.replace_rows(file, self.rows(file, until=iteration))

    def replace_rows(self, file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a whole file of rows."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Episodes may hold lone surrogates, which UTF-8 has no bytes for.
        replace_text(file, text.encode("utf-8", "replace").decode("utf-8"))

    # ------------------------------------------------------------------ checkpoints

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """The newest checkpoint and after which iteration it was taken."""
        found = self._checkpoints()
        return found[-1] if found else None

    def save_checkpoint(self, iteration: int, save: Callable[[str], object]) -> Path:
        """Have `save` write one, put it in place when it is complete, and drop old ones."""
        final = self.checkpoints / f"iteration-{iteration:06d}"
        partial = self.checkpoints / f".{final.name}.partial"
        for stale in (partial, final):
            shutil.rmtree(stale, ignore_errors=True)
        save(str(partial.resolve()))
        partial.rename(final)
        for _, old in self._checkpoints()[:-KEPT]:
            shutil.rmtree(old)
        return final

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = self.checkpoints.glob("iteration-*")
        return sorted((int(path.name.rpartition("-")[2]), path) for path in found)


def replace_text(path: Path, text: str) -> None:
    """Write a file such that it has either the old text or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
