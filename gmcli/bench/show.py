"""Show a bench's report: as text, as a JSON file, as pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmcli.errors import EnvironmentProblem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASH = "–"
# Of each scaling table: the axis, and what is drawn over it.
_DRAWN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "workers": ("workers", ("ratio", "machine_ratio")),
    "questions": ("questions", ("warm_questions_s", "cold_questions_s")),
    "frames": ("frames", ("warm_s", "cold_s")),
    "length": ("length_s", ("peak_rss_mib", "loaded_rss_mib")),
}


def text(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines."""
    settings, machine = report["settings"], report["machine"]
    lines = [
        f"model    {settings['model']}, {settings['parameters'] / 1e6:.0f} M parameters, {settings['dtype']}",
        f"work     {settings['questions']} questions, {settings['frames']} frames of "
        f"{settings['frame_size'][1]}x{settings['frame_size'][0]}, visual tokens {settings['visual_tokens']}",
        f"machine  {machine['gpu'] or machine['cpu']}, {machine['threads']} of {machine['cores']} cores, "
        f"torch {machine['torch']}, load before {machine['load_before']:.1f}",
        f"peak     {machine['matmul_peak']['gflop_s']:.0f} GFLOP/s by {machine['matmul_peak']['by']} ("
        + ", ".join(f"{way} {rate:.0f}" for way, rate in machine["matmul_peak"]["best"].items())
        + ")",
        "",
        *_stages(report),
        "",
        *_light(report["speed_of_light"]),
    ]
    if report["localizer"] is not None:
        found = report["localizer"]
        frames = {side: found["counts"][side]["sam_frames"] for side in ("whole", "windowed")}
        lines += [
            "",
            f"[LOC] saves {frames['whole'] - frames['windowed']} of {frames['whole']} encoded frames: "
            f"{found['ratio_cpu_seconds']:.2f} times fewer CPU seconds (not counted above)",
        ]
    for name, rows in report["scaling"].items():
        lines += ["", f"scaling: {name}", *table(rows)]
    return lines


def _stages(report: Mapping[str, Any]) -> list[str]:
    stages = report["stages"]
    rows: list[dict[str, Any]] = []
    if report["ratio_cpu_seconds"] is None:
        rows = [{"stage": name, "CPU s": s["ours_cpu_s"], "share %": 100 * s["share"]} for name, s in stages.items()]
        ours = report["seconds"]["ours"]
        return [*table(rows), f"in all {min(ours['cpu_s']):.2f} CPU s, {min(ours['wall_s']):.2f} s"]
    for name, stage in stages.items():
        rows.append(
            {
                "stage": name,
                "published CPU s": stage["published_cpu_s"],
                "gmcli CPU s": stage["ours_cpu_s"],
                "ratio": stage["ratio"],
                "share %": 100 * stage["share"],
            }
        )
    seconds, iou = report["seconds"], report["mask_iou"]
    rows.append(
        {
            "stage": "all",
            "published CPU s": min(seconds["published"]["cpu_s"]),
            "gmcli CPU s": min(seconds["ours"]["cpu_s"]),
            "ratio": report["ratio_cpu_seconds"],
            "share %": 100.0,
        }
    )
    shown = report["foreground"]
    return [
        *table(rows),
        f"by the clock: ratio {report['ratio_wall_seconds']:.2f}",
        f"answers {'equal' if report['answers_equal'] else 'DIFFER'}",
        f"masks {'equal' if report['masks_equal'] else 'DIFFER'}: IoU at least {iou['min']:.5f}, mean {iou['mean']:.5f}; "
        f"foreground {100 * shown['share']:.1f} %, {shown['empty']} of {shown['masks']} empty",
        "calls, published: " + _counts(report["counts"]["published"]),
        "calls, gmcli:     " + _counts(report["counts"]["ours"]),
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _light(found: Mapping[str, Any]) -> list[str]:
    rows = [
        {
            "stage": name,
            "GFLOP": row["gflop"],
            found["seconds_are"]: row["seconds"],
            "GFLOP/s": row["gflop_s"],
            "% of peak": 100 * row["share_of_peak"],
            "s at peak": row["seconds_at_peak"],
        }
        for name, row in found["stages"].items()
    ]
    return ["speed of light", *table(rows)]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay rows out in columns, the first one to the left; every row has the first one's keys."""
    if not rows:
        return []
    cells = [list(rows[0])] + [[_cell(row.get(name)) for name in rows[0]] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _cell(value: Any) -> str:
    if value is None:
        return _DASH
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report; the folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_plots(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Draw the stages and each scaling table as PNG files; return their paths.

    Raises EnvironmentProblem where matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentProblem("plots need matplotlib", "pip install 'gmcli[bench]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("stages", *report["scaling"]):
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if name == "stages":
            _draw_stages(axes, report["stages"])
        else:
            _draw_scaling(axes, name, report["scaling"][name])
        axes.set_title(f"{report['settings']['model']}, {report['machine']['gpu'] or report['machine']['cpu']}")
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        written.append(path)
    return written


def _draw_stages(axes: "Axes", stages: Mapping[str, Mapping[str, float]]) -> None:
    names = [name for name in stages if name != "other"]
    sides = [side for side in ("published", "ours") if f"{side}_cpu_s" in stages[names[0]]]
    for k, side in enumerate(sides):
        places = [i + 0.4 * k for i in range(len(names))]
        axes.barh(places, [stages[name][f"{side}_cpu_s"] for name in names], height=0.38, label=side)
    axes.set_yticks([i + 0.2 * (len(sides) - 1) for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds")
    axes.legend()


def _draw_scaling(axes: "Axes", name: str, rows: Sequence[Mapping[str, float]]) -> None:
    across, drawn = _DRAWN[name]
    for column in drawn:
        axes.plot([row[across] for row in rows], [row[column] for row in rows], marker="o", label=column)
    axes.set_xlabel(across)
    axes.set_ylim(bottom=0)
    axes.legend()
