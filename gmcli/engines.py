"""Prepare the model's parts to run: as they are, or compiled by a backend, verified and stored."""

import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gmcli.agreement import Agreement, Sample, make_sample, mask_agreement, sample_masks
from gmcli.backends.choose import choose_backend
from gmcli.backends.component import Component, Run
from gmcli.backends.engine_folder import Engine, EngineKey
from gmcli.backends.recipe import COMPONENTS, EngineRecipe, load_recipe
from gmcli.backends.store import Store
from gmcli.checkpoints.load import Checkpoint
from gmcli.components import ClipTower, PairDecoder, components
from gmcli.errors import EngineError
from gmcli.model.generate import EagerLanguage, Language, TensorLanguage
from gmcli.model.linear import choose_linear, use_linear
from gmcli.model.mora import Mora
from gmcli.model.sam_encoder import AttentionKind, encode

if TYPE_CHECKING:
    from gmcli.backends.tensorrt import Coverage

log = logging.getLogger("gmcli.engines")


@dataclass(frozen=True, slots=True)
class Engines:
    """Hold the parts of a model as they are to run.

    `model` is for what stays uncompiled: embeddings, heads, prompts. `clip`, `encode` and `decode` take and give tensors as
    ClipTower, ImageEncoder and PairDecoder do. `batch` is the largest batch of a call by component; `used` says by
    component what it runs on: "eager", a backend's name, or a stored engine's.
    """

    model: Mora
    clip: Run
    encode: Run
    decode: Run
    language: Language
    batch: Mapping[str, int]
    used: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, "eager"))


def eager_engines(model: Mora) -> Engines:
    """Return the model's parts uncompiled, in the fastest way that torch has for the device.

    The model stays as it is: a copy of its modules shares all tensors with it.
    """
    parameter = next(model.language_model.parameters())
    device, linear = parameter.device, choose_linear(parameter.device, parameter.dtype)
    own = shared_copy(model)
    use_linear(own, linear)
    attention = attention_for(device)
    return Engines(
        model=own,
        clip=ClipTower(own),
        encode=partial(encode, own.visual_model.image_encoder, attention=attention, linear=linear),
        decode=PairDecoder(own.visual_model),
        language=EagerLanguage(own.language_model),
        batch={name: load_recipe(name).batch[device.type] for name in COMPONENTS},
    )


def attention_for(device: torch.device) -> AttentionKind:
    """Choose how the uncompiled image encoder attends: in rows that fit a CPU's cache; without a bias matrix on a GPU."""
    return "rows" if device.type == "cpu" else "folded"


def shared_copy(model: Mora) -> Mora:
    """Copy a model's modules and share all its tensors, so that modules can be replaced in one of the two."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def prepare_engines(checkpoint: Checkpoint, backend: str, *, questions: int, store: Store | None = None) -> Engines:
    """Return the model's parts on a backend; build, verify and store what is missing.

    questions: the most questions in one batch of the language model. A component whose recipe leaves the backend out
    stays uncompiled. One process builds, others wait for it. Raises EngineError where a component cannot be built or
    does not do what the uncompiled one does; EnvironmentProblem where the backend's library or device is missing.
    """
    engines = eager_engines(checkpoint.model)
    if backend == "eager":
        return engines
    library, store, reference = choose_backend(backend), store or Store(), Reference(checkpoint)
    for plan in plan_engines(checkpoint, backend, questions=questions):
        if library.STORES:
            with store.using(plan.key):
                engine = ensure_engine(reference, plan, store)
                run, label = library.load(plan.component, engine.path), engine.name
            if "mask_iou" not in engine.facts:
                # Built for this GPU on a machine without one: only here can it be compared.
                verify_component(reference, plan.component, plan.recipe, run)
        else:
            run, label = library.load(plan.component, None), backend
        engines = with_component(engines, plan.component.name, run, label)
    log.info("components: %s", ", ".join(f"{name} {label}" for name, label in engines.used.items()))
    return engines


@dataclass(frozen=True, slots=True)
class Planned:
    """Hold one component that a backend is to compile, its recipe, and the key by which the result is found again."""

    backend: str
    component: Component
    recipe: EngineRecipe
    key: EngineKey


def plan_engines(
    checkpoint: Checkpoint, backend: str, *, questions: int, only: Sequence[str] = COMPONENTS
) -> list[Planned]:
    """Return what a backend compiles of a checkpoint, by its recipes. Raises EnvironmentProblem as its `versions`."""
    device = next(checkpoint.model.language_model.parameters()).device
    return _plan(checkpoint, backend, device.type, choose_backend(backend).versions(device), questions, only)


def _plan(
    checkpoint: Checkpoint, backend: str, target: str, versions: Mapping[str, str], questions: int, only: Sequence[str]
) -> list[Planned]:
    recipes = [load_recipe(name) for name in COMPONENTS]
    batch = {recipe.component: recipe.batch[target] for recipe in recipes}
    pieces = components(checkpoint.model, batch, questions=questions)
    chosen = [r for r in recipes if r.component in only and backend in r.backends]
    return [
        Planned(backend, pieces[r.component], r, engine_key(pieces[r.component], r, backend, target, versions))
        for r in chosen
    ]


def build_ahead(
    checkpoint: Checkpoint, capability: str, store: Store, *, questions: int, only: Sequence[str]
) -> list[Engine]:
    """Build TensorRT-RTX plans for a GPU that is elsewhere, and store them under the keys that it will look for.

    capability: such as "8.9". Nothing is compared with the uncompiled model: that takes the GPU, and happens there, before
    the plan is used. Raises EngineError for a capability that TensorRT-RTX does not build for.
    """
    from gmcli.backends import rtx_plan, tensorrt_rtx

    versions = tensorrt_rtx.versions_for(capability)
    made = []
    for plan in _plan(checkpoint, "tensorrt_rtx", "cuda", versions, questions, only):

        def build(folder: Path, component: Component = plan.component) -> dict[str, Any]:
            return rtx_plan.build_plan(component, folder, capability)

        made.append(store.get_or_build(plan.key, build))
    return made


def tensorrt_coverage(
    checkpoint: Checkpoint, *, questions: int, only: Sequence[str] = COMPONENTS
) -> "Iterator[tuple[str, Coverage]]":
    """Yield what TensorRT would take of each component at a GPU's batch sizes; nothing is built.

    Raises EnvironmentProblem without torch-tensorrt, and without a GPU's driver, which it asks for when it is imported.
    """
    from gmcli.backends.tensorrt import dry_run

    batch = {name: load_recipe(name).batch["cuda"] for name in COMPONENTS}
    for name, component in components(checkpoint.model, batch, questions=questions).items():
        if name in only:
            yield name, dry_run(component)


class Reference:
    """Hold what compiled components are compared with: the uncompiled ones and their masks, drawn when first asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.engines = eager_engines(checkpoint.model)
        self._drawn: tuple[Sample, NDArray[np.bool_]] | None = None

    def compare(self, candidate: Engines) -> Agreement:
        """Compare the masks of a sample with those that other parts draw. Raises EngineError as mask_agreement does."""
        if self._drawn is None:
            sample = make_sample(self.checkpoint, self.engines)
            self._drawn = sample, sample_masks(self.checkpoint, self.engines, sample)
        sample, want = self._drawn
        return mask_agreement(want, sample_masks(self.checkpoint, candidate, sample))


