"""CausalLMModule: a Hugging Face causal language model as an RLModule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from turnwise.agents.models import load_model
from turnwise.agents.rllib.batch import ACTION_MASK, TOKENS

LOGPROB = "logprob"
ENTROPY = "entropy"

# NumPy has no bfloat16: such a tensor travels as its bits under a field name that says so.
_BFLOAT16 = np.dtype([("bfloat16", "<i2")])


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A copy of a tensor as an array of the same dtype, bfloat16 as its marked bits."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(_BFLOAT16).copy()
    return host.numpy().copy()


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The inverse of `to_array`."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view("<i2").copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


class CausalLMModule(TorchRLModule):
    """Holds the language model as `self.lm`; RLModule owns the attribute names of an HF class.

    `model_config` has `model` (a name or a path), `temperature` (the policy is the model at this
    temperature) and `dtype` (such as "bfloat16"; None is float32).
    """

    def setup(self) -> None:
        """Load the model."""
        # On the CPU first: where it runs is RLlib's to say.
        self.lm, self.tokenizer = load_model(
            self.model_config["model"], dtype=self.model_config.get("dtype"), device="cpu"
        )
        self.temperature = float(self.model_config.get("temperature", 1.0))
        # Dropout would make the Learner's policy another one than the one that sampled.
        for part in self.lm.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if isinstance(getattr(part, "attention_dropout", None), float):
                part.attention_dropout = 0.0

    def _forward_train(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Log-probability and entropy of every sampled token; 0 elsewhere.

        The logits never leave this function, and are made at sampled tokens only: most tokens of a
        conversation are prompts and observations. Rows are padded on the right, where causal
        attention keeps padding out of every real token's context; so no attention mask is made,
        which is the fastest path through SDPA, and no token id needs to mean padding.

        Args:
            batch: TOKENS int[B, T] and ACTION_MASK bool[B, T].
            **kwargs: RLlib's own.

        Returns:
            LOGPROB and ENTROPY, float32[B, T - 1]; column t is token t + 1. ENTROPY has no
            gradient.
        """
        tokens = batch[TOKENS].long()
        sampled = batch[ACTION_MASK][:, 1:].bool()
        values, entropy = self._logprobs(tokens, sampled)
        empty = torch.zeros(sampled.shape, dtype=values.dtype, device=values.device)
        return {
            LOGPROB: empty.masked_scatter(sampled, values),
            ENTROPY: empty.masked_scatter(sampled, entropy),
        }

    def _logprobs(self, tokens: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, float32[N], of the N sampled tokens in row order."""

        def select(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][:, :-1][sampled].unsqueeze(0), *args[1:])

        # A hook before the head, not a call of the body: it keeps what a model does to its
        # logits after the head (scaling, soft caps).
        hook = self.lm.get_output_embeddings().register_forward_pre_hook(select)
        try:
            logits = self.lm(input_ids=tokens, use_cache=False).logits[0].float()
        finally:
            hook.remove()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        targets = tokens[:, 1:][sampled]
        return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Score without gradients; sampling is an Engine's work."""
        with torch.no_grad():
            return self._forward_train(batch)

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        inference_only: bool = False,
        **kwargs: Any,
    ) -> dict[str, NDArray[Any]]:
        """The weights as arrays, in their own dtypes."""
        # A tied head is the embedding once more: it need not travel.
        tied = set(getattr(self.lm, "all_tied_weights_keys", None) or ())
        return {
            key: to_array(value)
            for key, value in self.state_dict().items()
            if key.removeprefix("lm.") not in tied
        }

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Load weights that `get_state` gave. ValueError where they are another model's."""
        loaded = self.load_state_dict(
            {key: to_tensor(value) for key, value in state.items()}, strict=False
        )
        tied = set(getattr(self.lm, "all_tied_weights_keys", None) or ())
        missing = [k for k in loaded.missing_keys if k.removeprefix("lm.") not in tied]
        if missing or loaded.unexpected_keys:
            raise ValueError(
                f"These are weights of another model: missing {missing[:3]}, "
                f"unexpected {loaded.unexpected_keys[:3]}."
            )
