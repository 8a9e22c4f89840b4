"""Read YAML and JSON into plain values that know their line, from files that nobody vouches for.

Nothing here constructs an object from a tag, follows an alias, recurses without bound or raises for bad input: what is
wrong goes into `Problems` with its line, and reading goes on where it can.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO, NoReturn

import yaml

from gmcli.text import shorten

MAX_DEPTH = 16
# libyaml 0.2.6 looks ahead and gives up by itself at a thousand.
_TOO_DEEP = "exceeded maximum nesting depth"
MAX_VALUES = 5_000_000  # of one YAML file, keys included; each costs some 200 bytes and 5 µs
MAX_LINE_VALUES = 1_000_000  # of one JSON line
MAX_LINE_BYTES = 16 << 20
MAX_LINES = 10_000_000  # blank ones, too, each of which takes its 70 ns
MAX_PROBLEMS = 100_000  # kept as text: 100 MB where paths are long
MAX_DIRECTIVES = 100  # libyaml compares each with all before it: a few megabytes of them take hours
MAX_NUMBER_CHARS = 100  # Python's int() refuses 4300 digits, and is slow long before that

# What a Node holds, in words that fit behind "must be" and "not".
STRING = "a string"
INTEGER = "an integer"
NUMBER = "a number"
BOOLEAN = "a boolean"
NULL = "null"
DATE = "a date"
LIST = "a list"
MAPPING = "a mapping"
MERGE = "a merge key"
LONG_NUMBER = "a number with too many digits"
BROKEN = "broken"  # already reported: nobody complains about it again

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_resolver = yaml.resolver.Resolver()
_constructor = yaml.constructor.SafeConstructor()

_TAG = "tag:yaml.org,2002:"
_STRING_TAG = _TAG + "str"
_ODD_KINDS = {_TAG + "timestamp": DATE, _TAG + "merge": MERGE}
_JSON_EXPONENT = re.compile(r"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+")
_SURROGATE_PAIR = re.compile(rb"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
# YAML ends a line at these too; editors, grep and the reader of our messages do not.
_EXOTIC_BREAK = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")
_EXOTIC_ESCAPES = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


class Stop(Exception):
    """Say that reading cannot go on; the reason has been added to the Problems."""


class Problems:
    """Collect what is wrong with a file, each with its line (0: the file as a whole)."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, line: int, message: str) -> None:
        """Note one problem. Raise Stop where there are so many that they would fill the memory."""
        self._found.append((line, message))
        if len(self._found) >= MAX_PROBLEMS:
            raise Stop

    def stop(self, line: int, message: str) -> NoReturn:
        """Note one problem behind which nothing can be read, and raise Stop."""
        self.add(line, message)
        raise Stop

    def in_file_order(self, name: str) -> list[str]:
        """Return `name:line: message` for all problems, by line; those of one line in the order of their discovery."""
        name = name if name.isprintable() else repr(name)
        found = sorted(self._found, key=lambda problem: problem[0])
        shown = [f"{name}:{line}: {message}" if line else f"{name}: {message}" for line, message in found]
        if len(found) >= MAX_PROBLEMS:
            shown.append(f"{name}: stopped after {MAX_PROBLEMS} problems")
        return shown


@dataclass(slots=True)
class Node:
    """Hold one value of a file.

    `kind` is one of the constants above, `value` a str, int, float, bool, None, list of Node or dict of str to Node.
    `line` is where the value starts, `at` where to look for it: the line of its key, if it has one. `raw` is how the
    file spells a scalar that is no string.
    """

    kind: str
    value: Any
    line: int
    at: int
    raw: str = ""

    def __str__(self) -> str:
        if self.kind == STRING:
            return f"the string {quote(self.value)}"
        return f"{self.kind} ({shorten(self.raw)})" if self.raw and self.kind != NULL else self.kind


def quote(text: str, limit: int = 60) -> str:
    """Return `text` in quotes for a message: shortened, on one line, without control characters."""
    return repr(shorten(text, limit))


def put(mapping: Node, key: Node, value: Node, problems: Problems) -> None:
    """Add a field to a mapping, or report why it cannot be one: a key that is no string, or that was there before."""
    fields: dict[str, Node] = mapping.value
    if key.kind == MERGE:
        problems.add(key.line, "merge keys ('<<') are not allowed")
    elif key.kind == BROKEN:
        pass
    elif key.kind != STRING:
        problems.add(key.line, f"a field name must be a string, not {key}")
    elif key.value in fields:
        first = fields[key.value].at
        where = f" (first on line {first})" if first != key.line else ""
        problems.add(key.line, f"field {quote(key.value)} is given twice{where}")
    else:
        value.at = key.line
        fields[key.value] = value


