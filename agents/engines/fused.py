"""FusedForward: a small Llama, Mistral, Qwen2 or Qwen3 with as few operations as possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turnwise.agents.engines.cache import SlotCache
from turnwise.agents.engines.forward import Chunk

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# The other kinds of RoPE change with the length of the sequence.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ROUND = 32
"""Decoding reads the cache up to a multiple of this, so that its views live for many steps."""


def can_fuse(model: Any, max_length: int) -> bool:
    """Whether `FusedForward` computes what this model's own forward does up to `max_length`."""
    config = model.config
    if getattr(config, "model_type", None) not in _MODEL_TYPES:
        return False
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") not in _ROPE_TYPES:
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = config.model_type == "mistral" or kinds != {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if kinds - {"full_attention", "sliding_attention"} or (
        sliding and window is not None and window < max_length
    ):
        return False
    # Quantised layers and adapters are other classes than nn.Linear, or carry hooks.
    linears = [m for m in model.modules() if hasattr(m, "in_features")]
    return all(type(m) is nn.Linear and not m._forward_pre_hooks for m in linears)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights, transposed to `[in, out]`, with the norms' gains folded in.

    For each key-value head, the columns of `qkv` are its G query heads, its key and its value:
    one view then serves RoPE on queries and keys, another the batched product. Within a query or
    key head, the two halves that RoPE turns against each other are interleaved, so that it is one
    product of complex numbers; dot products do not mind.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    head_gain: Tensor | None
    """[G + 1, head_dim], the gains of the query and key norms (Qwen3)."""
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class FusedForward:
    """The forward pass on derived copies of the weights."""

    def __init__(self, model: Any, cache: SlotCache) -> None:
        """Derive the weights.

        Args:
            model: a Hugging Face causal LM for which `can_fuse` holds.
            cache: where keys and values live.
        """
        config = model.config
        self.model = model
        self.cache = cache
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.groups = self.heads // self.kv_heads
        self.head_dim: int = model.model.layers[0].self_attn.head_dim
        self.eps: float = config.rms_norm_eps
        self.act: Callable[[Tensor], Tensor] = model.model.layers[0].mlp.act_fn
        self._silu = config.hidden_act == "silu"
        self._turns = torch.zeros((0, 0))
        self._eps = torch.tensor(self.eps, device=model.device)
        self._plan: _Plan | None = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive the weights anew from the model's parameters."""
        decoder = self.model.model
        self.embedding: Tensor = decoder.embed_tokens.weight.detach()
        self.head = _folded(self.model.lm_head.weight, decoder.norm.weight)
        self.head_bias: Tensor | None = self.model.lm_head.bias
        self.layers = [self._derive(layer) for layer in decoder.layers]

    def _derive(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        scale = self.head_dim**-0.5
        gain = None
        if hasattr(attention, "q_norm"):
            query_gain = attention.q_norm.weight.float() * scale
            gain = torch.cat([query_gain.expand(self.groups, -1), attention.k_norm.weight[None]])
            gain = _interleaved(gain, 1).to(attention.q_norm.weight.dtype)
            scale = 1.0
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = self._by_kv_head([p.weight for p in projections], scale)
        bias = None
        if attention.q_proj.bias is not None:
            bias = self._by_kv_head([p.bias for p in projections], scale).reshape(-1)
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        gate_up_bias = None
        if mlp.gate_proj.bias is not None:
            gate_up_bias = torch.cat([mlp.gate_proj.bias, mlp.up_proj.bias])
        return _Layer(
            qkv=_folded(qkv, layer.input_layernorm.weight),
            qkv_bias=bias,
            head_gain=gain,
            out=attention.o_proj.weight.t().contiguous(),
            out_bias=attention.o_proj.bias,
            gate_up=_folded(gate_up, layer.post_attention_layernorm.weight),
            gate_up_bias=gate_up_bias,
            down=mlp.down_proj.weight.t().contiguous(),
            down_bias=mlp.down_proj.bias,
        )

    def _by_kv_head(self, parts: list[Tensor], scale: float) -> Tensor:
        query, key, value = (p.view(self.kv_heads, -1, self.head_dim, *p.shape[1:]) for p in parts)
        query = (query.float() * scale).to(query.dtype)
        turned = _interleaved(torch.cat([query, key], 1), 2)
        return torch.cat([turned, value], 1).flatten(0, 2)

    def _turn(self, positions: Tensor) -> Tensor:
        """complex64[..., head_dim / 2], what RoPE multiplies with at some positions."""
        if self._turns.shape[0] <= self.cache.capacity:
            every = torch.arange(self.cache.capacity + 1, device=self.embedding.device)[None]
            reference = torch.zeros((), device=self.embedding.device)
            cos, sin = self.model.model.rotary_emb(reference, position_ids=every)
            half = self.head_dim // 2
            self._turns = torch.complex(cos[0, :, :half], sin[0, :, :half])
        return self._turns.index_select(0, positions)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)

    def _norm(self, x: Tensor) -> Tensor:
        """RMS norm over the last dimension, without a gain."""
        if x.dtype != torch.float32:
            return F.rms_norm(x, (x.shape[-1],), None, self.eps)
        # Half the time of F.rms_norm, which on a CPU is seven operations.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()

    def _rotate(self, heads: Tensor, turn: Tensor, gain: Tensor | None) -> Tensor:
        """RoPE on `[..., heads, head_dim]`, after the norm of each head if there is one."""
        if gain is not None:
            heads = self._norm(heads) * gain
        shape = heads.shape
        # `view`, not `unflatten` and `chunk`: on small tensors those cost as much as the product.
        pairs = torch.view_as_complex(heads.float().view(*shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).view(shape).to(heads.dtype)

    def _mlp(self, x: Tensor, layer: _Layer) -> Tensor:
        both = self._linear(self._norm(x), layer.gate_up, layer.gate_up_bias)
        half = both.shape[1] // 2
        gate, up = both[:, :half], both[:, half:]
        gate = F.silu(gate) if self._silu else self.act(gate)
        return self._residual(x, gate.mul_(up), layer.down, layer.down_bias)

    def _residual(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = torch.addmm(x, y, weight)
        return x if bias is None else x.add_(bias)

    def _logits(self, x: Tensor) -> Tensor:
        return self._linear(self._norm(x), self.head, self.head_bias)

    def prefill(self, chunk: Chunk) -> Tensor:
        """Read a chunk; see `Forward.prefill`."""
        m, width = chunk.tokens.shape
        kv, groups, dim = self.kv_heads, self.groups, self.head_dim
        offsets = torch.arange(width, device=chunk.tokens.device)
        positions = chunk.starts[:, None] + offsets
        positions.masked_fill_(offsets >= chunk.lengths[:, None], self.cache.scrap)
        turn = self._turn(positions.view(-1))[:, None, None]
        mask = None
        total = chunk.past + width
        if chunk.past:
            total = min(total, self.cache.capacity)
            reach = chunk.starts[:, None] + offsets
            hidden = torch.arange(total, device=reach.device) > reach[..., None]
            mask = torch.zeros(hidden.shape, dtype=self.embedding.dtype, device=reach.device)
            mask = mask.masked_fill_(hidden, float("-inf"))[:, None]
        x = F.embedding(chunk.tokens.view(-1), self.embedding)
        for i, layer in enumerate(self.layers):
            qkv = self._linear(self._norm(x), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(m * width, kv, groups + 2, dim)
            turned = self._rotate(qkv[:, :, : groups + 1], turn, layer.head_gain)
            keys = turned[:, :, groups].view(m, width, kv, dim)
            values = qkv[:, :, groups + 1].view(m, width, kv, dim)
            if chunk.rows is not None:
                self.cache.keys[i][chunk.rows[:, None], :, positions] = keys
                self.cache.values[i][chunk.rows[:, None], :, positions] = values
            if chunk.past and chunk.rows is not None:
                keys = self.cache.keys[i][:, :, :total].index_select(0, chunk.rows)
                values = self.cache.values[i][:, :, :total].index_select(0, chunk.rows)
            else:
                keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            query = turned[:, :, :groups].reshape(m, width, kv * groups, dim).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(
                query, keys, values, mask, is_causal=mask is None, scale=1.0, enable_gqa=groups > 1
            )
            mixed = mixed.transpose(1, 2).reshape(m * width, -1)
            if layer is self.layers[-1]:
                x, mixed = x[chunk.wanted], mixed[chunk.wanted]
            x = self._residual(x, mixed, layer.out, layer.out_bias)
            x = self._mlp(x, layer)
        return self._logits(x)

    def decode(self, tokens: Tensor, positions: Tensor, length: int) -> Tensor:
        """One token per row; see `Forward.decode`."""
        n = tokens.shape[0]
        length = min(-(-length // _ROUND) * _ROUND, self.cache.capacity)
        plan = self._plan
        if plan is None or plan.key != (n, length, self.cache.generation):
            plan = self._plan = _Plan(self.cache, n, length)
        kv, groups, dim = self.kv_heads, self.groups, self.head_dim
        turn = self._turn(positions)[:, None, None]
        at = positions[:, None].expand(n, kv).reshape(-1, 1)
        cells, slots = plan.cells + at, plan.slots + at[:, 0]
        mask = torch.where(plan.every > at, plan.shut, plan.open)[:, None]
        x = F.embedding(tokens, self.embedding)
        for layer, (all_keys, all_values, keys, values) in zip(
            self.layers, plan.views, strict=True
        ):
            qkv = self._linear(self._norm(x), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(n, kv, groups + 2, dim)
            turned = self._rotate(qkv[:, :, : groups + 1], turn, layer.head_gain)
            turned = turned.view(n * kv, groups + 1, dim)
            all_keys.put_(cells, turned[:, groups])
            all_values.index_copy_(0, slots, qkv.view(n * kv, groups + 2, dim)[:, groups + 1])
            weights = torch.baddbmm(mask, turned[:, :groups], keys).softmax(-1)
            mixed = torch.bmm(weights, values).view(n, -1)
            x = self._residual(x, mixed, layer.out, layer.out_bias)
            x = self._mlp(x, layer)
        return self._logits(x)


class _Plan:
    """Views of the cache for decoding the first n rows up to some length."""

    def __init__(self, cache: SlotCache, n: int, length: int) -> None:
        layers, _, kv, width, dim = cache.keys.shape
        device, dtype = cache.keys.device, cache.keys.dtype
        self.key = (n, length, cache.generation)
        heads = torch.arange(n * kv, device=device)
        self.slots = heads * width
        """[n * kv]: where each head's values begin, in positions."""
        self.cells = (heads[:, None] * dim + torch.arange(dim, device=device)) * width
        """[n * kv, dim]: where each head's keys begin, in numbers; they lie position by position
        only across the head's features."""
        self.every = torch.arange(length, device=device)
        self.open = torch.zeros((), dtype=dtype, device=device)
        self.shut = torch.full((), float("-inf"), dtype=dtype, device=device)
        self.views = []
        for i in range(layers):
            keys = cache.keys[i, :n].transpose(-1, -2).flatten(0, 1)
            values = cache.values[i, :n].flatten(0, 1)
            self.views.append((keys, values.view(-1, dim), keys[..., :length], values[:, :length]))


def _interleaved(heads: Tensor, dim: int) -> Tensor:
    """The halves a, b of a dimension as a0 b0 a1 b1 ..."""
    size = heads.shape[dim]
    order = torch.arange(size, device=heads.device).view(2, size // 2).t().flatten()
    return heads.index_select(dim, order)


def _folded(weight: Tensor, gain: Tensor) -> Tensor:
    """`weight` `[out, in]` behind a norm with this gain, transposed: `[in, out]`."""
    folded = weight.detach().float() * gain.detach().float()
    return folded.t().to(weight.dtype).contiguous()
