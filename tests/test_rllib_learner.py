"""The Learner's arithmetic, in this process and without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray.rllib", reason="RLlib is not installed: pip install 'turnwise[train]'")

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from turnwise.agents.rllib import TurnwiseConfig
from turnwise.agents.rllib import batch as b
from turnwise.agents.rllib.learner import TurnwiseLearner, micro_batches
from turnwise.agents.rllib.objectives import token_weights
from turnwise.envs.spaces import Unicode

ROWS, WIDTH = 9, 40


def learner(folder: Path, *, grad_clip: float | None = None, **training: Any) -> TurnwiseLearner:
    torch.set_num_threads(1)
    config = TurnwiseConfig().training(model=str(folder), lr=1e-3, grad_clip=grad_clip, **training)
    spec = config.get_rl_module_spec(
        spaces={DEFAULT_MODULE_ID: (Unicode(), Unicode())}, inference_only=False
    )
    made = TurnwiseLearner(
        config=config, module_spec=MultiRLModuleSpec(rl_module_specs={DEFAULT_MODULE_ID: spec})
    )
    made.build()
    return made


def columns(actor: TurnwiseLearner, *, gap: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Rows of different lengths whose old log-probabilities are the policy's own, minus `gap`."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, WIDTH + 1, ROWS).astype(np.int32)
    mask = rng.random((ROWS, WIDTH)) < 0.4
    mask[:, 0] = False
    mask &= np.arange(WIDTH) < lengths[:, None]
    tokens = rng.integers(5, 200, (ROWS, WIDTH)).astype(np.int32)
    module = actor.module[DEFAULT_MODULE_ID]
    with torch.no_grad():
        out = module.forward_train(
            {b.TOKENS: torch.from_numpy(tokens), b.ACTION_MASK: torch.from_numpy(mask)}
        )["logprob"].numpy()
    old = np.zeros((ROWS, WIDTH), np.float32)
    old[:, 1:] = np.where(mask[:, 1:], out - gap * rng.standard_normal(out.shape), 0)
    return {
        b.TOKENS: tokens,
        b.ACTION_MASK: mask,
        b.LOGPROBS: old,
        b.ADVANTAGES: rng.standard_normal((ROWS, WIDTH)).astype(np.float32) * mask,
        b.WEIGHTS: token_weights(torch.from_numpy(mask), "token_mean").numpy(),
        b.LENGTHS: lengths,
    }


def update(actor: TurnwiseLearner, data: dict[str, Any], **options: Any) -> dict[str, float]:
    """One update; the metrics as plain numbers."""
    batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(data)}, env_steps=1)
    options = {"minibatch_size": len(data[b.TOKENS])} | options
    results = actor.update(batch=batch, timesteps={"num_env_steps_sampled_lifetime": 0}, **options)
    return {k: float(v.peek()) for k, v in results[DEFAULT_MODULE_ID].items() if hasattr(v, "peek")}


def weights(actor: TurnwiseLearner) -> dict[str, np.ndarray[Any, Any]]:
    return actor.module[DEFAULT_MODULE_ID].get_state()


def gradient(actor: TurnwiseLearner) -> torch.Tensor:
    parameters = actor.module[DEFAULT_MODULE_ID].parameters()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = np.array([5, 100, 7, 30, 30, 6], np.int32)
    cuts = micro_batches(lengths, 60)
    assert [c.tolist() for c in cuts] == [[1], [3, 4], [2, 5, 0]]
    assert [c.tolist() for c in micro_batches(lengths, 10_000)] == [[1, 3, 4, 2, 5, 0]]


def test_gradient_is_that_of_the_loss_written_out(random_llama: Path) -> None:
    actor = learner(random_llama, clip_low=0.2, clip_high=0.2)
    data = columns(actor, gap=0.3)
    metrics = update(actor, data)
    found = gradient(actor)

    reference = learner(random_llama).module[DEFAULT_MODULE_ID]
    t = {name: torch.from_numpy(column) for name, column in data.items()}
    logits = reference.lm(input_ids=t[b.TOKENS].long()).logits[:, :-1]
    logprob = logits.log_softmax(-1).gather(-1, t[b.TOKENS][:, 1:, None].long()).squeeze(-1)
    mask, advantage = t[b.ACTION_MASK][:, 1:], t[b.ADVANTAGES][:, 1:]
    ratio = (logprob - t[b.LOGPROBS][:, 1:]).exp()
    losses = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    loss = losses[mask].mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert metrics["policy_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    clipped = (ratio.clamp(0.8, 1.2) * advantage < ratio * advantage)[mask]
    assert metrics["clip_frac"] == pytest.approx(clipped.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_micro_batches_add_up_to_the_whole_batch(random_llama: Path, kl_coef: float) -> None:
    whole = learner(random_llama, micro_batch_tokens=10**6, kl_coef=kl_coef)
    parts = learner(random_llama, micro_batch_tokens=50, kl_coef=kl_coef)
    data = columns(whole, gap=0.3)
    a, c = update(whole, data), update(parts, data)
    torch.testing.assert_close(gradient(whole), gradient(parts), atol=1e-6, rtol=1e-5)
    for name in ("policy_loss", "grad_norm", "entropy", "approx_kl", "clip_frac"):
        assert a[name] == pytest.approx(c[name], abs=1e-5)


def test_shards_average_to_the_whole_batch(random_llama: Path) -> None:
    """What DDP does with two Learners: the mean of their gradients."""
    whole = learner(random_llama)
    data = columns(whole, gap=0.3)
    update(whole, data)
    halves = []
    for rows in (slice(0, 4), slice(4, ROWS)):
        actor = learner(random_llama)
        shard = {name: column[rows] for name, column in data.items()}
        shard[b.WEIGHTS] = shard[b.WEIGHTS] * 2
        update(actor, shard)
        halves.append(gradient(actor))
    torch.testing.assert_close(gradient(whole), (halves[0] + halves[1]) / 2, atol=1e-6, rtol=1e-4)


def test_on_policy_gap_is_of_the_first_step_and_the_largest_ratio_of_all(
    random_llama: Path,
) -> None:
    actor = learner(random_llama)
    metrics = update(actor, columns(actor), num_epochs=3)
    assert metrics["on_policy_gap"] <= 1e-5
    assert metrics["max_abs_logratio"] > 1e-3  # the policy has moved on
    assert metrics["approx_kl"] > 0


def test_minibatches_are_optimiser_steps(random_llama: Path) -> None:
    actor = learner(random_llama)
    update(actor, columns(actor), minibatch_size=3, num_epochs=2)
    (optimizer,) = actor._named_optimizers.values()
    assert {int(state["step"]) for state in optimizer.state.values()} == {6}


def test_gradients_are_clipped_by_their_global_norm(random_llama: Path) -> None:
    actor = learner(random_llama, grad_clip=1e-3)
    metrics = update(actor, columns(actor, gap=0.1))
    assert metrics["grad_norm"] > 1e-2
    assert float(gradient(actor).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_kl_penalty_pulls_back_to_the_initial_policy(random_llama: Path) -> None:
    actor = learner(random_llama, kl_coef=1.0)
    data = columns(actor)
    data[b.ADVANTAGES][:] = 0
    start = update(actor, data)
    assert start["kl_to_reference"] == pytest.approx(0.0, abs=1e-6)
    assert start["grad_norm"] == pytest.approx(0.0, abs=1e-3)
    with torch.no_grad():
        for parameter in actor.module[DEFAULT_MODULE_ID].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    away = update(actor, data)
    assert away["kl_to_reference"] > 1e-3
    back = [update(actor, data) for _ in range(30)][-1]
    assert back["kl_to_reference"] < away["kl_to_reference"] / 2


def test_the_reference_of_a_resumed_run_is_the_initial_policy(random_llama: Path) -> None:
    first = learner(random_llama, kl_coef=1.0)
    data = columns(first, gap=0.5)
    for _ in range(3):
        update(first, data)
    resumed = learner(random_llama, kl_coef=1.0)
    resumed.set_state(first.get_state())
    a, c = update(first, data), update(resumed, data)
    assert a["kl_to_reference"] == pytest.approx(c["kl_to_reference"], rel=1e-5)
    assert a["kl_to_reference"] > 0


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_state_has_weights_and_optimiser(random_llama: Path, dtype: str | None) -> None:
    first, second = learner(random_llama, dtype=dtype), learner(random_llama, dtype=dtype)
    data = columns(first, gap=0.3) if dtype is None else columns(learner(random_llama), gap=0.3)
    update(first, data)
    second.set_state(first.get_state())
    update(first, data)
    update(second, data)
    for name, array in weights(first).items():
        np.testing.assert_array_equal(array, weights(second)[name])


def test_an_older_state_is_taken_as_well(random_llama: Path) -> None:
    actor = learner(random_llama)
    data = columns(actor, gap=0.3)
    update(actor, data)
    old = actor.get_state()
    kept = weights(actor)
    update(actor, data)
    actor.set_state(old)
    for name, array in weights(actor).items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("objective", ["gspo", "cispo"])
def test_other_objectives_train(random_llama: Path, objective: str) -> None:
    actor = learner(random_llama, objective=objective)
    before = weights(actor)
    metrics = update(actor, columns(actor))
    assert np.isfinite(metrics["policy_loss"]) and metrics["grad_norm"] > 0
    assert any((array != before[name]).any() for name, array in weights(actor).items())
