"""TurnEnvRunner: RLlib's EnvRunner around an engine and the rollout scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Sampling
from turnwise.agents.engines.transformers import TransformersEngine
from turnwise.agents.rllib.environment import Tasks, env_factory
from turnwise.agents.rllib.metrics import SAMPLE_SECONDS, log_episodes
from turnwise.agents.rllib.module import CausalLMModule
from turnwise.agents.rllib.tasks import Group, evaluation_groups
from turnwise.agents.rollout.scheduler import Episode, Scheduler
from turnwise.agents.trajectory import Trajectory

TRAJECTORY = "trajectory"
"""The key of the Trajectory in an episode's `custom_data`."""


def to_episode(trajectory: Trajectory) -> SingleAgentEpisode:
    """RLlib's view of a trajectory: one time step per turn, text in and text out.

    The trajectory itself travels in `custom_data`. Spaces are not given: RLlib would walk through
    every text as a structure.
    """
    episode = SingleAgentEpisode()
    episode.add_env_reset(observation=trajectory.prompt, infos={})
    last = len(trajectory.turns) - 1
    for turn in trajectory.turns:
        ends = turn.index == last
        episode.add_env_step(
            observation=turn.observation,
            action=turn.text,
            reward=turn.reward,
            infos={},
            terminated=ends and trajectory.status == "terminated",
            truncated=ends and trajectory.status != "terminated",
        )
    episode.custom_data[TRAJECTORY] = trajectory
    return episode


