"""Makes the embedded model: supervised on oracle episodes, and left unfinished on purpose.

`python -m turnwise.agents.tiny.make --out FOLDER` writes config, weights (bfloat16 safetensors)
and tokenizer in Hugging Face format; on one core it takes about 12 minutes. The same seed gives
the same weights on the same machine.

Four lessons: reading drills, the oracle's episodes, a review of both, and last a short one from a
demonstrator who often answers too soon or searches for something else. After it the model knows
every move and not yet which is good: it succeeds sometimes, which is what reinforcement learning
needs to begin with.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from turnwise.agents.chat import Chat
from turnwise.agents.tiny.lessons import Example, Writer, demonstrate, drills, episodes
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.envs.search.search_env import SearchEnv

logger = logging.getLogger(__name__)

MICRO_TOKENS = 1024
"""Tokens that go through the model at once: more fall out of a CPU's caches."""
EARLY_ANSWER, STRAY_SEARCH = 0.3, 0.15
"""How often a turn of the last lesson is one of the two mistakes."""
REVIEWED = 1 << 20
"""The review's episodes are other ones: tasks from here on."""
WORLD_SEED = 1_000
"""The worlds it is taught in are not those of `Search-v0`'s default seed."""


def batches(source: Iterator[Example], rows: int) -> Iterator[list[Example]]:
    """Batches of like length, in random order, from pools of 16."""
    rng = random.Random(0)
    while True:
        pool = sorted(itertools.islice(source, rows * 16), key=lambda e: len(e.tokens))
        cut = [pool[i : i + rows] for i in range(0, len(pool), rows)]
        rng.shuffle(cut)
        yield from cut


def micro_batches(batch: Sequence[Example]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and weights [rows, length], padded on the right, of `MICRO_TOKENS` at most."""
    batch = sorted(batch, key=lambda e: -len(e.tokens))
    while batch:
        length = len(batch[0].tokens)
        rows = max(1, MICRO_TOKENS // length)
        tokens = torch.zeros(len(batch[:rows]), length, dtype=torch.long)
        weights = torch.zeros(tokens.shape)
        for row, example in enumerate(batch[:rows]):
            tokens[row, : len(example.tokens)] = torch.from_numpy(example.tokens)
            weights[row, : len(example.tokens)] = torch.from_numpy(example.weights)
        yield tokens, weights
        batch = batch[rows:]


def backward(model: LlamaForCausalLM, batch: Sequence[Example]) -> float:
    """Add the gradient of the weighted mean cross-entropy; returns that loss."""
    total = sum(float(e.weights[1:].sum()) for e in batch)
    sum_of_losses = 0.0
    for tokens, weights in micro_batches(batch):
        # Rows are padded on the right, so causal attention needs no further mask.
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none"
        )
        loss = (losses * weights[:, 1:].reshape(-1)).sum() / total
        loss.backward()
        sum_of_losses += float(loss.detach())
    return sum_of_losses


def teach(
    model: LlamaForCausalLM, name: str, lesson: Iterator[list[Example]], steps: int, scale: float
) -> None:
    """Train for `steps` batches: Muon for matrices, AdamW for the rest, decaying to a twentieth."""
    matrices, others = list[torch.nn.Parameter](), list[torch.nn.Parameter]()
    for parameter_name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in parameter_name
        (matrices if hidden else others).append(parameter)
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=1.0, momentum=0.95, weight_decay=0.0), 0.02 * scale),
        (torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0), 3e-3 * scale),
    ]
    begun, recent = time.monotonic(), list[float]()
    for step in range(steps):
        model.zero_grad()
        recent.append(backward(model, next(lesson)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min(1.0, (step + 1) / 40) * max(0.05, 1.0 - step / steps)
        for optimizer, lr in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * share
            optimizer.step()
        if step % 50 == 49 or step == steps - 1:
            mean, seconds = sum(recent) / len(recent), time.monotonic() - begun
            logger.info("%s %d: loss %.3f, %.0f s", name, step + 1, mean, seconds)
            recent.clear()


def new_model(tokenizer: Any) -> LlamaForCausalLM:
    """A Llama of about 0.9 M parameters with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=384,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def new_tokenizer(env: SearchEnv) -> Any:
    """A tokenizer that knows the words of the generated worlds."""
    rng = random.Random(0)
    return make_tokenizer(
        (text for i in range(400) for pair in demonstrate(env, i, rng) for text in pair), size=1024
    )


def lessons(
    writer: Writer, env: SearchEnv, seed: int
) -> dict[str, tuple[Iterator[list[Example]], float]]:
    """What is taught, in this order: batches by name, and how fast they are learned."""
    careless = functools.partial(
        episodes, writer, env, seed, early_answer=EARLY_ANSWER, stray_search=STRAY_SEARCH
    )
    reading = batches(drills(writer, env, seed + 1), 48)
    playing = batches(episodes(writer, env, seed, first=REVIEWED), 32)
    review = (next(reading if step % 3 else playing) for step in itertools.count())
    return {
        "drills": (batches(drills(writer, env, seed), 48), 1.0),
        "oracle": (batches(episodes(writer, env, seed), 32), 1.0),
        "review": (review, 1.0),
        "careless": (batches(careless(), 32), 0.5),
    }


def make(out: Path, *, steps: Sequence[int], seed: int, keep: Path | None = None) -> None:
    """Teach the lessons for so many steps each, and save.

    Args:
        out: folder of the finished model.
        steps: of each lesson.
        seed: of the weights and the mistakes.
        keep: folder that also gets the model as it is after each lesson, in float32.
    """
    torch.manual_seed(seed)
    env = SearchEnv(seed=WORLD_SEED)
    tokenizer = new_tokenizer(env)
    writer = Writer(tokenizer, Chat(tokenizer))
    model = new_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("%d tokens, %d parameters", len(tokenizer), parameters)
    for (name, (lesson, scale)), count in zip(
        lessons(writer, env, seed).items(), steps, strict=True
    ):
        teach(model, name, lesson, count, scale)
        if keep is not None:
            model.save_pretrained(keep / name)
            tokenizer.save_pretrained(keep / name)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save_pretrained(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the embedded model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument(
        "--steps", type=int, nargs=4, default=[500, 600, 450, 120], help="of each lesson"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the model after each lesson")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(arguments.out, steps=arguments.steps, seed=arguments.seed, keep=arguments.keep)


if __name__ == "__main__":
    main()
