"""From trajectories to the arrays that the Learner trains on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.rllib import batch as b
from turnwise.agents.trajectory import Status, Trajectory, Turn
from turnwise.rewards.verdict import Verdict


def trajectory(
    outcome: float = 1.0,
    group: int = 0,
    actions: tuple[int, ...] = (2, 3),
    status: Status = "terminated",
    first_token: int = 7,
    verdict: Verdict | None = None,
) -> Trajectory:
    """A prompt of two tokens, then `actions` sampled tokens and one observed token in turn."""
    mask, turns = [False, False], []
    for k, length in enumerate(actions):
        start = len(mask)
        mask += [True] * length
        last = k == len(actions) - 1
        if not last:
            mask.append(False)
        turns.append(
            Turn(k, (start, start + length), (start + length, len(mask)), "act", "obs",
                 outcome if last else 0.0)
        )  # fmt: skip
    tokens = np.arange(first_token, first_token + len(mask), dtype=np.int32)
    action_mask = np.array(mask)
    return Trajectory(
        env_id="toy",
        task_id="0",
        group=group,
        tokens=tokens,
        logprobs=np.where(action_mask, -0.5, 0.0).astype(np.float32),
        action_mask=action_mask,
        turns=tuple(turns),
        prompt="?",
        verdict=verdict,
        status=status,
    )


def rows(scored: b.ScoredBatch, **options: object) -> b.TrainingRows | None:
    given_ = {
        "aggregation": "token_mean",
        "max_length": None,
        "learners": 1,
        "minibatch_size": None,
        "drop_rows_without_signal": False,
        "seed": 0,
    } | options
    return b.training_rows(scored, **given_)  # type: ignore[arg-type]


def test_advantages_of_a_group_by_hand() -> None:
    scored = b.score(0, [trajectory(1.0), trajectory(0.0)], "dr_grpo", {})
    # dr_grpo: outcome minus the group's mean, on sampled tokens.
    by_outcome = {t.outcome: a for t, a in zip(scored.trajectories, scored.advantages, strict=True)}
    np.testing.assert_allclose(by_outcome[1.0], [0, 0, 0.5, 0.5, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(by_outcome[0.0], -by_outcome[1.0])


def test_a_failed_rollout_moves_nothing_and_is_not_trained_on() -> None:
    good = [trajectory(1.0), trajectory(0.0, first_token=9)]
    crashed = trajectory(0.0, first_token=11, verdict=Verdict(0.0, "crash"))
    failed = trajectory(0.0, status="failed", actions=())
    scored = b.score(0, [*good, failed, crashed], "grpo", {})
    alone = b.score(0, good, "grpo", {})
    kept = {
        t.tokens.tobytes(): a for t, a in zip(scored.trajectories, scored.advantages, strict=True)
    }
    for t, advantage in zip(alone.trajectories, alone.advantages, strict=True):
        np.testing.assert_array_equal(kept[t.tokens.tobytes()], advantage)
    assert not kept[crashed.tokens.tobytes()].any()
    built = rows(scored)
    assert built is not None
    assert (built.rows, built.usable) == (2, 2)


def test_the_order_in_which_rollouts_come_back_changes_nothing() -> None:
    many = [trajectory(float(i % 3), group=i % 2, first_token=i) for i in range(7)]
    one, other = b.score(0, many, "grpo", {}), b.score(0, many[::-1], "grpo", {})
    for x, y in zip(one.advantages, other.advantages, strict=True):
        np.testing.assert_array_equal(x, y)


def test_columns_are_padded_on_the_right_and_weights_add_up_to_one() -> None:
    scored = b.score(0, [trajectory(1.0), trajectory(0.0, actions=(1,))], "grpo", {})
    built = rows(scored)
    assert built is not None
    columns = built.columns
    assert columns[b.TOKENS].shape == (2, 8)
    assert columns[b.LENGTHS].tolist() == [8, 3]
    assert columns[b.TOKENS][1].tolist() == [7, 8, 9, 0, 0, 0, 0, 0]
    assert columns[b.ACTION_MASK].sum() == 6
    np.testing.assert_allclose(columns[b.WEIGHTS], columns[b.ACTION_MASK] / 6)


def test_rows_without_signal_are_dropped_but_stay_in_the_normaliser() -> None:
    mixed = [trajectory(1.0), trajectory(0.0, first_token=9)]
    same = [trajectory(1.0, group=1, first_token=20), trajectory(1.0, group=1, first_token=30)]
    scored = b.score(0, [*mixed, *same], "grpo", {})
    whole, part = rows(scored), rows(scored, drop_rows_without_signal=True)
    assert whole is not None and part is not None
    assert (whole.rows, part.rows, part.usable) == (4, 2, 4)
    weight = whole.columns[b.WEIGHTS].max()
    np.testing.assert_array_equal(np.unique(part.columns[b.WEIGHTS]), [0, weight])


def test_nothing_to_learn_is_none() -> None:
    same = b.score(0, [trajectory(1.0), trajectory(1.0)], "grpo", {})
    assert rows(same, drop_rows_without_signal=True) is None
    assert rows(b.score(0, [], "grpo", {})) is None
    assert rows(b.score(0, [trajectory(status="failed")], "grpo", {})) is None


def test_unknown_credit_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'grpo'"):
        b.score(0, [trajectory()], "grop", {})


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 23),
    learners=st.integers(1, 4),
    minibatch_size=st.one_of(st.none(), st.integers(1, 9)),
    aggregation=st.sampled_from(["token_mean", "seq_mean_token_mean"]),
)
def test_shards_and_minibatches_hold_every_row_once(
    count: int, learners: int, minibatch_size: int | None, aggregation: str
) -> None:
    many = [
        trajectory(float(i % 2), group=i // 4, actions=(1 + i % 5, 2), first_token=100 * i + 1)
        for i in range(count)
    ]
    scored = b.score(0, many, "grpo", {})
    built = rows(scored, learners=learners, minibatch_size=minibatch_size, aggregation=aggregation)
    assert built is not None
    columns = built.columns
    total = len(columns[b.TOKENS])
    assert total == learners * built.minibatches * built.minibatch_size
    assert minibatch_size is None or built.minibatch_size <= minibatch_size
    real = columns[b.ACTION_MASK].any(1)
    assert sorted(columns[b.TOKENS][real, 0].tolist()) == [100 * i + 1 for i in range(count)]
    # Averaged by DDP over Learners and by the optimiser over minibatches, the weights are 1.
    np.testing.assert_allclose(
        columns[b.WEIGHTS].sum() / (learners * built.minibatches), 1.0, rtol=1e-5
    )
    assert not columns[b.WEIGHTS][~real].any()
    # Filler is spread: no Learner has two rows more than another.
    per_learner = real.reshape(learners, -1).sum(1)
    assert per_learner.max() - per_learner.min() <= 1
