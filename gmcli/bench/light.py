"""Say how near a run comes to what the machine's matrix products allow: FLOPs of its work over the measured peak.

FLOPs are counted on the published modules (segment-anything's and transformers' own, attention written out), on the meta
device: shapes only. So what a cleverer forward leaves out counts as done. One multiplication with addition is 2 FLOP.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from gmcli.bench.stopwatch import wait_for
from gmcli.model.config import PADDED_TEMPORAL_TOKENS, MoraConfig, VisualTokens
from gmcli.model.mora import Mora, build_on_meta, visual_width

# (M, K, N) of the products tried: squares, and the largest of SAM ViT-B's encoder.
SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 768, 3072))

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Peak:
    """Hold the best rate of matrix products: GFLOP a second (of CPU time on a CPU), by what, and the best of each way."""

    gflop_s: float
    by: str
    best: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"gflop_s": self.gflop_s, "by": self.by, "best": dict(self.best)}


@dataclass(frozen=True, slots=True)
class Workload:
    """Size one video's work. `after` and `answers` count tokens: of each question's prompt behind the image, of its answer.

    `clips` is how many sequences a question is asked over (one, or one a frame), `clip_frames` how many frames each has.
    """

    layout: VisualTokens
    clips: int
    clip_frames: int
    before: int
    after: Sequence[int]
    answers: Sequence[int]


def measure_peak(
    device: torch.device,
    dtype: torch.dtype,
    *,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    seconds: float = 0.3,
) -> Peak:
    """Time matrix products of several shapes, by every implementation that there is, for so many seconds each."""
    ways: dict[str, Product] = {"torch.matmul": lambda x, w: torch.matmul(x, w.t())}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # Twice as fast as MKL's product on AMD.
        ways["mkldnn linear"] = lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    best: dict[str, float] = {}
    by: dict[str, str] = {}
    for way, multiply in ways.items():
        for m, k, n in shapes:
            x, w = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
            rate = _rate(device, lambda x=x, w=w, multiply=multiply: multiply(x, w), 2e-9 * m * k * n, seconds)  # type: ignore[misc]
            if rate > best.get(way, 0.0):
                best[way], by[way] = rate, f"{way} {m}x{k}x{n}"
    fastest = max(best, key=best.__getitem__)
    return Peak(best[fastest], by[fastest], best)


@torch.inference_mode()
def _rate(device: torch.device, call: Callable[[], object], gflop: float, seconds: float) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    call()
    wait_for(device)
    calls, batch, start = 0, 1, clock()
    while (spent := clock() - start) < seconds:
        for _ in range(batch):
            call()
        wait_for(device)
        calls += batch
        # A GPU must not wait for Python after every product.
        batch = min(2 * batch, 64) if device.type != "cpu" else 1
    return calls * gflop / spent


def flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def count_work(config: MoraConfig, load: Workload) -> dict[str, dict[str, float]]:
    """Return GFLOP by stage for both schedules: {stage: {"published": …, "ours": …}}, masks on all frames."""
    model = build_on_meta(config, "eager")
    patches = {"frame": config.clip.patches, "temporal": 0, "changes": 0}.get(load.layout, config.clip.patches)
    temporal = {"frame": 0, "pooled_padded": PADDED_TEMPORAL_TOKENS}.get(load.layout, load.clip_frames)
    visual = patches + temporal
    questions, frames = len(load.after), load.clips * load.clip_frames
    square = config.clip.image_size
    image = torch.zeros(1, 3, square, square, device="meta")
    projector = flops(lambda: model.mm_projector(_meta(visual, visual_width(config.clip, load.layout))))
    tower = flops(lambda: model.vision_tower(image))
    used_layers = flops(lambda: model.clip_features(image))
    encoder, decoder = _sam(model)
    passes = load.clips * sum(load.answers)
    ours_llm = load.clips * _cached(model, load.before + visual, load.after, load.answers)
    published_llm = load.clips * sum(
        _whole(model, load.before + visual + after + i)
        for after, answer in zip(load.after, load.answers, strict=True)
        for i in range(answer)
    )
    counted = {
        "clip": (passes * (load.clip_frames * tower + projector), frames * used_layers + load.clips * projector),
        "llm": (published_llm, ours_llm),
        "sam_encoder": (questions * frames * encoder, frames * encoder),
        "sam_decoder": (questions * frames * decoder,) * 2,
    }
    return {name: {"published": p / 1e9, "ours": o / 1e9} for name, (p, o) in counted.items()}


def _meta(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device="meta")


def _sam(model: Mora) -> tuple[int, int]:
    """Count one frame of the image encoder, and one pair of the mask decoder, by segment-anything's own forwards."""
    sam = model.visual_model
    sizes = sam.sizes
    grid, width = sizes.image_size // sizes.patch_size, sizes.prompt_dim
    encoder = flops(lambda: sam.image_encoder(_meta(1, 3, sizes.image_size, sizes.image_size)))
    decoder = flops(
        lambda: sam.mask_decoder(
            image_embeddings=_meta(1, width, grid, grid),
            image_pe=_meta(1, width, grid, grid),
            sparse_prompt_embeddings=_meta(1, 1, width),
            dense_prompt_embeddings=_meta(1, width, grid, grid),
            multimask_output=False,
        )
    )
    return encoder, decoder


def _whole(model: Mora, length: int) -> int:
    """Count one pass over a whole sequence, with the logits of all its positions."""
    return _llm(model, length, 0, None) + _head(model, length)


def _cached(model: Mora, prefix: int, after: Sequence[int], answers: Sequence[int]) -> int:
    """Count one prefix, then each question over its keys and values: its suffix, then a token at a time."""
    total = _llm(model, prefix, 0, DynamicCache(config=model.language_model.config))
    for suffix, answer in zip(after, answers, strict=True):
        cache = DynamicCache(config=model.language_model.config)
        _llm(model, prefix, 0, cache)  # only to fill the cache; a question does not pay for it
        total += _llm(model, suffix, prefix, cache)
        total += sum(_llm(model, 1, prefix + suffix + i, cache) for i in range(answer - 1))
        total += answer * _head(model, 1)
    return total


def _llm(model: Mora, new: int, past: int, cache: DynamicCache | None) -> int:
    embeddings = _meta(1, new, model.config.llm.hidden_size)
    # A mask that is ready spares transformers a look at values, which the meta device does not have.
    mask = _meta(1, 1, new, past + new)
    positions = torch.arange(past, past + new, device="meta")[None]
    return flops(
        lambda: model.language_model.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=cache is not None,
        )
    )


def _head(model: Mora, positions: int) -> int:
    return flops(lambda: model.language_model.lm_head(_meta(positions, model.config.llm.hidden_size)))


def speed_of_light(
    work: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float], peak: Peak
) -> dict[str, dict[str, float]]:
    """Return for each stage, and in all: GFLOP, seconds, GFLOP/s, the share of the peak, and the seconds at the peak.

    seconds: by stage, of the kind that the peak was measured in; stages without matrix products count in the total only.
    """
    rows = {name: _row(work[name]["ours"], seconds.get(name, 0.0), peak) for name in work}
    return rows | {"all": _row(sum(w["ours"] for w in work.values()), sum(seconds.values()), peak)}


def _row(gflop: float, seconds: float, peak: Peak) -> dict[str, float]:
    rate = gflop / seconds if seconds else 0.0
    return {
        "gflop": gflop,
        "seconds": seconds,
        "gflop_s": rate,
        "share_of_peak": rate / peak.gflop_s,
        "seconds_at_peak": gflop / peak.gflop_s,
    }
