"""ModelForward: any Hugging Face causal LM, by its own forward on the slot cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from turnwise.agents.engines.cache import SlotCache
from turnwise.agents.engines.forward import Chunk


def cache_shape(model: Any) -> tuple[int, int, int, int]:
    """(layers, kv_heads, key_dim, value_dim) of a model, as its own forward shows them.

    Raises:
        ValueError: the model has no such cache: layers without keys, or of unequal shapes.
    """
    with torch.inference_mode():
        token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        past = DynamicCache()
        model(input_ids=token, past_key_values=past, use_cache=True)
    keys = [getattr(layer, "keys", None) for layer in past.layers]
    values = [getattr(layer, "values", None) for layer in past.layers]
    shapes = {
        (k.shape[1], k.shape[3], v.shape[3]) if k is not None and v is not None else None
        for k, v in zip(keys, values, strict=True)
    }
    shape = next(iter(shapes), None)
    if len(shapes) != 1 or shape is None:
        raise ValueError(
            f"{type(model).__name__} keeps no plain key-value cache with equal layers. Use a "
            "decoder with ordinary attention in every layer, or VLLMEngine."
        )
    return (len(keys), *shape)


class ModelForward:
    """The model's own forward; nothing is assumed of its architecture but the cache."""

    def __init__(self, model: Any, cache: SlotCache) -> None:
        """Args: model: a Hugging Face causal LM; cache: where keys and values live."""
        self.model = model
        self.cache = cache
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ())
        self._window: int | None = getattr(config, "sliding_window", None)
        if config.model_type != "mistral" and "sliding_attention" not in kinds:
            self._window = None
        self._mixed = len(kinds) > 1
        head: nn.Module | None = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings: it is no LM.")
        self._head = head

    def refresh(self) -> None:
        """Nothing is derived from the parameters."""

    def prefill(self, chunk: Chunk) -> Tensor:
        """Read a chunk; see `Forward.prefill`."""
        offsets = torch.arange(chunk.tokens.shape[1], device=chunk.tokens.device)
        positions = chunk.starts[:, None] + offsets
        if chunk.rows is None:
            return self._run(chunk.tokens, positions, positions, None, chunk.wanted)
        padding = offsets >= chunk.lengths[:, None]
        length = min(chunk.past + len(offsets), self.cache.capacity)
        window = _Window(
            self.cache, chunk.rows, positions.masked_fill(padding, self.cache.scrap), length
        )
        # Padding may not reach beyond the embedding of positions.
        legal = positions.clamp(max=self.cache.capacity - 1)
        return self._run(chunk.tokens, legal, positions, window, chunk.wanted)

    def decode(self, tokens: Tensor, positions: Tensor, length: int) -> Tensor:
        """One token per row; see `Forward.decode`."""
        at = positions[:, None]
        window = _Window(self.cache, None, at, length)
        wanted = torch.arange(len(tokens), device=tokens.device)
        legal = at.clamp(max=self.cache.capacity - 1)
        return self._run(tokens[:, None], legal, at, window, wanted)

    def _run(
        self,
        tokens: Tensor,
        legal: Tensor,
        reach: Tensor,
        window: _Window | None,
        wanted: Tensor,
    ) -> Tensor:
        length = window.length if window is not None else tokens.shape[1]

        def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # Before the head: keep the wanted positions, so that no other logits are computed,
            # and whatever the model does to its logits afterwards is still done.
            return (args[0].flatten(0, -2)[wanted][None], *args[1:])

        hook = self._head.register_forward_pre_hook(select)
        try:
            return self.model(
                input_ids=tokens,
                position_ids=legal,
                attention_mask=self._mask(reach, length),
                past_key_values=window,
                use_cache=window is not None,
            ).logits[0]
        finally:
            hook.remove()

    def _mask(self, reach: Tensor, length: int) -> Any:
        """Additive masks `[m, 1, T, length]`: a query sees the keys up to its own position."""
        key = torch.arange(length, device=reach.device)
        hidden = key > reach[..., None]
        full = _additive(hidden, self.model.dtype)
        if self._window is None:
            return full
        near = _additive(hidden | (key <= reach[..., None] - self._window), self.model.dtype)
        return {"full_attention": full, "sliding_attention": near} if self._mixed else near


class _Window(Cache):
    """The rows of a slot cache that one forward pass reads and writes."""

    def __init__(
        self, cache: SlotCache, rows: Tensor | None, positions: Tensor, length: int
    ) -> None:
        super().__init__(layers=[])
        self.cache = cache
        self.rows = rows
        self.length = length
        count = len(positions)
        at = torch.arange(count, device=positions.device) if rows is None else rows
        kv = cache.keys.shape[2]
        heads = at[:, None] * kv + torch.arange(kv, device=positions.device)
        self._slots = (heads[..., None] * cache.width + positions[:, None]).view(-1)
        self._count = count

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[m, kv_heads, T, dim]`; all keys and values of these rows so far."""
        return (
            self._write(self.cache.keys[layer_idx], key_states),
            self._write(self.cache.values[layer_idx], value_states),
        )

    def _write(self, layer: Tensor, states: Tensor) -> Tensor:
        width = states.shape[-1]
        layer.view(-1, width).index_copy_(0, self._slots, states.reshape(-1, width))
        if self.rows is None:
            return layer[: self._count, :, : self.length]
        return layer[:, :, : self.length].index_select(0, self.rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that the mask covers."""
        return self.length

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        """(length, offset) of the keys."""
        return self.length, 0


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]
