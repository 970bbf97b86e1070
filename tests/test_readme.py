"""Every command and every example of the README runs, and prints what the README says."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [c for kind, text in BLOCKS if kind == "bash" for c in text.splitlines() if c]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
QUICK = ("list", "play", "check")
pytestmark = pytest.mark.repository


def run(command: str, folder: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == "turnwise"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-m", "turnwise.agents.cli", *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **kwargs,  # type: ignore[call-overload]
    )


def test_the_readme_has_what_it_should() -> None:
    assert len(README.splitlines()) < 150
    assert len(PYTHON) == 3
    verbs = {shlex.split(c)[1] for c in COMMANDS if c.startswith("turnwise")}
    assert verbs == {"list", "play", "eval", "train", "check"}


def test_what_make_is_said_to_do_is_run_by_ci() -> None:
    steps = (ROOT / ".ci" / "run").read_text()
    made = [c for c in COMMANDS if c.startswith("make")]
    assert made == ["make demo", "make test"]
    for command in made:
        assert re.search(rf"^step {command}$", steps, re.MULTILINE)


def test_the_first_example_prints_what_it_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(PYTHON[0], {})
    expected = next(text for kind, text in BLOCKS if kind == "text" and "Question:" in text)
    assert printed.getvalue().rstrip() == expected.rstrip()


def test_the_credit_example_runs() -> None:
    example = next(text for text in PYTHON if "CreditBatch" in text)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example, {})
    assert printed.getvalue().startswith("[[")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("turnwise") and c.split()[1] in QUICK]
)
def test_each_quick_command_runs(command: str, tmp_path: Path) -> None:
    typed = "<search> Amber Harbour </search>\n\n<answer> nobody </answer>\n\n"
    done = run(command, tmp_path, input=typed)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_long_commands_run_in_order(tmp_path: Path) -> None:
    long = [c for c in COMMANDS if c.startswith("turnwise") and c.split()[1] not in QUICK]
    for command in long:
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "success" in done.stdout
    assert (tmp_path / "runs" / "first" / "report.html").exists()


@pytest.mark.slow
def test_the_rllib_example_trains() -> None:
    example = next(text for text in PYTHON if "TurnwiseConfig" in text)
    code = f"{example}\nalgo.stop()\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
