"""TurnwiseLearner: one policy-gradient step from micro-batches of any size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from torch import Tensor

from turnwise.agents.rllib.batch import (
    ACTION_MASK,
    ADVANTAGES,
    LENGTHS,
    LOGPROBS,
    TOKENS,
    WEIGHTS,
)
from turnwise.agents.rllib.module import ENTROPY, LOGPROB, to_array, to_tensor
from turnwise.agents.rllib.objectives import OBJECTIVES, k3_kl

Columns = Mapping[str, Tensor]

UPDATE_SECONDS = "update_seconds"
"""Time spent on gradients and optimiser steps, in seconds per update."""


CPU_TOKENS, GPU_TOKENS = 1024, 16384
"""Tokens of a micro-batch; on a CPU larger ones are several times slower per token."""


def micro_batches(lengths: NDArray[np.int32], max_tokens: int) -> list[NDArray[np.int64]]:
    """Rows of like length together, so that little is padding.

    Args:
        lengths: int[B].
        max_tokens: rows times the longest of them, at most, in a micro-batch (a longer row is one
            by itself).

    Returns:
        Row numbers, the longest first: what does not fit in memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    cuts: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // int(lengths[order[start]]))
        cuts.append(order[start : start + rows])
        start += rows
    return cuts


class TurnwiseLearner(TorchLearner):
    """RLlib's TorchLearner with a token-level objective and gradient accumulation.

    RLlib's own are the optimiser's learning rate, gradient clipping, DDP and checkpoints.
    """

    _references: dict[str, torch.nn.Module]
    _sums: dict[str, Tensor]
    _largest: Tensor
    _seconds: float
    _first_step: bool

    def build(self) -> None:
        """Build the module and, for a KL penalty, a frozen copy of the initial policy."""
        if self.config.num_torch_threads:
            torch.set_num_threads(self.config.num_torch_threads)
        super().build()
        self._references = {}
        if not self.config.kl_coef:
            return
        # From the specification, not from the module: a resumed run has the same reference.
        for module_id, spec in self._module_spec.rl_module_specs.items():
            reference = spec.build()
            if spec.load_state_path is not None:
                reference.restore_from_path(spec.load_state_path)
            self._references[module_id] = reference.to(self._device).requires_grad_(False)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW; RLlib sets its learning rate from `config.lr`."""
        params = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.AdamW(params, lr=0.0, weight_decay=config.weight_decay)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr
        )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Columns, fwd_out: Columns
    ) -> Tensor:
        """The weighted sum of the objective over the tokens, plus the KL penalty.

        Args:
            module_id: which module.
            config: has `objective`, its options and `kl_coef`.
            batch: the columns of a micro-batch, [B, T].
            fwd_out: LOGPROB and ENTROPY, [B, T - 1].
        """
        mask = batch[ACTION_MASK][:, 1:].bool()
        old, weights = batch[LOGPROBS][:, 1:], batch[WEIGHTS][:, 1:]
        logprob = fwd_out[LOGPROB]
        losses = OBJECTIVES[config.objective](
            logprob, old, batch[ADVANTAGES][:, 1:], mask, **config.objective_options
        )
        loss = (losses.loss * weights).sum()
        found = losses.diagnostics
        sums = {
            "policy_loss": loss.detach(),
            "tokens": found.tokens,
            "entropy": fwd_out[ENTROPY].sum(),
            "approx_kl": found.approx_kl * found.tokens,
            "clip_frac": found.clip_fraction * found.tokens,
        }
        if config.kl_coef:
            with torch.no_grad():
                reference = self._references[module_id](batch)[LOGPROB]
            penalty = k3_kl(logprob, reference, mask)
            loss = loss + config.kl_coef * (penalty * weights).sum()
            sums["kl_to_reference"] = penalty.detach().sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.double()
        self._largest = torch.maximum(self._largest, found.max_log_ratio.double())
        return loss

    def _uncompiled_update(
        self, batch: Mapping[str, Columns], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        """One optimiser step on a minibatch, in micro-batches whose losses add up to its own."""
        started = time.perf_counter()
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        ((module_id, columns),) = batch.items()
        self._sums = {}
        self._largest = torch.zeros((), dtype=torch.float64, device=self._device)
        total = torch.zeros((), device=self._device)
        for micro, sync in self._micro_batches(module_id, columns):
            with sync:
                output = self.module[module_id].forward_train(micro)
                losses = self.compute_losses(fwd_out={module_id: output}, batch={module_id: micro})
                losses[module_id].backward()
            total = total + losses[module_id].detach()
        gradients = {ref: param.grad for ref, param in self._params.items()}
        grad_norm = torch.nn.utils.get_total_norm([g for g in gradients.values() if g is not None])
        self.apply_gradients(self.postprocess_gradients(gradients))
        self._log_step(module_id, grad_norm)
        self._seconds += time.perf_counter() - started
        # Not the outputs: RLlib keeps what is returned until the next step's are there.
        return {}, {module_id: total}, {}

    def _micro_batches(
        self, module_id: str, columns: Columns
    ) -> Iterator[tuple[dict[str, Tensor], contextlib.AbstractContextManager[Any]]]:
        """Micro-batches without their common padding; DDP talks during the last one only."""
        module = self.module[module_id]
        lengths = columns[LENGTHS].cpu().numpy()
        default = GPU_TOKENS if self._device.type == "cuda" else CPU_TOKENS
        cuts = micro_batches(lengths, self.config.micro_batch_tokens or default)
        for number, rows in enumerate(cuts):
            width = int(lengths[rows].max())
            index = torch.from_numpy(rows).to(self._device)
            micro = {
                name: column[index, :width] if column.ndim == 2 else column[index]
                for name, column in columns.items()
                if name in (TOKENS, ACTION_MASK, LOGPROBS, ADVANTAGES, WEIGHTS)
            }
            quiet = number < len(cuts) - 1 and isinstance(
                module, torch.nn.parallel.DistributedDataParallel
            )
            yield micro, module.no_sync() if quiet else contextlib.nullcontext()

    def _log_step(self, module_id: str, grad_norm: Tensor) -> None:
        """Log the step's diagnostics, those of all Learners together."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if self.config.num_learners > 1:
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(self._largest, torch.distributed.ReduceOp.MAX)
            # The weights carry a factor that undoes DDP's mean over Learners.
            sums[names.index("policy_loss")] /= self.config.num_learners
        values = dict(zip(names, sums.tolist(), strict=True))
        tokens = max(values.pop("tokens"), 1.0)
        log = self.metrics.log_value
        log((module_id, "policy_loss"), values.pop("policy_loss"), reduce="mean")
        for name, value in values.items():
            log((module_id, name), value / tokens, reduce="mean")
        log((module_id, "grad_norm"), float(grad_norm), reduce="mean")
        log((module_id, "max_abs_logratio"), float(self._largest), reduce="max")
        if self._first_step:
            # The policy is still the one that sampled: what is left is rounding.
            log((module_id, "on_policy_gap"), float(self._largest), reduce="max")
            self._first_step = False

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """RLlib calls this before the first step of an update."""
        super().before_gradient_based_update(timesteps=timesteps)
        self._first_step = True
        self._seconds = 0.0

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """RLlib calls this after the last step of an update."""
        super().after_gradient_based_update(timesteps=timesteps)
        self.metrics.log_value((DEFAULT_MODULE_ID, UPDATE_SECONDS), self._seconds, reduce="max")

    def set_state(self, state: dict[str, Any]) -> None:
        """Take a state as it is; RLlib's own method ignores the weights of an older one."""
        if WEIGHTS_SEQ_NO in state:
            self._weights_seq_no = -1
        super().set_state(state)

    def _get_optimizer_state(self) -> dict[str, Any]:
        """As RLlib's, but with bfloat16."""
        return {
            name: {
                "module_id": self._optimizer_name_to_module[name],
                "state": _map_tensors(optimizer.state_dict(), torch.Tensor, to_array),
            }
            for name, optimizer in self._named_optimizers.items()
        }

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        """The inverse of `_get_optimizer_state`."""
        for name, saved in state.items():
            tensors = _map_tensors(saved["state"], np.ndarray, to_tensor)
            self._named_optimizers[name].load_state_dict(tensors)


def _map_tensors(tree: Any, kind: type, function: Any) -> Any:
    """Apply a function to every leaf of a kind in nested dicts and lists."""
    if isinstance(tree, dict):
        return {key: _map_tensors(value, kind, function) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map_tensors(value, kind, function) for value in tree]
    return function(tree) if isinstance(tree, kind) else tree