class TurnEnvRunner(EnvRunner, Checkpointable):
    """Plays whole episodes in whole groups, many at once, over one copy of the model."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        """RLlib's constructor.

        Args:
            config: a TurnwiseConfig.
            **kwargs: RLlib's; `worker_index` is used (0 is in the driver's process).
        """
        super().__init__(config=config, **kwargs)
        self.worker_index = kwargs.get("worker_index") or 0
        # Ray gives a worker one CPU; more threads than CPUs are many times slower than one.
        threads = self.config.num_torch_threads or (1 if self.worker_index else None)
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = get_device(
            self.config, self.config.num_gpus_per_env_runner if self.worker_index else 0
        )
        self._weights_seq_no = 0
        self._schedulers: dict[float, Scheduler] = {}
        self._cursor = 0
        self._callbacks = [make() for make in force_list(self.config.callbacks_class)]
        self.make_env()
        self.make_module()

    def make_env(self) -> None:
        """Make the first environment; the scheduler asks for the others when it needs them."""
        self._make_env = env_factory(self.config.env, self.config.env_config)
        self.env = self._make_env()
        self.tasks = Tasks.of(self.env)
        spare = [self.env]

        def make() -> gym.Env[str, str]:
            return spare.pop() if spare else self._make_env()

        self._next_env: Callable[[], gym.Env[str, str]] = make
        self._schedulers.clear()

    def make_module(self) -> None:
        """Build the module and an engine over its language model."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        module = spec.build()
        assert isinstance(module, CausalLMModule)
        self.module = module.to(self._device).eval()
        self.chat = Chat(module.tokenizer)
        self.engine = TransformersEngine(
            module.lm,
            module.tokenizer,
            max_batch=self.config.concurrency,
            max_length=self.config.max_tokens,
        )
        self._schedulers.clear()

    def get_spaces(self) -> dict[str, tuple[gym.Space[Any], gym.Space[Any]]]:
        """RLlib's hook: the spaces of the environment, which are also the module's."""
        assert self.env is not None
        spaces = (self.env.observation_space, self.env.action_space)
        return {
            INPUT_ENV_SPACES: spaces,
            INPUT_ENV_SINGLE_SPACES: spaces,
            DEFAULT_MODULE_ID: spaces,
        }

    def assert_healthy(self) -> None:
        """RLlib's hook: whether construction came to its end."""
        assert self.module is not None

    def stop(self) -> None:
        """Close the environments."""
        for scheduler in self._schedulers.values():
            scheduler.close()
        env: Any = self.env
        # A scheduler closes the environments it was given, this one among them.
        if not self._schedulers and env is not None:
            env.close()
        self._schedulers.clear()

    def sample_groups(self, groups: Sequence[Group]) -> list[SingleAgentEpisode]:
        """Play the groups of a training iteration."""
        return self._play(groups, explore=True)

    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        **kwargs: Any,
    ) -> list[SingleAgentEpisode]:
        """Play one episode of each of the next tasks, as RLlib's evaluation asks for.

        Runner w of W plays tasks w - 1, w - 1 + W, ...: together they play the first tasks, and an
        evaluation plays the same ones with the same seeds as the one before.

        Args:
            num_timesteps: play until there are so many turns.
            num_episodes: play so many episodes; 1 if neither is given.
            explore: False plays greedily; None does what the config says.
            random_actions: not for a language model.
            force_reset: start again with the first task; so does every local call.
            **kwargs: RLlib's own.
        """
        if random_actions:
            raise ValueError("A language model has no random actions: leave random_actions=False.")
        explore = bool(self.config.explore if explore is None else explore)
        if force_reset or not self.worker_index:
            self._cursor = 0
        if num_timesteps is None:
            return self._play(self._next_tasks(num_episodes or 1), explore=explore)
        episodes: list[SingleAgentEpisode] = []
        while sum(len(e) for e in episodes) < num_timesteps:
            # An episode that fails before its first turn has no steps: not only steps count.
            missing = num_timesteps - sum(len(e) for e in episodes) - len(episodes)
            number = min(max(missing, 1), self.config.concurrency)
            episodes += self._play(self._next_tasks(number), explore=explore)
            if len(episodes) > 2 * num_timesteps:
                break
        return episodes

    def _next_tasks(self, number: int) -> list[Group]:
        first, stride = max(self.worker_index - 1, 0), max(self.config.num_env_runners, 1)
        indices = [first + stride * (self._cursor + i) for i in range(number)]
        self._cursor += number
        return evaluation_groups(indices, seed=self.config.run_seed, num_tasks=self.tasks.size)

    def _play(self, groups: Iterable[Group], *, explore: bool) -> list[SingleAgentEpisode]:
        started = time.perf_counter()
        episodes = [
            Episode(
                group=g.index,
                member=m,
                seed=seed,
                env_seed=g.env_seed,
                options=self.tasks.options(g.task),
            )
            for g in groups
            for m, seed in enumerate(g.seeds)
        ]
        trajectories = list(self._scheduler(explore).run(episodes))
        log_episodes(self.metrics, trajectories)
        self.num_env_steps_sampled_lifetime += sum(len(t.turns) for t in trajectories)
        self.metrics.log_value(WEIGHTS_SEQ_NO, self._weights_seq_no, reduce="min")
        samples = [to_episode(t) for t in trajectories]
        self._call_back(samples)
        self.metrics.log_value(SAMPLE_SECONDS, time.perf_counter() - started, reduce="max")
        return samples

    def _scheduler(self, explore: bool) -> Scheduler:
        """One scheduler per temperature, made when first needed; they share the engine."""
        temperature = self.config.temperature if explore else 0.0
        if temperature not in self._schedulers:
            self._schedulers[temperature] = Scheduler(
                self.engine,
                self.chat,
                self._next_env,
                sampling=Sampling(
                    max_new_tokens=self.config.max_new_tokens, temperature=temperature
                ),
                probe=self.config.probe,
                concurrency=self.config.concurrency,
                step_timeout_s=self.config.step_timeout_s,
            )
        return self._schedulers[temperature]

    def _call_back(self, samples: list[SingleAgentEpisode]) -> None:
        """Call the user's RLlib callbacks."""
        shared = {"env_runner": self, "metrics_logger": self.metrics}
        for episode in samples:
            make_callback(
                "on_episode_end",
                callbacks_objects=self._callbacks,
                callbacks_functions=self.config.callbacks_on_episode_end,
                kwargs={
                    **shared,
                    "episode": episode,
                    "env": self.env,
                    "env_index": 0,
                    "rl_module": self.module,
                    "prev_episode_chunks": [],
                },
            )
        make_callback(
            "on_sample_end",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_sample_end,
            kwargs={**shared, "samples": samples},
        )

    def get_metrics(self) -> dict[str, Any]:
        """What was logged since the last call."""
        metrics: dict[str, Any] = self.metrics.reduce()
        return metrics

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The weights, if asked for, and the counters; the tasks depend on no state."""
        state: dict[str, Any] = {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime
        }
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = {DEFAULT_MODULE_ID: self.module.get_state()}
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take weights and counters; the state, or its weights, may be an ObjectRef.

        RLlib's own runners ignore weights that are not newer than theirs, so that a checkpoint
        restored in place never reaches them. Here whatever is given is loaded.
        """
        if isinstance(state, ray.ObjectRef):
            state = ray.get(state)
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            if isinstance(weights, ray.ObjectRef):
                weights = ray.get(weights)
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
            self._weights_seq_no = int(state.get(WEIGHTS_SEQ_NO, 0))
            self.engine.load_weights(None, self._weights_seq_no)
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """RLlib's hook for checkpoints."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        """None: the Learner's copy of the weights in a checkpoint is enough."""
        return []
