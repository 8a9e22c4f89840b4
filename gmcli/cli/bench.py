"""gmcli bench: measure speed, against the published schedule, the machine's peak, and over sizes."""

from pathlib import Path
from typing import Any

import click

from gmcli.bench.options import ANSWERS, SIZES, Options, read_scaling
from gmcli.cli.echo import say
from gmcli.config import BACKENDS, DTYPES, VISUAL_TOKENS


@click.command()
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default="vit_b-160m",
    show_default=True,
    help="Random weights of this size. vit_b-160m takes minutes on a CPU, vit_h-7b is for a GPU.",
)
@click.option(
    "--answer",
    type=click.Choice(list(ANSWERS)),
    default="known",
    show_default=True,
    help="Let random weights give an answer that gmcli tries as a guess, or one that it does not know.",
)
@click.option("--checkpoint", metavar="REF", help="Measure this checkpoint instead of random weights.")
@click.option("--questions", type=click.IntRange(min=1, max=500), default=3, show_default=True, help="Of one video.")
@click.option("--frames", type=click.IntRange(min=1, max=1000), default=4, show_default=True, help="That get masks.")
@click.option("--visual-tokens", type=click.Choice(VISUAL_TOKENS), help="[default: the checkpoint's; random: pooled]")
@click.option("--against", type=click.Choice(["published"]), help="Also run the published schedule, and compare masks.")
@click.option("--backend", type=click.Choice(BACKENDS), help="What compiles the networks.  [default: eager: nothing]")
@click.option("--dtype", type=click.Choice(DTYPES), help="[default: auto: fp32 on a CPU, bf16 on a GPU]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where there is a GPU]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: one a core]")
@click.option(
    "--scaling",
    metavar="LIST",
    help="Also measure over workers, questions, frames, length (seconds); points may follow: questions=1,4,frames=4,16.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Measure so often, and compare each side's fastest.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures here.")
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Draw the tables as PNG files here.")
def bench(
    size: str,
    answer: str,
    checkpoint: str | None,
    questions: int,
    frames: int,
    visual_tokens: str | None,
    against: str | None,
    backend: str | None,
    dtype: str | None,
    device: str | None,
    threads: int | None,
    scaling: str | None,
    repeat: int,
    json_file: Path | None,
    plots: Path | None,
) -> None:
    """Measure how fast this machine answers a video's questions, by stage.

    The video is drawn, the model is random unless --checkpoint names one; every window is the whole clip. Seconds are
    warm, except where a table says cold: then they count from the start of the process.
    """
    tables = read_scaling(scaling)

    from gmcli.bench.measure import run_bench
    from gmcli.bench.show import text, write_json, write_plots
    from gmcli.devices import cpu_count, gpu_count

    device = device or ("cuda" if gpu_count() else "cpu")
    settings: dict[str, Any] = {"visual_tokens": visual_tokens, "backend": backend, "dtype": dtype}
    options = Options(
        size=size,
        answer=answer,
        checkpoint=checkpoint,
        questions=questions,
        frames=frames,
        against_published=against is not None,
        device=device,
        dtype=dtype if dtype not in (None, "auto") else ("fp32" if device == "cpu" else "bf16"),
        threads=threads or cpu_count(),
        repeat=repeat,
        settings={name: value for name, value in settings.items() if value is not None},
        scaling=tables,
    )
    report = run_bench(options, lambda line: say(line, err=True))
    for line in text(report):
        say(line)
    if json_file is not None:
        write_json(json_file, report)
    if plots is not None:
        for path in write_plots(plots, report):
            say(f"plot     {path}")
