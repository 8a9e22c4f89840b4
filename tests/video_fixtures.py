"""Make small test clips with ffmpeg, and read them with ffmpeg: the oracle is never our own code."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FRAMES = 96, 64, 60
SOURCE = f"-f lavfi -i testsrc2=s={WIDTH}x{HEIGHT}:r=25:d=2.4"
# testsrc2 makes even sizes only; scaling afterwards gives odd ones.
ODD = "-vf scale=97:65:flags=neighbor"
SINE = "-f lavfi -i sine=d=2.4"
H264 = "-c:v libx264 -preset veryfast -g 12 -bf 3 -pix_fmt yuv420p"
FAST_VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 12"
VP8_ALTREF = "-c:v libvpx -b:v 60k -g 60 -auto-alt-ref 1 -lag-in-frames 25 -arnr-maxframes 5 -passlogfile {folder}/vp8"

# The output's name, and ffmpeg's arguments before it; {name} is the path of another clip.
RECIPES: dict[str, tuple[str, str]] = {
    "h264": ("h264.mp4", f"{SOURCE} {H264}"),
    "vfr": ("vfr.mp4", f"{SOURCE} -vf select='not(eq(mod(n,3),1))*lt(mod(n,17),13)' -fps_mode vfr {H264}"),
    "edit_list": ("edit_list.mp4", "-ss 0.7 -i {h264} -c copy"),
    "fragmented": ("fragmented.mp4", "-i {h264} -c copy -movflags frag_keyframe+empty_moov"),
    "intra_refresh": ("refresh.mkv", f"{SOURCE} -c:v libx264 -preset veryfast -x264-params keyint=24:intra-refresh=1"),
    "hevc": ("hevc.mp4", f"{SOURCE} -c:v libx265 -preset superfast -x265-params keyint=12:open-gop=1:bframes=4"),
    "hevc_cut": ("hevc_cut.mkv", "-ss 1.0 -i {hevc} -c copy"),
    "hevc_cut_ts": ("hevc_cut.ts", "-ss 1.0 -i {hevc} -c copy"),
    "vp8": ("vp8.webm", f"{SOURCE} {VP8_ALTREF} -pass 2"),
    "vp9": ("vp9.webm", f"{SOURCE} {FAST_VP9}"),
    "av1": ("av1.mp4", f"{SOURCE} -c:v libsvtav1 -preset 11 -g 12"),
    "theora": ("theora.ogv", f"{SOURCE} -c:v libtheora -g 12"),
    "mpeg4": ("mpeg4.avi", f"{SOURCE} -c:v mpeg4 -g 12"),
    "mpeg4_bframes": ("mpeg4_bframes.avi", f"{SOURCE} -c:v mpeg4 -g 12 -bf 2"),
    "mpeg2": ("mpeg2.mpg", f"{SOURCE} -c:v mpeg2video -g 12 -bf 2"),
    "live": ("live.mkv", f"{SOURCE} {H264} -live 1"),
    "raw": ("raw.h264", "-i {h264} -c copy"),
    "gif": ("picture.gif", SOURCE),
    "interlaced": ("interlaced.ts", f"{SOURCE} {H264} -flags +ildct+ilme"),
    "bt709": ("bt709.mp4", f"{SOURCE} {H264} -colorspace bt709 -color_primaries bt709 -color_trc bt709"),
    "full_range": ("full_range.mp4", f"{SOURCE} {H264} -vf scale=out_range=pc -color_range pc"),
    "ten_bit": ("ten_bit.mp4", f"{SOURCE} -c:v libx265 -preset superfast -x265-params keyint=12 -pix_fmt yuv420p10le"),
    "odd_444": ("odd_444.mp4", f"{SOURCE} {ODD} -c:v libx264 -preset veryfast -g 12 -pix_fmt yuv444p"),
    "odd_420": ("odd_420.webm", f"{SOURCE} {ODD} {FAST_VP9} -pix_fmt yuv420p"),
    "rotated_90": ("rotated_90.mp4", "-display_rotation 90 -i {h264} -c copy"),
    "rotated_180": ("rotated_180.mp4", "-display_rotation 180 -i {h264} -c copy"),
    "rotated_270": ("rotated_270.mp4", "-display_rotation 270 -i {h264} -c copy"),
    "mirrored": ("mirrored.mp4", "-display_hflip -i {h264} -c copy"),
    "mirrored_90": ("mirrored_90.mp4", "-display_rotation 90 -display_vflip -i {h264} -c copy"),
    "cover_art": (
        "cover.mp4",
        "-i {h264} -f lavfi -i testsrc=s=320x240:r=1:d=1 -map 0 -map 1 -c:v:0 copy -c:v:1 mjpeg "
        "-disposition:v:1 attached_pic",
    ),
    # For the error cases and for decord, not read as they are.
    "sound": ("sound.mp4", f"{SOURCE} {SINE} {H264}"),
    "faststart": ("faststart.mp4", "-i {sound} -c copy -movflags +faststart"),
    "sound_mkv": ("sound.mkv", "-i {sound} -c copy"),
    "sound_ts": ("sound.ts", "-i {sound} -c copy"),
    "wav": ("tone.wav", SINE),
    "m4a": ("tone.m4a", SINE),
    "turned_45": ("turned_45.mp4", "-display_rotation 45 -i {h264} -c copy"),
    "plain_ts": ("plain.ts", "-i {h264} -c copy"),
    "small_ts": (
        "small.ts",
        f"-f lavfi -i testsrc2=s=64x48:r=25:d=0.4 {H264} -output_ts_offset 10 -mpegts_flags +initial_discontinuity",
    ),
    "wide": ("wide.mp4", f"-f lavfi -i testsrc2=s=128x96:r=25:d=2.4 {H264}"),
    "wide_edit_list": ("wide_edit_list.mp4", "-ss 0.7 -i {wide} -c copy"),
    "wide_mirrored": ("wide_mirrored.mp4", "-display_hflip -i {wide} -c copy"),
}

READABLE = tuple(list(RECIPES)[: list(RECIPES).index("sound")])


def ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg; its messages are in `stderr`."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr.decode(errors='replace')[-2000:]}"
    return done


def clip_maker(folder: Path) -> Callable[[str], Path]:
    """Return a function that makes a clip of RECIPES, and those it is made from, once."""

    def make(name: str) -> Path:
        file_name, recipe = RECIPES[name]
        path = folder / file_name
        if not path.exists():
            sources = {other: str(make(other)) for other in re.findall(r"-i \{(\w+)\}", recipe)}
            arguments = recipe.format(folder=folder, **sources).split()
            if "-pass" in arguments:
                ffmpeg(*arguments[:-1], "1", "-f", "null", "-")
            ffmpeg(*arguments, str(path))
        return path

    return make


def reference_frames(path: Path, filters: str = "showinfo") -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return ffmpeg's own frames, [T,H,W,3] uint8 RGB, and their times in seconds from the first, in presentation order."""
    done = ffmpeg(
        *("-i", str(path), "-map", "0:V", "-vf", filters, "-fps_mode", "passthrough"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
    )
    log = done.stderr.decode(errors="replace")
    size, base = re.search(r" s:(\d+)x(\d+)", log), re.search(r"config in time_base: (\d+)/(\d+)", log)
    assert size is not None
    assert base is not None
    pts = np.array([int(value) for value in re.findall(r" pts: *(-?\d+) ", log)])
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, int(size[2]), int(size[1]), 3)
    assert len(frames) == len(pts)
    return frames, (pts - pts[0]) * int(base[1]) / int(base[2])
