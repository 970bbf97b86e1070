"""Finding things by name, with an error that lists the nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError, KeyError):
    """A name that is not registered; the message lists the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown `name` of a `kind`, with up to five nearest known names."""
    names = sorted(known)
    folded = {n.lower(): n for n in names}
    near = [folded[m] for m in difflib.get_close_matches(name.lower(), folded, n=5, cutoff=0.4)]
    if near:
        hint = "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    else:
        hint = "Known: " + ", ".join(names) + "."
    return UnknownNameError(f"Unknown {kind} {name!r}. {hint}")


class Registry(dict[str, T]):
    """A dict whose missing key raises `UnknownNameError`."""

    def __init__(self, kind: str) -> None:
        """Args: kind: what its values are, in the singular, for the error message."""
        super().__init__()
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise unknown_name(self.kind, name, self)

    def add(self, name: str, value: T) -> T:
        """Register `value`; a name already taken is a ValueError."""
        if name in self:
            raise ValueError(f"The {self.kind} {name!r} is registered already.")
        self[name] = value
        return value
