"""Evaluation: how often a policy solves tasks, with intervals, on the same questions every time."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Engine, Sampling
from turnwise.agents.rollout.scheduler import Episode, Scheduler
from turnwise.agents.trajectory import Trajectory

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


class Estimate(NamedTuple):
    """A rate and its 95 % interval; all NaN where nothing was measured."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as `0.81 [0.75, 0.86]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class TaskResult(NamedTuple):
    """One task's episodes; those whose infrastructure failed count in `failed` alone.

    Attributes:
        task: index of the task.
        task_id: as the environment names it; "" where every episode failed before it said.
        played: episodes that could be judged.
        correct: how many of them solved the task.
        score: mean outcome of them; NaN without any.
        failed: episodes whose infrastructure failed.
    """

    task: int
    task_id: str
    played: int
    correct: int
    score: float
    failed: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy did on `tasks` tasks, `samples` episodes each.

    Attributes:
        tasks: how many were asked.
        samples: episodes per task.
        success: share of episodes that solved their task, averaged over tasks; Wilson's interval
            with one observation per task, which for `samples > 1` is wider than need be, never
            narrower (a mean in [0, 1] varies at most like a coin).
        score: mean outcome over tasks.
        pass_at_k: for k = 1..samples, over the tasks with at least k judged episodes; Wilson's
            interval with one observation per task, as for success. (A bootstrap or a normal
            interval has no width where every task gave the same.)
        turns: mean turns of an episode.
        tokens: mean sampled tokens of an episode.
        tokens_per_s: sampled tokens per second of the whole evaluation, failed episodes included.
        seconds: it took.
        statuses: judged episodes by verdict status.
        failed: episodes whose infrastructure failed, twice; they enter no rate.
        results: one for each task, in order.
        trajectories: in order of task, where they were to be kept.
    """

    tasks: int
    samples: int
    success: Estimate
    score: float
    pass_at_k: Mapping[int, Estimate]
    turns: float
    tokens: float
    tokens_per_s: float
    seconds: float
    statuses: Mapping[str, int]
    failed: int
    results: tuple[TaskResult, ...]
    trajectories: tuple[Trajectory, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values, without tasks and trajectories; NaN is None."""
        return {
            "tasks": self.tasks,
            "samples": self.samples,
            "success": _plain(self.success.value),
            "success_ci95": [_plain(self.success.low), _plain(self.success.high)],
            "score": _plain(self.score),
            "pass_at_k": {
                str(k): {"value": _plain(e.value), "ci95": [_plain(e.low), _plain(e.high)]}
                for k, e in self.pass_at_k.items()
            },
            "turns": _plain(self.turns),
            "tokens": _plain(self.tokens),
            "tokens_per_s": _plain(self.tokens_per_s),
            "seconds": _plain(self.seconds),
            "statuses": dict(self.statuses),
            "failed": self.failed,
        }


