"""The slot cache and the table of its rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from turnwise.agents.engines.cache import SlotCache
from turnwise.agents.engines.rows import Rows


def cache(turned: bool = False) -> SlotCache:
    return SlotCache(
        layers=2,
        kv_heads=3,
        key_dim=4,
        value_dim=5,
        max_rows=20,
        max_length=200,
        dtype=torch.float32,
        device=torch.device("cpu"),
        turned_keys=turned,
    )


@pytest.mark.parametrize("turned", [True, False])
def test_growing_keeps_what_is_there(turned: bool) -> None:
    slots = cache(turned)
    assert (slots.rows, slots.capacity) == (8, 64)
    slots.keys[:, :, :, :64].normal_()
    slots.values[:, :, :, :64].normal_()
    keys, values = slots.keys.clone(), slots.values.clone()
    slots.reserve(8, 64)
    assert slots.generation == 0
    slots.reserve(9, 65)
    assert (slots.rows, slots.capacity, slots.generation) == (16, 128, 1)
    torch.testing.assert_close(slots.keys[:, :8, :, :64], keys[:, :, :, :64])
    torch.testing.assert_close(slots.values[:, :8, :, :64], values[:, :, :, :64])
    assert not slots.keys[:, 8:].any() and not slots.keys[:, :, :, 128:].any()
    slots.reserve(17, 130)
    assert (slots.rows, slots.capacity) == (20, 200)
    assert slots.scrap < slots.width
    for too_much in ((21, 1), (1, 201)):
        with pytest.raises(ValueError, match="at most 20 rows of 200"):
            slots.reserve(*too_much)


@pytest.mark.parametrize("turned", [True, False])
def test_copy_and_swap(turned: bool) -> None:
    slots = cache(turned)
    slots.keys.normal_()
    slots.values.normal_()
    keys, values = slots.keys.clone(), slots.values.clone()
    slots.copy(1, [3, 4], 7)
    for row in (3, 4):
        torch.testing.assert_close(slots.keys[:, row, :, :7], keys[:, 1, :, :7])
        torch.testing.assert_close(slots.values[:, row, :, 7:], values[:, row, :, 7:])
    slots.swap(0, 5, 9)
    torch.testing.assert_close(slots.keys[:, 0, :, :9], keys[:, 5, :, :9])
    torch.testing.assert_close(slots.values[:, 5, :, :9], values[:, 0, :, :9])
    torch.testing.assert_close(slots.keys[:, 0, :, 9:], keys[:, 0, :, 9:])


def test_rows_are_taken_low_first_and_the_longest_idle_is_evicted() -> None:
    rows = Rows(3)
    for session in "abc":
        row = rows.take(session)
        rows.fill(row, np.arange(4))
    assert [rows.row_of(s) for s in "abc"] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="All 3 rows"):
        rows.take("d")
    rows.rest(1)
    rows.rest(0)
    assert rows.take("d") == 1 and rows.row_of("b") is None
    rows.rest(2)
    rows.wake(0)
    assert rows.take("e") == 2
    rows.free(0)
    assert rows.row_of("a") is None and rows.take(None) == 0
    rows.rest(0)
    assert rows.length[0] == 0


def test_prefixes() -> None:
    rows = Rows(4)
    for tokens in ([1, 2, 3, 4], [1, 2, 9], [7]):
        rows.fill(rows.take(None), np.array(tokens))
    assert rows.longest_prefix(np.array([1, 2, 3, 5])) == (0, 3)
    assert rows.longest_prefix(np.array([1, 2, 9, 9, 9])) == (1, 3)
    assert rows.longest_prefix(np.array([7])) == (2, 1)
    assert rows.longest_prefix(np.array([0, 0]))[1] == 0
    assert rows.shared_prefix(0, np.array([1, 2, 3])) == 3
    assert rows.shared_prefix(1, np.array([1, 2, 3])) == 2
    long = np.arange(300)
    rows.fill(3, long)
    assert rows.longest_prefix(np.arange(500)) == (3, 300)


def test_misplaced_rows_are_brought_to_the_front() -> None:
    rows = Rows(6)
    for session in range(6):
        rows.fill(rows.take(session), np.array([session]))
    for row in (0, 2, 3):
        rows.rest(row)
    swaps = rows.misplaced()
    assert swaps == [(0, 5), (2, 4)]
    for low, high in swaps:
        rows.swap(low, high)
    assert rows.active.tolist() == [True] * 3 + [False] * 3
    assert [rows.row_of(s) for s in range(6)] == [5, 1, 4, 3, 2, 0]
    for session in range(6):
        row = rows.row_of(session)
        assert row is not None and rows.shared_prefix(row, np.array([session])) == 1
    rows.clear()
    assert rows.row_of(1) is None and not rows.length.any() and not rows.active.any()
