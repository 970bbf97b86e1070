"""The fused and the Hugging Face forward against the models' own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from turnwise.agents.engines.cache import SlotCache
from turnwise.agents.engines.engine import Request, Sampling
from turnwise.agents.engines.forward import Chunk, Forward
from turnwise.agents.engines.fused import FusedForward, can_fuse
from turnwise.agents.engines.hf import ModelForward, cache_shape
from turnwise.agents.engines.transformers import TransformersEngine

COMMON: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FUSIBLE = {
    "llama": hf.LlamaConfig(**GROUPED),
    "llama, every bias": hf.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "llama 3 rope, tied, gelu": hf.LlamaConfig(
        **GROUPED, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, hidden_act="gelu"
    ),
    "llama, one kv head each": hf.LlamaConfig(**COMMON, num_key_value_heads=4),
    "mistral": hf.MistralConfig(**GROUPED, head_dim=16, sliding_window=None),
    "mistral, wide window": hf.MistralConfig(**GROUPED, head_dim=8, sliding_window=64),
    "qwen2": hf.Qwen2Config(**GROUPED, use_sliding_window=False),
    "qwen3": hf.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
}
OTHERS = {
    "mistral, narrow window": hf.MistralConfig(**GROUPED, head_dim=8, sliding_window=5),
    "gpt2": hf.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=None
    ),
    "gpt_neox": hf.GPTNeoXConfig(**COMMON),
    "phi": hf.PhiConfig(**COMMON, pad_token_id=None),
    "gemma3, mixed windows and softcaps": hf.Gemma3TextConfig(
        **GROUPED,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=3.0,
        pad_token_id=None,
    ),
    "granite, scaled logits": hf.GraniteConfig(**GROUPED, logits_scaling=3.0),
}


def make(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norm gains and biases start at 1 and 0: make them matter
                offset = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(offset + 0.2 * torch.randn_like(parameter))
    return model


def forwards(model: Any) -> list[Forward]:
    layers, kv_heads, key_dim, value_dim = cache_shape(model)
    kinds: list[type[FusedForward] | type[ModelForward]] = [ModelForward]
    if can_fuse(model, 64):
        kinds.append(FusedForward)
    return [
        kind(
            model,
            SlotCache(
                layers=layers,
                kv_heads=kv_heads,
                key_dim=key_dim,
                value_dim=value_dim,
                max_rows=8,
                max_length=64,
                dtype=model.dtype,
                device=model.device,
                turned_keys=kind is FusedForward,
            ),
        )
        for kind in kinds
    ]


def chunk(pieces: list[list[int]], starts: list[int], rows: list[int] | None) -> Chunk:
    """A padded chunk that wants logits everywhere but on the padding."""
    width = max(map(len, pieces))
    return Chunk(
        tokens=torch.tensor([p + [0] * (width - len(p)) for p in pieces]),
        lengths=torch.tensor([len(p) for p in pieces]),
        starts=torch.tensor(starts),
        rows=None if rows is None else torch.tensor(rows),
        past=max(starts),
        wanted=torch.tensor([i * width + t for i, p in enumerate(pieces) for t in range(len(p))]),
    )


@pytest.mark.parametrize("name", [*FUSIBLE, *OTHERS])
@torch.inference_mode()
def test_every_pass_gives_the_models_own_logits(name: str) -> None:
    model = make({**FUSIBLE, **OTHERS}[name])
    assert can_fuse(model, 64) == (name in FUSIBLE)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 50, n).tolist() for n in (13, 20, 7)]
    truth = [model(torch.tensor([s])).logits[0] for s in sequences]
    everything = torch.cat(truth)
    for forward in forwards(model):
        # Without a cache.
        logits = forward.prefill(chunk(sequences, [0, 0, 0], None))
        torch.testing.assert_close(logits, everything, atol=1e-4, rtol=1e-4)
        # Into rows in any order; then on from different lengths; then token by token.
        first = forward.prefill(chunk([s[:4] for s in sequences], [0, 0, 0], [2, 0, 1]))
        torch.testing.assert_close(first, torch.cat([t[:4] for t in truth]), atol=1e-4, rtol=1e-4)
        cuts = [6, 12, 5]
        second = forward.prefill(
            chunk([s[4:c] for s, c in zip(sequences, cuts, strict=True)], [4, 4, 4], [2, 0, 1])
        )
        expected = torch.cat([t[4:c] for t, c in zip(truth, cuts, strict=True)])
        torch.testing.assert_close(second, expected, atol=1e-4, rtol=1e-4)
        order = [1, 2, 0]  # the sequence in row 0, 1, 2
        for step in range(2):
            at = [cuts[i] + step for i in order]
            tokens = torch.tensor([sequences[i][p] for i, p in zip(order, at, strict=True)])
            logits = forward.decode(tokens, torch.tensor(at), max(at) + 1)
            expected = torch.stack([truth[i][p] for i, p in zip(order, at, strict=True)])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gemma3, mixed windows and softcaps", "qwen3"])
def test_the_engine_on_other_architectures(name: str) -> None:
    model = make({**FUSIBLE, **OTHERS}[name])
    rng = np.random.default_rng(1)
    contexts = [rng.integers(1, 50, n).tolist() for n in (3, 62, 17, 17)]
    engine = TransformersEngine(model, None)
    sampling = Sampling(12, temperature=0.0)
    for c in engine.generate([Request(i, t, sampling) for i, t in enumerate(contexts)]):
        assert isinstance(c.id, int)
        tokens = list(contexts[c.id])
        for token in c.tokens:
            with torch.no_grad():
                assert token == int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            tokens.append(int(token))
        assert len(tokens) == min(64, len(contexts[c.id]) + 12)


def test_bfloat16_stays_close_to_float32() -> None:
    model = make(FUSIBLE["qwen3"])
    tokens = [list(range(1, 30))]
    exact = TransformersEngine(model, None).score(tokens, [(1, 29)])[0]
    for fused in (True, False):
        engine = TransformersEngine(make(FUSIBLE["qwen3"]).bfloat16(), None, fused=fused)
        np.testing.assert_allclose(engine.score(tokens, [(1, 29)])[0], exact, atol=0.5)
        (done,) = engine.generate([Request(0, tokens[0][:9], Sampling(8, temperature=0.0))])
        again = engine.score([tokens[0][:9] + done.tokens.tolist()], [(9, 17)])[0]
        np.testing.assert_allclose(done.logprobs, again, atol=0.15)


def test_what_cannot_be_fused_says_so() -> None:
    model = make(OTHERS["gpt2"])
    with pytest.raises(ValueError, match="fused='auto'"):
        TransformersEngine(model, None, fused=True)


def test_a_quantised_or_adapted_layer_is_not_fused() -> None:
    class Adapted(torch.nn.Linear):
        pass

    model = make(FUSIBLE["llama"])
    assert can_fuse(model, 64)
    model.model.layers[1].mlp.up_proj = Adapted(32, 40, bias=False)
    assert not can_fuse(model, 64)


def test_the_hook_on_the_head_is_gone_afterwards() -> None:
    model = make(OTHERS["gpt2"])
    engine = TransformersEngine(model, None)
    list(engine.generate([Request(0, [1, 2, 3], Sampling(3))]))
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 50)
    assert not model.get_output_embeddings()._forward_pre_hooks
