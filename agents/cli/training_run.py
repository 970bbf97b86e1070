"""TrainingRun: iterations of the RLlib algorithm, recorded in a run folder."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID

from turnwise.agents.chat import Chat
from turnwise.agents.cli.environment import factory, with_split
from turnwise.agents.cli.run_folder import RunFolder
from turnwise.agents.cli.settings import RunSettings
from turnwise.agents.engines.engine import Sampling
from turnwise.agents.engines.transformers import TransformersEngine
from turnwise.agents.evaluation import Evaluation, evaluate
from turnwise.agents.report import episode_record
from turnwise.agents.rllib.algorithm import Turnwise
from turnwise.agents.rllib.config import TurnwiseConfig
from turnwise.agents.rllib.module import CausalLMModule
from turnwise.agents.trajectory import Trajectory

RECORDED_EPISODES = 64
"""At most so many episodes, in whole groups, are kept for the report."""


class Stopped(Exception):
    """The user asked to stop while something that can be done again was under way."""


class TrainingRun:
    """One run: builds or restores the algorithm, then `step` by `step`."""

    def __init__(self, settings: RunSettings, folder: RunFolder, policy: CausalLMModule) -> None:
        """Start everything; restores the folder's last checkpoint.

        Args:
            settings: of the run.
            folder: its files.
            policy: what `initial_policy` gave for these settings.
        """
        self.settings = settings
        self.folder = folder
        self.iteration = 0
        self.tokenizer = policy.tokenizer
        self._policy: CausalLMModule | None = policy
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray(settings.num_env_runners + settings.num_learners)
        algorithm: Any = algorithm_config(settings).build_algo()
        self.algorithm: Turnwise = algorithm
        checkpoint = folder.last_checkpoint()
        if checkpoint is not None:
            self.iteration, path = checkpoint
            self.algorithm.restore_from_path(str(path.resolve()))
            self._policy = None
        folder.forget_after(self.iteration)

    def step(self) -> dict[str, Any]:
        """One iteration; its row of metrics, which is on disk by then."""
        begun, before = time.perf_counter(), self.algorithm.last_batch
        results = self.algorithm.train()
        self._policy = None
        self.iteration += 1
        batch = self.algorithm.last_batch
        played = () if batch is None or batch is before else batch.trajectories
        row = metrics_row(self.iteration, played, results, time.perf_counter() - begun)
        self.folder.append(self.folder.metrics_file, row)
        return row

    def evaluate(self, should_stop: Callable[[], bool]) -> Evaluation:
        """Held-out success of the policy as it is now; the row is on disk by then.

        Raises:
            Stopped: `should_stop` said so before all episodes were played.
        """
        settings = self.settings
        env_args, split = heldout(settings)
        make_env = factory(settings.env, env_args)
        first = make_env()
        size = getattr(first.unwrapped, "num_tasks", None)
        spare = [first]

        def stop_if_asked(_: Trajectory) -> None:
            if should_stop():
                raise Stopped

        policy = self.policy()
        evaluation = evaluate(
            TransformersEngine(policy.lm, self.tokenizer),
            Chat(self.tokenizer),
            lambda: spare.pop() if spare else make_env(),
            tasks=settings.eval_tasks if size is None else min(size, settings.eval_tasks),
            sampling=Sampling(settings.max_new_tokens, settings.temperature),
            seed=settings.seed,
            on_episode=stop_if_asked,
        )
        row = {"iteration": self.iteration, "split": split, **evaluation.to_json()}
        self.folder.append(self.folder.evaluations_file, row)
        return evaluation

    def checkpoint(self) -> None:
        """Write a checkpoint, unless this iteration has one."""
        last = self.folder.last_checkpoint()
        if last is None or last[0] != self.iteration:
            self.folder.save_checkpoint(self.iteration, self.algorithm.save_to_path)

    def save_model(self) -> None:
        """Write the policy in Hugging Face format."""
        self.policy().lm.save_pretrained(self.folder.model_folder)
        self.tokenizer.save_pretrained(self.folder.model_folder)

    def record_episodes(self) -> None:
        """Write whole groups of the last iteration; keeps the file where there was none."""
        batch = self.algorithm.last_batch
        if batch is None or not batch.trajectories:
            return
        groups = sorted({t.group for t in batch.trajectories})
        size = max(1, len(batch.trajectories) // len(groups))
        chosen = set(groups[: max(1, RECORDED_EPISODES // size)])
        records = [
            episode_record(t, advantages, self.tokenizer, iteration=batch.iteration + 1)
            for t, advantages in zip(batch.trajectories, batch.advantages, strict=True)
            if t.group in chosen
        ]
        self.folder.replace_rows(self.folder.episodes_file, records[:RECORDED_EPISODES])

    def policy(self) -> CausalLMModule:
        """A copy of the policy in this process, made when it is asked for."""
        if self._policy is None:
            self._policy = load_policy(self.settings)
            learners = self.algorithm.learner_group
            assert learners is not None
            state = learners.get_state(f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}")
            weights = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
            self._policy.set_state(weights)
        return self._policy

    def close(self) -> None:
        """Stop every process this run started."""
        self.algorithm.stop()
        if self._owns_ray:
            ray.shutdown()


def initial_policy(settings: RunSettings) -> CausalLMModule:
    """The model that training begins with, once everything about the settings is known to fit.

    Raises:
        ValueError: an option, or a chat template, that training cannot work with.
        OSError: the model does not load.
    """
    algorithm_config(settings).validate()
    policy = load_policy(settings)
    Chat(policy.tokenizer)
    return policy


def load_policy(settings: RunSettings) -> CausalLMModule:
    """The module around the model that the settings name."""
    model = {"model": settings.model, "temperature": settings.temperature}
    return CausalLMModule(model_config=model, inference_only=True)


def algorithm_config(settings: RunSettings) -> TurnwiseConfig:
    """The settings as RLlib takes them."""
    env_args, _ = with_split(settings.env, settings.env_args, "train")
    config = TurnwiseConfig()
    config.environment(settings.env, env_config=env_args)
    config.env_runners(num_env_runners=settings.num_env_runners)
    config.learners(num_learners=settings.num_learners)
    config.debugging(seed=settings.seed)
    config.training(
        model=settings.model,
        credit=settings.credit,
        credit_options=dict(settings.credit_args),
        group_size=settings.group_size,
        groups_per_step=settings.groups,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        num_torch_threads=settings.threads,
        lr=settings.lr,
    )
    return config


def heldout(settings: RunSettings) -> tuple[dict[str, Any], str | None]:
    """The environment's arguments for evaluation, and its split (None: it has no splits)."""
    given = {k: v for k, v in settings.env_args.items() if k != "split"}
    return with_split(settings.env, given, "heldout")


