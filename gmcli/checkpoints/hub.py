"""Get a repository from the Hugging Face hub, and say which commit it was."""

import re
from pathlib import Path

from gmcli.errors import CheckpointError
from gmcli.text import one_line

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def from_hub(name: str, revision: str | None) -> Path:
    """Download a repository, or find it in the hub's cache; safetensors where there are any, .bin files otherwise.

    Nothing but configuration, vocabulary and weights is fetched: no code. The environment variable HF_HUB_OFFLINE=1 keeps
    to the cache. Raises CheckpointError.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(at: str | None, *patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(name, revision=at, allow_patterns=list(patterns)))

    try:
        folder = fetch(revision, "*.json", "tokenizer.model", "model*.safetensors")
        if not any(folder.glob("model*.safetensors")):
            # The same commit, though the branch may have moved on meanwhile.
            folder = fetch(commit_of(folder) or revision, "pytorch_model*.bin")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = one_line(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: no folder of that name here, and the hub did not give it ({reason})",
            "Check the name and the revision, log in with `hf auth login`, or download it once and name the folder.",
        ) from None
    return folder


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder of the hub's cache is a snapshot of; None for any other folder."""
    snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if snapshot and COMMIT.fullmatch(folder.name) else None
