"""Let coverage guide the search for bytes that break what gmcli itself parses, in this process. Needs atheris.

    python -m tests.fuzz.guided structure|manifest|ledger|rle [libFuzzer's options, such as -max_total_time=60]

What is in a container's tables, a manifest, a ledger's line or a mask's string is a stranger's. Allowed are a value and the
one error that the reader promises; anything else ends the search, and libFuzzer keeps the bytes.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gmcli"]):
    from gmcli.data import Rle
    from gmcli.errors import GmcliError, ManifestError, VideoError
    from gmcli.manifest import read_manifest
    from gmcli.masks.rle import decode_rle
    from gmcli.records import STATUSES, Record, read_records
    from gmcli.video.structure import check_structure

CORPUS = Path(__file__).parent / "corpus"


# Where the search begins. Containers begin with the committed corpus.
SEEDS = {
    "manifest": b" version: 1\nroot: .\nvideos:\n- {id: a, path: a.mp4, start: 1, questions: [{id: q0, text: 'What?'}]}\n",
    "ledger": Record("v", "q", "done", {"text": "What?", "bytes": 1}, sha256="0" * 64).line(),
    "rle": b"\x05\x07" + b"a14L1N1",
}


def structure(folder: Path, data: bytes) -> None:
    path = folder / "video"
    path.write_bytes(data)
    with suppress(VideoError):
        check_structure(str(path), len(data))


def manifest(folder: Path, data: bytes) -> None:
    path = folder / ("m.yaml" if data[:1] < b"\x80" else "m.jsonl")
    path.write_bytes(data[1:])
    try:
        read_manifest(path)
    except ManifestError as error:
        assert all(problem.isprintable() for problem in error.problems)


def ledger(folder: Path, data: bytes) -> None:
    (folder / "ledger.jsonl").write_bytes(data)
    records, _ = read_records(folder)
    assert all(record.status in STATUSES for record in records.values())


def rle(folder: Path, data: bytes) -> None:
    size = (int.from_bytes(data[:1], "big") + 1, int.from_bytes(data[1:2], "big") + 1)
    try:
        mask = decode_rle(Rle(size, data[2:].decode("latin-1")))
    except GmcliError:
        return
    assert mask.shape == size


TARGETS: dict[str, Callable[[Path, bytes], None]] = {
    "structure": structure,
    "manifest": manifest,
    "ledger": ledger,
    "rle": rle,
}


def main() -> None:
    """Search until libFuzzer's limit; the committed corpus is where the search in containers begins."""
    target = TARGETS[sys.argv[1]]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        found = Path(scratch, "found")
        found.mkdir()
        (found / "seed").write_bytes(SEEDS.get(sys.argv[1], b""))
        folders = [str(found), str(CORPUS)] if target is structure else [str(found)]
        # libFuzzer ends the process itself, and the folder with what it found stays in memory: small, and gone at a restart.
        atheris.Setup([sys.argv[0], *sys.argv[2:], *folders], lambda data: target(Path(scratch), data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
