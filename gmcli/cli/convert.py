"""gmcli convert: write a checkpoint in gmcli's own layout."""

from pathlib import Path

import click

from gmcli.cli.echo import say


@click.command()
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["keep", "fp32", "bf16", "fp16"]),
    default="keep",
    show_default=True,
    help="How to store the weights; keep: as they are.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub name.")
@click.option(
    "--vision-tower", metavar="REF", help="Folder or hub name of CLIP, if config.json's is not the right one."
)
@click.option("--require-sha256", metavar="HEX", help="Refuse a SOURCE of another content (its fingerprint).")
@click.option(
    "--merge-lora",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Merge what a training from SOURCE has saved last; DIR: the folder of its stage, of kind mora.",
)
def convert(
    source: str,
    destination: Path,
    dtype: str,
    revision: str | None,
    vision_tower: str | None,
    require_sha256: str | None,
    merge_lora: Path | None,
) -> None:
    """Write the checkpoint SOURCE (folder or hub name) as DESTINATION: one safetensors file that needs nothing else."""
    from gmcli.checkpoints.convert import convert
    from gmcli.checkpoints.locate import locate_checkpoint
    from gmcli.config import sha256_option

    files = locate_checkpoint(
        source, revision=revision, vision_tower=vision_tower, require_sha256=sha256_option(require_sha256)
    )
    count = convert(files, destination, dtype, merge_lora)
    say(f"{destination}: {count} tensors")
