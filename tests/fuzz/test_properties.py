"""Files of ours that strangers may have written: any bytes give values or one clear error, and never another exception.

`FUZZ_EXAMPLES=20000 python -m pytest tests/fuzz/test_properties.py` looks longer, each time elsewhere.
"""

import hashlib
import json
import os
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from gmcli.backends.recipe import load_recipe
from gmcli.config import RunConfig, load_config
from gmcli.data import Rle, is_id
from gmcli.errors import ConfigError, EngineError, GmcliError
from gmcli.items import check_item, read_item
from gmcli.ledger import read_config, read_run
from gmcli.masks.png import encode_png, read_indices
from gmcli.masks.rle import area, decode_rle, encode_rle, rle_from_json
from gmcli.records import Record, read_records
from gmcli.resources import share_dir
from gmcli.train.config import load_train_config

LONG = int(os.environ.get("FUZZ_EXAMPLES", "0"))
BOUNDED = settings(
    max_examples=LONG or 200,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)

LETTERS = string.ascii_letters + string.digits + "._-/\\\x00\x1b\u202eé\udcff"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=6) | st.just(10**400)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=4), inner, max_size=3),
    max_leaves=6,
)
SPLINTERS = st.sampled_from(
    [
        b"",
        b"\x00",
        b"\n",
        b"\r",
        b'"',
        b"\\",
        b"{",
        b"[" * 2000,
        b"]",
        b",",
        b":",
        b"\xff",
        b"\xed\xa0\x80",
        b"null",
        b"-1",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"\\ud800",
        b"../..",
        b"\x1b[31m",
        b"&a ",
        b"*a ",
        b"!!python/object:os.system ",
    ]
)
CUTS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), SPLINTERS), max_size=4)


def mutated(data: bytes, cuts: list[tuple[float, int, bytes]]) -> bytes:
    for place, dropped, splinter in cuts:
        at = int(place * len(data))
        data = data[:at] + splinter + data[at + dropped :]
    return data


def clear(message: str) -> bool:
    """Ask whether an error's lines may be shown; a ConfigError of many problems has one a line."""
    return bool(message) and all(line.isprintable() for line in message.split("\n"))


# The ledger


RECORDS = st.builds(
    Record,
    video=st.sampled_from(["v", "w.1", "A-b"]),
    question=st.sampled_from(["q0", "q1"]),
    status=st.sampled_from(["done", "no_target"]),
    inputs=st.dictionaries(
        st.sampled_from(["text", "bytes", "start"]), st.text(max_size=4) | st.integers(), max_size=2
    ),
    sha256=st.just("a" * 64),
) | st.builds(
    Record,
    video=st.sampled_from(["v", "w.1"]),
    question=st.just("q2"),
    status=st.just("failed"),
    inputs=st.just({}),
    error=st.text(max_size=5),
)


@BOUNDED
@given(st.lists(RECORDS, max_size=4), CUTS)
@example([Record("v", "q2", "failed", {}, error="")], [(0.78, 9, b"")])  # cuts `","crc":` out: an error of eight digits
def test_the_ledger_holds_what_was_written_or_less(tmp_path: Path, records: list[Record], cuts: Any) -> None:
    whole = b"".join(record.line() for record in records)
    # Whether a ledger is one of ours its first line says: those of former versions have no check sums.
    first = Record("first", "q", "done", {}, sha256="b" * 64)
    (tmp_path / "ledger.jsonl").write_bytes(first.line() + mutated(whole, cuts))
    found, damaged = read_records(tmp_path)
    assert found.pop(first.key) == first
    written = [(r.key, r.status, dict(r.inputs), r.sha256, r.error) for r in records]
    for key, record in found.items():
        assert (key, record.status, dict(record.inputs), record.sha256, record.error) in written
    assert all(clear(line) for line in damaged)
    if not cuts:
        assert found == {record.key: record for record in records}


@BOUNDED
@given(st.dictionaries(st.sampled_from(["video", "question", "status", "inputs", "sha256", "error", "x"]), VALUES))
@example({"video": "../..", "question": "etc", "status": "done", "inputs": {}, "sha256": "x"})
@example({"video": "v", "question": ".q", "status": "failed", "inputs": {}, "error": "x"})
def test_a_ledger_of_a_stranger_names_no_other_folder(tmp_path: Path, value: dict[str, Any]) -> None:
    (tmp_path / "ledger.jsonl").write_text(json.dumps(value) + "\n", encoding="utf-8")
    found, damaged = read_records(tmp_path)
    assert len(found) + len(damaged) == 1 or value.get("status") == "withdrawn"
    for video, question in found:
        assert is_id(video)
        assert is_id(question)
        assert "/" not in video + question
        assert video not in (".", "..")


# A run's other files


ITEM = {
    "video": "v",
    "answer": "the man",
    "span": [0, 2],
    "frames": [0, 1],
    "names": ["00000", "00001"],
    "masks": [{"size": [2, 2], "counts": "4"}] * 2,
    "png_sha256": {"00000.png": "a"},
    "score": 0.5,
    "finished": True,
}