# YAML


def load_yaml(data: bytes, problems: Problems, *, is_json: bool = False) -> Node | None:
    """Return the one document of a YAML file, or None if the file is empty.

    With `is_json` the file is a JSON document: what YAML 1.1 reads otherwise (surrogate pairs, exponents without a
    dot, tabs around the document, U+2028) is read as JSON does. Aliases, anchors, tags, merge keys, repeated keys and
    further documents are reported and passed over. Raise Stop behind what ends the reading: bytes that are not UTF-8,
    a syntax error, nesting deeper than MAX_DEPTH, more than MAX_VALUES values.
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.stop(data.count(b"\n", 0, error.start) + 1, _not_utf8(error))
    if data.count(b"%TAG") > MAX_DIRECTIVES:
        problems.stop(data.count(b"\n", 0, data.find(b"%TAG")) + 1, "tags are not allowed (%TAG)")
    if is_json:
        data = _json_as_yaml(data)
    exotic = _exotic_lines(data)
    try:
        return _build(yaml.parse(data, Loader=_Loader), exotic, problems, is_json)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line - bisect_right(exotic, mark.line) + 1 if mark else 1
        if error.problem == _TOO_DEEP:
            problems.stop(line, f"nested more than {MAX_DEPTH} deep")
        reason = ": ".join(part for part in (error.context, error.problem) if part)
    except yaml.reader.ReaderError as error:
        line = data.count(b"\n", 0, error.position) + 1
        reason = str(error).splitlines()[0]
    problems.stop(line, f"not valid YAML: {' '.join(reason.split())}")


def _build(events: Iterator[Any], exotic: list[int], problems: Problems, is_json: bool) -> Node | None:
    root: Node | None = None
    stack: list[tuple[Node, list[Node]]] = []  # open collections; for a mapping also the key that waits for its value
    documents = values = 0
    for event in events:
        line = event.start_mark.line + 1
        if exotic:
            line -= bisect_right(exotic, line - 1)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents == 2:
                problems.add(line, "a second YAML document: a manifest is one document")
                break
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        values += 1
        if values > MAX_VALUES:
            problems.stop(line, f"more than {MAX_VALUES} values: use JSONL (one video a line)")
        node = _node(event, line, problems, is_json)
        if not stack:
            root = node
        elif stack[-1][0].kind == LIST:
            stack[-1][0].value.append(node)
        elif stack[-1][1]:
            put(stack[-1][0], stack[-1][1].pop(), node, problems)
        else:
            stack[-1][1].append(node)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) == MAX_DEPTH:
                problems.stop(line, f"nested more than {MAX_DEPTH} deep")
            stack.append((node, []))
    return root


def _node(event: Any, line: int, problems: Problems, is_json: bool) -> Node:
    if isinstance(event, yaml.AliasEvent):
        problems.add(line, "aliases are not allowed (they can expand without bound)")
        return Node(BROKEN, None, line, line)
    if event.anchor is not None:
        problems.add(line, "anchors are not allowed (aliases to them can expand without bound)")
    if event.tag is not None:
        problems.add(line, f"tags are not allowed ({quote(event.tag)})")
    if isinstance(event, yaml.SequenceStartEvent):
        return Node(LIST, [], line, line)
    if isinstance(event, yaml.MappingStartEvent):
        return Node(MAPPING, {}, line, line)
    raw: str = event.value
    if event.tag is not None:
        return Node(BROKEN, None, line, line)
    if not event.implicit[0]:  # quoted, or a block scalar
        return Node(STRING, raw, line, line)
    return _plain_scalar(raw, line, is_json)


def _plain_scalar(raw: str, line: int, is_json: bool) -> Node:
    tag = _resolver.resolve(yaml.ScalarNode, raw, (True, False))  # type: ignore[no-untyped-call]
    if tag == _STRING_TAG:
        if is_json and _JSON_EXPONENT.fullmatch(raw):
            return Node(NUMBER, float(raw), line, line, raw)
        return Node(STRING, raw, line, line)
    node = yaml.ScalarNode(tag, raw)
    if tag == _TAG + "null":
        return Node(NULL, None, line, line, raw)
    if tag == _TAG + "bool":
        return Node(BOOLEAN, _constructor.construct_yaml_bool(node), line, line, raw)
    if tag in (_TAG + "int", _TAG + "float"):
        if len(raw) > MAX_NUMBER_CHARS:
            return Node(LONG_NUMBER, None, line, line, raw)
        try:
            if tag == _TAG + "int":
                return Node(INTEGER, _constructor.construct_yaml_int(node), line, line, raw)
            return Node(NUMBER, _constructor.construct_yaml_float(node), line, line, raw)
        except ValueError:  # `0b_` looks like an integer to the resolver and is none
            return Node(STRING, raw, line, line)
    # `=` has a tag of its own, which means nothing to anybody.
    return Node(_ODD_KINDS.get(tag, STRING), raw, line, line, raw)


def _exotic_lines(data: bytes) -> list[int]:
    """Return the 0-based YAML lines that begin behind a break which is none to an editor.

    YAML's own line number minus the number of these at or before it is the line that an editor shows.
    """
    lines: list[int] = []
    line = begin = 0
    for match in islice(_EXOTIC_BREAK.finditer(data), 100_000):  # more of them is an attack, not a manifest
        line += data.count(b"\n", begin, match.start()) + 1
        begin = match.end()
        lines.append(line)
    return lines


def _json_as_yaml(data: bytes) -> bytes:
    data = data.removeprefix(b"\xef\xbb\xbf")
    body = data.lstrip()
    data = b"\n" * data[: len(data) - len(body)].count(b"\n") + body.rstrip()
    for raw, escaped in _EXOTIC_ESCAPES:
        data = data.replace(raw, escaped)
    return _join_surrogates(data) if _SURROGATE_PAIR.search(data) else data


def _join_surrogates(data: bytes) -> bytes:
    """Replace each escaped surrogate pair, which YAML refuses, by the escape of its code point, which JSON has not."""
    joined = BytesIO()  # re.sub would hold millions of pieces at once
    begin = 0
    for pair in _SURROGATE_PAIR.finditer(data):
        slashes = pair.start()
        while slashes > begin and data[slashes - 1] == ord("\\"):
            slashes -= 1
        if (pair.start() - slashes) % 2:
            continue  # an escaped backslash, and then text that looks like a pair
        high, low = int(pair[1], 16), int(pair[2], 16)
        joined.write(data[begin : pair.start()])
        joined.write(b"\\U%08x" % (0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)))
        begin = pair.end()
    joined.write(data[begin:])
    return joined.getvalue()


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"


# JSON lines


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as it was written, with its repeated keys."""

    __slots__ = ()


