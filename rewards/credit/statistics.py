"""Scope, centring and scaling: comparing each value with the values it stands among.

Every function takes `value` float64[...], `scope` int64[...] (values of one scope are compared with
one another; broadcast against `value`) and `include` bool[...] (values that are left out move no
other value and give 0), and returns float64 of the shape of `value`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from turnwise.rewards.credit.batch import Bools, Floats, Ints

Singleton = Literal["zero", "value"]
"""What a value alone in its scope gives: 0, or the value itself (as verl and TRL do)."""


def counts(scope: Ints, include: Bools) -> Ints:
    """int64[...], how many included values stand in each value's scope."""
    index, size = _dense(scope, include.shape)
    return np.bincount(index[include], minlength=size)[index]


def centred(value: Floats, scope: Ints, include: Bools) -> Floats:
    """Each value minus the mean of its scope: exactly 0 in a scope of equal values."""
    index, size = _dense(scope, value.shape)
    chosen, at = value[include], index[include]
    # Relative to the smallest value of the scope, equal values are zeros, and so is their mean;
    # the mean of equal floats itself need not equal them.
    smallest = np.full(size, np.inf)
    np.minimum.at(smallest, at, chosen)
    chosen = chosen - smallest[at]
    mean = np.bincount(at, chosen, minlength=size) / np.maximum(np.bincount(at, minlength=size), 1)
    result = np.zeros(value.shape)
    result[include] = chosen - mean[at]
    return result


def leave_one_out(value: Floats, scope: Ints, include: Bools) -> Floats:
    """Each value minus the mean of the other values of its scope; 0 for a value alone."""
    n = counts(scope, include)
    return centred(value, scope, include) * n / np.maximum(n - 1, 1)


def variance(value: Floats, scope: Ints, include: Bools, *, population: bool) -> Floats:
    """The variance of each value's scope; 0 for a value alone.

    Args:
        value: float64[...].
        scope: int64[...].
        include: bool[...].
        population: divide by n; otherwise by n - 1 (unbiased).
    """
    index, size = _dense(scope, value.shape)
    square = centred(value, scope, include)[include] ** 2
    n = np.bincount(index[include], minlength=size)
    degrees = np.maximum(n if population else n - 1, 1)
    total: Floats = np.bincount(index[include], square, minlength=size) / degrees
    return total[index]


def standard_score(
    value: Floats,
    scope: Ints,
    include: Bools,
    *,
    eps: float,
    population: bool = False,
    eps_under_root: bool = False,
) -> Floats:
    """Each value centred and divided by the standard deviation of its scope.

    Args:
        value: float64[...].
        scope: int64[...].
        include: bool[...].
        eps: keeps the divisor from 0.
        population: divide by n in the variance; otherwise by n - 1 (unbiased).
        eps_under_root: divide by `sqrt(variance + eps)` instead of `sqrt(variance) + eps`.
    """
    spread = variance(value, scope, include, population=population)
    divisor = np.sqrt(spread + eps) if eps_under_root else np.sqrt(spread) + eps
    # eps may be 0: a scope without spread is all zeros already.
    return centred(value, scope, include) / np.where(divisor == 0, 1.0, divisor)


def whitened(value: Floats, include: Bools, *, eps: float) -> Floats:
    """All included values as one scope: `(value - mean) / sqrt(variance + eps)`, unbiased.

    Args:
        value: float64[...].
        include: bool[...].
        eps: keeps the divisor from 0.
    """
    chosen = value[include]
    # Relative to the smallest for the reason given in `centred`.
    chosen = chosen - chosen.min(initial=np.inf)
    chosen -= chosen.sum() / max(len(chosen), 1)
    spread = (chosen**2).sum() / max(len(chosen) - 1, 1)
    result = np.zeros(value.shape)
    result[include] = chosen / np.sqrt(spread + eps)
    return result


def keep_singletons(
    result: Floats, value: Floats, scope: Ints, include: Bools, singleton: Singleton
) -> Floats:
    """`result`, with a value alone in its scope kept as it is where `singleton` is "value"."""
    if singleton == "zero":
        return result
    if singleton != "value":
        raise ValueError(f'singleton must be "zero" or "value", not {singleton!r}')
    return np.where(include & (counts(scope, include) == 1), value, result)


def _dense(scope: Ints, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], int]:
    """The scopes numbered 0, 1, ..., in the shape of the values, and how many there are."""
    names, index = np.unique(scope, return_inverse=True)
    return np.broadcast_to(index.reshape(scope.shape), shape), len(names)
