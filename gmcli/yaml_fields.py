"""Read small YAML files of ours (configurations, engine recipes) into plain values, with file and line in every error."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gmcli.distrust import open_file
from gmcli.errors import GmcliError
from gmcli.yaml_lines import LIST, MAPPING, Node, Problems, Stop, load_yaml, quote

MAX_BYTES = 1 << 20

Read = Callable[[Node], Any]


def read_fields(path: Path, fields: Mapping[str, Read], error: type[GmcliError]) -> dict[str, Any]:
    """Read a YAML mapping whose every field is known; a field's reader returns its value or raises ValueError.

    Returns the fields that the file has. Raises `error` with all problems, one `file:line: message` a line.
    """
    return _read(path, lambda node, problems: read_mapping(node, fields, problems), error)


def read_values(path: Path, error: type[GmcliError]) -> dict[str, Any]:
    """Read a YAML mapping whose fields only other versions may know, as plain values. Raises `error` as `read_fields` does."""
    return _read(path, lambda node, _: plain(node), error)


def _read(path: Path, read: Callable[[Node, Problems], dict[str, Any]], error: type[GmcliError]) -> dict[str, Any]:
    problems = Problems()
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror})") from None
    if len(data) > MAX_BYTES:
        raise error(f"{path}: larger than {MAX_BYTES >> 20} MiB, so not one of our files")
    found: dict[str, Any] = {}
    try:
        node = load_yaml(data, problems)
        if node is not None:
            if node.kind != MAPPING:
                problems.stop(node.line, f"must be a mapping, not {node}")
            found = read(node, problems)
    except Stop:
        pass
    if problems:
        raise error("\n".join(problems.in_file_order(str(path))))
    return found


def read_mapping(node: Node, known: Mapping[str, Read], problems: Problems) -> dict[str, Any]:
    """Read a mapping's fields; note unknown and wrong ones, which are then not among the values."""
    values = {}
    for name, value in node.value.items():
        if name not in known:
            problems.add(value.at, f"unknown field {quote(name)}; known: {', '.join(known)}")
            continue
        try:
            values[name] = known[name](value)
        except ValueError as failure:
            problems.add(value.at, f"'{name}' {failure}")
    return values


def plain(node: Node) -> Any:
    """Return a node's value without its lines."""
    if node.kind == MAPPING:
        return {k: plain(v) for k, v in node.value.items()}
    if node.kind == LIST:
        return [plain(v) for v in node.value]
    return node.value
