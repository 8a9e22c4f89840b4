"""Read the fields of a manifest's mappings.

Each function reports what is wrong and returns a value to go on with. A field that is absent, or BROKEN (which has been
reported), says nothing more.
"""

import math
import re
from difflib import get_close_matches
from functools import lru_cache

from gmcli.text import shorten
from gmcli.yaml_lines import (
    BOOLEAN,
    BROKEN,
    DATE,
    INTEGER,
    LIST,
    LONG_NUMBER,
    MAPPING,
    NULL,
    NUMBER,
    STRING,
    Node,
    Problems,
    quote,
)

MAX_TYPE_CHARS = 64
MAX_OBJECT_ID = 2**31 - 1

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# C0 and C1 control characters, and halves of surrogate pairs, which no file can be written with.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def fields_of(
    problems: Problems, node: Node, what: str, known: tuple[str, ...], required: tuple[str, ...]
) -> dict[str, Node]:
    """Return the known fields of a mapping; report unknown ones and missing ones."""
    if node.kind != MAPPING:
        if node.kind != BROKEN:
            problems.add(node.at, f"{what} must be a mapping, not {node}")
        return {}
    fields: dict[str, Node] = node.value
    for name in required:
        if name not in fields:
            problems.add(node.line, f"{name!r} is missing in {what}")
    for name, value in fields.items():
        if name not in known:
            problems.add(value.at, f"unknown field {quote(name)} in {what}{_suggestion(name, known)}")
    return fields


@lru_cache(maxsize=1024)  # the same slip is often made in every line
def _suggestion(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.7) if len(name) <= 40 else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def _wrong_kind(problems: Problems, name: str, node: Node, expected: str) -> None:
    if node.kind == BROKEN:
        return
    if node.kind == NULL:
        problems.add(node.at, f"{name!r} has no value")
        return
    quotable = expected == STRING and node.kind in (INTEGER, NUMBER, BOOLEAN, DATE, LONG_NUMBER)
    advice = ": put it in quotes" if quotable else ""
    problems.add(node.at, f"{name!r} must be {expected}, not {node}{advice}")


def items_of(problems: Problems, fields: dict[str, Node], name: str) -> list[Node]:
    """Return the nodes of a list that must not be empty."""
    node = fields.get(name)
    if node is None:
        return []
    if node.kind != LIST:
        _wrong_kind(problems, name, node, LIST)
        return []
    items: list[Node] = node.value
    if not items:
        problems.add(node.at, f"{name!r} is empty")
    return items


def string_of(
    problems: Problems, fields: dict[str, Node], name: str, forbidden: re.Pattern[str] = CONTROL
) -> str | None:
    """Return a string that is not blank. forbidden: characters that it must not hold."""
    node = fields.get(name)
    if node is None:
        return None
    if node.kind != STRING:
        _wrong_kind(problems, name, node, STRING)
        return None
    value: str = node.value
    if not value.strip():
        problems.add(node.at, f"{name!r} is empty")
        return None
    bad = forbidden.search(value)
    if bad is not None:
        problems.add(node.at, f"{name!r} must not contain the character {bad.group()!r}: {quote(value)}")
        return None
    return value


def id_of(problems: Problems, fields: dict[str, Node], what: str, seen: dict[str, tuple[str, int]]) -> str | None:
    """Return an id that can be part of a file name everywhere. seen: those before it, in lower case, with their lines."""
    node = fields.get("id")
    if node is None:
        return None
    if node.kind != STRING:
        _wrong_kind(problems, "id", node, STRING)
        return None
    value: str = node.value
    shown = f"{what} id {quote(value)}"
    if not value:
        problems.add(node.at, "'id' is empty")
    elif len(value) > 128:
        problems.add(node.at, f"{shown} is longer than 128 characters")
    elif _ID.fullmatch(value) is None:
        problems.add(node.at, f"{shown} may contain only A-Z, a-z, 0-9, '.', '_' and '-'")
    elif value.startswith("."):
        problems.add(node.at, f"{shown} must not start with '.'")
    elif ".." in value:
        problems.add(node.at, f"{shown} must not contain '..'")
    elif value.lower() in seen:
        first, line = seen[value.lower()]
        if first == value:
            problems.add(node.at, f"{shown} is used twice (first on line {line})")
        else:  # both would be written to one folder where the file system ignores case
            problems.add(node.at, f"{shown} differs only by letter case from {first!r} (line {line})")
    else:
        seen[value.lower()] = (value, node.at)
        return value
    return None


def type_of(problems: Problems, fields: dict[str, Node]) -> str | None:
    """Return a question's type, any short text."""
    value = string_of(problems, fields, "type")
    if value is not None and len(value) > MAX_TYPE_CHARS:
        problems.add(fields["type"].at, f"'type' is longer than {MAX_TYPE_CHARS} characters: {quote(value)}")
    return value


def number_of(problems: Problems, fields: dict[str, Node], name: str) -> float | None:
    """Return a finite number."""
    node = fields.get(name)
    if node is None:
        return None
    if node.kind not in (INTEGER, NUMBER):
        _wrong_kind(problems, name, node, NUMBER)
        return None
    value = float(node.value)
    if not math.isfinite(value):
        problems.add(node.at, f"{name!r} must be a finite number, not {shorten(node.raw)}")
        return None
    return value


def window_of(problems: Problems, fields: dict[str, Node]) -> tuple[float | None, float | None]:
    """Return `start` and `end`, in seconds."""
    start = number_of(problems, fields, "start")
    end = number_of(problems, fields, "end")
    if start is not None and start < 0:
        problems.add(fields["start"].at, f"'start' must not be negative, not {shorten(fields['start'].raw)}")
    if end is not None and end <= max(start or 0.0, 0.0):
        after = fields["start"].raw if start is not None and start > 0 else "0"
        problems.add(
            fields["end"].at, f"'end' must be greater than 'start' ({shorten(after)}), not {shorten(fields['end'].raw)}"
        )
    return start, end


def object_ids_of(problems: Problems, fields: dict[str, Node]) -> tuple[int, ...]:
    """Return the ids of true objects: one, or a list."""
    node = fields.get("object_ids")
    if node is None:
        return ()
    items = [node] if node.kind == INTEGER else items_of(problems, fields, "object_ids")
    for item in items:
        if item.kind == BROKEN:
            continue
        if item.kind != INTEGER or not 0 <= item.value <= MAX_OBJECT_ID:
            problems.add(item.at, f"'object_ids' must be integers from 0 to {MAX_OBJECT_ID}, not {item}")
            break
    return tuple(item.value for item in items)
