"""Training runs: every number of processes, checkpoints, Tune, evaluation, and what may break."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'turnwise[train]'")
pytest.importorskip("ray.rllib", reason="RLlib is not installed: pip install 'turnwise[train]'")

from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID

from turnwise.agents.models import load_model
from turnwise.agents.rllib import Turnwise, TurnwiseConfig
from turnwise.envs.spaces import Unicode

pytestmark = pytest.mark.slow


class Vowels(gym.Env[str, str]):
    """Two turns; each is paid the share of vowels among its characters. Learned in a few steps."""

    metadata = {"inline": True}  # noqa: RUF012
    num_tasks = 13

    def __init__(self, crash: float = 0.0, reply: str = "go on") -> None:
        self.observation_space = Unicode()
        self.action_space = Unicode()
        self.crash = crash
        self.reply = reply

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.task, self.turn = (options or {})["task"], 0
        return f"number {self.task}", {"task_id": str(self.task)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        if self.crash and self.np_random.random() < self.crash:
            raise RuntimeError("the world broke")
        reward = sum(c in "aeiou" for c in action) / max(len(action), 1)
        return self.reply, reward, self.turn >= 2, False, {}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def config(folder: Path, env_config: dict[str, Any] | None = None, **training: Any) -> Any:
    settings = {
        "model": str(folder),
        "credit": "grpo",
        "group_size": 4,
        "groups_per_step": 4,
        "lr": 1e-2,
        "max_new_tokens": 6,
        "concurrency": 16,
    }
    return (
        TurnwiseConfig()
        .environment(Vowels, env_config=env_config or {})
        .training(**(settings | training))
        .debugging(seed=1)
    )


def numbers(result: dict[str, Any]) -> list[float]:
    """What must not depend on processes or restarts."""
    episodes, learner = result["env_runners"], result["learners"][DEFAULT_MODULE_ID]
    return [
        episodes["episode_return_mean"],
        episodes["action_tokens"],
        learner["policy_loss"],
        learner["grad_norm"],
        learner["entropy"],
    ]


@pytest.fixture(scope="module")
def four_steps(random_llama: Path) -> list[list[float]]:
    """The numbers of four steps in one process."""
    algo = config(random_llama).build_algo()
    found = []
    for _ in range(4):
        result = algo.train()
        assert result["learners"][DEFAULT_MODULE_ID]["on_policy_gap"] <= 1e-4
        found.append(numbers(result))
    algo.stop()
    return found


def test_it_learns_and_reports(random_llama: Path) -> None:
    algo = config(random_llama, group_size=8, groups_per_step=8, lr=2e-2).build_algo()
    results = [algo.train() for _ in range(15)]
    returns = [r["env_runners"]["episode_return_mean"] for r in results]
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) + 0.2
    episodes, learner = results[-1]["env_runners"], results[-1]["learners"][DEFAULT_MODULE_ID]
    assert episodes["num_episodes"] == 64 and episodes["turns_mean"] == 2
    assert episodes["reward_per_turn"] == pytest.approx(returns[-1] / 2)
    assert episodes["failures"] == {"failed": 0, "timeout": 0, "crash": 0}
    assert episodes["tokens_per_second"] > 0 and episodes["num_env_steps_sampled_lifetime"] == 1920
    assert {"policy_loss", "entropy", "approx_kl", "clip_frac", "grad_norm"} <= learner.keys()
    assert learner["on_policy_gap"] <= 1e-4
    assert 0 <= results[-1]["overhead_share"] < 1

    batch = algo.last_batch
    assert batch is not None and batch.iteration == 14 and len(batch.trajectories) == 64
    for trajectory, advantage in zip(batch.trajectories, batch.advantages, strict=True):
        assert advantage.shape == trajectory.tokens.shape
        assert not advantage[~trajectory.action_mask].any()
    algo.stop()


@pytest.mark.parametrize(("runners", "learners"), [(2, 0), (2, 1), (0, 2)])
def test_the_number_of_processes_changes_no_number(
    random_llama: Path, four_steps: list[list[float]], runners: int, learners: int
) -> None:
    made = config(random_llama).env_runners(num_env_runners=runners)
    algo = made.learners(num_learners=learners).build_algo()
    for expected in four_steps[:3]:
        result = algo.train()
        np.testing.assert_allclose(numbers(result), expected, rtol=1e-3, atol=1e-5)
        assert result["learners"][DEFAULT_MODULE_ID]["on_policy_gap"] <= 1e-4
    algo.stop()


@pytest.mark.parametrize("runners", [0, 2])
def test_a_restored_run_goes_on_as_if_never_stopped(
    random_llama: Path, four_steps: list[list[float]], tmp_path: Path, runners: int
) -> None:
    algo = config(random_llama).env_runners(num_env_runners=runners).build_algo()
    for expected in four_steps[:2]:
        np.testing.assert_allclose(numbers(algo.train()), expected, rtol=1e-5, atol=1e-7)
    algo.save_to_path(tmp_path / "checkpoint")
    algo.train()
    algo.restore_from_path(tmp_path / "checkpoint")
    for expected in four_steps[2:]:
        np.testing.assert_allclose(numbers(algo.train()), expected, rtol=1e-5, atol=1e-7)
    algo.stop()
    other = Turnwise.from_checkpoint(tmp_path / "checkpoint")
    for step, expected in enumerate(four_steps[2:], start=3):
        result = other.train()
        assert result["training_iteration"] == step
        np.testing.assert_allclose(numbers(result), expected, rtol=1e-5, atol=1e-7)
    other.stop()


def test_minibatches_epochs_and_a_kl_penalty(random_llama: Path) -> None:
    algo = config(
        random_llama,
        minibatch_size=5,
        num_epochs=2,
        kl_coef=0.01,
        aggregation="seq_mean_token_mean",
    ).build_algo()
    algo.train()
    learner = algo.train()["learners"][DEFAULT_MODULE_ID]
    assert learner["kl_to_reference"] > 0
    assert learner["on_policy_gap"] <= 1e-4 < learner["max_abs_logratio"]
    algo.stop()


@pytest.mark.parametrize("runners", [0, 2])
def test_evaluation_plays_the_same_held_out_tasks_every_time(
    random_llama: Path, runners: int
) -> None:
    made = config(random_llama, lr=0.0).evaluation(
        evaluation_interval=1,
        evaluation_duration=7,
        evaluation_num_env_runners=runners,
        evaluation_config={"explore": False, "env_config": {"reply": "held out"}},
    )
    algo = made.build_algo()
    found = [algo.train()["evaluation"]["env_runners"] for _ in range(2)]
    assert [f["num_episodes"] for f in found] == [7, 7]
    # The policy does not move, so the same tasks bring the same return.
    assert found[0]["episode_return_mean"] == pytest.approx(found[1]["episode_return_mean"])
    assert {"success_mean", "turns_mean"} <= found[0].keys()
    algo.stop()


def test_a_killed_runner_costs_its_share_of_one_step(random_llama: Path) -> None:
    algo = config(random_llama).env_runners(num_env_runners=2).build_algo()
    assert algo.train()["env_runners"]["num_episodes"] == 16
    group = algo.env_runner_group
    victim = group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)[0]
    os.kill(victim, signal.SIGKILL)
    results = [algo.train() for _ in range(3)]
    lost = [r["env_runners"]["lost_groups"] for r in results]
    assert sum(lost) == 2
    for result in results:
        played = 4 * (4 - result["env_runners"]["lost_groups"])
        assert result["env_runners"]["num_episodes"] == played
        assert result["learners"][DEFAULT_MODULE_ID]["on_policy_gap"] <= 1e-4
    algo.stop()


def test_an_environment_that_raises_costs_its_episode(random_llama: Path) -> None:
    algo = config(random_llama, {"crash": 0.2}).build_algo()
    results = [algo.train() for _ in range(4)]
    failed = [r["env_runners"]["failures"]["failed"] for r in results]
    assert 0 < sum(failed) < 64
    batch = algo.last_batch
    assert batch is not None and sum(not t.ok for t in batch.trajectories) == failed[-1]
    assert all(np.isfinite(numbers(r)).all() for r in results)
    algo.stop()


def test_an_error_on_a_runner_reaches_the_user(random_llama: Path) -> None:
    """Information gain asks for a reference answer, which this environment does not state."""
    algo = config(random_llama, credit="igpo").env_runners(num_env_runners=1).build_algo()
    with pytest.raises(RuntimeError, match="does not say how its reference answer is stated"):
        algo.train()
    algo.stop()


def test_information_gain_on_the_search_environment(random_llama: Path) -> None:
    made = config(random_llama, credit="igpo", max_new_tokens=8)
    made.environment("turnwise/Search-v0", env_config={"split": "train", "max_turns": 2})
    algo = made.build_algo()
    result = algo.train()
    assert algo.last_batch is not None
    for trajectory in algo.last_batch.trajectories:
        assert trajectory.env_id == "turnwise/Search-v0"
        assert np.isfinite(trajectory.gold_logprob[: len(trajectory.turns)]).all()
    assert result["learners"][DEFAULT_MODULE_ID]["on_policy_gap"] <= 1e-4
    algo.stop()


def test_tune_searches_over_credit_functions(random_llama: Path, tmp_path: Path) -> None:
    space = config(random_llama, credit=tune.grid_search(["grpo", "turn_return"]))
    run = tune.RunConfig(
        stop={"training_iteration": 2},
        storage_path=str(tmp_path),
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
    )
    grid = tune.Tuner(Turnwise, param_space=space, run_config=run).fit()
    assert not grid.errors
    assert {r.config["credit"] for r in grid} == {"grpo", "turn_return"}
    assert all(r.metrics["training_iteration"] == 2 for r in grid)
    assert all(r.checkpoint is not None for r in grid)


def test_the_policy_is_saved_in_hugging_face_format(random_llama: Path, tmp_path: Path) -> None:
    algo = config(random_llama).build_algo()
    algo.train()
    algo.save_pretrained(tmp_path)
    saved, tokenizer = load_model(tmp_path, device="cpu")
    state = algo.learner_group.get_state()["learner"]["rl_module"][DEFAULT_MODULE_ID]
    for name, tensor in saved.named_parameters():
        np.testing.assert_array_equal(tensor.detach().numpy(), state[f"lm.{name}"])
    initial, _ = load_model(random_llama, device="cpu")
    assert any(
        (a != b).any() for a, b in zip(saved.parameters(), initial.parameters(), strict=True)
    )
    assert tokenizer.chat_template
    algo.stop()


@pytest.mark.parametrize("runners", [0, 1])
def test_an_environment_that_is_not_text_is_refused(random_llama: Path, runners: int) -> None:
    made = config(random_llama).environment("CartPole-v1").env_runners(num_env_runners=runners)
    with pytest.raises(Exception, match="language model reads and writes text"):
        made.build_algo()
