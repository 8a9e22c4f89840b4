"""gmcli train: train a model as a configuration says."""

from pathlib import Path

import click

from gmcli.cli.echo import say
from gmcli.errors import EnvironmentProblem

_EXTRA = ("accelerate", "peft", "tensorboard")


@click.command()
@click.argument("config", type=str)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Directory of this training; the same command goes on where it was.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a field of the configuration, in every stage that has it; as often as needed.",
)
@click.option("--check", "check_only", is_flag=True, help="Check configuration, data and checkpoint; train nothing.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the log is written.",
)
def train(config: str, output: Path, overrides: tuple[str, ...], check_only: bool, log_format: str) -> None:
    """Train as CONFIG says: a YAML file, or the name of a configuration that ships with gmcli.

    A stage leaves best/ and final/ (checkpoints for `gmcli infer`), losses.jsonl, scores.jsonl and tensorboard/ in its folder.
    """
    from gmcli.logs import set_up_logging
    from gmcli.train.config import load_train_config

    settings = load_train_config(config, overrides)
    _require_extra()
    set_up_logging(log_format)
    from gmcli.train.build import check
    from gmcli.train.build import train as run

    if check_only:
        check(settings)
        say(f"{config}: all is there for {', '.join(stage.name for stage in settings.stages)}")
        return
    best = run(settings, output)
    say(f"best  {best}")


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"training needs {', '.join(missing)}", "pip install 'gmcli[train]'")
