"""The embedded model: small, in Hugging Face format, deterministic, and unfinished on purpose."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Sampling
from turnwise.agents.engines.transformers import TransformersEngine
from turnwise.agents.evaluation import evaluate
from turnwise.agents.models import load_model
from turnwise.agents.tiny import make as tiny
from turnwise.agents.tiny.lessons import Writer, demonstrate, drills, episodes
from turnwise.envs.search.search_env import SearchEnv


def test_it_is_small_and_loads_like_any_other() -> None:
    folder = Path(tiny.__file__).parent
    assert (folder / "model.safetensors").stat().st_size <= 4 * 2**20
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    model, tokenizer = load_model("tiny")
    count = sum(p.numel() for p in model.parameters())
    assert 500_000 <= count <= 2_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    text = 'Who is the mentor of Ada Marlow? naïve 日本\n<search> "x" </search>'
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_name_costs_a_token_a_word() -> None:
    _, tokenizer = load_model("tiny")
    assert len(tokenizer.encode("<search> Hanna Harper </search>")) == 4


def test_it_succeeds_sometimes_and_leaves_work_to_do() -> None:
    model, tokenizer = load_model("tiny")
    result = evaluate(
        TransformersEngine(model, tokenizer),
        Chat(tokenizer),
        lambda: SearchEnv(split="heldout"),
        tasks=200,
        sampling=Sampling(max_new_tokens=32),
    )
    assert 0.15 <= result.success.value <= 0.40


def test_lessons_only_weigh_what_the_assistant_says() -> None:
    env = SearchEnv(seed=tiny.WORLD_SEED)
    _, tokenizer = load_model("tiny")
    writer = Writer(tokenizer, Chat(tokenizer))
    for source in (
        drills(writer, env, 0),
        episodes(writer, env, 0),
    ):
        for _ in range(20):
            example = next(source)
            said = tokenizer.decode(example.tokens[example.weights == 1.0])
            assert said.count("<|end|>") == said.count("</search>") + said.count("</answer>")
            assert "Question:" not in said


def test_without_mistakes_the_demonstrator_is_the_oracle() -> None:
    env = SearchEnv(seed=tiny.WORLD_SEED)
    for index in range(10):
        actions = [action for _, action in demonstrate(env, index, random.Random(0))]
        assert env.task is not None
        env.reset(options={"task": index})
        assert actions == list(env.oracle())


def test_the_same_seed_makes_the_same_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    for name in ("one", "two"):
        tiny.make(tmp_path / name, steps=(1, 1, 2, 1), seed=3)
    one, two = (load_model(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    for key, value in one.items():
        np.testing.assert_array_equal(value.numpy(), two[key].numpy())
