"""The command line: every verb, its JSON, its errors, and runs that stop and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import turnwise
from turnwise.agents.cli import main
from turnwise.agents.cli.environment import parse_assignments
from turnwise.agents.cli.errors import UsageError
from turnwise.agents.cli.interrupts import Interrupts
from turnwise.agents.cli.outcome import as_text
from turnwise.agents.cli.playing import typed_actions
from turnwise.agents.cli.progress import duration, make_progress, sparkline
from turnwise.agents.cli.run_folder import RunFolder
from turnwise.agents.cli.settings import RunSettings
from turnwise.agents.tiny.make import demonstrate, new_model
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.envs.search.search_env import SearchEnv

LETTERS = '''
import gymnasium as gym
from turnwise.envs.task import Task
from turnwise.envs.text_env import Reply, TextEnv
from turnwise.rewards.verdict import Verdict


class Letters:
    size = 6

    def __getitem__(self, index):
        return Task(f"letter-{index}", "abcdef"[index], "abcdef"[index])


class LettersEnv(TextEnv):
    """Say a letter often."""

    # Stepped in the loop itself: in threads, the clock would decide which episodes share a batch,
    # and so the last digits.
    metadata = {"render_modes": ["ansi"], "inline": True}

    def __init__(self, scale: float = 5.0, render_mode=None):
        super().__init__(Letters(), max_turns=2, render_mode=render_mode)
        self.scale = scale

    def begin(self, task):
        self.state = 0
        return f"Say {task.prompt}"

    def respond(self, action):
        self.state += 1
        share = min(1.0, self.scale * action.count(self.task.reference) / (1 + len(action)))
        if self.state < 2:
            return Reply("again", reward=share / 2)
        return Reply("", Verdict(share / 2, "correct" if share > 0.3 else "wrong"))


gym.register("letters/Letters-v0", entry_point="letters_for_cli:LettersEnv")
'''


FACTS = {"context": [["t", ["x."]]], "supporting_facts": [["t", 0]]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model in a folder."""
    folder = tmp_path_factory.mktemp("model")
    env = SearchEnv(split="train", seed=1)
    texts = [t for i in range(20) for p in demonstrate(env, i, random.Random(i)) for t in p]
    tokenizer = make_tokenizer(texts, size=512)
    torch.manual_seed(0)
    new_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside which `letters_for_cli` can be imported."""
    (tmp_path / "letters_for_cli.py").write_text(LETTERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_json(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    """The one JSON document a command prints."""
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def error_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that was called wrongly."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line, end = captured.err[:-1], captured.err[-1:]
    assert end == "\n" and "\n" not in line, captured.err
    return line


# ---------------------------------------------------------------------- list


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "list")
    assert found["environments"]["turnwise/Search-v0"].startswith("Answer a question")
    assert {"grpo", "igpo"} <= set(found["credit_functions"])
    assert all(found["credit_functions"].values()) and all(found["retrievers"].values())
    assert "tiny" in found["models"]
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for kind in found.values() for name in kind)


def test_list_and_help_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from turnwise.agents.cli import main; main(['list'])\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "turnwise.agents.cli", "train", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "--group-size" in done.stdout


def test_list_with_an_imported_module(letters: Path) -> None:
    done = turnwise_command("list", "--import", "letters_for_cli", "--json", cwd=letters)
    assert json.loads(done.stdout)["environments"]["letters/Letters-v0"] == "Say a letter often."


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"turnwise {turnwise.__version__}\n"


# ---------------------------------------------------------------------- play


def test_play_from_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = SearchEnv(split="train")
    env.reset(options={"task": 3})
    answer = list(env.oracle())[-1]
    typed = f"let me see\n<search> x </search>\n\n{answer}\n"
    monkeypatch.setattr(sys, "stdin", StringIO(typed))
    found = run_json(capsys, "play", "--task", "3")
    assert [t["action"] for t in found["turns"]] == ["let me see\n<search> x </search>", answer]
    assert found["over"] and found["return"] == 1.0
    assert found["verdict"]["status"] == "correct"
    assert found["task_id"] == "world-0-train-3"


def test_play_for_people_and_ctrl_d(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("nonsense\n\n"))
    assert main(["play", "--task", "0"]) == 0
    text = capsys.readouterr().out
    assert "Question:" in text and "[turn 1, reward 0]" in text
    assert text.rstrip().endswith("You left before the episode was over.")


def test_the_oracle_plays(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "play", "--task", "1", "--oracle", "--env-arg", "split=heldout")
    assert found["verdict"]["score"] == 1.0
    assert found["task_id"] == "world-0-heldout-1"


def test_typed_actions() -> None:
    def read(text: str) -> list[str]:
        return list(typed_actions(StringIO(text), StringIO()))

    assert read("a\nb\n\nc") == ["a\nb", "c"]
    assert read("a\r\n\r\n\n") == ["a", ""]
    assert read("") == []


def test_terminal_control_characters_are_shown_harmless(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "questions.json"
    row = {"_id": "1", "question": "\x1b[2J?", "answer": "x", **FACTS}
    file.write_text(json.dumps([row]))
    arguments = ["--env-arg", f"dataset={file}", "--env-arg", "split=all"]
    assert main(["play", "--oracle", *arguments]) == 0
    assert "\x1b" not in capsys.readouterr().out


# ---------------------------------------------------------------------- check


def test_check_passes(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "check", "--env", "turnwise/Search-v0")
    assert found["ok"] and len(found["checks"]) >= 12
    assert found["checks"][0] == {"check": "gymnasium check_env", "ok": True, "error": ""}


def test_check_fails_with_the_reason(letters: Path) -> None:
    done = turnwise_command("check", "--env", "letters_for_cli:letters/Letters-v0", cwd=letters)
    assert done.returncode == 1
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if "oracle" in line)
    assert "oracle scores one" in lines["FAIL"] and "NotImplementedError" in lines["FAIL"]
    assert "ok   spaces are text" in done.stdout


# ---------------------------------------------------------------------- eval


def test_eval(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    out = tmp_path / "episodes.jsonl"
    argv = ["eval", "--model", model, "-n", "3", "-k", "2", "--max-new-tokens", "6"]
    found = run_json(capsys, *argv, "--out", str(out))
    assert (found["env"], found["split"]) == ("turnwise/Search-v0", "heldout")
    assert (found["tasks"], found["samples"], found["failed"]) == (3, 2, 0)
    assert found["success_ci95"][0] <= found["success"] <= found["success_ci95"][1]
    assert set(found["pass_at_k"]) == {"1", "2"}
    assert sum(found["statuses"].values()) == 6
    assert found["tokens"] > 0 and found["tokens_per_s"] > 0
    episodes = [json.loads(line) for line in out.read_text().splitlines()]
    assert [e["task_id"] for e in episodes] == [f"world-0-heldout-{i // 2}" for i in range(6)]
    assert all(len(e["token_texts"]) == len(e["token_ids"]) for e in episodes)

    again = run_json(capsys, *argv)
    timed = ("tokens_per_s", "seconds")
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in found.items() if k not in timed
    }
    assert main(argv) == 0
    assert "3 tasks x 2" in capsys.readouterr().out


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "argv, said",
    [
        (["play", "--env", "turnwise/Serch-v0"], "Did you mean 'turnwise/Search-v0'"),
        (["eval", "--env", "nowhere:a/B-v0"], "No module named 'nowhere'"),
        (["check", "--import", "nowhere"], "No module named 'nowhere'"),
        (["eval", "--model", "tinny"], "Did you mean 'tiny'?"),
        (["eval", "--model", "./nowhere"], "There is no folder './nowhere'"),
        (["eval", "-n", "0"], "-n must be at least 1"),
        (["eval", "-k", "0"], "-k must be at least 1"),
        (["eval", "--temperature", "-1"], "temperature must not be negative"),
        (["eval", "--split", "nowhere"], "split must be one of ('train', 'heldout')"),
        (["train", "--credit", "igp"], "Did you mean 'igpo'"),
        (["train", "--steps", "0"], "--steps must be at least 1"),
        (["train", "--env-arg", "hop=1"], "Did you mean 'hops'"),
        (["train", "--resume", "nowhere"], "nowhere is not a run"),
        (["play", "--env-arg", "hops"], "--env-arg takes key=value, not 'hops'"),
        (["play", "--env-arg", "top_k=0"], "top_k must be at least 1"),
        (["play", "--task", "-1"], 'options["task"] is -1'),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    line = error_line(capsys, *argv)
    assert line.startswith(f"turnwise {argv[0]}: ") and said in line


def test_a_malformed_dataset_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    good = {"_id": "1", "question": "?", "answer": "x", **FACTS}
    file.write_text(json.dumps(good) + '\n{"question": 3}\n')
    line = error_line(capsys, "play", "--env-arg", f"dataset={file}")
    assert f"{file}:2:" in line


def test_a_folder_that_is_there_already(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    line = error_line(capsys, "train", "--out", str(tmp_path), "--name", "mine")
    assert "--resume" in line and "--name" in line
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


def test_a_resumed_run_keeps_its_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = error_line(capsys, "train", "--resume", str(tmp_path), "--lr", "1")
    assert "leave out --lr" in line


def test_assignments() -> None:
    given = ["a=1", "b=[1, 2]", "c=true", "d=text", "e=x=y", "f=", "g=null"]
    assert parse_assignments(given, "--env-arg") == {
        "a": 1,
        "b": [1, 2],
        "c": True,
        "d": "text",
        "e": "x=y",
        "f": "",
        "g": None,
    }
    with pytest.raises(UsageError, match="key=value"):
        parse_assignments(["=1"], "--env-arg")


# ---------------------------------------------------------------------- the parts of a run


def test_settings_survive_json() -> None:
    settings = RunSettings("turnwise/Search-v0", {"hops": [1]}, "igpo", steps=3, seed=7)
    assert RunSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert settings.default_name == "search-igpo-s7"
    with pytest.raises(ValueError, match="another version: it has speed"):
        RunSettings.from_json({"env": "x", "speed": 1})


def test_rows_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    for i in range(1, 6):
        folder.append(folder.metrics_file, {"iteration": i})
    with folder.metrics_file.open("a") as file:
        file.write('{"iteration": 6, "succ')  # the machine died here
    assert [r["iteration"] for r in folder.rows(folder.metrics_file)] == [1, 2, 3, 4, 5]
    folder.forget_after(3)
    folder.append(folder.metrics_file, {"iteration": 4})
    assert [r["iteration"] for r in folder.rows(folder.metrics_file)] == [1, 2, 3, 4]


def test_checkpoints_are_whole_and_few(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()

    def save(path: str) -> None:
        Path(path).mkdir()
        (Path(path) / "weights").write_text("w")

    def die(path: str) -> None:
        save(path)
        raise OSError("disk full")

    assert folder.last_checkpoint() is None
    for iteration in (2, 10, 100):
        folder.save_checkpoint(iteration, save)
    with pytest.raises(OSError, match="disk full"):
        folder.save_checkpoint(200, die)
    last = folder.last_checkpoint()
    assert last is not None and last[0] == 100
    kept = sorted(p.name for p in folder.checkpoints.glob("iteration-*"))
    assert kept == ["iteration-000010", "iteration-000100"]


def test_clearing_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    folder.write_config({"settings": {}})
    folder.append(folder.metrics_file, {"iteration": 1})
    (tmp_path / "notes.txt").write_text("keep me")
    folder.clear()
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_the_last_line_is_the_result() -> None:
    evaluation = {"success": 0.23, "success_ci95": [0.18, 0.29], "tasks": 200, "split": "heldout"}
    document = {
        "report": "runs/x/report.html",
        "model_folder": None,
        "finished": False,
        "iterations": 7,
        "steps": 60,
        "run": "runs/x",
        "train_s": 192.0,
        "peak_memory_gb": 1.93,
        "before": evaluation,
        "after": {**evaluation, "success": 0.81, "success_ci95": [0.75, 0.86]},
    }
    lines = as_text(document).splitlines()
    assert "  turnwise train --resume runs/x" in lines
    assert lines[-1] == (
        "held-out success 0.23 [0.18, 0.29] -> 0.81 [0.75, 0.86] on 200 unseen questions, "
        "trained 3 min 12 s, peak memory 1.9 GB"
    )
    assert as_text({**document, "after": None}).splitlines()[-1].startswith("trained 3 min")


def test_the_first_interrupt_asks_and_the_second_insists() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(said.append) as interrupts:
        assert not interrupts.asked
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_plain_progress_is_a_line_now_and_then() -> None:
    stream = StringIO()
    with make_progress(100, stream) as progress:
        for i in range(1, 101):
            progress.update({"iteration": i, "success": 0.5, "kl": None}, 75.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("step    1/100  success 0.500  reward/turn -")
    assert lines[-1].startswith("step  100/100") and lines[-1].endswith("1 min 15 s left")


def test_small_words() -> None:
    assert [duration(s) for s in (0.4, 59.6, 192, 7290)] == [
        "0 s",
        "1 min 0 s",
        "3 min 12 s",
        "2 h 1 min",
    ]
    assert sparkline([0.0, 0.5, 1.0, None]) == "▁▅█ "
    assert sparkline([0.0] * 5 + [1.0] * 5, width=5) == "█████"


# ---------------------------------------------------------------------- train


def turnwise_command(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turnwise.agents.cli", *argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def training_arguments(model: str, name: str) -> list[str]:
    settings = "--steps 6 --groups 3 --group-size 4 --max-new-tokens 8 --lr 1e-3 --threads 1"
    where = ["--import", "letters_for_cli", "--env", "letters/Letters-v0", "--name", name]
    return ["train", "--model", model, "--eval-tasks", "6", *where, *settings.split()]


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows without what a clock decides."""
    timed = ("seconds", "tokens_per_s")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in timed} for row in found]


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_as_if_it_never_had_been(
    model: str, letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = turnwise_command(*training_arguments(model, "whole"), "--json", cwd=letters)
    assert whole.returncode == 0, whole.stderr
    document = json.loads(whole.stdout)
    assert document["finished"] and document["iterations"] == 6
    assert document["before"]["iteration"] == 0 and document["after"]["iteration"] == 6
    run = letters / "runs" / "whole"
    names = {
        "config.json",
        "metrics.jsonl",
        "evaluations.jsonl",
        "episodes.jsonl",
        "report.html",
        "summary.json",
    }
    assert names | {"model", "checkpoints"} == set(os.listdir(run))
    assert [r["iteration"] for r in rows(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run / "summary.json").read_text()) == document
    assert any(r["grad_norm"] for r in rows(run / "metrics.jsonl"))
    assert 0 < len(rows(run / "episodes.jsonl")) <= 64
    assert "letters/Letters-v0" in (run / "report.html").read_text()

    command = [sys.executable, "-m", "turnwise.agents.cli", *training_arguments(model, "cut")]
    process = subprocess.Popen(command, cwd=letters, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    cut = letters / "runs" / "cut"
    metrics = cut / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err.decode()
    assert "turnwise train --resume runs/cut" in out.decode()
    assert 1 <= len(rows(metrics)) < 6
    assert (cut / "report.html").is_file()

    resumed = turnwise_command("train", "--resume", "runs/cut", cwd=letters)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(metrics) == rows(run / "metrics.jsonl")
    assert rows(cut / "evaluations.jsonl") == rows(run / "evaluations.jsonl")
    assert rows(cut / "episodes.jsonl") == rows(run / "episodes.jsonl")
    assert " on 6 tasks, trained " in resumed.stdout.splitlines()[-1]

    argv = [
        "eval",
        "--env",
        "letters_for_cli:letters/Letters-v0",
        "-n",
        "6",
        "--max-new-tokens",
        "8",
    ]
    trained = run_json(capsys, *argv, "--model", str(run / "model"))
    assert trained["success"] == document["after"]["success"]
    assert trained["score"] == pytest.approx(document["after"]["score"], abs=1e-3)