def ensure_engine(reference: Reference, plan: Planned, store: Store) -> Engine:
    """Return a stored engine; build and verify it first where there is none."""
    backend, component = choose_backend(plan.backend), plan.component

    def build(folder: Path) -> dict[str, Any]:
        log.info("building %s with %s", component.name, plan.backend)
        backend.build(component, folder)
        return verify_component(reference, component, plan.recipe, backend.load(component, folder))

    return store.get_or_build(plan.key, build)


def with_component(engines: Engines, name: str, run: Run, label: str) -> Engines:
    """Replace one component by something that runs in its place."""
    parts: dict[str, Any] = {
        item: getattr(engines, item) for item in ("model", "clip", "encode", "decode", "language", "batch")
    }
    match name:
        case "clip":
            parts["clip"] = run
        case "sam_image_encoder":
            parts["encode"] = run
        case "sam_mask_decoder":
            parts["decode"] = run
        case "llm":
            parts["language"] = TensorLanguage(run, engines.model.language_model)
    return Engines(**parts, used={**engines.used, name: label})


def verify_component(reference: Reference, component: Component, recipe: EngineRecipe, run: Run) -> dict[str, Any]:
    """Compare the masks of a compiled component with those of the uncompiled one, on frames of a drawn clip.

    Returns what was found, for the engine's record. Raises EngineError where the IoU is below the recipe's tolerance.
    """
    candidate = with_component(reference.engines, component.name, run, "candidate")
    agreement = reference.compare(candidate)
    full = component.example[0].dtype == torch.float32
    least = recipe.tolerance["full" if full else "reduced"]
    facts = {"mask_iou": agreement.iou, "least_mask_iou": agreement.least, "tolerance": least, "masks": agreement.count}
    log.info(
        "%s: mask IoU %.6f against the uncompiled one (lowest %.6f)", component.name, agreement.iou, agreement.least
    )
    if not agreement.iou >= least:
        raise EngineError(
            f"the compiled {component.name} draws other masks: IoU {agreement.iou:.5f}, its recipe asks for {least}",
            "It is not stored. Use another backend or dtype.",
        )
    return facts


def engine_key(
    component: Component, recipe: EngineRecipe, backend: str, target: str, versions: Mapping[str, str]
) -> EngineKey:
    """Say by what a built component is found again: weights, recipe, shapes, dtype, libraries, hardware."""
    return EngineKey(
        component=component.name,
        backend=backend,
        weights_sha256=weights_sha256(component.module),
        recipe_sha256=hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True, default=dict).encode()).hexdigest(),
        shapes=[
            {"shape": list(tensor.shape), "axes": {str(i): [a.least, a.most, a.usual] for i, a in axes.items()}}
            for tensor, axes in zip(component.example, component.axes, strict=True)
        ],
        settings={"dtype": str(component.example[0].dtype).removeprefix("torch."), "device": target},
        versions=dict(versions),
    )


def weights_sha256(module: nn.Module) -> str:
    """Hash a module's tensors with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in sorted((*module.named_parameters(), *module.named_buffers())):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