def evaluate(
    engine: Engine,
    chat: Chat,
    make_env: Callable[[], gym.Env[str, str]],
    *,
    tasks: int,
    samples: int = 1,
    sampling: Sampling,
    seed: int = 0,
    concurrency: int = 64,
    keep_trajectories: bool = False,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> Evaluation:
    """Play tasks 0, 1, ... and sum up.

    Task i is `options={"task": i}` where the environment counts its tasks (`num_tasks`), and the
    environment's seed i elsewhere. The seeds are functions of (seed, task, sample) alone, so two
    policies answer the same questions.

    Args:
        engine: the policy.
        chat: messages to tokens.
        make_env: makes an environment; called as often as episodes are in flight.
        tasks: how many.
        samples: episodes per task, for pass@k.
        sampling: of a turn.
        seed: of the sampling.
        concurrency: episodes in flight.
        keep_trajectories: keep every token.
        on_episode: called with each trajectory as it ends, in any order.

    Raises:
        ValueError: a count below 1, or more tasks than the environment has.
    """
    if tasks < 1 or samples < 1:
        raise ValueError(f"tasks and samples must be at least 1, not {tasks} and {samples}")
    first = make_env()
    by_index = hasattr(first.unwrapped, "num_tasks")
    size = getattr(first.unwrapped, "num_tasks", None)
    if size is not None and tasks > size:
        first.close()
        raise ValueError(f"The environment has {size} tasks; {tasks} were asked for.")
    spare = [first]
    scheduler = Scheduler(
        engine,
        chat,
        lambda: spare.pop() if spare else make_env(),
        sampling=sampling,
        concurrency=concurrency,
    )
    played: list[Trajectory] = []
    begun = time.perf_counter()
    try:
        for trajectory in scheduler.run(_episodes(tasks, samples, seed, by_index=by_index)):
            played.append(trajectory)
            if on_episode is not None:
                on_episode(trajectory)
    finally:
        scheduler.close()
    evaluation = summarise(
        played, tasks=tasks, samples=samples, seconds=time.perf_counter() - begun
    )
    if not keep_trajectories:
        return evaluation
    ordered = tuple(sorted(played, key=lambda t: (t.group, t.tokens.tobytes())))
    return replace(evaluation, trajectories=ordered)


def summarise(
    played: Sequence[Trajectory], *, tasks: int, samples: int, seconds: float
) -> Evaluation:
    """The evaluation that finished episodes amount to; a trajectory's `group` is its task."""
    results = tuple(_result(i, group) for i, group in enumerate(_by_task(played, tasks)))
    judged = [t for t in played if t.ok]
    measured = [r for r in results if r.played]
    tokens = [int(t.action_mask.sum()) for t in played]
    return Evaluation(
        tasks=tasks,
        samples=samples,
        success=wilson(math.fsum(r.correct / r.played for r in measured), len(measured)),
        score=_mean([r.score for r in measured]),
        pass_at_k={k: _pass_at_k(measured, k) for k in range(1, samples + 1)},
        turns=_mean([len(t.turns) for t in judged]),
        tokens=_mean([int(t.action_mask.sum()) for t in judged]),
        tokens_per_s=sum(tokens) / max(seconds, 1e-9),
        seconds=seconds,
        statuses=dict(sorted(Counter(status(t) for t in judged).items())),
        failed=len(played) - len(judged),
        results=results,
    )


def status(trajectory: Trajectory) -> str:
    """The verdict's status, "correct" or "wrong" without a verdict, or "failed"."""
    if not trajectory.ok:
        return "failed"
    if trajectory.verdict is not None:
        return trajectory.verdict.status
    return "correct" if trajectory.success else "wrong"


def wilson(successes: float, trials: int, z: float = Z95) -> Estimate:
    """Wilson's score interval for a proportion (Wilson 1927; exact formula).

    Args:
        successes: in [0, trials]; need not be whole.
        trials: 0 gives NaN.
        z: quantile of the normal distribution, 1.96 for 95 %.
    """
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan)
    p = successes / trials
    scale = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / scale
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / scale
    return Estimate(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that one of k episodes drawn from n, c of them correct, is correct.

    `1 - C(n - c, k) / C(n, k)` (Chen et al. 2021, equation 1; exact), unbiased for the chance that
    k fresh episodes hold a correct one.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def episode_seed(seed: int, task: int, sample: int) -> int:
    """The sampling seed of an episode: a 62-bit hash of its coordinates."""
    digest = hashlib.blake2b(f"{seed}/{task}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _episodes(tasks: int, samples: int, seed: int, *, by_index: bool) -> Iterable[Episode]:
    for task in range(tasks):
        for sample in range(samples):
            yield Episode(
                group=task,
                member=sample,
                seed=episode_seed(seed, task, sample),
                env_seed=task,
                options={"task": task} if by_index else {},
            )


def _by_task(played: Sequence[Trajectory], tasks: int) -> list[list[Trajectory]]:
    groups: list[list[Trajectory]] = [[] for _ in range(tasks)]
    for trajectory in played:
        groups[trajectory.group].append(trajectory)
    return groups


def _result(task: int, episodes: list[Trajectory]) -> TaskResult:
    judged = [t for t in episodes if t.ok]
    return TaskResult(
        task=task,
        task_id=next((t.task_id for t in episodes if t.task_id), ""),
        played=len(judged),
        correct=sum(t.success for t in judged),
        score=_mean([t.outcome for t in judged]),
        failed=len(episodes) - len(judged),
    )


def _pass_at_k(results: Sequence[TaskResult], k: int) -> Estimate:
    enough = [pass_at_k(r.played, r.correct, k) for r in results if r.played >= k]
    return wilson(math.fsum(enough), len(enough))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
