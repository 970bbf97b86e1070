"""Every registered environment keeps Gymnasium's contract and Turnwise's."""

import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import turnwise
from turnwise.envs.conformance import check_text_env
from turnwise.envs.registry import ENTRY_POINTS, check_id, make
from turnwise.rewards.names import UnknownNameError

EVERY = pytest.mark.parametrize("env_id", sorted(ENTRY_POINTS))


@EVERY
def test_gymnasiums_own_checker_passes_unmodified(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@EVERY
def test_the_whole_contract(env_id: str) -> None:
    assert len(check_text_env(gym.make(env_id), tasks=12)) == 11


@EVERY
@pytest.mark.parametrize("mode", ["sync", "async", "async shared", "async spawn"])
def test_vector_environments_give_each_its_own_text(env_id: str, mode: str) -> None:
    kwargs: dict[str, object] = {"vectorization_mode": "sync"}
    if mode != "sync":
        vector_kwargs: dict[str, object] = {"shared_memory": mode != "async"}
        if mode == "async spawn":
            vector_kwargs["context"] = "spawn"
        kwargs = {"vectorization_mode": "async", "vector_kwargs": vector_kwargs}
    vector = gym.make_vec(env_id, num_envs=3, **kwargs)  # type: ignore[arg-type]
    singles = [gym.make(env_id) for _ in range(3)]
    try:
        observations, _ = vector.reset(seed=[1, 2, 3])
        expected = [env.reset(seed=seed)[0] for env, seed in zip(singles, (1, 2, 3), strict=True)]
        assert list(observations) == expected
        # Until the first episode is over; what an automatic reset then does is Gymnasium's.
        for turn in range(20):
            env0 = singles[0].action_space
            env0.seed(turn)
            actions = np.array([env0.sample() for _ in range(3)], object)
            observations, rewards, terminated, truncated, _ = vector.step(actions)
            steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
            assert list(observations) == [s[0] for s in steps]
            assert rewards.tolist() == [s[1] for s in steps]
            if (terminated | truncated).any():
                break
        else:
            pytest.fail("no episode ended in 20 turns")
    finally:
        vector.close()


@EVERY
def test_wrappers_and_pickling(env_id: str) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(gym.make(env_id), 2))
    env.reset(seed=0)
    env.step("")
    *_, truncated, info = env.step("")
    assert truncated
    assert info["episode"]["l"] == 2
    fresh = gym.make(env_id).unwrapped
    assert pickle.loads(pickle.dumps(fresh)).reset(seed=4) == fresh.reset(seed=4)


@EVERY
def test_rendering_shows_the_conversation(env_id: str) -> None:
    env = gym.make(env_id, render_mode="ansi")
    observation, _ = env.reset(seed=0)
    env.step("hello there")
    shown = env.render()
    assert isinstance(shown, str)
    assert observation in shown
    assert "[assistant] hello there" in shown


def test_registering_explicitly_is_accepted() -> None:
    gym.register_envs(turnwise)
    assert set(ENTRY_POINTS) <= set(gym.registry)


def test_a_script_that_imports_only_gymnasium() -> None:
    script = (
        "import gymnasium as gym\n"
        "env = gym.make('turnwise:turnwise/Search-v0')\n"
        "print(env.reset(seed=0)[0])\n"
        "v = gym.make_vec('turnwise:turnwise/Search-v0', 2, vectorization_mode='async',\n"
        "                 vector_kwargs={'context': 'fork'})\n"
        "print(len(v.reset(seed=0)[0])); v.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Question:" in done.stdout


def test_an_unknown_id_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="turnwise/Search-v0"):
        make("turnwise/Serach-v0")
    assert check_id("turnwise:turnwise/Search-v0") == "turnwise:turnwise/Search-v0"
    with pytest.raises(ModuleNotFoundError):
        check_id("no_such_package:a/B-v0")


def test_importing_turnwise_is_light() -> None:
    script = (
        "import sys, turnwise\n"
        "heavy = {'torch', 'ray', 'transformers', 'pandas', 'bm25s', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
