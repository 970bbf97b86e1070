"""The language model as an RLModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray.rllib", reason="RLlib is not installed: pip install 'turnwise[train]'")

from turnwise.agents.rllib.batch import ACTION_MASK, TOKENS
from turnwise.agents.rllib.module import (
    ENTROPY,
    LOGPROB,
    CausalLMModule,
    to_array,
    to_tensor,
)
from turnwise.envs.spaces import Unicode


def module(folder: Path, **model_config: Any) -> CausalLMModule:
    torch.set_num_threads(1)
    return CausalLMModule(
        observation_space=Unicode(),
        action_space=Unicode(),
        inference_only=False,
        model_config={"model": str(folder), **model_config},
    )


def batch(rows: int = 3, width: int = 20, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=generator) < 0.3
    mask[:, 0] = False
    tokens = torch.randint(5, 200, (rows, width), generator=generator)
    return {TOKENS: tokens.int(), ACTION_MASK: mask}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_models_own_logits(
    random_llama: Path, temperature: float
) -> None:
    policy, data = module(random_llama, temperature=temperature), batch()
    out = policy.forward_train(data)
    tokens = data[TOKENS].long()
    logits = policy.lm(input_ids=tokens).logits[:, :-1] / temperature
    everything = logits.log_softmax(-1)
    expected = everything.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    mask = data[ACTION_MASK][:, 1:]
    torch.testing.assert_close(out[LOGPROB], expected * mask)
    torch.testing.assert_close(out[ENTROPY], entropy * mask)
    assert out[LOGPROB].requires_grad and not out[ENTROPY].requires_grad


def test_padding_changes_nothing_whatever_its_tokens(random_llama: Path) -> None:
    policy, data = module(random_llama), batch()
    short = {name: column[:, :12] for name, column in data.items()}
    padded = {name: column.clone() for name, column in data.items()}
    padded[ACTION_MASK][:, 12:] = False
    a, b = policy.forward_train(short)[LOGPROB], policy.forward_train(padded)[LOGPROB]
    torch.testing.assert_close(a, b[:, :11], atol=1e-5, rtol=1e-5)
    # Not even a sampled token that is the tokenizer's padding token is taken for padding.
    policy.train()
    data[TOKENS][0, 5] = policy.tokenizer.pad_token_id
    data[ACTION_MASK][0, 5:7] = True
    logits = policy.lm(input_ids=data[TOKENS].long()).logits.log_softmax(-1)
    expected = logits[0, 5, data[TOKENS][0, 6].long()]
    torch.testing.assert_close(policy.forward_train(data)[LOGPROB][0, 5], expected)


def test_a_batch_without_actions_has_a_gradient_of_zero(random_llama: Path) -> None:
    policy, data = module(random_llama), batch()
    data[ACTION_MASK][:] = False
    out = policy.forward_train(data)[LOGPROB]
    assert not out.any()
    out.sum().backward()  # DDP waits for every parameter's gradient
    gradients = [p.grad for p in policy.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_goes_from_one_module_to_another_unchanged(random_llama: Path, dtype: str) -> None:
    source, target = module(random_llama, dtype=dtype), module(random_llama, dtype=dtype)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    state = source.get_state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    assert "lm.lm_head.weight" not in state  # tied to the embedding
    target.set_state(state)
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert a.dtype == getattr(torch, dtype)
        assert torch.equal(a, b)


def test_state_is_a_copy(random_llama: Path) -> None:
    policy = module(random_llama)
    state = policy.get_state()
    before = {name: array.copy() for name, array in state.items()}
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)


def test_weights_of_another_model_are_refused(random_llama: Path) -> None:
    policy = module(random_llama)
    state = policy.get_state()
    state.pop("lm.model.norm.weight")
    with pytest.raises(ValueError, match=r"missing \['lm.model.norm.weight'\]"):
        policy.set_state(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_arrays_keep_dtype_and_bits(dtype: torch.dtype) -> None:
    tensor = (torch.arange(-6, 6).reshape(3, 4) * 1.37).to(dtype)
    for value in (tensor, tensor[0, 0], tensor.T):
        back = to_tensor(to_array(value))
        assert back.dtype == dtype and back.shape == value.shape
        assert torch.equal(back, value)


def test_dropout_is_off_in_training(random_llama: Path) -> None:
    policy = module(random_llama)
    attention = policy.lm.model.layers[0].self_attn
    assert attention.attention_dropout == 0.0
    a, b = (policy.forward_train(batch())[LOGPROB] for _ in range(2))
    assert torch.equal(a, b)