@BOUNDED
@given(st.sampled_from(sorted(ITEM)), VALUES, CUTS)
@example("names", ["../../../etc/passwd", "00001"], [])
@example("png_sha256", {"../x": "a"}, [])
@example("frames", [[], {}], [])
@example("span", [5, 2], [])
def test_items(tmp_path: Path, field: str, value: Any, cuts: Any) -> None:
    (tmp_path / "items/v").mkdir(parents=True, exist_ok=True)
    content = mutated(json.dumps(ITEM | {field: value}).encode(), cuts)
    (tmp_path / "items/v/q.json").write_bytes(content)
    try:
        item, sha256 = read_item(tmp_path, "v", "q")
    except ValueError as error:
        assert str(error)
        return
    assert sha256 == hashlib.sha256(content).hexdigest()
    names = [*item["names"], *item.get("png_sha256", {})]
    assert len(item["frames"]) == len(item["names"])
    assert all((tmp_path / name).parent == tmp_path and name not in (".", "..") for name in names)
    check_item(item)


@BOUNDED
@given(VALUES, CUTS)
def test_run_json(tmp_path: Path, value: Any, cuts: Any) -> None:
    whole = {"state": "finished", "totals": {"questions": 1}, "fingerprints": {}, "files": {}, "host": value}
    (tmp_path / "run.json").write_bytes(mutated(json.dumps(whole).encode(), cuts))
    found = read_run(tmp_path)
    assert not found or all(type(n) in (int, bool) for n in found["totals"].values())


@BOUNDED
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=4), VALUES, max_size=3), CUTS)
def test_a_runs_settings(tmp_path: Path, value: dict[str, Any], cuts: Any) -> None:
    text = yaml.safe_dump({"checkpoint": "x"} | value, allow_unicode=True).encode("utf-8", "surrogatepass")
    (tmp_path / "config.yaml").write_bytes(mutated(text, cuts))
    try:
        assert isinstance(read_config(tmp_path), dict)
    except ConfigError as error:
        assert clear(error.message)
        assert error.hint


# Configurations and recipes


@BOUNDED
@given(st.sampled_from(sorted(RunConfig().to_json())), VALUES, CUTS)
def test_configurations(tmp_path: Path, name: str, value: Any, cuts: Any) -> None:
    content = yaml.safe_dump(RunConfig().to_json() | {name: value}).encode("utf-8", "surrogatepass")
    (tmp_path / "c.yaml").write_bytes(mutated(content, cuts))
    try:
        config = load_config(str(tmp_path / "c.yaml"), {})
    except ConfigError as error:
        assert clear(error.message)
        assert len(error.message) < 50_000
    else:
        assert config.decisive()


@BOUNDED
@given(CUTS)
def test_recipes(tmp_path: Path, cuts: Any) -> None:
    (tmp_path / "clip.yaml").write_bytes(mutated((share_dir("engines") / "clip.yaml").read_bytes(), cuts))
    try:
        assert load_recipe("clip", tmp_path).backends
    except EngineError as error:
        assert clear(error.message)


@BOUNDED
@given(st.sampled_from(["mora-lisa7b-ft", "mora-tiny"]), CUTS)
def test_training_configurations(tmp_path: Path, name: str, cuts: Any) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(mutated((share_dir("configs") / f"{name}.yaml").read_bytes(), cuts))
    try:
        assert load_train_config(str(path), ()).stages
    except ConfigError as error:
        assert clear(error.message)


# Masks


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under NumPy 2
@BOUNDED
@given(SIZES, st.randoms(use_true_random=False), st.floats(0, 1), CUTS)
def test_rle(size: tuple[int, int], random: Any, density: float, cuts: Any) -> None:
    mask = np.array([[random.random() < density for _ in range(size[1])] for _ in range(size[0])], dtype=np.bool_)
    rle = encode_rle(mask)
    theirs = coco.decode({"size": list(size), "counts": rle.counts.encode()}).astype(bool)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(theirs, mask)
    broken = mutated(rle.counts.encode(), cuts).decode("utf-8", "surrogateescape")
    try:
        found = decode_rle(Rle(size, broken))
    except GmcliError as error:
        assert error.message.startswith("bad RLE")
    else:
        assert found.shape == size
        assert area(Rle(size, broken)) == found.sum()


@BOUNDED
@given(VALUES, st.lists(st.integers() | SCALARS, max_size=3), st.text(max_size=20))
@example(None, [10**9, 10**9], "0")
@example(None, [1 << 30, 1 << 30], "o" * 20)
@example(None, [1, 4], "\x7f\x00")
def test_rle_of_strangers(value: Any, size: Any, counts: str) -> None:
    for obj in (value, {"size": size, "counts": counts}, {"size": value, "counts": value}):
        try:
            decode_rle(rle_from_json(obj))
        except GmcliError as error:
            assert clear(error.message)


@BOUNDED
@given(SIZES, st.sampled_from([1, 8]), CUTS)
def test_pngs(tmp_path: Path, size: tuple[int, int], bits: Any, cuts: Any) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(mutated(encode_png(np.ones(size, dtype=np.bool_), bits), cuts))
    try:
        pixels = read_indices(path)
    except (OSError, ValueError) as error:
        assert str(error)
    else:
        assert pixels.ndim == 2
        assert cuts or (pixels.shape == size and pixels.all())


@pytest.mark.parametrize("kind", ["bomb", "postscript", "pipe"])
def test_masks_that_are_no_masks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    if kind == "bomb":
        import struct
        import zlib

        head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    elif kind == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n")
    else:
        os.mkfifo(path)
    with pytest.raises((OSError, ValueError)):
        read_indices(path)
