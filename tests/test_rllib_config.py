"""What a configuration refuses, and what the user is told to type instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("ray.rllib", reason="RLlib is not installed: pip install 'turnwise[train]'")

from turnwise.agents.rllib import TurnwiseConfig
from turnwise.agents.rllib.environment import Tasks, check_env_specifier, env_factory
from turnwise.agents.rllib.metrics import fill_missing
from turnwise.envs.spaces import Unicode


class Echo(gym.Env[str, str]):
    observation_space = Unicode()
    action_space = Unicode()

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        return self.greeting, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return action, 0.0, True, False, {}


def config(folder: Path, **training: Any) -> TurnwiseConfig:
    return TurnwiseConfig().environment(Echo).training(model=str(folder), **training)


def test_the_package_does_not_import_ray() -> None:
    code = "import sys, turnwise.agents, turnwise.agents.rllib; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_good_configuration_passes(random_llama: Path) -> None:
    config(random_llama, credit="turn_return", objective="gspo", clip_low=0.1).validate()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"credit": "grop"}, "Unknown credit function 'grop'. Did you mean 'grpo'"),
        ({"objective": "ppo_clp"}, "Unknown objective 'ppo_clp'. Did you mean 'ppo_clip'"),
        ({"aggregation": "tokenmean"}, "Unknown aggregation 'tokenmean'. Did you mean"),
        ({"aggregation": "seq_mean_token_sum_norm"}, "training.max_tokens=...."),
        ({"credit_options": {"scal": 1}}, "Unknown option of the credit function 'grpo'"),
        ({"objective": "gspo", "dual_clip": 3.0}, "Unknown option of the objective 'gspo'"),
        ({"temperature": 0.0}, "temperature must be above 0 in training"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"kl_coef": -1.0}, "kl_coef must not be negative"),
    ],
)
def test_mistakes_are_answered_with_what_to_type(
    random_llama: Path, training: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        config(random_llama, **training).validate()


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Unknown model 'tniy'. Did you mean 'tiny'"):
        TurnwiseConfig().environment(Echo).training(model="tniy").validate()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("turnwise/Serach-v0", "Did you mean 'turnwise/Search-v0'"),
        ("no_such_module:no/Env-v0", "no_such_module"),
        (None, "No environment"),
        (3, "an id or a class, not 3"),
    ],
)
def test_unknown_environments(env: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_env_specifier(env)


def test_train_batch_size_counts_episodes(random_llama: Path) -> None:
    made = config(random_llama, group_size=4, train_batch_size=24)
    assert made.groups_per_step == 6
    with pytest.raises(ValueError, match="multiple of group_size"):
        config(random_llama, group_size=5, train_batch_size=24)


def test_environments_that_are_not_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observations from Box.*turnwise\.envs\.spaces\.Unicode"):
        env_factory("CartPole-v1", {})()


def test_env_config_becomes_keyword_arguments() -> None:
    assert env_factory(Echo, {"greeting": "hi"})().reset()[0] == "hi"
    with pytest.raises(TypeError, match="no_such_option"):
        env_factory(Echo, {"no_such_option": 1})()


def test_tasks_of_an_environment() -> None:
    class Endless(Echo):
        num_tasks = None

    class Finite(Echo):
        num_tasks = 5

    assert Tasks.of(Echo()) == Tasks(by_index=False, size=None)
    assert Tasks.of(Endless()) == Tasks(by_index=True, size=None)
    assert Tasks.of(Finite()) == Tasks(by_index=True, size=5)
    assert Tasks(True, 5).options(3) == {"task": 3} and Tasks(False, None).options(3) == {}


def test_missing_values_are_filled_with_the_last_known() -> None:
    last = {"a": 1.0, "b": {"c": 2.0}}
    new = {"a": float("nan"), "b": {"c": np.float64("nan"), "d": float("nan")}, "e": "text"}
    filled = fill_missing(new, last)
    assert filled["a"] == 1.0 and filled["b"]["c"] == 2.0 and filled["e"] == "text"
    assert np.isnan(filled["b"]["d"])
