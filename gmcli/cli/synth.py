"""gmcli synth: make a MotionShapes dataset."""

from pathlib import Path

import click

from gmcli.cli.echo import say


@click.command()
@click.option("--seed", type=click.IntRange(0), required=True, help="Equal seeds give equal datasets.")
@click.option("--questions", type=click.IntRange(1), required=True, help="How many questions to ask in all.")
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to make.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Splits draw from streams of their own: a seed in one is another one's stranger.",
)
def synth(seed: int, questions: int, output: Path, split: str) -> None:
    """Make short videos of moving shapes, with questions, masks and a manifest, in GroundMoRe's layout."""
    from tqdm import tqdm

    from gmcli.synth.write import MANIFEST, write_dataset

    with tqdm(total=questions, unit="question", disable=None) as bar:
        clips = write_dataset(output, seed=seed, questions=questions, split=split, progress=bar.update)  # type: ignore[arg-type]
    say(f"{output / MANIFEST}: {clips} videos, {questions} questions")
