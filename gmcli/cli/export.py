"""gmcli export and gmcli export-trt: compile a checkpoint's networks ahead of a run."""

from typing import TYPE_CHECKING

import click

from gmcli.cli.echo import say
from gmcli.config import DTYPES
from gmcli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gmcli.checkpoints.load import Checkpoint
    from gmcli.engines import Planned

# Those whose result can be stored; inductor compiles when a run begins.
_STORING = ("aot_inductor", "openvino", "tensorrt")
_NAMES = ("clip", "sam_image_encoder", "sam_mask_decoder", "llm")


def _options(function: "Callable[..., None]") -> "Callable[..., None]":
    for option in reversed(
        [
            click.option(
                "--checkpoint",
                metavar="REF",
                default="mora-tiny",
                show_default=True,
                help="Folder, hub name, or what ships.",
            ),
            click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub name."),
            click.option(
                "--vision-tower", metavar="REF", help="Folder or hub name of CLIP, for an original checkpoint."
            ),
            click.option("--require-sha256", metavar="HEX", help="Refuse a checkpoint of another content."),
            click.option(
                "--component",
                "names",
                multiple=True,
                type=click.Choice(_NAMES),
                help="Only this one; may be repeated.  [default: all that the recipes name]",
            ),
            click.option(
                "--dtype",
                type=click.Choice(DTYPES),
                default="auto",
                help="[default: auto: fp32 on a CPU, bf16 on a GPU]",
            ),
            click.option(
                "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]"
            ),
            click.option(
                "--questions",
                type=click.IntRange(min=1),
                default=16,
                show_default=True,
                help="Most questions of a video in one batch: a run's questions_per_batch.",
            ),
        ]
    ):
        function = option(function)
    return function


@click.command()
@click.option("--backend", type=click.Choice(_STORING), required=True, help="What to compile with.")
@_options
def export(
    backend: str,
    checkpoint: str,
    revision: str | None,
    vision_tower: str | None,
    require_sha256: str | None,
    names: "Sequence[str]",
    dtype: str,
    device: str,
    questions: int,
) -> None:
    """Compile a checkpoint's networks with a backend, compare their masks with the uncompiled ones', and store them.

    What is stored already is checked and left alone. `gmcli infer --backend` finds the engines, and builds what is missing.
    """
    from gmcli.backends.choose import check_backend

    device, dtype = _where(device, dtype)
    check_backend(backend, device, dtype)
    loaded = _load(checkpoint, revision, vision_tower, require_sha256, device, dtype)
    _export(loaded, _plan(loaded, backend, names, questions))


def _where(device: str, dtype: str) -> tuple[str, str]:
    from gmcli.devices import gpu_count

    if device == "auto":
        device = "cuda" if gpu_count() else "cpu"
    if device == "cuda" and not gpu_count():
        raise UsageError("no GPU is here", "Use --device cpu, or run `gmcli doctor`.")
    return device, dtype if dtype != "auto" else ("fp32" if device == "cpu" else "bf16")


def _load(
    ref: str, revision: str | None, vision_tower: str | None, require_sha256: str | None, device: str, dtype: str
) -> "Checkpoint":
    from gmcli.checkpoints.load import load_checkpoint
    from gmcli.checkpoints.locate import locate_checkpoint
    from gmcli.config import sha256_option
    from gmcli.logs import set_up_logging

    set_up_logging("text")
    files = locate_checkpoint(
        ref, revision=revision, vision_tower=vision_tower, require_sha256=sha256_option(require_sha256)
    )
    return load_checkpoint(files, device=device, dtype=dtype)


def _plan(checkpoint: "Checkpoint", backend: str, names: "Sequence[str]", questions: int) -> "list[Planned]":
    from gmcli.engines import plan_engines

    return plan_engines(checkpoint, backend, questions=questions, only=names or _NAMES)


def _export(checkpoint: "Checkpoint", plans: "Sequence[Planned]") -> None:
    import time

    from gmcli.backends.store import Store
    from gmcli.engines import Reference, ensure_engine

    store, reference = Store(), Reference(checkpoint)
    for plan in plans:
        start = time.monotonic()
        found = store.find(plan.key) is not None
        engine = ensure_engine(reference, plan, store)
        how = "was there" if found else f"built in {time.monotonic() - start:.1f} s"
        say(
            f"{plan.component.name:<18} {how}, mask IoU {engine.facts['mask_iou']:.6f}, "
            f"{engine.size_bytes / 1e6:.1f} MB, {engine.name}"
        )
    say(f"stored in {store.root}")


@click.command("export-trt")
@_options
@click.option("--dry-run", is_flag=True, help="Only say which operators TensorRT takes; build nothing.")
@click.option(
    "--ahead",
    metavar="CC",
    help="Build TensorRT-RTX plans for GPUs of a compute capability such as 8.9; needs no GPU.",
)
def export_trt(
    checkpoint: str,
    revision: str | None,
    vision_tower: str | None,
    require_sha256: str | None,
    names: "Sequence[str]",
    dtype: str,
    device: str,
    questions: int,
    dry_run: bool,
    ahead: str | None,
) -> None:
    """Compile a checkpoint's networks with TensorRT, compare their masks with the uncompiled ones', and store them."""
    from gmcli.backends.choose import check_backend

    if dry_run and ahead:
        raise UsageError("--dry-run and --ahead exclude each other", "Leave one out.")
    if dry_run:
        _dry_run(_load(checkpoint, revision, vision_tower, require_sha256, *_where(device, dtype)), names, questions)
        return
    if ahead:
        dtype = "bf16" if dtype == "auto" else dtype  # as `infer` has it on a GPU
        _ahead(
            _load(checkpoint, revision, vision_tower, require_sha256, "cpu", dtype),
            dtype,
            ahead,
            names or _NAMES,
            questions,
        )
        return
    device, dtype = _where(device, dtype)
    check_backend("tensorrt", device, dtype)
    loaded = _load(checkpoint, revision, vision_tower, require_sha256, device, dtype)
    _export(loaded, _plan(loaded, "tensorrt", names, questions))


def _dry_run(checkpoint: "Checkpoint", names: "Sequence[str]", questions: int) -> None:
    import sys

    from gmcli.engines import tensorrt_coverage
    from gmcli.errors import EXIT_CHECKPOINT

    whole = True
    for name, coverage in tensorrt_coverage(checkpoint, questions=questions, only=names or _NAMES):
        whole &= coverage.whole
        left = ", ".join(f"{operator} ({count})" for operator, count in coverage.left_out.items())
        say(
            f"{name:<18} {coverage.supported} of {coverage.operators} operators, {coverage.engines} engine(s)"
            + (f", left out: {left}" if left else "")
        )
    if not whole:
        sys.exit(EXIT_CHECKPOINT)


def _ahead(checkpoint: "Checkpoint", dtype: str, capability: str, names: "Sequence[str]", questions: int) -> None:
    from gmcli.backends.store import Store
    from gmcli.engines import build_ahead

    store = Store()
    for engine in build_ahead(checkpoint, capability, store, questions=questions, only=names):
        say(f"{engine.key.component:<18} {engine.size_bytes / 1e6:.1f} MB, {engine.name}, not compared yet")
    say(
        f"stored in {store.root}; on such a GPU `gmcli infer --backend tensorrt_rtx --dtype {dtype}` compares and uses it"
    )
