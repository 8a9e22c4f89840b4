"""Answer all questions of one video with masks. The whole performance story is told here.

Once per video: decode, CLIP, the language model's video prefix, the SAM image encoder on the frames that some question
wants. Once per question: its own part of the prompt, its answer, the mask decoder on its frames. All questions of a video
are one batch of the language model, and a guess of their answers is checked in the pass that reads them. Frames stream
through in small batches: a thread reads and resizes the next ones while the model works on these, another turns masks into
RLE, and both queues are short, so memory does not grow with the length of the video. What the model's parts are compiled
with, if at all, is decided elsewhere (engines.py).
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.checkpoints.load import Checkpoint
from gmcli.config import RunConfig
from gmcli.data import ItemResult, Question, Rle, TemporalSpan, VideoTask
from gmcli.engines import Engines, eager_engines
from gmcli.errors import ConfigError, ItemError
from gmcli.masks.rle import empty_rle, encode_rle
from gmcli.model.config import PADDED_TEMPORAL_TOKENS, VisualTokens
from gmcli.model.drafts import Drafts
from gmcli.model.generate import Answer, Prefix, answer_questions, prefill
from gmcli.model.mora import visual_width
from gmcli.model.preprocess import Frame, clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from gmcli.overlap import ahead
from gmcli.video import VideoReader, frame_range, open_video, read_frames, sample_indices, time_bins
from gmcli.work import Work, timed

Progress = Callable[[int], None]

# Answers that the published checkpoints were taught; more are learned as they come.
KNOWN_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the target object is [SEG], and the temporal boundary is [LOC].",
)
# How far reading may run ahead, in batches of the image encoder, and RLE encoding behind, in masks.
_READ_AHEAD = 2
_RLE_BEHIND = 16
# Masks are brought to the frame's size some at a time: 2**25 float32 pixels are 128 MB.
_MOST_PIXELS = 1 << 25


@dataclass(frozen=True, slots=True)
class VideoAnswer:
    """Hold the results of one video's questions, and what they cost together."""

    results: tuple[ItemResult, ...]
    work: Work


@dataclass(frozen=True, slots=True)
class _Clip:
    """Hold what is known of a video before any question is asked. Numbers are frame numbers of the video."""

    reader: VideoReader
    span: range
    sampled: list[int]
    masked: list[int]


@dataclass(slots=True)
class _Plan:
    """Say which prompts one question puts to which frames, and collect its masks.

    `prompts` holds one tensor [S,C] for the clip, or one for each sampled frame (layout `frame`). `source[i]` picks the
    one for the i-th masked frame; `wanted[i]` says whether that frame lies in the question's window.
    """

    question: Question
    answer: str
    finished: bool
    prompts: list[torch.Tensor]
    source: NDArray[np.int64]
    wanted: NDArray[np.bool_]
    span: TemporalSpan | None
    masks: dict[int, Rle] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)


