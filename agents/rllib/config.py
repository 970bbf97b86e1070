"""TurnwiseConfig: what a training run is, with RLlib's own settings where it has them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics.metrics_logger import DEFAULT_STATS_CLS_LOOKUP

from turnwise.agents.models import model_source
from turnwise.agents.rllib.environment import check_env_specifier
from turnwise.agents.rllib.metrics import STATS
from turnwise.agents.rllib.objectives import AGGREGATIONS, OBJECTIVES, token_weights
from turnwise.rewards.credit import CREDIT, NEEDS_GOLD_LOGPROB
from turnwise.rewards.names import unknown_name


class TurnwiseConfig(AlgorithmConfig):
    """Configures `Turnwise`.

    Example:
        >>> config = (
        ...     TurnwiseConfig()
        ...     .environment("turnwise/Search-v0", env_config={"split": "train"})
        ...     .env_runners(num_env_runners=2)
        ...     .learners(num_learners=1)
        ...     .training(model="tiny", credit="igpo", group_size=8, groups_per_step=8)
        ... )
        >>> algo = config.build_algo()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        """Args: algo_class: `Turnwise`, unless it is a subclass of it."""
        from turnwise.agents.rllib.algorithm import Turnwise
        from turnwise.agents.rllib.env_runner import TurnEnvRunner

        super().__init__(algo_class=algo_class or Turnwise)
        self.env_runner_cls = TurnEnvRunner
        self.stats_cls_lookup = {**DEFAULT_STATS_CLS_LOOKUP, **STATS}

        # `model` itself is a dict of RLlib's old stack.
        self.model_name: str = "tiny"
        self.dtype: str | None = None
        self.credit: str = "grpo"
        self.credit_options: dict[str, Any] = {}
        self.group_size: int = 8
        self.groups_per_step: int = 8
        self.objective: str = "ppo_clip"
        self.clip_low: float | None = None
        self.clip_high: float | None = None
        self.dual_clip: float | None = None
        self.aggregation: str = "token_mean"
        self.kl_coef: float = 0.0
        self.weight_decay: float = 0.0
        self.drop_rows_without_signal: bool = True
        self.micro_batch_tokens: int | None = None
        self.max_new_tokens: int = 64
        self.max_tokens: int | None = None
        self.temperature: float = 1.0
        self.concurrency: int = 64
        self.step_timeout_s: float | None = 120.0
        self.num_torch_threads: int | None = None

        # RLlib's settings, where its defaults do not fit a language model.
        self.lr = 1e-6
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.num_epochs = 1
        self.minibatch_size = None
        self.batch_mode = "complete_episodes"
        self.log_level = "ERROR"
        # The driver would hold one more copy of the model.
        self.create_local_env_runner = False
        # 60 s, the default, throws the rollouts of a slower runner away without a word.
        self.sample_timeout_s = None
        # 60 s, the default, is slept by every runner that is about to die.
        self.delay_between_env_runner_restarts_s = 1.0
        # Broadcasting is what brings the initial weights to the runners.
        self.broadcast_env_runner_states = True
        self.merge_env_runner_states = False
        # Batches come ready-made; the name is misleading: False is what keeps NaN out of Adam.
        self.add_default_connectors_to_learner_pipeline = False
        self.torch_skip_nan_gradients = False

    def training(
        self,
        *,
        model: str | Any = NotProvided,
        dtype: str | Any | None = NotProvided,
        credit: str | Any = NotProvided,
        credit_options: Mapping[str, Any] | Any = NotProvided,
        group_size: int | Any = NotProvided,
        groups_per_step: int | Any = NotProvided,
        objective: str | Any = NotProvided,
        clip_low: float | Any | None = NotProvided,
        clip_high: float | Any | None = NotProvided,
        dual_clip: float | Any | None = NotProvided,
        aggregation: str | Any = NotProvided,
        kl_coef: float | Any = NotProvided,
        weight_decay: float | Any = NotProvided,
        drop_rows_without_signal: bool | Any = NotProvided,
        micro_batch_tokens: int | Any | None = NotProvided,
        max_new_tokens: int | Any = NotProvided,
        max_tokens: int | Any | None = NotProvided,
        temperature: float | Any = NotProvided,
        concurrency: int | Any = NotProvided,
        step_timeout_s: float | Any | None = NotProvided,
        num_torch_threads: int | Any | None = NotProvided,
        train_batch_size: int | Any = NotProvided,
        **kwargs: Any,
    ) -> TurnwiseConfig:
        """Set how a run learns; any of them may also be one of Tune's search spaces.

        Args:
            model: "tiny", a name on the Hugging Face hub, or a folder.
            dtype: of the weights, such as "bfloat16"; None is float32.
            credit: a name in `turnwise.rewards.credit.CREDIT`.
            credit_options: keyword arguments for it.
            group_size: episodes that share a task.
            groups_per_step: tasks of one iteration.
            objective: a name in `turnwise.agents.rllib.objectives.OBJECTIVES`.
            clip_low: the ratio is clipped from 1 - clip_low ...
            clip_high: ... to 1 + clip_high; None is the objective's own default for both.
            dual_clip: bounds the loss of tokens with a negative advantage; None does not.
            aggregation: how token losses become one, a name in `AGGREGATIONS`.
            kl_coef: weight of the k3 penalty towards the initial policy; 0 keeps no copy of it.
            weight_decay: of AdamW.
            drop_rows_without_signal: leave episodes whose advantages are all 0 out of the
                computation; the gradient is the same.
            micro_batch_tokens: padded tokens that go through the model at once; None is 1024 on a
                CPU, whose caches then hold what the backward pass reads, and 16384 on a GPU.
            max_new_tokens: of one turn.
            max_tokens: of a trajectory; None leaves it to the model's context. Also what the
                aggregations with a constant normaliser divide by.
            temperature: of sampling, and so of the policy that is trained.
            concurrency: episodes in flight on one runner.
            step_timeout_s: an environment that takes longer for a step has failed.
            num_torch_threads: in every process of the run; None is 1 in Ray's workers and leaves
                the driver's as they are.
            train_batch_size: episodes of one iteration; another way to give `groups_per_step`.
            **kwargs: RLlib's own, such as `lr`, `grad_clip`, `num_epochs`, `minibatch_size` (rows
                of one optimiser step on one Learner).
        """
        super().training(**kwargs)
        given = {
            "model_name": model,
            "dtype": dtype,
            "credit": credit,
            "credit_options": credit_options,
            "group_size": group_size,
            "groups_per_step": groups_per_step,
            "objective": objective,
            "clip_low": clip_low,
            "clip_high": clip_high,
            "dual_clip": dual_clip,
            "aggregation": aggregation,
            "kl_coef": kl_coef,
            "weight_decay": weight_decay,
            "drop_rows_without_signal": drop_rows_without_signal,
            "micro_batch_tokens": micro_batch_tokens,
            "max_new_tokens": max_new_tokens,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "concurrency": concurrency,
            "step_timeout_s": step_timeout_s,
            "num_torch_threads": num_torch_threads,
        }
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        if train_batch_size is not NotProvided:
            if train_batch_size % self.group_size:
                raise ValueError(
                    f"train_batch_size ({train_batch_size} episodes) must be a multiple of "
                    f"group_size ({self.group_size})."
                )
            self.groups_per_step = train_batch_size // self.group_size
        return self

    @property
    def objective_options(self) -> dict[str, Any]:
        """Keyword arguments for the objective."""
        options = {
            "clip_low": self.clip_low,
            "clip_high": self.clip_high,
            "dual_clip": self.dual_clip,
        }
        return {name: value for name, value in options.items() if value is not None}

    @property
    def probe(self) -> bool:
        """Whether rollouts ask for the reference answer's log-probability before every turn."""
        return self.credit in NEEDS_GOLD_LOGPROB

    @property
    def run_seed(self) -> int:
        """`seed`, 0 unless set."""
        return int(self.seed or 0)

    def validate(self) -> None:
        """Raise a ValueError that says what to type instead, before anything is started."""
        # RLlib does the same a little later, after a page of advice about its API stacks.
        logging.getLogger("ray.rllib").setLevel(self.log_level or logging.ERROR)
        super().validate()
        check_env_specifier(self.env)
        check_options("credit function", self.credit, CREDIT[self.credit], self.credit_options)
        objective = OBJECTIVES[self.objective]
        check_options("objective", self.objective, objective, self.objective_options)
        check_aggregation(self.aggregation, self.max_tokens)
        model_source(str(self.model_name))
        for name in ("group_size", "groups_per_step", "max_new_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.temperature <= 0 and not self.in_evaluation:
            raise ValueError(
                f"temperature must be above 0 in training, is {self.temperature}. For greedy "
                'evaluation use .evaluation(evaluation_config={"explore": False}).'
            )
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must not be negative, is {self.kl_coef}")
        if self.is_multi_agent:
            raise ValueError("Turnwise trains one policy: do not call .multi_agent().")

    def get_default_learner_class(self) -> type[Learner]:
        """RLlib's hook."""
        from turnwise.agents.rllib.learner import TurnwiseLearner

        return TurnwiseLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib's hook."""
        from turnwise.agents.rllib.module import CausalLMModule

        return RLModuleSpec(module_class=CausalLMModule)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {"model": self.model_name, "dtype": self.dtype, "temperature": self.temperature}


def check_options(
    kind: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Raise a ValueError unless the function takes every option."""
    known = inspect.signature(function).parameters.values()
    names = [p.name for p in known if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in names:
            raise unknown_name(f"option of the {kind} {name!r}:", option, names)


def check_aggregation(name: str, max_tokens: int | None) -> None:
    """Raise a ValueError unless the aggregation exists and has the normaliser it wants."""
    AGGREGATIONS[name]
    try:
        token_weights(torch.zeros(1, 1), name, max_tokens)
    except ValueError as error:
        raise ValueError(f"{error}. Set it by .training(max_tokens=...).") from error
