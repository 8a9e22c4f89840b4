"""Hold the settings of a training: typed, and read from YAML with every mistake at its line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from gmcli.errors import ConfigError
from gmcli.resources import share_dir
from gmcli.train.fields import betas, choice, count, flag, folder_name, number, optional, scales, sizes, text, texts
from gmcli.train.tiny.options import LanguageOptions, MotionOptions, SamOptions, TinyOptions, TowerOptions
from gmcli.yaml_fields import MAX_BYTES, Read, plain, read_mapping
from gmcli.yaml_lines import LIST, MAPPING, Node, Problems, Stop, load_yaml

Kind = Literal["mora", "tower", "sam", "motion", "language"]
Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "muon"]

# These may differ from run to run of one training: they change how it is watched, not which weights it gives.
FREE = frozenset({"loader_workers", "save_every", "validate_every", "log_every"})


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Hold how a stage is optimised. `steps` counts optimizer steps, each of `accumulation` micro-batches a process.

    `optimizer` muon steps the matrices inside transformer blocks by their orthogonalised momentum (Jordan 2024, Moonlight's
    scale, so that `lr` is AdamW's); all else is AdamW's as ever.
    `lr_scale` maps a prefix of parameter names to a factor of the learning rate; the longest prefix that fits wins.
    `warmup_steps` count within `steps`. The schedule decays to nothing at `steps`.
    Defaults are MoRA's (paper, section 4.2).
    """

    steps: int
    optimizer: Optimizer = "adamw"
    accumulation: int = 1
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: Schedule = "linear"
    clip_grad: float = 1.0
    precision: Precision = "fp32"
    loader_workers: int = 0
    save_every: int = 500
    validate_every: int = 500
    log_every: int = 10
    lr_scale: Mapping[str, float] = field(default_factory=dict)

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the weights, as JSON values."""
        values = asdict(self) | {"betas": list(self.betas), "lr_scale": dict(self.lr_scale)}
        return {k: v for k, v in values.items() if k not in FREE}


@dataclass(frozen=True, slots=True)
class MoraOptions:
    """Hold what kind `mora` trains and on what; configs/mora-lisa7b-ft.yaml explains each.

    `manifest` and `validation` name manifests with ground truth. `frames` is T, how many the language model sees;
    `mask_frames` how many of them are masked and compared in a sample. `answers` are the texts that are taught, one drawn
    a sample, each with one [SEG], and one [LOC] where `localizer_bins` is not 0; "{answer}" stands for the ground truth's
    answer in words. None keeps what the checkpoint says.
    """

    manifest: str
    validation: str
    validation_questions: int = 50
    frames: int = 20
    mask_frames: int = 4
    reader: Literal["pyav", "decord"] = "pyav"
    visual_tokens: str | None = None
    conversation: str | None = None
    instruction: str | None = None
    answers: tuple[str, ...] = ("Sure, [SEG].",)
    localizer_bins: int = 0
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    gradient_checkpointing: bool = False
    ce_weight: float = 1.0
    bce_weight: float = 2.0
    dice_weight: float = 0.5
    window_weight: float = 1.0


Options = MoraOptions | TinyOptions


@dataclass(frozen=True, slots=True)
class StageConfig:
    """Hold one stage: its folder's name, its kind with the options of that kind, how it is optimised."""

    name: str
    kind: Kind
    settings: StageSettings
    options: Options


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Hold a whole training. `init` is the checkpoint that the first stage starts from, or `model` the sizes of a new one."""

    stages: tuple[StageConfig, ...]
    seed: int = 0
    init: str | None = None
    vision_tower: str | None = None
    model: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all that decides the weights, as JSON values."""
        stages = [
            {"name": s.name, "kind": s.kind, **s.settings.decisive(), **_listed(asdict(s.options))} for s in self.stages
        ]
        start = {"init": self.init, "vision_tower": self.vision_tower, "model": self.model}
        return {"seed": self.seed, **start, "stages": stages}