def start_ray(workers: int) -> None:
    """Start Ray on this machine; more workers than cores share them rather than wait for ever."""
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        num_cpus=None if "RAY_ADDRESS" in os.environ else max(os.cpu_count() or 1, workers + 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def metrics_row(
    iteration: int,
    played: Sequence[Trajectory],
    results: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """One line of metrics.jsonl.

    What was not measured is null: means without episodes, and what the Learner says in an
    iteration without a learning signal, in which it has done nothing.

    Args:
        iteration: 1, 2, ...
        played: its episodes, in any order; the failed ones are counted and enter no mean.
        results: of `Algorithm.train`.
        seconds: it took.
    """
    judged = [t for t in played if t.ok]
    totals = [math.fsum(turn.reward for turn in t.turns) for t in judged]
    learned: Mapping[str, Any] = {}
    if results.get("rows_with_signal_share"):
        learned = results.get("learners", {}).get(DEFAULT_MODULE_ID, {})
    row = {
        "success": _mean([float(t.success) for t in judged]),
        "return": _mean(totals),
        "reward_per_turn": _mean(
            [total / max(len(t.turns), 1) for t, total in zip(judged, totals, strict=True)]
        ),
        "turns": _mean([float(len(t.turns)) for t in judged]),
        "tokens": _mean([float(t.action_mask.sum()) for t in judged]),
        "entropy": learned.get("entropy"),
        "kl": learned.get("approx_kl"),
        "policy_loss": learned.get("policy_loss"),
        "grad_norm": learned.get("grad_norm"),
        "clip_frac": learned.get("clip_frac"),
        "rows_with_signal_share": results.get("rows_with_signal_share"),
        "tokens_per_s": results.get("env_runners", {}).get("tokens_per_second"),
        "seconds": seconds,
    }
    plain = {
        name: float(value) if value is not None and math.isfinite(value) else None
        for name, value in row.items()
    }
    failed = len(played) - len(judged)
    return {"iteration": iteration, **plain, "episodes": len(played), "failed": failed}


def _mean(values: Sequence[float]) -> float | None:
    """Exactly rounded, so that the order in which episodes ended does not show."""
    return math.fsum(values) / len(values) if values else None
