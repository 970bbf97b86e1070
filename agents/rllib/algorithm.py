"""Turnwise: RLlib's Algorithm for language-model agents."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from turnwise.agents.rllib.batch import ScoredBatch, TrainingRows, score, training_rows
from turnwise.agents.rllib.config import TurnwiseConfig
from turnwise.agents.rllib.env_runner import TRAJECTORY, TurnEnvRunner
from turnwise.agents.rllib.learner import UPDATE_SECONDS
from turnwise.agents.rllib.metrics import (
    SAMPLE_SECONDS,
    TOKENS_SAMPLED,
    fill_missing,
    nothing_played,
)
from turnwise.agents.rllib.tasks import Group, assign_groups, stable_hash, training_groups
from turnwise.agents.trajectory import Trajectory

BATCH_TIMER = "batch_timer"
TRAINING_STEPS = "training_steps"

LOCAL = 0
"""RLlib's index of the runner in the driver's own process."""

MAX_EMPTY_STEPS = 5
"""So many steps in a row without one rollout are no accident."""

RESTART_POLL_S = 0.5


class Turnwise(Algorithm):
    """Rollouts in groups, credit per turn, a policy-gradient step, new weights; once more.

    Everything random is a function of the seed and the number of the step, so a run that was
    stopped and restored goes on as if it never had been.
    """

    config: TurnwiseConfig

    def __init__(self, config: Any = None, **kwargs: Any) -> None:
        """Args: config: a TurnwiseConfig; kwargs: Tune's."""
        # RLlib starts Ray if nobody has: then without a dashboard and the workers' chatter.
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        self._training_steps = 0
        self._empty_steps = 0
        self._num_tasks: list[int | None] = []
        self._work_seconds = 0.0
        self._last_results: dict[str, Any] = {}
        self.last_batch: ScoredBatch | None = None
        """The last step's trajectories and advantages."""
        super().__init__(config, **kwargs)

    @classmethod
    def get_default_config(cls) -> TurnwiseConfig:
        """RLlib's hook."""
        return TurnwiseConfig()

    def setup(self, config: Any) -> None:
        """RLlib's hook, with the error of a runner that could not be made."""
        try:
            super().setup(config)
        except IndexError as error:
            # RLlib logs why, goes on, and takes the first of no runners.
            if self.env_runner_group is not None:
                _raise_init_error(self.env_runner_group)
            raise error

    def step(self) -> dict[str, Any]:
        """One iteration, with the share of its time that was neither rollouts nor learning."""
        started = time.perf_counter()
        self._work_seconds = 0.0
        results: dict[str, Any] = super().step()
        seconds = time.perf_counter() - started
        results["overhead_share"] = max(0.0, 1.0 - self._work_seconds / seconds)
        self._last_results = fill_missing(results, self._last_results)
        return self._last_results

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's evaluation, timed."""
        started = time.perf_counter()
        results: dict[str, Any] = super().evaluate(*args, **kwargs)
        self._work_seconds += time.perf_counter() - started
        return results

    def training_step(self) -> None:
        """Sample groups, give credit, update the policy, hand the new weights out."""
        step = self._training_steps
        self._training_steps += 1
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            trajectories = self._sample(step)
        if not trajectories:
            return
        with self.metrics.log_time((TIMERS, BATCH_TIMER)):
            started = time.perf_counter()
            rows = self._credit(step, trajectories)
            self._work_seconds += time.perf_counter() - started
        if rows is None:
            return
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            self._update(rows, sum(len(t.turns) for t in trajectories))
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.push_weights()

    def _sample(self, step: int) -> list[Trajectory]:
        """Play the step's groups on the runners that live; a runner that dies loses its share."""
        config, group = self.config, self.env_runner_group
        assert group is not None
        runners = self._living_runners(group)
        started = time.perf_counter()
        groups = training_groups(
            seed=config.run_seed,
            iteration=step,
            groups=config.groups_per_step,
            group_size=config.group_size,
            num_tasks=self._task_count(group),
        )
        shares = assign_groups(groups, runners)
        if runners == [LOCAL]:
            answers = [_sample_share(group.local_env_runner, shares)]
        else:
            answers = group.foreach_env_runner(
                lambda runner: _sample_share(runner, shares),
                local_env_runner=False,
                remote_worker_ids=runners,
                timeout_seconds=config.sample_timeout_s,
            )
        for answer in answers:
            if answer.error:
                raise RuntimeError(f"Sampling failed on a runner:\n{answer.error}")
        trajectories = [t for answer in answers for t in answer.trajectories]
        metrics = [answer.metrics for answer in answers] or [nothing_played(config)]
        self.metrics.aggregate(metrics, key=ENV_RUNNER_RESULTS)
        self._log_sampling(
            lost=len(groups) - len({t.group for t in trajectories}),
            seconds=time.perf_counter() - started,
        )
        self._empty_steps = 0 if trajectories else self._empty_steps + 1
        if self._empty_steps >= MAX_EMPTY_STEPS:
            raise RuntimeError(
                f"{self._empty_steps} steps in a row brought no rollout: every runner died each "
                "time. Run once with .env_runners(num_env_runners=0) to see the error itself."
            )
        return trajectories

    def _living_runners(self, group: EnvRunnerGroup) -> list[int]:
        """The runners to sample on; if all have died, those that Ray restarts first."""
        if group.num_remote_env_runners() == 0:
            return [LOCAL]
        deadline = time.monotonic() + self.config.env_runner_restore_timeout_s
        while not group.healthy_env_runner_ids():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    "Every runner died, and none came back within env_runner_restore_timeout_s "
                    f"({self.config.env_runner_restore_timeout_s} s)."
                )
            time.sleep(RESTART_POLL_S)
            self.restore_env_runners(group)
        return list(group.healthy_env_runner_ids())

    def _log_sampling(self, *, lost: int, seconds: float) -> None:
        """Log the throughput, and count the slowest runner's time as work."""
        sampled, sampling_seconds = (
            self.metrics.peek((ENV_RUNNER_RESULTS, name), latest_merged_only=True)
            for name in (TOKENS_SAMPLED, SAMPLE_SECONDS)
        )
        self._work_seconds += sampling_seconds
        for name, value in (("lost_groups", lost), ("tokens_per_second", sampled / seconds)):
            self.metrics.log_value((ENV_RUNNER_RESULTS, name), value, reduce="mean")

    def _task_count(self, group: EnvRunnerGroup) -> int | None:
        if not self._num_tasks:
            self._num_tasks = group.foreach_env_runner(
                lambda runner: runner.tasks.size,
                local_env_runner=group.num_remote_env_runners() == 0,
            )[:1]
        return self._num_tasks[0] if self._num_tasks else None

    def _credit(self, step: int, trajectories: list[Trajectory]) -> TrainingRows | None:
        config = self.config
        self.last_batch = score(step, trajectories, config.credit, config.credit_options)
        rows = training_rows(
            self.last_batch,
            aggregation=config.aggregation,
            max_length=config.max_tokens,
            learners=max(1, config.num_learners),
            minibatch_size=config.minibatch_size,
            drop_rows_without_signal=config.drop_rows_without_signal and not config.kl_coef,
            seed=stable_hash("rows", config.run_seed, step),
        )
        share = 0.0 if rows is None else rows.rows / rows.usable
        self.metrics.log_value("rows_with_signal_share", share, reduce="mean")
        return rows

    def _update(self, rows: TrainingRows, turns: int) -> None:
        assert self.learner_group is not None
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(rows.columns)}, env_steps=turns)
        results = self.learner_group.update(
            batch=batch,
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(
                    (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0
                )
            },
            num_epochs=self.config.num_epochs,
            # Always given: RLlib's default counts environment steps, not rows.
            minibatch_size=rows.minibatch_size,
            shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._work_seconds += self.metrics.peek(
            (LEARNER_RESULTS, DEFAULT_MODULE_ID, UPDATE_SECONDS), latest_merged_only=True
        )

    def push_weights(self) -> None:
        """Give the Learner's weights to every runner, and wait until they have them.

        RLlib's `sync_weights` does not wait, and drops the weights for a runner that is still
        taking older ones. By ObjectRef they go from Learner to runner without the driver.
        """
        group, learners = self.env_runner_group, self.learner_group
        if group is None or learners is None:
            return
        if learners.is_remote:
            first = learners._worker_manager.healthy_actor_ids()[0]
            reference = (
                learners.foreach_learner(
                    lambda learner: learner.get_state(components=COMPONENT_RL_MODULE),
                    remote_actor_ids=[first],
                    return_obj_refs=True,
                )
                .result_or_errors[0]
                .get()
            )
            state = None
        else:
            state = learners._learner.get_state(components=COMPONENT_RL_MODULE)
            reference = ray.put(state) if group.num_remote_env_runners() else None
        if group.num_remote_env_runners():
            group.foreach_env_runner(
                "set_state", kwargs={"state": reference}, local_env_runner=False
            )
        if group.local_env_runner is not None:
            group.local_env_runner.set_state(ray.get(reference) if state is None else state)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the policy and its tokenizer in Hugging Face format, to serve or to train on."""
        assert self.learner_group is not None
        module = self.config.get_rl_module_spec(spaces=self.spaces).build()
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        )
        module.set_state(state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID])
        module.lm.save_pretrained(folder)
        module.tokenizer.save_pretrained(folder)

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Restore a checkpoint in place."""
        super().restore_from_path(path, *args, **kwargs)
        self.push_weights()

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's state and the number of steps, on which the tasks depend."""
        state: dict[str, Any] = super().get_state(
            components, not_components=not_components, **kwargs
        )
        state[TRAINING_STEPS] = self._training_steps
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        super().set_state(state)
        self._training_steps = state.get(TRAINING_STEPS, self._training_steps)
        self.push_weights()


@dataclass(frozen=True, slots=True)
class Share:
    """What one runner brings from its share of a step.

    Attributes:
        trajectories: of whole groups.
        metrics: the runner's, reduced.
        error: the traceback of an error that no environment raised; "" is none.
    """

    trajectories: list[Trajectory]
    metrics: dict[str, Any]
    error: str = ""


def _raise_init_error(group: EnvRunnerGroup) -> None:
    """Raise what a runner's constructor raised, if one did."""
    for actor in group._worker_manager.actors().values():
        try:
            ray.get(actor.ping.remote())
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"A runner could not be made: {error}") from error


def _sample_share(runner: EnvRunner, shares: dict[int, list[Group]]) -> Share:
    """Runs on a runner: play its share.

    An exception would end the runner's process, and what it was would be in a worker's log; RLlib
    would restart the process, to meet the same error again. So it is handed to the driver.
    """
    assert isinstance(runner, TurnEnvRunner)
    try:
        episodes = runner.sample_groups(shares[runner.worker_index])
    except Exception:
        return Share([], {}, traceback.format_exc())
    return Share([e.custom_data[TRAJECTORY] for e in episodes], runner.get_metrics())