def load_train_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration: a YAML file, or one that ships with gmcli by its name.

    overrides: "key=value" each, the value in YAML; a key of the top level, or of every stage whose kind has it.
    Raises ConfigError with every mistake, one `file:line: message` a line.
    """
    path = _find(source)
    try:
        data = path.read_bytes()
    except OSError as failure:
        raise ConfigError(f"{path}: cannot be read ({failure.strerror})") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so not one of our files")
    problems = Problems()
    config: TrainConfig | None = None
    try:
        node = load_yaml(data, problems)
        if node is None or node.kind != MAPPING:
            problems.stop(1, "must be a mapping with 'stages'")
        for given in overrides:
            _override(node, given, problems)
        config = _config(node, problems)
    except Stop:
        pass  # the reason is among the problems
    if problems:
        raise ConfigError("\n".join(problems.in_file_order(str(path))))
    assert config is not None
    return config


def _find(source: str | Path) -> Path:
    path = Path(source)
    shipped = share_dir("configs") / f"{source}.yaml"
    if path.is_file():
        return path
    if re.fullmatch(r"[\w.-]+", str(source)) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in share_dir("configs").glob("*.yaml") if "stages:" in p.read_text("utf-8")))
    raise ConfigError(f"{source}: no such configuration", f"Give a file, or one that ships with gmcli: {names}.")


def _override(top: Node, given: str, problems: Problems) -> None:
    """Lay one "key=value" over the file's values. Its problems have no line: they are of the whole."""
    key, separator, value = given.partition("=")
    said = Problems()
    try:
        node = load_yaml(value.encode(), said) if separator else None
    except Stop:
        node = None
    if node is None or said:
        problems.add(0, f"--set {given!r} must be KEY=VALUE, the value in YAML")
        return
    node.line = node.at = 0
    if key in _TOP:
        top.value[key] = node
        return
    stages = top.value.get("stages")
    found = [
        stage
        for stage in (stages.value if stages is not None and stages.kind == LIST else [])
        if stage.kind == MAPPING and key in _known(stage) and key not in ("name", "kind")
    ]
    if not found:
        problems.add(0, f"--set {key}: no stage has such a field")
    for stage in found:
        stage.value[key] = node


def _config(top: Node, problems: Problems) -> TrainConfig | None:
    values = read_mapping(top, _TOP, problems)
    stages: list[StageConfig] = []
    listed = top.value.get("stages")
    if listed is None or listed.kind != LIST or not listed.value:
        problems.add(listed.at if listed else top.line, "'stages' must be a list of stages")
        return None
    for node in listed.value:
        stage = _stage(node, problems)
        if stage is None:
            continue
        if stage.name in {s.name for s in stages}:
            problems.add(node.line, f"two stages are named {stage.name!r}: give each a 'name'")
        stages.append(stage)
    return None if problems else TrainConfig(tuple(stages), **{k: v for k, v in values.items() if k != "stages"})


def _stage(node: Node, problems: Problems) -> StageConfig | None:
    if node.kind != MAPPING:
        problems.add(node.line, f"a stage must be a mapping, not {node}")
        return None
    kind = _kind(node)
    if kind is None:
        at = node.value["kind"].at if "kind" in node.value else node.line
        problems.add(at, f"'kind' must be one of {', '.join(get_args(Kind))}")
        return None
    values = read_mapping(node, _known(node), problems)
    options_type = _options_type(kind)
    needed = [
        f.name
        for f in (*fields(StageSettings), *fields(options_type))
        if f.default is MISSING and f.default_factory is MISSING
    ]
    missing = [name for name in needed if name not in node.value]
    for name in missing:
        problems.add(node.line, f"'{name}' is missing in stage {values.get('name', kind)!r}")
    if missing or any(name not in values for name in node.value):
        return None

    def chosen(kind: type) -> dict[str, Any]:
        return {f.name: values[f.name] for f in fields(kind) if f.name in values}

    settings = StageSettings(**chosen(StageSettings))
    options = options_type(**chosen(options_type))
    for name, message in _contradictions(settings, options):
        problems.add(node.value[name].at if name in node.value else node.line, f"'{name}' {message}")
    return StageConfig(str(values.get("name", kind)), kind, settings, options)


def _kind(stage: Node) -> Kind | None:
    node = stage.value.get("kind")
    return next((kind for kind in get_args(Kind) if node is not None and node.value == kind), None)


