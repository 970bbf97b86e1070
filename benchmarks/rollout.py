"""What multi-turn rollouts cost beside one plain batch, beside lock-step `generate`, and in RLlib.

`python benchmarks/rollout.py` prints a table and writes results/rollout.json. All three ways sample
the same number of tokens from the same random-weight model, in turns, so that whatever else the
machine does meets all of them; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Request, Sampling
from turnwise.agents.engines.transformers import TransformersEngine
from turnwise.agents.rollout.scheduler import Episode, Scheduler
from turnwise.agents.tiny.make import new_model
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.envs.task import Task
from turnwise.envs.text_env import Reply, TextEnv
from turnwise.rewards.verdict import Verdict

RESULTS = Path(__file__).parent / "results" / "rollout.json"
TURNS, NEW_TOKENS, PROMPT_WORDS, OBSERVATION_WORDS = 4, 48, 48, 32
WORDS = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(16) for j in range(16)]


class Prompts:
    """Task i is a prompt of so many words."""

    size = None

    def __getitem__(self, index: int) -> Task:
        """Task `index`."""
        return Task(str(index), say(random.Random(index), PROMPT_WORDS), None)


class DelayEnv(TextEnv):
    """Answers every turn after a random delay of up to `delay_s`."""

    def __init__(self, delay_s: float) -> None:
        """Args: delay_s: the longest; 0 answers at once, in the loop itself."""
        super().__init__(Prompts(), max_turns=TURNS)
        self.delay_s = delay_s
        self.metadata = {**self.metadata, "inline": not delay_s}

    def begin(self, task: Task) -> str:
        """The prompt."""
        self.state = int(task.id)
        return task.prompt

    def respond(self, action: str) -> Reply:
        """More words, later."""
        rng = random.Random(self.state * 1000 + self._turn)
        time.sleep(rng.random() * self.delay_s)
        last = self._turn == self.max_turns
        return Reply(say(rng, OBSERVATION_WORDS), Verdict(0.0, "wrong") if last else None)


def say(rng: random.Random, words: int) -> str:
    """Random words, one token each."""
    return " " + " ".join(rng.choices(WORDS, k=words))


class Bench:
    """One model, and the ways to sample from it."""

    def __init__(self, rows: int) -> None:
        """Args: rows: decoded together."""
        self.rows = rows
        self.tokenizer = make_tokenizer([" " + w for w in WORDS], size=640)
        torch.manual_seed(0)
        self.model = new_model(self.tokenizer).eval()
        self.chat = Chat(self.tokenizer)
        self.chat.stop_token_ids = ()  # every turn takes its whole budget
        self.engine = TransformersEngine(self.model, self.tokenizer, max_batch=rows)
        self.sampling = Sampling(max_new_tokens=NEW_TOKENS)

    def plain(self, episodes: int, round_: int) -> float:
        """Tokens/s of as many completions as there are turns, from contexts of the mean length."""
        self.engine.load_weights(None, round_)
        opening = len(self.chat.opening([{"role": "user", "content": Prompts()[0].prompt}]))
        later = len(self.chat.continuation(say(random.Random(0), OBSERVATION_WORDS), closed=False))
        # A rollout computes each context token once: of its turns, the first has the prompt to
        # read and the others an observation each. The plain batch reads as many.
        read = [opening] + [later] * (TURNS - 1)
        rng = np.random.default_rng(round_)
        requests = [
            Request((i, k), rng.integers(40, 300, read[k]).tolist(), self.sampling, seed=i)
            for i in range(episodes)
            for k in range(TURNS)
        ]
        begun = time.perf_counter()
        tokens = sum(len(c.tokens) for c in self.engine.generate(requests))
        return tokens / (time.perf_counter() - begun)

    def rollouts(self, episodes: int, delay_s: float, concurrency: int, round_: int) -> float:
        """Tokens/s of multi-turn rollouts."""
        self.engine.load_weights(None, round_)
        scheduler = Scheduler(
            self.engine,
            self.chat,
            lambda: DelayEnv(delay_s),
            sampling=self.sampling,
            concurrency=concurrency,
        )
        plays = [Episode(i, 0, seed=i, options={"task": i}) for i in range(episodes)]
        begun = time.perf_counter()
        tokens = sum(int(t.action_mask.sum()) for t in scheduler.run(plays))
        seconds = time.perf_counter() - begun
        scheduler.close()
        return tokens / seconds

    @torch.inference_mode()
    def lock_step(self, episodes: int, delay_s: float) -> float:
        """Tokens/s of `generate` on whole contexts, all environments stepped between calls."""
        begun, tokens = time.perf_counter(), 0
        with ThreadPoolExecutor(self.rows) as pool:
            for first in range(0, episodes, self.rows):
                envs = [DelayEnv(delay_s) for _ in range(first, min(first + self.rows, episodes))]
                contexts = []
                for i, env in enumerate(envs):
                    text, _ = env.reset(options={"task": first + i})
                    contexts.append(self.chat.opening([{"role": "user", "content": text}]))
                for _ in range(TURNS):
                    said = self._generate(contexts)
                    tokens += said.size
                    actions = [self.chat.decode(row.tolist()) for row in said]
                    replies = list(
                        pool.map(lambda ea: ea[0].step(ea[1])[0], zip(envs, actions, strict=True))
                    )
                    contexts = [
                        c + row.tolist() + self.chat.continuation(reply, closed=False)
                        for c, row, reply in zip(contexts, said, replies, strict=True)
                    ]
        return tokens / (time.perf_counter() - begun)

    def _generate(self, contexts: list[list[int]]) -> np.ndarray:
        width = max(map(len, contexts))
        ids = torch.full((len(contexts), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, context in enumerate(contexts):
            ids[row, width - len(context) :] = torch.tensor(context)
            mask[row, width - len(context) :] = 1
        out = self.model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return out[:, width:].numpy()


def rllib_overhead(iterations: int) -> dict[str, float]:
    """Share of an iteration that is neither sampling, credit nor the Learner's computation."""
    from turnwise.agents.rllib import TurnwiseConfig

    config = (
        TurnwiseConfig()
        .environment("turnwise/Search-v0")
        .env_runners(num_env_runners=0)
        .training(model="tiny", credit="igpo", lr=1e-4, max_new_tokens=16)
    )
    algo = config.build_algo()
    shares = [float(algo.train()["overhead_share"]) for _ in range(iterations + 1)][1:]
    algo.stop()
    return {"median": statistics.median(shares), "max": max(shares)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=64, help="decoded together")
    parser.add_argument("--episodes", type=int, default=192)
    parser.add_argument("--concurrency", type=int, default=112, help="episodes in flight")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10, help="of RLlib")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.rows)
    bench.plain(arguments.rows, 0)  # warm
    measured: dict[str, list[float]] = {}
    for round_ in range(1, arguments.rounds + 1):
        for name, speed in {
            "plain batch": lambda r=round_: bench.plain(arguments.episodes, r),
            "rollouts, 0 ms": lambda r=round_: bench.rollouts(
                arguments.episodes, 0.0, arguments.rows, r
            ),
            "rollouts, 0-200 ms": lambda r=round_: bench.rollouts(
                arguments.episodes, 0.2, arguments.concurrency, r
            ),
            "lock-step generate, 0-200 ms": lambda: bench.lock_step(arguments.episodes // 3, 0.2),
        }.items():
            measured.setdefault(name, []).append(speed())
    table: dict[str, Any] = {}
    for name, values in measured.items():
        ratios = [v / p for v, p in zip(values, measured["plain batch"], strict=True)]
        table[name] = {
            "tokens_per_s": statistics.median(values),
            "share_of_plain": statistics.median(ratios),
        }
        row = table[name]
        print(
            f"{name:30} {row['tokens_per_s']:8.0f} tokens/s {row['share_of_plain']:6.2f} of plain"
        )
    slow = measured["lock-step generate, 0-200 ms"]
    faster = statistics.median(
        r / s for r, s in zip(measured["rollouts, 0-200 ms"], slow, strict=True)
    )
    print(f"rollouts over lock-step generate: {faster:.2f} times")
    overhead = rllib_overhead(arguments.iterations)
    print(
        f"RLlib's own share of an iteration: {overhead['median']:.1%} "
        f"(largest {overhead['max']:.1%})"
    )
    machine = {"machine": platform.machine(), "torch": torch.__version__}
    settings = {**vars(arguments), "turns": TURNS, "new_tokens": NEW_TOKENS}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "settings": settings,
                **machine,
                "ways": table,
                "rollouts_over_lock_step": faster,
                "rllib_overhead_share": overhead,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
