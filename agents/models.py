"""Models: a causal LM and its tokenizer, by a built-in name, a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from turnwise.rewards.names import unknown_name

_EMBEDDED = {"tiny": Path(__file__).parent / "tiny"}
"""Models that come with the package."""


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer.

    Args:
        name_or_path: "tiny" (the embedded model), a folder in Hugging Face format, or an id on
            the Hugging Face hub, such as "Qwen/Qwen3-0.6B".
        dtype: such as `torch.bfloat16` or "bfloat16"; None: float32 on the CPU, elsewhere as the
            weights are stored.
        device: None: the first GPU if there is one, except for an embedded model, which a CPU
            runs faster than it can be sent to.

    Raises:
        UnknownNameError: a name without a slash that is neither built in nor a folder.
        FileNotFoundError: a path without a model in it.
        OSError: the hub has no such model, or cannot be reached and nothing is cached.
    """
    source = model_source(str(name_or_path))
    if device is None:
        embedded = source in map(str, _EMBEDDED.values())
        device = "cuda" if torch.cuda.is_available() and not embedded else "cpu"
    target = torch.device(device)
    if isinstance(dtype, str):
        dtype = _dtype(dtype)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = dtype or (torch.float32 if target.type == "cpu" else "auto")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=wanted, attn_implementation="sdpa"
        )
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise OSError(
            f"Could not load {source!r} from the Hugging Face hub. Without a network, download "
            f"it where there is one (hf download {source} --local-dir FOLDER) and pass FOLDER; "
            "for a gated model, log in first (hf auth login); or use the embedded model 'tiny'. "
            f"The hub's client said: {error}"
        ) from error
    return model.to(target).eval(), tokenizer


def model_source(name: str) -> str:
    """What `from_pretrained` should be given."""
    folder = Path(name).expanduser()
    # The built-in name first: what is in the current directory must not change its meaning.
    if name in _EMBEDDED:
        folder = _EMBEDDED[name]
    elif folder.is_dir():
        pass
    elif "/" not in name and "\\" not in name:
        raise unknown_name("model", name, _EMBEDDED)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"There is no folder {name!r}. Pass a folder in Hugging Face format, a hub id such as "
            "'Qwen/Qwen3-0.6B', or 'tiny'."
        )
    else:
        return name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The folder {str(folder)!r} holds no model: config.json is missing. A model saved "
            "with model.save_pretrained(folder) and tokenizer.save_pretrained(folder) has it."
        )
    return str(folder)


def _dtype(name: str) -> torch.dtype:
    names = ("float32", "bfloat16", "float16")
    if name not in names:
        raise unknown_name("dtype", name, names)
    return getattr(torch, name)
