"""Makes the embedded model: supervised on demonstrations that are right in part, and stopped early.

`python -m turnwise.agents.tiny.make --out FOLDER` writes config, weights (bfloat16 safetensors)
and tokenizer in Hugging Face format. The same seed gives the same weights on the same machine.

The demonstrator plays the oracle's next action, but now and then answers too soon or searches for
something else. The model so knows every move without knowing which is good: it succeeds
sometimes, which is what reinforcement learning needs to begin with.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from turnwise.agents.chat import Chat
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.envs.search.search_env import SearchEnv

logger = logging.getLogger(__name__)

EARLY_ANSWER, STRAY_SEARCH = 0.25, 0.15
"""How often a demonstrated turn is one of the two mistakes."""
OBSERVATION_WEIGHT = 0.1
"""Passages repeat names: predicting them a little teaches copying sooner."""


class Example(NamedTuple):
    """A demonstrated episode: token ids [T], and the loss weight of each as a target [T]."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]


def demonstrate(env: SearchEnv, index: int, rng: random.Random) -> list[tuple[str, str]]:
    """One episode of task `index` as (observation, action) pairs, with the two mistakes."""
    observation, _ = env.reset(options={"task": index})
    pairs, over = list[tuple[str, str]](), False
    *stops, answer = env.task.data["path"]  # type: ignore[union-attr]
    position, seen = 0, [stops[0]]
    while not over:
        chance = rng.random()
        if chance < EARLY_ANSWER and position < len(stops):
            action = f"<answer> {rng.choice(seen)} </answer>"
        elif chance < EARLY_ANSWER + STRAY_SEARCH and position < len(stops):
            action = f"<search> {rng.choice(seen)} </search>"
        elif position < len(stops):
            action = f"<search> {stops[position]} </search>"
            position += 1
        else:
            action = f"<answer> {answer} </answer>"
        pairs.append((observation, action))
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        seen += info.get("titles", [])
    return pairs


def examples(tokenizer: Any, chat: Chat, env: SearchEnv, seed: int) -> Iterator[Example]:
    """Demonstrations of task 0, 1, ... as tokens, without end."""
    rng = random.Random(seed)
    end = list(chat.stop_token_ids)[:1]
    index = 0
    while True:
        tokens, weights = list[int](), list[float]()
        for turn, (observation, action) in enumerate(demonstrate(env, index, rng)):
            given = (
                chat.continuation(observation, closed=True)
                if turn
                else chat.opening([{"role": "user", "content": observation}])
            )
            taken = tokenizer.encode(action, add_special_tokens=False) + end
            tokens += given + taken
            weights += [OBSERVATION_WEIGHT] * len(given) + [1.0] * len(taken)
        yield Example(np.array(tokens), np.array(weights, np.float32))
        index += 1


def batches(source: Iterator[Example], rows: int) -> Iterator[list[Example]]:
    """Batches of similar length, from a pool of 32 batches."""
    while True:
        pool = sorted((next(source) for _ in range(rows * 32)), key=lambda e: len(e.tokens))
        cut = [pool[i : i + rows] for i in range(0, len(pool), rows)]
        random.Random(len(pool[0].tokens)).shuffle(cut)
        yield from cut


def loss_of(model: LlamaForCausalLM, batch: list[Example]) -> torch.Tensor:
    """Weighted cross-entropy of the next token, a scalar."""
    length = max(len(e.tokens) for e in batch)
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length)
    for row, example in enumerate(batch):
        tokens[row, : len(example.tokens)] = torch.from_numpy(example.tokens)
        weights[row, : len(example.tokens)] = torch.from_numpy(example.weights)
    # Rows are padded on the right, so causal attention needs no further mask.
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none"
    )
    flat = weights[:, 1:].reshape(-1)
    return (losses * flat).sum() / flat.sum()


def new_model(tokenizer: Any) -> LlamaForCausalLM:
    """A Llama of about 0.9 M parameters with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=384,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make(out: Path, *, steps: int, rows: int, lr: float, seed: int, hops: tuple[int, ...]) -> None:
    """Train for `steps` batches of `rows` episodes and save."""
    torch.manual_seed(seed)
    env = SearchEnv(split="train", seed=seed + 1_000, hops=hops)  # other worlds than RL will see
    texts = [text for i in range(400) for pair in demonstrate(env, i, random.Random(i)) for text in pair]
    tokenizer = make_tokenizer(texts, size=1024)
    chat = Chat(tokenizer)
    model = new_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("%d tokens, %d parameters", len(tokenizer), parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps + 1, pct_start=0.1
    )
    source = batches(examples(tokenizer, chat, env, seed), rows)
    begun = time.monotonic()
    for step in range(steps):
        loss = loss_of(model, next(source))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            logger.info("step %d loss %.3f, %.0f s", step, float(loss), time.monotonic() - begun)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hops", type=int, nargs="+", default=[1, 2, 3, 4])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(
        arguments.out,
        steps=arguments.steps,
        rows=arguments.rows,
        lr=arguments.lr,
        seed=arguments.seed,
        hops=tuple(arguments.hops),
    )


if __name__ == "__main__":
    main()
