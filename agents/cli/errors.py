"""Errors: what the user can put right is one line, without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """The command was called wrongly; the message says what to type."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Around setting up: a wrong name, value or file in here is a `UsageError`."""
    try:
        yield
    except (ValueError, ModuleNotFoundError, OSError) as error:
        raise UsageError(str(error)) from error
