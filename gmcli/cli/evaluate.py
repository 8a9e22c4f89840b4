"""gmcli eval: score a run against ground truth."""

import json
from pathlib import Path
from typing import Any

import click

_COLUMNS = {"j": "J", "f": "F", "j_and_f": "J&F", "window_j_and_f": "J&F in window", "t_iou": "tIoU"}
_NOTE = (
    "J, F and J&F reward silence: an empty answer scores 100 in every frame outside the window.\n"
    "Read them beside all_empty, and with J&F in window and tIoU."
)


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The run's manifest, with ground truth.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Also write all figures here."
)
@click.option("--allow-missing", is_flag=True, help="Count questions without an answer as empty ones.")
def evaluate(run: Path, manifest: Path, json_file: Path | None, allow_missing: bool) -> None:
    """Score the run directory RUN by the GroundMoRe protocol: J, F, temporal IoU, per question type."""
    from gmcli.evaluate import evaluate as score
    from gmcli.manifest import read_manifest

    scores = score(run, read_manifest(manifest), allow_missing=allow_missing)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in _lines(str(run), scores):
        click.echo(line)
    if scores["missing"]:
        click.echo(f"\n{len(scores['missing'])} without an answer, counted as empty:")
        for name in scores["missing"]:
            click.echo(f"  {name}")
    click.echo(f"\n{_NOTE}")


def _lines(run: str, scores: dict[str, Any]) -> list[str]:
    """Lay the tables out: the run's, then each baseline's; figures in percent."""
    tables = {run: scores, **{f"baseline {name}": table for name, table in scores["baselines"].items()}}
    first = max(len(name) for name in ("overall", *scores["by_type"])) + 2
    lines = [" " * first + "questions" + "".join(f"  {title:>7}" for title in _COLUMNS.values())]
    for title, table in tables.items():
        lines += ["", title]
        for name, summary in (*table["by_type"].items(), ("overall", table["overall"])):
            figures = (f"  {_percent(summary[key]):>{max(len(t), 7)}}" for key, t in _COLUMNS.items())
            lines.append(f"  {name:{first - 2}}{summary['questions']:9}" + "".join(figures))
    return lines


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