def read_json_lines(stream: BinaryIO, problems: Problems) -> Iterator[Node]:
    """Yield the value of each line that is not blank, one line in memory at a time; report the lines that have none."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_parse_int)
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number > MAX_LINES:
            problems.stop(number, f"more than {MAX_LINES} lines: split the manifest")
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            problems.add(number, f"a line of more than {MAX_LINE_BYTES >> 20} MiB")
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            yield _JsonLine(number, problems).node(decoder.decode(line.decode("utf-8")), 0)
        except UnicodeDecodeError as error:
            problems.add(number, f"{_not_utf8(error)} of the line")
        except json.JSONDecodeError as error:
            problems.add(number, f"not valid JSON: {error.msg} (column {error.colno})")
        except (_TooDeep, RecursionError):
            problems.add(number, f"nested more than {MAX_DEPTH} deep")
        except _TooMany:
            problems.stop(
                number, f"more than {MAX_LINE_VALUES} values in one line"
            )  # another one like it takes seconds


class _TooDeep(Exception):
    pass


class _TooMany(Exception):
    pass


class _LongInteger(str):
    """The digits of an integer that nobody needs converted."""

    __slots__ = ()


def _parse_int(digits: str) -> int | _LongInteger:
    return int(digits) if len(digits) <= MAX_NUMBER_CHARS else _LongInteger(digits)


class _JsonLine:
    """Turns what json made of one line into Nodes."""

    def __init__(self, line: int, problems: Problems) -> None:
        self.line = line
        self.problems = problems
        self.values = 0

    def node(self, value: Any, depth: int) -> Node:
        self.values += 1
        if self.values > MAX_LINE_VALUES:
            raise _TooMany
        line = self.line
        match value:
            case _LongInteger():
                return Node(LONG_NUMBER, None, line, line, value)
            case str():
                return Node(STRING, value, line, line)
            case bool():
                return Node(BOOLEAN, value, line, line, json.dumps(value))
            case int():
                return Node(INTEGER, value, line, line, str(value))
            case float():
                return Node(NUMBER, value, line, line, json.dumps(value))
            case None:
                return Node(NULL, None, line, line, "null")
        if depth == MAX_DEPTH:
            raise _TooDeep
        if not isinstance(value, _Pairs):
            return Node(LIST, [self.node(item, depth + 1) for item in value], line, line)
        mapping = Node(MAPPING, {}, line, line)
        for key, item in value:
            put(mapping, Node(STRING, key, line, line), self.node(item, depth + 1), self.problems)
        return mapping
