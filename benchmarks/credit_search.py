"""Credit functions compared on Search-v0 at equal sampled tokens: success, mean and 95 % interval.

`python benchmarks/credit_search.py` runs every credit with every seed, two processes at a time,
each until it has sampled the same number of tokens, and writes results/credit_search.json and
.png. Every training task is new to the policy, so its success while training is a fair estimate;
at the end each policy also answers held-out questions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
CREDITS = ("grpo", "turn_return", "igpo")
# Two-sided 95 % quantiles of Student's t with n - 1 degrees of freedom, for n seeds.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 10: 2.262}


def train(
    credit: str, seed: int, budget: int, questions: int, lr: float, threads: int
) -> dict[str, Any]:
    """One run, until `budget` tokens are sampled; its curve and its held-out success."""
    import torch

    from turnwise.agents.chat import Chat
    from turnwise.agents.engines.engine import Sampling
    from turnwise.agents.engines.transformers import TransformersEngine
    from turnwise.agents.evaluation import evaluate
    from turnwise.agents.rllib import TurnwiseConfig
    from turnwise.envs.registry import make

    torch.set_num_threads(threads)
    config = (
        TurnwiseConfig()
        .environment("turnwise/Search-v0", env_config={"split": "train"})
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .training(model="tiny", credit=credit, lr=lr, max_new_tokens=16)
        .debugging(seed=seed)
    )
    algo = config.build_algo()
    curve = []
    while not curve or curve[-1]["tokens"] < budget:
        algo.train()
        batch = algo.last_batch
        sampled = sum(int(t.action_mask.sum()) for t in batch.trajectories)
        curve.append(
            {
                "tokens": sampled + (curve[-1]["tokens"] if curve else 0),
                "success": float(np.mean([t.outcome == 1 for t in batch.trajectories])),
                "turns": float(np.mean([len(t.turns) for t in batch.trajectories])),
            }
        )
    module = algo.get_module()
    module.eval()
    result = evaluate(
        TransformersEngine(module.lm, module.tokenizer),
        Chat(module.tokenizer),
        lambda: make("turnwise/Search-v0", split="heldout"),
        tasks=questions,
        sampling=Sampling(max_new_tokens=16),
    )
    algo.stop()
    return {"credit": credit, "seed": seed, "curve": curve, "heldout": result.to_json()["success"]}


def on_grid(run: dict[str, Any], grid: np.ndarray, window: int) -> np.ndarray:
    """The run's success, a running mean over `window` iterations, at the token counts of a grid."""
    success = np.array([p["success"] for p in run["curve"]])
    total = np.cumsum(np.concatenate([[0.0], success]))
    end = np.arange(1, len(success) + 1)
    begin = np.maximum(end - window, 0)
    return np.interp(
        grid, [p["tokens"] for p in run["curve"]], (total[end] - total[begin]) / (end - begin)
    )


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds (the first axis) and the half-width of its 95 % interval (Student's t)."""
    n = len(values)
    quantile = STUDENT.get(n, 1.96 if n > 10 else math.inf)
    return values.mean(0), quantile * values.std(0, ddof=1) / math.sqrt(n)


def plot(runs: list[dict[str, Any]], budget: int, path: Path) -> dict[str, Any]:
    """Draw the curves; returns their summary."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = np.linspace(0, budget, 41)[1:]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    summary: dict[str, Any] = {}
    for credit, colour in zip(CREDITS, ("#0072B2", "#E69F00", "#009E73"), strict=True):
        of_credit = [r for r in runs if r["credit"] == credit]
        if len(of_credit) < 2:
            continue
        mean, half = interval(np.stack([on_grid(r, grid, 5) for r in of_credit]))
        axes.plot(grid, mean, label=credit, color=colour)
        axes.fill_between(grid, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        held, held_half = interval(np.array([r["heldout"] for r in of_credit]))
        area, area_half = interval(np.array([on_grid(r, grid, 5).mean() for r in of_credit]))
        summary[credit] = {
            "seeds": len(of_credit),
            "heldout_success": [float(held), float(held_half)],
            "mean_training_success": [float(area), float(area_half)],
        }
    axes.set(xlabel="sampled tokens", ylabel="success on new training tasks", ylim=(0, 1))
    axes.set_title("turnwise/Search-v0, embedded model: mean and 95 % interval over seeds")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=140)
    return summary


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12_000, help="sampled in each run")
    parser.add_argument("--questions", type=int, default=200, help="held out, after training")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--run", nargs=2, metavar=("CREDIT", "SEED"), help="a single run, as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS / "credit_search.json")
    arguments = parser.parse_args()
    settings = (arguments.tokens, arguments.questions, arguments.lr, arguments.threads)
    if arguments.run:
        run = train(arguments.run[0], int(arguments.run[1]), *settings)
        arguments.out.write_text(json.dumps(run))
        return
    with tempfile.TemporaryDirectory() as folder:

        def one(credit: str, seed: int) -> dict[str, Any]:
            out = Path(folder) / f"{credit}-{seed}.json"
            command = [sys.executable, __file__, "--run", credit, str(seed), "--out", str(out)]
            for name in ("tokens", "questions", "lr", "threads"):
                command += [f"--{name}", str(getattr(arguments, name))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            run: dict[str, Any] = json.loads(out.read_text())
            print(f"{credit} seed {seed}: held-out success {run['heldout']:.3f}", flush=True)
            return run

        with ThreadPoolExecutor(arguments.jobs) as pool:
            # Seed by seed, so that an interrupted comparison is still an even one.
            work = [(c, s) for s in range(arguments.seeds) for c in CREDITS]
            runs = list(pool.map(lambda cs: one(*cs), work))
    arguments.out.parent.mkdir(exist_ok=True)
    kept = {k: v for k, v in vars(arguments).items() if k not in ("run", "out")}
    # The runs first: drawing may fail, and they took the time.
    arguments.out.write_text(json.dumps({"settings": kept, "runs": runs}))
    summary = plot(runs, arguments.tokens, arguments.out.with_suffix(".png"))
    arguments.out.write_text(json.dumps({"settings": kept, "summary": summary, "runs": runs}))
    for credit, row in summary.items():
        print(
            f"{credit:12} held-out {row['heldout_success'][0]:.3f} "
            f"± {row['heldout_success'][1]:.3f}   "
            f"mean while training {row['mean_training_success'][0]:.3f} "
            f"± {row['mean_training_success'][1]:.3f}   ({row['seeds']} seeds)"
        )


if __name__ == "__main__":
    main()
