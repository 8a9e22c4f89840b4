"""Take from a trained model what should carry its answers: the motion, or the question.

`python -m gmcli.train.tiny.ablate DATASET` writes two more manifests into a folder of `gmcli synth`: in still.yaml each clip is its
middle frame, again and again; in mute.yaml every question is "What?". Ground truth stays, so `gmcli infer` and `gmcli eval` tell
what a model can still answer; that should be no more than guessing gets.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from gmcli.synth.write import MANIFEST

STILL = "still.yaml"
MUTE = "mute.yaml"
_STILLS = "stills"


def write_ablations(dataset: Path) -> tuple[Path, Path]:
    """Write still.yaml (with its frames beside it) and mute.yaml into a MotionShapes `dataset`; return their paths."""
    manifest = yaml.safe_load((dataset / MANIFEST).read_text(encoding="utf-8"))
    root = dataset / manifest["root"]
    stills, mute = [], []
    shutil.rmtree(dataset / _STILLS, ignore_errors=True)
    for video in manifest["videos"]:
        still = dataset / _STILLS / video["id"]
        _repeat_middle(root / video["path"], still)
        stills.append(video | {"path": os.path.relpath(still, root)})
        mute.append(video | {"questions": [question | {"text": "What?"} for question in video["questions"]]})
    return _write(dataset / STILL, manifest, stills), _write(dataset / MUTE, manifest, mute)


def _repeat_middle(frames: Path, still: Path) -> None:
    files = sorted(frames.iterdir())
    still.mkdir(parents=True)
    for file in files:
        os.link(files[len(files) // 2], still / file.name)


def _write(path: Path, manifest: dict[str, Any], videos: list[dict[str, Any]]) -> Path:
    path.write_text(yaml.safe_dump(manifest | {"videos": videos}, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    """Write the manifests and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a folder written by `gmcli synth`")
    for path in write_ablations(parser.parse_args().dataset):
        print(path)


if __name__ == "__main__":
    main()
