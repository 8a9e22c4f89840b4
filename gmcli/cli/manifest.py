"""gmcli manifest: write manifests of published datasets."""

from pathlib import Path

import click

from gmcli.cli.echo import say


@click.group()
def manifest() -> None:
    """Write manifests of published datasets."""


@manifest.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="Manifest to write: .yaml or .jsonl."
)
@click.option(
    "--json",
    "annotations",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Annotations.  [default: the only JSON file in DIRECTORY]",
)
def groundmore(directory: Path, output: Path, annotations: Path | None) -> None:
    """Write the manifest of DIRECTORY, which has GroundMoRe's layout, with ground truth."""
    from gmcli.datasets.groundmore import write_groundmore_manifest

    videos, questions = write_groundmore_manifest(directory, output, annotations)
    say(f"{output}: {videos} videos, {questions} questions")