class Segmenter:
    """Hold a loaded model and the settings of a run; answer one video at a time.

    engines: the model's parts as they are to run; None means uncompiled.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: RunConfig, device: torch.device | str, engines: Engines | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.engines = engines or eager_engines(checkpoint.model)
        self.model = self.engines.model
        self.config = config
        self.device = torch.device(device)
        self.dtype = next(self.model.language_model.parameters()).dtype
        self.layout: VisualTokens = config.visual_tokens or self.model.config.visual_tokens  # type: ignore[assignment]
        if self.layout == "pooled_padded" and config.frames > PADDED_TEMPORAL_TOKENS:
            raise ConfigError(f"pooled_padded holds at most {PADDED_TEMPORAL_TOKENS} frames, not {config.frames}")
        clip, stored = self.model.config.clip, self.model.config.visual_tokens
        if visual_width(clip, self.layout) != visual_width(clip, stored):
            raise ConfigError(f"visual_tokens {self.layout} does not fit this checkpoint, which was made for {stored}")
        self._batch = self.engines.batch
        encode = checkpoint.tokenizer.encode
        self._drafts = Drafts([encode(answer)[1:] for answer in KNOWN_ANSWERS])

    @torch.inference_mode()
    def segment(
        self, task: VideoTask, pending: Collection[str] | None = None, progress: Progress | None = None
    ) -> VideoAnswer:
        """Answer a video's questions.

        pending: ids of the questions that need results; None means all. The language model is asked all of them all the
        same: in another batch the last digits of its states would differ, and a resumed run must equal an undisturbed one.
        progress: called with a number of frames each time so many have their masks.
        A question that cannot be asked becomes a failed result; raises VideoError where the video itself is at fault.
        """
        work = Work()
        with timed(work, "decode"):
            reader = open_video(task.video, reader=self.config.reader, fps=task.fps)  # type: ignore[arg-type]
        with reader:
            clip = self._clip(reader, task)
            with timed(work, "decode"):
                frames = read_frames(reader, clip.sampled)
                work.decoded_frames += len(set(clip.sampled))
            plans, failures = self._ask(clip, frames, task.questions, work)
            plans = [plan for plan in plans if pending is None or plan.question.id in pending]
            keep = dict(zip(clip.sampled, frames, strict=True)) if set(clip.masked) <= set(clip.sampled) else {}
            del frames
            self._mask(clip, keep, plans, work, progress or (lambda count: None))
            done = [self._result(task, clip, plan) for plan in plans]
        order = {q.id: i for i, q in enumerate(task.questions)}
        failed = [
            ItemResult(task.id, question.id, "failed", error=error.message)
            for question, error in failures
            if pending is None or question.id in pending
        ]
        return VideoAnswer(tuple(sorted(done + failed, key=lambda r: order[r.question_id])), work)

    # --- what the language model sees and says ---------------------------------------------------------------------

    def _clip(self, reader: VideoReader, task: VideoTask) -> _Clip:
        span = frame_range(reader.times, task.start, task.end)
        sampled = sample_indices(span.start, span.stop, self.config.frames)
        if self.layout == "frame":
            # A clip shorter than the sample repeats frames; asked one by one, a repeated frame has the same answer.
            sampled = sorted(set(sampled))
        match self.config.mask_frames:
            case "all":
                masked = list(span)
            case "sampled":
                masked = sorted(set(sampled))
            case fps:
                masked = _at_rate(reader.times, span, float(fps))
        return _Clip(reader, span, sampled, masked)

    def _ask(
        self, clip: _Clip, frames: NDArray[np.uint8], questions: Sequence[Question], work: Work
    ) -> tuple[list[_Plan], list[tuple[Question, ItemError]]]:
        """Put all questions to the language model over one visual prefix (one for each frame in layout `frame`)."""
        with timed(work, "clip"):
            visual = self._visual(frames, work)
        with timed(work, "llm"):
            config, tokenizer = self.model.config, self.checkpoint.tokenizer
            prompts = [tokenize_prompt(build_prompt(q.text, config), tokenizer) for q in questions]
            before = prompts[0][0]
            room = config.llm.max_position_embeddings - self.config.max_new_tokens - len(before) - visual.shape[1]
            failures = [
                (q, ItemError(f"the question has {len(after)} tokens; the language model has room for {max(room, 0)}"))
                for q, (_, after) in zip(questions, prompts, strict=True)
                if len(after) > room
            ]
            asked = [(q, after) for q, (_, after) in zip(questions, prompts, strict=True) if len(after) <= room]
            answers: list[list[Answer]] = []
            for tokens in visual if asked else []:
                prefix = prefill(self.model, self.engines.language, before, tokens.unsqueeze(0))
                work.prefixes += 1
                answers.append(self._answers(prefix, [after for _, after in asked], work))
            plans = [self._plan(clip, question, [row[i] for row in answers]) for i, (question, _) in enumerate(asked)]
        return plans, failures

    def _visual(self, frames: NDArray[np.uint8], work: Work) -> torch.Tensor:
        features = []
        for start in range(0, len(frames), self._batch["clip"]):
            pixels = clip_pixels(frames[start : start + self._batch["clip"]], self.model.config.clip.image_size)
            features.append(self.engines.clip(pixels.to(self.device, self.dtype)))
            work.clip_frames += len(pixels)
        return self.model.visual_embeddings(torch.cat(features), self.layout)

    def _answers(self, prefix: Prefix, suffixes: Sequence[Sequence[int]], work: Work) -> list[Answer]:
        size = self.config.questions_per_batch
        answers: list[Answer] = []
        for start in range(0, len(suffixes), size):
            made = answer_questions(
                self.model,
                self.engines.language,
                prefix,
                suffixes[start : start + size],
                self.checkpoint.special,
                self.config.max_new_tokens,
                self._drafts,
            )
            answers += made.answers
            work.llm_passes += made.passes
            work.drafted_tokens += made.drafted
            work.accepted_tokens += made.accepted
        return answers

    def _plan(self, clip: _Clip, question: Question, answers: Sequence[Answer]) -> _Plan:
        times = clip.reader.times
        if self.layout == "frame":
            # Each sampled frame answered for itself; any other frame takes the answer of the nearest one in time. A
            # single frame says nothing of time, so [LOC] is not asked.
            source = _nearest(times[clip.masked], times[clip.sampled])
            inside = np.ones(len(clip.span), bool)
        else:
            source = np.zeros(len(clip.masked), np.int64)
            inside = self._inside(clip, answers[0])
        prompts = [self.model.segmentation_prompts(answer.seg_hidden) for answer in answers]
        texts = Counter(self.checkpoint.tokenizer.answer(answer.ids) for answer in answers)
        first = clip.span.start
        return _Plan(
            question=question,
            answer=texts.most_common(1)[0][0],
            finished=all(answer.finished for answer in answers),
            prompts=prompts,
            source=source,
            wanted=inside[np.array(clip.masked) - first],
            span=_hull(inside, first),
        )

    def _inside(self, clip: _Clip, answer: Answer) -> NDArray[np.bool_]:
        """Say for each frame of the clip whether [LOC] selects it; all of them without a [LOC] or a localizer.

        Bin k stands for the k-th of K equal parts of the clip's duration.
        """
        bins = self.model.config.localizer_bins
        if not bins or not len(answer.loc_hidden):
            return np.ones(len(clip.span), bool)
        selected = torch.stack([self.model.localize(state) for state in answer.loc_hidden]).any(dim=0).cpu().numpy()
        return np.asarray(selected[time_bins(clip.reader.times[clip.span.start : clip.span.stop], bins)])

    # --- masks -----------------------------------------------------------------------------------------------------

    def _mask(self, clip: _Clip, keep: dict[int, Frame], plans: list[_Plan], work: Work, progress: Progress) -> None:
        """Decode the masks of all plans, frame batch by frame batch; a frame that no plan wants is not encoded."""
        wanted = [
            i
            for i in range(len(clip.masked))
            if any(plan.wanted[i] and len(plan.prompts[plan.source[i]]) for plan in plans)
        ]
        numbers = [clip.masked[i] for i in wanted]
        frames = iter([keep[n] for n in numbers]) if keep else clip.reader.frames(numbers)
        positions, count = iter(wanted), self._batch["sam_image_encoder"]
        batches = self._batches(frames, count)
        with ahead(batches, _READ_AHEAD) as read, ThreadPoolExecutor(1, thread_name_prefix="rle") as pool:
            encoding: deque[tuple[int, _Plan, Future[Rle]]] = deque()
            while batch := list(islice(positions, count)):
                with timed(work, "decode"):
                    pixels = next(read)
                    work.decoded_frames += 0 if keep else len(batch)
                masks = self._mask_batch(batch, pixels, clip.reader.size, plans, work)
                with timed(work, "rle"):
                    encoding.extend((i, plan, pool.submit(encode_rle, mask)) for i, plan, mask in masks)
                    _collect(encoding, _RLE_BEHIND)
                progress(len(batch))
            with timed(work, "rle"):
                _collect(encoding, 0)
        progress(len(clip.masked) - len(wanted))

    def _batches(self, frames: Iterator[Frame], count: int) -> Iterator[torch.Tensor]:
        """Resize and normalise frames for the image encoder, some at a time."""
        size = self.model.visual_model.sizes.image_size
        while batch := list(islice(frames, count)):
            yield sam_pixels(batch, size)

    def _mask_batch(
        self, positions: list[int], pixels: torch.Tensor, size: tuple[int, int], plans: list[_Plan], work: Work
    ) -> Iterator[tuple[int, _Plan, NDArray[np.bool_]]]:
        """Encode some frames once and decode every prompt that wants them; return masks by frame and plan."""
        with timed(work, "sam_encoder"):
            embeddings = self.engines.encode(pixels.to(self.device, self.dtype))
            work.sam_frames += len(positions)
        pairs = [
            (row, plan, prompt)
            for row, i in enumerate(positions)
            for plan in plans
            if plan.wanted[i]
            for prompt in plan.prompts[plan.source[i]]
        ]
        # Several [SEG] are several objects of one answer.
        union: dict[tuple[int, int], tuple[int, _Plan, NDArray[np.bool_]]] = {}
        bucket = max(1, min(self._batch["sam_mask_decoder"], _MOST_PIXELS // (size[0] * size[1])))
        with timed(work, "sam_decoder"):
            for start in range(0, len(pairs), bucket):
                chunk = pairs[start : start + bucket]
                low_res, iou = self.engines.decode(
                    embeddings[[row for row, _, _ in chunk]], torch.stack([prompt for _, _, prompt in chunk])
                )
                work.decoded_pairs += len(chunk)
                masks = self._full_size(low_res, size)
                for (row, plan, _), mask, score in zip(chunk, masks, iou[:, 0].tolist(), strict=True):
                    key = (row, id(plan))
                    union[key] = (positions[row], plan, union[key][2] | mask if key in union else mask)
                    plan.scores.append(score)
        return iter(union.values())

    def _full_size(self, logits: torch.Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
        image_size = self.model.visual_model.sizes.image_size
        masks: NDArray[np.bool_] = (
            (postprocess_masks(logits, resized_size(size, image_size), size, image_size) > 0).cpu().numpy()
        )
        return masks

    def _result(self, task: VideoTask, clip: _Clip, plan: _Plan) -> ItemResult:
        target = any(len(prompts) for prompts in plan.prompts)
        score = float(np.mean(plan.scores)) if plan.scores else None
        if score is not None and not np.isfinite(score):
            return ItemResult(
                task.id, plan.question.id, "failed", error="the model computed values that are not finite (NaN)"
            )
        nothing = empty_rle(clip.reader.size)
        for i, mask in plan.masks.items():
            plan.masks[i] = Rle(nothing.size, mask.counts)  # one size for all, in memory and in messages
        return ItemResult(
            video_id=task.id,
            question_id=plan.question.id,
            status="done" if target else "no_target",
            answer=plan.answer,
            finished=plan.finished,
            frames=tuple(clip.masked),
            names=tuple(clip.reader.names[n] for n in clip.masked),
            masks=tuple(plan.masks.get(i, nothing) for i in range(len(clip.masked))),
            span=plan.span if target else None,
            score=score,
        )


def _collect(encoding: "deque[tuple[int, _Plan, Future[Rle]]]", leave: int) -> None:
    """Take finished masks from the front until so many are left."""
    while len(encoding) > leave:
        i, plan, mask = encoding.popleft()
        plan.masks[i] = mask.result()


def _nearest(times: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each time the index of the nearest centre (the earlier one of two). centres: ascending."""
    after = np.searchsorted(centres, times).clip(1, max(len(centres) - 1, 1))
    if len(centres) == 1:
        return np.zeros(len(times), np.int64)
    before = after - 1
    return np.where(times - centres[before] <= centres[after] - times, before, after)


def _hull(inside: NDArray[np.bool_], first: int) -> TemporalSpan:
    selected = np.flatnonzero(inside)
    if not len(selected):
        return TemporalSpan(first, first)
    return TemporalSpan(first + int(selected[0]), first + int(selected[-1]) + 1)


def _at_rate(times: NDArray[np.float64], span: range, fps: float) -> list[int]:
    """Pick the frame nearest to every 1/fps seconds from the first on; each frame at most once."""
    own = times[span.start : span.stop]
    ticks = np.arange(own[0], own[-1] + 1e-9, 1 / fps)
    return [span.start + int(i) for i in np.unique(_nearest(ticks, own))]
