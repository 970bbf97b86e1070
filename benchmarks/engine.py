"""Tokens per second of TransformersEngine beside Hugging Face `generate`, on the same weights.

`python benchmarks/engine.py --threads 1` prints a table and writes benchmarks/results/engine.json.
Both sample at temperature 1 from a random-weight Llama, in turns, so that whatever else the
machine does meets both; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from turnwise.agents.engines.engine import Request, Sampling
from turnwise.agents.engines.transformers import TransformersEngine

RESULTS = Path(__file__).parent / "results" / "engine.json"


def make_model(hidden: int, layers: int, vocabulary: int) -> Any:
    """A random Llama of the shape of the embedded model."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=max(1, hidden // 64),
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


def engine_batch(engine: TransformersEngine, prompts: np.ndarray, new: int, seed: int) -> int:
    """Sample `new` tokens after every prompt, nothing cached; the tokens sampled."""
    engine.load_weights(None, seed)
    sampling = Sampling(max_new_tokens=new)
    requests = [Request(i, p, sampling, seed * 1000 + i) for i, p in enumerate(prompts)]
    return sum(len(c.tokens) for c in engine.generate(requests))


@torch.inference_mode()
def generate_batch(model: Any, prompts: np.ndarray, new: int) -> int:
    """The same by `generate`."""
    ids = torch.from_numpy(prompts)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_new_tokens=new,
        pad_token_id=0,
    )
    return int(out[:, ids.shape[1] :].numel())


def engine_turns(engine: TransformersEngine, prompts: np.ndarray, turns: int, seed: int) -> int:
    """Episodes of several turns, each with 4 to 44 tokens and an observation of 16; the tokens."""
    engine.load_weights(None, seed)
    rng = np.random.default_rng(seed)
    contexts = {i: p.tolist() for i, p in enumerate(prompts)}
    left = dict.fromkeys(contexts, turns)
    vocabulary, total = engine.vocabulary, 0

    def next_turn(i: int) -> Request:
        sampling = Sampling(max_new_tokens=int(rng.integers(4, 45)))
        return Request(i, contexts[i], sampling, seed=seed * 1000 + i, session=i)

    engine.submit([next_turn(i) for i in contexts])
    while left:
        for completion in engine.poll():
            i, total = completion.id, total + len(completion.tokens)
            left[i] -= 1
            if not left[i]:
                del left[i]
                engine.release(i)
                continue
            observation = rng.integers(0, vocabulary, 16).tolist()
            contexts[i] = [*contexts[i], *completion.tokens.tolist(), *observation]
            engine.submit([next_turn(i)])
    return total


def rate(work: Callable[..., int], *args: Any) -> tuple[float, float]:
    """Tokens per second, and per second of processor time (which a busy machine bends less)."""
    wall, processor = time.perf_counter(), time.process_time()
    tokens = work(*args)
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - processor)


def measure(model: Any, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """One row of the report."""
    engine = TransformersEngine(model, None, max_batch=batch)
    prompts = np.random.default_rng(0).integers(0, args.vocabulary, (batch, args.prompt))
    engine_batch(engine, prompts, 4, 0)
    generate_batch(model, prompts, 4)
    rounds = [
        (
            rate(engine_batch, engine, prompts, args.new, r),
            rate(generate_batch, model, prompts, args.new),
            rate(engine_turns, engine, prompts, 5, r),
        )
        for r in range(args.rounds)
    ]
    row: dict[str, float] = {"batch": batch}
    for clock, unit in enumerate(("per_s", "per_processor_s")):
        for i, name in enumerate(("engine", "generate", "engine_five_turns")):
            row[f"{name}_tokens_{unit}"] = round(statistics.median(r[i][clock] for r in rounds))
        ratios = [r[0][clock] / r[1][clock] for r in rounds]
        row[f"engine_over_generate_{unit}"] = round(statistics.median(ratios), 2)
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=768)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = make_model(args.hidden, args.layers, args.vocabulary)
    rows = []
    for batch in args.batches:
        rows.append(measure(model, batch, args))
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        **{k: v for k, v in vars(args).items() if k not in ("out", "batches")},
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
