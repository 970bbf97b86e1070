"""Loading models by name, folder and id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import turnwise.agents
from turnwise.agents.models import load_model
from turnwise.rewards.names import UnknownNameError

TINY = Path(turnwise.agents.__file__).parent / "tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "saved"
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    words = {word: i for i, word in enumerate("abcdefgh")}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a"))
    ).save_pretrained(path)
    return path


def test_a_folder_is_float32_on_a_cpu(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.encode("c", add_special_tokens=False) == [2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_the_dtype_asked_for(folder: Path, dtype: Any) -> None:
    assert load_model(str(folder), dtype=dtype, device="cpu")[0].dtype == torch.bfloat16


def test_unknown_names_are_answered_with_known_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown model 'tyni'\. Did you mean 'tiny'"):
        load_model("tyni")
    with pytest.raises(UnknownNameError, match="Unknown dtype 'fp32'"):
        load_model(folder, dtype="fp32")
    for path in ("./nowhere", "/nowhere/at/all", "~/nowhere/at/all"):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load_model(path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("empty", tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
            load_model(path)


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="hf download nobody/nothing --local-dir FOLDER"):
        load_model("nobody/nothing")


@pytest.mark.skipif(
    not (TINY / "model.safetensors").exists(), reason="the embedded model has not been made"
)
def test_the_embedded_model() -> None:
    model, tokenizer = load_model("tiny")
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    ids = tokenizer("a question", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.isfinite(model(ids).logits).all()
