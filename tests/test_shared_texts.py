"""Texts in shared memory: what is written is read, and what does not fit is refused."""

import copy
import multiprocessing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.shared_texts import SharedTexts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_shared_texts_hold_what_was_written(texts):
    shared = SharedTexts.create(len(texts), 200, multiprocessing)
    assert list(shared) == [""] * len(texts)
    for i, text in enumerate(texts):
        shared.write(i, text[:50])
    assert list(shared) == [text[:50] for text in texts]
    frozen: Any = copy.deepcopy(shared)
    shared.write(0, "later")
    assert frozen.dtype == object and frozen[0] == texts[0][:50] and shared[0] == "later"
    assert shared[-len(texts)] == "later" and list(np.asarray(shared)) == list(shared)
    with pytest.raises(IndexError):
        shared[len(texts)]


def test_a_text_that_does_not_fit_says_what_to_write():
    shared = SharedTexts.create(2, 10, multiprocessing)
    shared.write(1, "0123456789")
    with pytest.raises(ValueError, match=r"12 bytes.*10 bytes.*shared_bytes=16"):
        shared.write(0, "🙂🙂🙂")
    assert list(shared) == ["", "0123456789"]
