"""Which tasks a step plays, and on which runner."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.agents.rllib.tasks import (
    SEED_BITS,
    TASKS_PER_SEED,
    Group,
    assign_groups,
    evaluation_groups,
    stable_hash,
    task_index,
    training_groups,
)


def groups_of(iteration: int, seed: int = 3, num_tasks: int | None = None) -> list[Group]:
    return training_groups(
        seed=seed, iteration=iteration, groups=4, group_size=2, num_tasks=num_tasks
    )


def test_stable_hash_is_the_same_in_every_process() -> None:
    code = "from turnwise.agents.rllib.tasks import stable_hash; print(stable_hash('a', 1))"
    fresh = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(fresh) == stable_hash("a", 1)
    assert stable_hash("a", 1) != stable_hash("a1")
    assert 0 <= stable_hash("a", 1) < 1 << SEED_BITS


def test_unlimited_tasks_never_repeat() -> None:
    tasks = [g.task for iteration in range(5) for g in groups_of(iteration)]
    assert tasks == list(range(3 * TASKS_PER_SEED, 3 * TASKS_PER_SEED + 20))


@given(st.integers(1, 30), st.integers(0, 5))
def test_finite_tasks_come_once_an_epoch_in_another_order_each_time(size: int, seed: int) -> None:
    epochs = [[task_index(e * size + i, size, seed) for i in range(size)] for e in range(2)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 12:
        assert epochs[0] != epochs[1]


def test_no_tasks_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_tasks must be at least 1"):
        task_index(0, 0, 0)


def test_a_step_is_a_function_of_seed_and_number() -> None:
    assert groups_of(2) == groups_of(2)
    assert groups_of(2) != groups_of(3)
    seeds = [s for iteration in range(10) for g in groups_of(iteration) for s in g.seeds]
    assert len(set(seeds)) == len(seeds)
    assert groups_of(0, seed=4)[0].seeds != groups_of(0, seed=3)[0].seeds


def test_members_of_a_group_share_the_environments_seed_and_differ_in_their_own() -> None:
    group = groups_of(0)[0]
    assert len(set(group.seeds)) == 2
    assert 0 <= group.env_seed < 2**31
    assert group.env_seed != groups_of(0)[1].env_seed


def test_evaluation_has_tasks_and_seeds_of_its_own_that_stay() -> None:
    first = evaluation_groups(range(5), seed=0, num_tasks=3)
    assert [g.task for g in first] == [0, 1, 2, 0, 1]
    assert first == evaluation_groups(range(5), seed=0, num_tasks=3)
    assert len({g.seeds for g in first}) == 5
    training = training_groups(seed=0, iteration=0, groups=5, group_size=1, num_tasks=None)
    assert {g.env_seed for g in first}.isdisjoint(g.env_seed for g in training)


@given(st.integers(1, 20), st.sets(st.integers(1, 9), min_size=1))
def test_every_group_goes_to_one_runner(count: int, runners: set[int]) -> None:
    groups = training_groups(seed=0, iteration=0, groups=count, group_size=1, num_tasks=None)
    shares = assign_groups(groups, sorted(runners))
    dealt = [g for share in shares.values() for g in share]
    assert sorted(dealt, key=lambda g: g.index) == groups
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1


def test_groups_need_a_runner() -> None:
    with pytest.raises(ValueError, match="no runner"):
        assign_groups(groups_of(0), [])
