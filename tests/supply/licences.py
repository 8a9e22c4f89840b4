"""Print docs/licences.md from the metadata of what is installed here: `make licences`."""

import re
import sys
from importlib.metadata import metadata

from tests.supply.closure import closure

# Extras that somebody who only runs gmcli may install.
EXTRAS = ("bench", "openvino", "quant", "train")

# Their metadata name no licence; this is from their repositories.
UNSAID = {
    "segment-anything": ("Apache-2.0", "https://github.com/facebookresearch/segment-anything"),
    "torchao": ("BSD-3-Clause", "https://github.com/pytorch/ao"),
    "cuda-toolkit": ("NVIDIA's terms (names packages, holds nothing)", "https://developer.nvidia.com/cuda-toolkit"),
}

HEAD = """\
# Licences

gmcli is Apache-2.0. It contains none of what follows; `pip install` fetches it. The list is made by `make licences` from the
packages' own metadata, on Linux x86-64; versions are those of `constraints.txt` or near.

## Terms that want attention

- **Video decoders.** The wheels of `av` (PyAV) and `decord2` are BSD-3-Clause and Apache-2.0 and carry FFmpeg's libraries
  (LGPL-3.0-or-later as built) and, linked by them, **libx264 and libx265, which are GPL-2.0-or-later**. Using them here asks for
  nothing. Whoever passes the wheels on, in an image or an appliance, passes on GPL software, with the duties that come with it;
  FFmpeg and PyAV can be built without the two. Codecs may be under patents.
- **NVIDIA's libraries** (`nvidia-*`, which torch's wheels for Linux ask for, and `tensorrt*` of the extras `rtx` and `trt`) are
  proprietary, under NVIDIA's own licence agreements; passing them on is limited. torch for the CPU alone needs none:
  `pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu` first.
- **tqdm** is MPL-2.0 and MIT: changes to its own files must stay open; nothing else follows.
- **The weights** have licences of their own: those of LISA, LLaVA, LLaMA, CLIP and SAM, wherever they come from. LLaMA's and
  LLaVA's limit what for. mora-tiny ships under gmcli's licence.
- For tests only: `scikit-video` and `imageio-ffmpeg` (its wheel carries an ffmpeg program, GPL).

"""


def licence(name: str) -> str:
    """Return the licence that a distribution's metadata name, in one line."""
    if name in UNSAID:
        return UNSAID[name][0]
    about = metadata(name)
    said = about.get("License-Expression") or about.get("License") or ""
    if not said or "\n" in said.strip():  # some give the whole text
        classes = [c.rsplit(" :: ", 1)[-1] for c in about.get_all("Classifier", []) if c.startswith("License ::")]
        said = ", ".join(classes) or "not named in its metadata"
    return said.strip()


def address(name: str) -> str:
    """Return where a distribution says it lives."""
    if name in UNSAID:
        return UNSAID[name][1]
    about = metadata(name)
    urls = dict(u.split(", ", 1) for u in about.get_all("Project-URL", []))
    by_label = {re.sub(r"\W", "", label).lower(): url for label, url in urls.items()}
    for label in ("homepage", "home", "repository", "source", "sourcecode", "github", "bugtracker", "documentation"):
        if label in by_label:
            return by_label[label].strip()
    return about.get("Home-page") or next(iter(urls.values()), f"https://pypi.org/project/{name}/")


def table(names: set[str]) -> str:
    """Return a table of distributions."""
    rows = [f"| {name} | {metadata(name)['Version']} | {licence(name)} | <{address(name)}> |" for name in sorted(names)]
    return "\n".join(["| package | version | licence | where |", "|---|---|---|---|", *rows]) + "\n"


def page() -> str:
    """Return docs/licences.md."""
    always = closure()
    extras = closure(EXTRAS) - always
    return (
        HEAD
        + f"## What `pip install gmcli` brings\n\n{table(always)}\n"
        + f"## What the extras {', '.join(f'`{e}`' for e in EXTRAS)} add\n\n{table(extras)}"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