def _contradictions(settings: StageSettings, options: Options) -> list[tuple[str, str]]:
    """List what single fields cannot see, with the field to point at."""
    found = []
    if settings.warmup_steps > settings.steps:
        found.append(("warmup_steps", f"must not exceed steps ({settings.steps})"))
    if not isinstance(options, MoraOptions):
        return found
    if isinstance(options, MoraOptions):
        found += _mora_contradictions(options)
    return found


def _mora_contradictions(options: MoraOptions) -> list[tuple[str, str]]:
    found = []
    for answer in options.answers:
        if answer.count("[SEG]") != 1:
            found.append(("answers", f"must each have one [SEG]: {answer!r}"))
        if answer.count("[LOC]") != (options.localizer_bins > 0):
            wanted = "one" if options.localizer_bins else "no"
            found.append(("answers", f"must each have {wanted} [LOC] with {options.localizer_bins} bins: {answer!r}"))
    if options.visual_tokens == "frame" and options.localizer_bins:
        found.append(("localizer_bins", "must be 0 with visual_tokens frame: one frame says nothing of time"))
    if options.visual_tokens == "pooled_padded" and options.frames > 100:
        found.append(("frames", "must not exceed 100 with visual_tokens pooled_padded"))
    return found


def _options_type(kind: Kind) -> type[Options]:
    match kind:
        case "mora":
            return MoraOptions
        case "tower":
            return TowerOptions
        case "sam":
            return SamOptions
        case "motion":
            return MotionOptions
        case "language":
            return LanguageOptions


def _known(stage: Node) -> Mapping[str, Read]:
    """Return the readers of a stage's fields; those of no kind where its kind is wrong."""
    match _kind(stage):
        case "mora":
            return {**_SETTINGS, **_MORA}
        case "tower":
            return {**_SETTINGS, "batch_size": count(1, 100_000), "place_weight": number(0)}
        case "sam":
            return {**_SETTINGS, "batch_size": count(1, 100_000)}
        case "motion":
            return {**_SETTINGS, **_MOTION}
        case "language":
            return {**_SETTINGS, **_LANGUAGE}
        case None:
            return _SETTINGS


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


_TOP: Mapping[str, Read] = {
    "seed": count(0),
    "init": optional(text),
    "vision_tower": optional(text),
    "model": optional(sizes),
    "stages": plain,
}
_SETTINGS: Mapping[str, Read] = {
    "name": folder_name,
    "kind": choice(*get_args(Kind)),
    "steps": count(1),
    "optimizer": choice(*get_args(Optimizer)),
    "accumulation": count(1, 100_000),
    "lr": number(0),
    "betas": betas,
    "weight_decay": number(0),
    "warmup_steps": count(0),
    "schedule": choice(*get_args(Schedule)),
    "clip_grad": number(0),
    "precision": choice(*get_args(Precision)),
    "loader_workers": count(0, 256),
    "save_every": count(1),
    "validate_every": count(1),
    "log_every": count(1),
    "lr_scale": scales,
}
_MOTION: Mapping[str, Read] = {
    "videos": count(1, 100_000),
    "groups": count(1, 1000),
    "pool": count(1),
    "fresh_every": count(1),
    "lessons_after": count(1, 1000),
}
_LANGUAGE: Mapping[str, Read] = {
    "videos": count(1, 100_000),
    "questions": count(1, 1000),
    "pool": count(1),
    "fresh_every": count(1),
    "lessons_after": count(1, 1000),
    "drills": number(0, 1),
    "checks": count(1, 1000),
}
_MORA: Mapping[str, Read] = {
    "manifest": text,
    "validation": text,
    "validation_questions": count(1),
    "frames": count(1, 1000),
    "mask_frames": count(1, 1000),
    "reader": choice("pyav", "decord"),
    "visual_tokens": optional(choice("frame", "pooled", "pooled_padded", "temporal", "changes")),
    "conversation": optional(choice("llava_v1", "llava_llama_2")),
    "instruction": optional(text),
    "answers": texts,
    "localizer_bins": count(0, 1000),
    "lora_r": count(1, 1024),
    "lora_alpha": count(1, 1024),
    "lora_dropout": number(0, 1, below=True),
    "lora_targets": texts,
    "gradient_checkpointing": flag,
    "ce_weight": number(0),
    "bce_weight": number(0),
    "dice_weight": number(0),
    "window_weight": number(0),
}
