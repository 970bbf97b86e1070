"""The text space alone, in wrappers, and in every kind of vector environment."""

import copy
import json
import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces.utils import flatdim, flatten_space
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from gymnasium.wrappers import (
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    TimeLimit,
    TransformObservation,
)
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.spaces import Unicode, UnicodeBatch

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
NUL = "\x00nul\x00"
HOSTILE = ["", " ", "two\nlines\r\n", "🙂" * 50, f"ß 漢字 {FAMILY}", NUL, "x" * 5000, "<a>'\"\\"]


class EchoEnv(gym.Env[str, str]):
    """Says back the action with its step and seed; ends after `length` steps."""

    def __init__(self, length: int = 3, max_length: int = 1 << 20, shared_bytes: int = 1 << 16):
        self.observation_space = Unicode(max_length, shared_bytes=shared_bytes)
        self.action_space = Unicode(max_length, examples=("hi", "ünï"))
        self.length = length
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return f"start {self.np_random.integers(1000)} 🙂", {}

    def step(self, action):
        self.steps += 1
        return f"{self.steps}:{action}", 1.0, self.steps >= self.length, False, {}


class DictEnv(gym.Env):
    """Texts inside Dict and Tuple spaces, beside an array."""

    def __init__(self):
        self.observation_space = gym.spaces.Dict(
            text=Unicode(100), pair=gym.spaces.Tuple((Unicode(100), gym.spaces.Discrete(9)))
        )
        self.action_space = gym.spaces.Dict(say=Unicode(100))
        self.steps = 0

    def _observation(self, text):
        return {"text": text, "pair": (text[::-1], self.steps)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation("start"), {}

    def step(self, action):
        self.steps += 1
        return self._observation(f"{self.steps}{action['say']}"), 0.0, False, False, {}


class FullLengthEnv(EchoEnv):
    """Observations of full length in a space of its own, actions in the same space as others."""

    def __init__(self, max_length: int):
        super().__init__()
        self.observation_space = Unicode(max_length)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "x" * self.observation_space.max_length, {}


VECTORS = {
    "sync": SyncVectorEnv,
    "async shared": AsyncVectorEnv,
    "async piped": partial(AsyncVectorEnv, shared_memory=False),
}


@pytest.fixture(params=VECTORS)
def vector(request):
    made = []

    def make(env_fns, **kwargs):
        made.append(VECTORS[request.param](env_fns, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close(terminate=True) if isinstance(env, AsyncVectorEnv) else env.close()


# ----- the space alone


@given(st.text())
def test_contains_is_length_and_utf8(text):
    try:
        text.encode("utf-8")
        encodable = True
    except UnicodeEncodeError:
        encodable = False
    assert (text in Unicode()) == encodable
    assert (text in Unicode(5)) == (encodable and len(text) <= 5)


@pytest.mark.parametrize(
    "x", [None, 3, b"bytes", ["a"], ("a",), np.array(["a"]), "\ud800", "a\udfffb"]
)
def test_what_is_no_text_is_outside(x):
    assert x not in Unicode()


def test_length_counts_characters_and_numpy_strings_are_texts():
    assert "🙂🙂" in Unicode(2)
    assert "🙂🙂🙂" not in Unicode(2)
    assert np.str_("abc") in Unicode(3)
    assert "" in Unicode(0) and "a" not in Unicode(0)


@pytest.mark.parametrize("max_length", [0, 1, 7, 1 << 20])
def test_samples_are_inside_seeded_and_varied(max_length):
    space = Unicode(max_length, seed=7)
    samples = [space.sample() for _ in range(200)]
    assert all(s in space for s in samples)
    space.seed(7)
    assert samples == [space.sample() for _ in range(200)]
    if max_length > 1:
        assert len(set(samples)) > 50
        assert any(not s.isascii() for s in samples)


def test_examples_are_sampled_about_every_other_time():
    space = Unicode(examples=("<answer>Paris</answer>", "<search>Paris</search>"), seed=0)
    samples = [space.sample() for _ in range(400)]
    counts = [samples.count(example) for example in space.examples]
    assert 160 < sum(counts) < 240 and min(counts) > 60
    assert Unicode(examples="one").examples == ("one",)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_length": -1}, "max_length"),
        ({"shared_bytes": 0}, "shared_bytes"),
        ({"shared_bytes": 1 << 32}, "shared_bytes"),
        ({"examples": ()}, "examples is empty"),
        ({"max_length": 2, "examples": ("abc",)}, "abc"),
        ({"examples": ("\ud800",)}, "not a text"),
    ],
)
def test_bad_arguments_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Unicode(**kwargs)


def test_masks_raise():
    for space in (Unicode(), batch_space(Unicode(), 2)):
        with pytest.raises(ValueError, match="mask"):
            space.sample(mask=np.ones(2, dtype=np.int8))


def test_equality_hash_repr_and_copies():
    space = Unicode(9, examples=("a", "b"), seed=3)
    assert space == Unicode(9) and hash(space) == hash(Unicode(9))
    assert space != Unicode(8) and space != gym.spaces.Text(9) and space != 9
    assert repr(space) == "Unicode(9)"
    batch = batch_space(space, 3)
    assert batch == batch_space(Unicode(9), 3) and hash(batch) == hash(batch_space(Unicode(9), 3))
    assert batch != batch_space(Unicode(9), 2) and batch != space
    for original in (space, batch):
        copies = (pickle.loads(pickle.dumps(original)), copy.deepcopy(original))
        sampled = list(original.sample())
        for copied in copies:
            assert copied == original and copied is not original
            assert list(copied.sample()) == sampled
        assert len(pickle.dumps(original)) < 4000


def test_json_round_trip():
    assert (
        Unicode().from_jsonable(json.loads(json.dumps(Unicode().to_jsonable(HOSTILE)))) == HOSTILE
    )
    batch = batch_space(Unicode(), 2)
    samples = [batch.sample() for _ in range(5)]
    back = batch.from_jsonable(json.loads(json.dumps(batch.to_jsonable(samples))))
    assert all(b in batch and list(a) == list(b) for a, b in zip(samples, back, strict=True))


def test_flattening_raises_the_standard_errors():
    for call in (flatdim, flatten_space):
        # ValueError from flatdim: it asks is_np_flattenable first.
        with pytest.raises((NotImplementedError, ValueError)):
            call(Unicode())
    assert not Unicode().is_np_flattenable and not batch_space(Unicode(), 2).is_np_flattenable


def test_a_batch_is_an_object_array_of_str():
    space = Unicode(10)
    batch = batch_space(space, 3)
    assert isinstance(batch, UnicodeBatch) and batch.shape == (3,)
    for value in (
        batch.sample(),
        create_empty_array(space, 3),
        concatenate(space, ["a", "", "b"], None),
    ):
        assert value.dtype == object and value.shape == (3,) and value in batch
        assert all(type(text) is str for text in value)
    assert list(create_empty_array(space, 2)) == ["", ""]


def test_what_is_no_batch_is_outside():
    batch = batch_space(Unicode(3), 2)
    assert np.array(["ab", "c"]) in batch
    for x in (
        "ab",
        ["a", "b"],
        np.array(["a"]),
        np.array(["a", "b", "c"]),
        np.array([1, 2]),
        np.array(["abcd", "e"]),
        np.array([["a", "b"]]),
    ):
        assert x not in batch


def test_sampling_a_batch_leaves_the_single_space_alone():
    space, twin = Unicode(seed=5), Unicode(seed=5)
    batch = batch_space(space, 4)
    assert len({tuple(batch.sample()) for _ in range(20)}) > 10
    assert [space.sample() for _ in range(5)] == [twin.sample() for _ in range(5)]


def test_iterate_takes_arrays_tuples_lists_and_generators():
    batch = batch_space(Unicode(), 2)
    for items in (
        np.array(["ab", "c"], dtype=object),
        np.array(["ab", "c"]),
        ["ab", "c"],
        ("ab", "c"),
        (t for t in ("ab", "c")),
    ):
        out = list(iterate(batch, items))
        assert out == ["ab", "c"] and all(type(t) is str for t in out)


def test_iterate_refuses_one_str_and_wrong_counts():
    batch = batch_space(Unicode(), 2)
    with pytest.raises(TypeError, match=r"write \['ab'\]"):
        iterate(batch, "ab")
    with pytest.raises(ValueError, match="Expected 2 texts, got 3"):
        iterate(batch, ["a", "b", "c"])


# ----- environments


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_text_too_long_for_shared_memory_raises_in_the_parent():
    env = AsyncVectorEnv([partial(EchoEnv, shared_bytes=64)] * 2)
    try:
        env.reset(seed=0)
        with pytest.raises(ValueError, match="shared_bytes=128"):
            env.step(["x" * 100, "y"])
    finally:
        env.close(terminate=True)


@pytest.mark.parametrize("make", [EchoEnv, DictEnv])
def test_check_env_passes(make):
    check_env(make(), skip_render_check=True)


def test_wrappers_pass_texts_on():
    env = TransformObservation(EchoEnv(length=9), str.upper, Unicode())
    env = RecordEpisodeStatistics(TimeLimit(OrderEnforcing(PassiveEnvChecker(env)), 2))
    with pytest.raises(gym.error.ResetNeeded):
        env.step("early")
    first, _ = env.reset(seed=0)
    assert first.startswith("START")
    assert env.step("straße\n")[0] == "1:STRASSE\n"
    observation, _, terminated, truncated, info = env.step("")
    assert (observation, terminated, truncated, info["episode"]["r"]) == ("2:", False, True, 2.0)


def expected_run(mode, actions):
    """What two EchoEnvs say for each step, worked out without vector environments."""
    envs = [EchoEnv(length=2), EchoEnv(length=3)]
    observations = [[env.reset(seed=i)[0] for i, env in enumerate(envs)]]
    done = [False, False]
    for step_actions in actions:
        now = []
        for i, env in enumerate(envs):
            if mode == AutoresetMode.NEXT_STEP and done[i]:
                now.append(env.reset()[0])
                done[i] = False
                continue
            text, _, done[i], _, _ = env.step(step_actions[i])
            if mode == AutoresetMode.SAME_STEP and done[i]:
                text = env.reset()[0]
            now.append(text)
        observations.append(now)
    return observations


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_every_observation_is_fresh_and_right(vector, mode):
    actions = [(HOSTILE[t % len(HOSTILE)], f"{t}é") for t in range(20)]
    env = vector([partial(EchoEnv, 2), partial(EchoEnv, 3)], autoreset_mode=mode)
    kinds = [list, tuple, lambda a: np.array(a, dtype=object)]
    observations = [env.reset(seed=0)[0]]
    for t, action in enumerate(actions):
        observations.append(env.step(kinds[t % 3](action))[0])
    for observation, expected in zip(observations, expected_run(mode, actions), strict=True):
        # Compared at the end: an observation that later steps overwrite would show.
        assert observation in env.observation_space and list(observation) == expected


def test_disabled_autoreset_resets_by_mask(vector):
    env = vector([partial(EchoEnv, 1), partial(EchoEnv, 9)], autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    observation, _, terminated, _, _ = env.step(["a", "b"])
    assert list(observation) == ["1:a", "1:b"] and list(terminated) == [True, False]
    observation, _ = env.reset(options={"reset_mask": terminated})
    assert observation[0].startswith("start") and observation[1] == "1:b"
    assert list(env.step(["c", "d"])[0]) == ["1:c", "2:d"]


def test_same_step_keeps_the_final_observation(vector):
    env = vector([partial(EchoEnv, 1)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    observation, _, _, _, info = env.step(["a\n", "🙂"])
    assert [o.startswith("start") for o in observation] == [True, True]
    assert list(info["final_obs"]) == ["1:a\n", "1:🙂"]


def test_sampled_actions_step(vector):
    env = vector([EchoEnv] * 3)
    env.action_space.seed(1)
    env.reset(seed=0)
    for _ in range(10):
        action = env.action_space.sample()
        assert action in env.action_space
        assert env.step(action)[0] in env.observation_space


def test_texts_inside_dict_and_tuple(vector):
    env = vector([DictEnv] * 2)
    first, _ = env.reset(seed=0)
    later = [env.step({"say": np.array([f"ä{t}", ""], dtype=object)})[0] for t in range(5)]
    assert list(first["text"]) == ["start"] * 2
    for t, observation in enumerate(later):
        assert list(observation["text"]) == [f"{t + 1}ä{t}", f"{t + 1}"]
        assert list(observation["pair"][0]) == [f"{t}ä{t + 1}", f"{t + 1}"]
        assert list(observation["pair"][1]) == [t + 1] * 2
        assert observation["text"].dtype == object


def test_spaces_that_differ_in_length():
    env = SyncVectorEnv(
        [partial(FullLengthEnv, 100), partial(FullLengthEnv, 200)], observation_mode="different"
    )
    assert isinstance(env.observation_space, UnicodeBatch)
    observation, _ = env.reset(seed=0)
    assert [len(text) for text in observation] == [100, 200]
    assert observation in env.observation_space and observation[::-1] not in env.observation_space


def test_spawned_workers_share_memory():
    env = AsyncVectorEnv([EchoEnv] * 2, context="spawn")
    try:
        env.reset(seed=0)
        assert [list(env.step([a, "é"])[0]) for a in ("🙂", "")] == [["1:🙂", "1:é"], ["2:", "2:é"]]
    finally:
        env.close()


def test_without_copy_the_observation_is_a_live_view():
    env = AsyncVectorEnv([EchoEnv] * 2, copy=False)
    try:
        view, _ = env.reset(seed=0)
        env.step(["a", "b"])
        assert list(view) == ["1:a", "1:b"] and len(view) == 2
    finally:
        env.close()
