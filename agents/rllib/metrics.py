"""What a run reports about its episodes, the same for training and evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.metrics.stats import MeanStats, StatsBase
from ray.rllib.utils.metrics.stats.utils import batch_values_to_cpu

from turnwise.agents.trajectory import Trajectory

FAILURES = "failures"
ACTION_TOKENS = "action_tokens"
TOKENS_SAMPLED = "num_action_tokens_sampled"
SAMPLE_SECONDS = "sample_seconds"


class EpisodeMean(MeanStats):
    """A mean over episodes, whichever runner played them.

    RLlib's MeanStats reduces on every runner first: a mean of means, in which the episodes of a
    runner that played few count for more.
    """

    stats_cls_identifier = "episode_mean"

    def reduce(self, compile: bool = True) -> Any:
        """Keep every value until the root compiles them."""
        if compile:
            return super().reduce(compile=True)
        values = batch_values_to_cpu(self.values)
        self._set_values([])
        stats = self.clone()
        stats.values = values
        return stats


STATS: dict[str, type[StatsBase]] = {"episode_mean": EpisodeMean}
"""For `AlgorithmConfig.stats_cls_lookup`."""


def failure(trajectory: Trajectory) -> str | None:
    """What kept an episode from being learned from: "failed", or the verdict's status."""
    if trajectory.status == "failed":
        return "failed"
    if trajectory.verdict is not None and not trajectory.verdict.ok:
        return trajectory.verdict.status
    return None


def log_episodes(metrics: MetricsLogger, trajectories: Sequence[Trajectory]) -> None:
    """Log the episodes of one `sample` call; failed ones are counted and enter no mean."""
    judged = [t for t in trajectories if t.ok]
    steps = sum(len(t.turns) for t in trajectories)
    tokens = int(sum(t.action_mask.sum() for t in trajectories))
    sums = {
        NUM_EPISODES: len(trajectories),
        NUM_ENV_STEPS_SAMPLED: steps,
        TOKENS_SAMPLED: tokens,
    }
    for name, number in sums.items():
        metrics.log_value(name, number, reduce="sum")
    metrics.log_value(NUM_EPISODES_LIFETIME, len(trajectories), reduce="lifetime_sum")
    metrics.log_value(
        NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True
    )
    failures = Counter(failure(t) for t in trajectories)
    for status in ("failed", "timeout", "crash"):
        metrics.log_value((FAILURES, status), failures[status], reduce="sum")
    for t in judged:
        total = float(sum(turn.reward for turn in t.turns))
        means = {
            EPISODE_RETURN_MEAN: total,
            EPISODE_LEN_MEAN: len(t.turns),
            "success_mean": float(t.success),
            "turns_mean": len(t.turns),
            "reward_per_turn": total / max(len(t.turns), 1),
            ACTION_TOKENS: int(t.action_mask.sum()),
        }
        for name, mean in means.items():
            metrics.log_value(name, mean, reduce="episode_mean")


def nothing_played(config: AlgorithmConfig) -> dict[str, Any]:
    """The metrics of a step that brought no episode: counts of 0, and no means."""
    metrics = MetricsLogger(stats_cls_lookup=config.stats_cls_lookup, root=False)
    log_episodes(metrics, [])
    metrics.log_value(SAMPLE_SECONDS, 0.0, reduce="max")
    reduced: dict[str, Any] = metrics.reduce()
    return reduced


def fill_missing(results: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN by the last known value, in nested dicts.

    An iteration without data leaves the policy as it was: what was last measured still holds, and
    a stop condition or a scheduler is not handed a NaN.
    """
    filled = {}
    for key, value in results.items():
        before = last.get(key)
        if isinstance(value, dict):
            filled[key] = fill_missing(value, before if isinstance(before, dict) else {})
        elif isinstance(value, float) and math.isnan(value) and before is not None:
            filled[key] = before
        else:
            filled[key] = value
    return filled
