"""Rows of JSON and JSONL files, each with its line number, and checked access to their fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

_SHOWN = 60


class DatasetError(ValueError):
    """A file that does not hold what it should, and where."""

    def __init__(self, path: str, line: int, expected: str, found: str) -> None:
        """Args: path, line (from 1), what was expected there, and what was found."""
        super().__init__(path, line, expected, found)
        self.path, self.line, self.expected, self.found = path, line, expected, found

    def __str__(self) -> str:
        """Place, expectation and finding in one line."""
        return f"{self.path}:{self.line}: expected {self.expected}, found {self.found}"


class Mismatch(ValueError):
    """A value that is not what a row should hold; its place is added by the caller."""

    def __init__(self, expected: str, found: str) -> None:
        """Args: what was expected, and what was found."""
        super().__init__(expected, found)
        self.expected, self.found = expected, found


class Row(NamedTuple):
    """One value of a file and the line it starts on; a `Mismatch` where it cannot be read."""

    line: int
    value: Any


def read_rows(path: Path) -> Iterator[Row]:
    """The elements of a JSON list, or the values of a JSONL file, which is read line by line.

    A byte-order mark and blank lines are passed over. A row that is no JSON is a `Mismatch` in
    place of its value; after one inside a JSON list nothing more of the list can be read.

    Raises:
        DatasetError: the file holds nothing.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        first = 0
        lines: Iterator[bytes] = iter(file)
        for first, line in enumerate(lines, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if first == 1 else line
            if line.strip():
                break
        else:
            raise DatasetError(str(path), max(first, 1), "a JSON list or JSONL", "an empty file")
        if line.lstrip().startswith(b"["):
            yield from _read_list(line + b"".join(lines), first)
            return
        yield _read_line(line, first)
        for number, line in enumerate(lines, start=first + 1):
            if line.strip():
                yield _read_line(line, number)


def checked(row: Row, path: Path, parse: Callable[[Any], Any]) -> Any:
    """`parse(row.value)`, where a `Mismatch` becomes the `DatasetError` of that line."""
    try:
        if isinstance(row.value, Mismatch):
            raise row.value
        return parse(row.value)
    except Mismatch as mismatch:
        raise DatasetError(str(path), row.line, mismatch.expected, mismatch.found) from None


def get_text(row: Mapping[str, Any], key: str, *, blank: bool = True) -> str:
    """The text under a key; `blank=False` refuses one without a visible character."""
    return as_text(row.get(key, _ABSENT), repr(key), row, blank=blank)


def get_list(row: Mapping[str, Any], key: str, *, optional: bool = False) -> list[Any]:
    """The list under a key; `optional=True` makes an absent one empty."""
    value = row.get(key, [] if optional else _ABSENT)
    if not isinstance(value, list):
        _mismatch(f"a list under {key!r}", value, row)
    return value


def as_text(value: Any, what: str, row: Mapping[str, Any] | None = None, *, blank: bool) -> str:
    """The value itself if it is a text that can be written as UTF-8."""
    if not isinstance(value, str):
        _mismatch(f"a text under {what}", value, row)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _mismatch(f"a text under {what} that can be written as UTF-8", value, row)
    if not blank and not value.strip():
        _mismatch(f"a text under {what} that is not blank", value, row)
    return value


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """The value itself if it is a JSON object."""
    if not isinstance(value, dict):
        _mismatch(f"{what} as a JSON object", value)
    return value


def as_texts(value: Any, what: str) -> list[str]:
    """The value itself if it is a list of texts."""
    if not isinstance(value, list):
        _mismatch(f"a list of texts under {what}", value)
    return [as_text(v, f"{what}[{i}]", blank=True) for i, v in enumerate(value)]


def shown(value: Any) -> str:
    """A value in an error: its type and its beginning."""
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, default=repr)
    return f"{type(value).__name__} {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"


_ABSENT = object()


def _mismatch(expected: str, value: Any, row: Mapping[str, Any] | None = None) -> NoReturn:
    found = shown(value)
    if value is _ABSENT and row is not None:
        found = "the keys " + (", ".join(map(repr, row)) or "of an empty object")
    raise Mismatch(expected, found)


def _read_line(line: bytes, number: int) -> Row:
    try:
        return Row(number, json.loads(line.decode("utf-8").strip()))
    except UnicodeDecodeError as error:
        return Row(number, Mismatch("UTF-8", f"byte {line[error.start]:#04x} at {error.start}"))
    except json.JSONDecodeError as error:
        start = line.decode("utf-8").strip()[:_SHOWN]
        found = f"{error.msg} at column {error.colno} of {start!r}"
        return Row(number, Mismatch("one JSON value on the line", found))
    except (RecursionError, ValueError) as error:
        return Row(number, Mismatch("one JSON value on the line", _beyond(error)))


def _read_list(data: bytes, line: int) -> Iterator[Row]:
    """The elements of a JSON list whose text starts on `line`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        yield Row(line, Mismatch("UTF-8", f"byte {data[error.start]:#04x}"))
        return
    decode = json.JSONDecoder().raw_decode
    position = text.index("[") + 1
    counted = 0
    empty = True
    while True:
        position = _skip_blanks(text, position)
        line += text.count("\n", counted, position)
        counted = position
        if empty and text.startswith("]", position):
            position += 1
            break
        try:
            value, position = decode(text, position)
        except json.JSONDecodeError as error:
            line += text.count("\n", counted, error.pos)
            yield Row(line, Mismatch("a JSON value", _found(text, error)))
            return
        except (RecursionError, ValueError) as error:
            yield Row(line, Mismatch("a JSON value", _beyond(error)))
            return
        yield Row(line, value)
        empty = False
        position = _skip_blanks(text, position)
        separator = text[position : position + 1]
        position += 1
        if separator == "]":
            break
        if separator != ",":
            line += text.count("\n", counted, position)
            found = repr(separator) if separator else "the end of the file: it is cut off"
            yield Row(line, Mismatch("',' or ']' after an element", found))
            return
    rest = _skip_blanks(text, position)
    if rest < len(text):
        line += text.count("\n", counted, rest)
        yield Row(line, Mismatch("the end of the file after the list", repr(text[rest:][:_SHOWN])))


def _found(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"{error.msg} at column {error.colno}: it is cut off"
    return f"{error.msg} at column {error.colno}: {text[error.pos : error.pos + _SHOWN]!r}"


def _beyond(error: Exception) -> str:
    """JSON past what Python parses: nested too deeply, or an integer of thousands of digits."""
    return f"JSON beyond what Python reads ({error})"


def _skip_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position
