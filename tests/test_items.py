"""A question's files are the same bytes however many threads write them, and are made piece by piece."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from gmcli import items
from gmcli.data import ItemResult, Question, Rle, TemporalSpan
from gmcli.errors import GmcliError
from gmcli.items import read_item, remove_item, write_item
from gmcli.masks.png import encode_png
from gmcli.masks.rle import decode_rle, empty_rle, encode_rle
from gmcli.report.media import _read_mask
from gmcli.verify import verify
from tests.fakes import run_inline, tree, video_task

QUESTION = Question("q0", 'Wer – “the dog”, or\n"the cat"?', type="Causal")
SIZE = (24, 40)
NOTHING = empty_rle(SIZE)


def noise(seed: int) -> Rle:
    return encode_rle(np.random.default_rng(seed).random(SIZE) < 0.5)


def answer(*masks: Rle) -> ItemResult:
    numbers = range(7, 7 + len(masks))
    return ItemResult(
        "clip",
        "q0",
        "done",
        answer="Es ist der Hund – [SEG].",
        frames=tuple(numbers),
        names=tuple(f"{n:05}" for n in numbers),
        masks=masks,
        span=TemporalSpan(7, 7 + len(masks)),
        score=0.1234567,
    )


MIXED = answer(*[NOTHING] * 5, *map(noise, range(30)), *[NOTHING] * 3, noise(29), noise(28), NOTHING)


def one_by_one(root: Path, result: ItemResult, formats: tuple[str, ...]) -> None:
    """Write what `write_item` should, one mask after the other and the item in one go."""
    pngs = {}
    if "rle" not in formats or len(formats) > 1:
        folder = root / "masks" / "clip" / "q0"
        folder.mkdir(parents=True)
        for name, rle in zip(result.names, result.masks, strict=True):
            content = encode_png(decode_rle(rle), 1 if "png1" in formats else 8)
            (folder / f"{name}.png").write_bytes(content)
            pngs[f"{name}.png"] = hashlib.sha256(content).hexdigest()
    item = {
        "video": "clip",
        "question": "q0",
        "text": QUESTION.text,
        "type": QUESTION.type,
        "status": result.status,
        "answer": result.answer,
        "finished": result.finished,
        "span": [result.span.start, result.span.end] if result.span else None,
        "score": None if result.score is None else round(result.score, 6),
        "frames": list(result.frames),
        "names": list(result.names),
    }
    if "rle" in formats:
        item["masks"] = [{"size": list(m.size), "counts": m.counts} for m in result.masks]
    if set(formats) != {"rle"}:
        item["png_sha256"] = pngs
    (root / "items" / "clip").mkdir(parents=True)
    (root / "items" / "clip" / "q0.json").write_bytes(json.dumps(item, ensure_ascii=False).encode() + b"\n")


@pytest.mark.parametrize("formats", [("png",), ("png1",), ("rle",), ("png", "rle"), ("png1", "rle")])
@pytest.mark.parametrize("result", [MIXED, answer(), answer(NOTHING), answer(*map(noise, range(64)), noise(3))])
def test_threads_leave_what_one_by_one_leaves(tmp_path, formats, result):
    one_by_one(tmp_path / "want", result, formats)
    want = tree(tmp_path / "want")
    for threads in (None, 1, 2, 5):
        root = tmp_path / f"threads{threads}"
        root.mkdir()
        sha256 = write_item(root, result, QUESTION, formats, threads=threads)
        assert tree(root) == want
        assert not list((root / ".tmp").iterdir())
        item, read = read_item(root, "clip", "q0")
        assert sha256 == read == hashlib.sha256(want["items/clip/q0.json"]).hexdigest()
        assert ("masks" in item) == ("rle" in formats)
        assert list(item.get("png_sha256", {})) == [f"{n}.png" for n in result.names if formats != ("rle",)]


@pytest.fixture
def encoded(monkeypatch):
    """List the masks that get encoded, as they are."""
    seen = []

    def encode(rle, bits):
        seen.append(rle)
        return png(rle, bits)

    png = items._png
    monkeypatch.setattr(items, "_png", encode)
    return seen


def test_equal_masks_are_encoded_once(tmp_path, encoded):
    """Those of nothing in the whole clip, others where they follow closely."""
    write_item(tmp_path, MIXED, QUESTION, ("png",), threads=2)
    assert len(encoded) == len(set(encoded)) == 31
    del encoded[:]
    still = [rle for seed in range(20) for rle in (noise(seed), NOTHING) * 50]
    write_item(tmp_path, answer(*still), QUESTION, ("png",), threads=2)
    assert len(encoded) == 21


@pytest.mark.parametrize("threads", [1, 3])
def test_encoding_is_never_far_ahead_of_writing(tmp_path, encoded, monkeypatch, threads):
    taken = []

    def write_slowly(root, name, files):
        for file in files:
            # What is written, what waits, and the one that was asked for.
            assert len(encoded) <= len(taken) + 1 + 2 * threads
            taken.append(file)

    monkeypatch.setattr(items, "write_folder", write_slowly)
    write_item(tmp_path, answer(*map(noise, range(100))), QUESTION, ("png",), threads=threads)
    assert len(taken) == len(encoded) == 100


def test_the_item_file_is_never_whole_in_memory(tmp_path, monkeypatch):
    pieces = []

    class File:
        def write(self, content):
            pieces.append(len(content))

    monkeypatch.setattr(items, "write_file", lambda root, name, write: write(File()))
    write_item(tmp_path, answer(*map(noise, range(3000))), QUESTION, ("rle",))
    assert max(pieces) < sum(pieces) / 20


def test_a_mask_that_cannot_be_encoded_leaves_the_former_files(tmp_path):
    write_item(tmp_path, MIXED, QUESTION, ("png", "rle"))
    before = tree(tmp_path)
    bad = Rle(SIZE, "3")
    with pytest.raises(GmcliError, match="bad RLE"):
        write_item(tmp_path, answer(*map(noise, range(50)), bad, *map(noise, range(50))), QUESTION, ("png", "rle"))
    assert tree(tmp_path) == before


def test_an_item_takes_the_place_of_a_folder_or_a_link_and_can_be_removed(tmp_path):
    place = tmp_path / "items" / "clip" / "q0.json"
    (place / "deep").mkdir(parents=True)
    write_item(tmp_path, MIXED, QUESTION, ("png", "rle"))
    want = tree(tmp_path)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    write_item(tmp_path, MIXED, QUESTION, ("png", "rle"))
    assert not place.is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == place.read_bytes()
    (tmp_path / "elsewhere").unlink()
    assert tree(tmp_path) == want
    for _ in range(2):
        remove_item(tmp_path, "clip", "q0")
        assert tree(tmp_path) == {}


def test_no_thread_outlives_a_write_that_fails(tmp_path, monkeypatch):
    def fail(root, name, files):
        next(iter(files))
        raise OSError("no space left")

    monkeypatch.setattr(items, "write_folder", fail)
    with pytest.raises(OSError, match="no space"):
        write_item(tmp_path, MIXED, QUESTION, ("png",))
    assert [t.name for t in threading.enumerate() if t.name.startswith("png")] == []


def test_a_run_of_1_bit_masks(tmp_path):
    tasks = [video_task(tmp_path, "a", "q0", "none")]
    for formats in (("png1",), ("png1", "rle"), ("png",)):
        run_inline(tmp_path / "-".join(formats), tasks, formats=formats)
        assert verify(tmp_path / "-".join(formats)).problems == ()
    item, _ = read_item(tmp_path / "png1", "a", "q0")
    assert "masks" not in item
    for position in range(len(item["frames"])):
        small = _read_mask(tmp_path / "png1", ("a", "q0"), item, position)
        np.testing.assert_array_equal(small, _read_mask(tmp_path / "png", ("a", "q0"), item, position))
        assert small.any()
    masks = {
        name: sum(p.stat().st_size for p in (tmp_path / name / "masks").rglob("*.png")) for name in ("png1", "png")
    }
    assert masks["png1"] < masks["png"]
