"""Put style, scripts and data into one HTML file that asks for nothing from outside.

Data lie in script elements of type application/json, with every `<`, `>` and `&` escaped, and the scripts show them through
textContent only. The Content-Security-Policy allows just this style and this script, by hash, and pictures from data URLs;
trusted types are demanded and none is defined, so that a browser refuses to turn text into HTML at all.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, BinaryIO

STYLES = ("page.css", "table.css", "player.css", "screens.css")
SCRIPTS = ("rle.js", "dom.js", "frames.js", "summary.js", "table.js", "player.js", "page.js")

_SLOT = re.compile(r"<!--gmcli:([a-z]+)-->")


def write_page(file: BinaryIO, data: Mapping[str, Any], blobs: Sequence[bytes]) -> None:
    """Write the page: `data` about the run, and for each video its frames and masks (JSON), which are parsed when shown.

    The script stands before the frames, so that the first rows are there before a browser has read those.
    """
    for part in _parts(data, blobs):
        file.write(part)


def _parts(data: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[bytes]:
    style, script = "".join(map(asset, STYLES)), script_of(SCRIPTS)
    slots = {
        "csp": policy(style, script).encode(),
        "style": style.encode(),
        "script": script.encode(),
        "data": json_in_html(json.dumps(data, allow_nan=False, separators=(",", ":")).encode()),
    }
    # One pass over the template alone: nothing that is put in is looked at again.
    for number, part in enumerate(_SLOT.split(asset("page.html"))):
        if number % 2 == 0:
            yield part.encode()
        elif part == "blobs":
            for video, blob in enumerate(blobs):
                yield b'<script type="application/json" id="v%d">' % video + json_in_html(blob) + b"</script>\n"
        else:
            yield slots[part]


def asset(name: str) -> str:
    """Read a file that lies beside this module."""
    return files("gmcli.report").joinpath(name).read_text(encoding="utf-8")


def script_of(names: Sequence[str]) -> str:
    """Join scripts into one with a scope of its own."""
    return '(() => {\n"use strict";\n' + "\n".join(map(asset, names)) + "})();\n"


def json_in_html(text: bytes) -> bytes:
    """Escape JSON (ASCII) so that no HTML can begin or end in it; it means the same."""
    return text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")


def policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows this style, this script and pictures from data URLs, nothing else."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
