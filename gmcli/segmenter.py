"""Answer all questions of one video with masks. The whole performance story is told here.

Once per video: decode, CLIP, the language model's video prefix, the SAM image encoder on the frames that some question
wants. Once per question: its own part of the prompt, its answer, the mask decoder on its frames. All questions of a video
are one batch of the language model, and a guess of their answers is checked in the pass that reads them. Frames stream
through in small batches: a thread reads and resizes the next ones while the model works on these, another turns masks into
RLE, and both queues are short, so memory does not grow with the length of the video. What the model's parts are compiled
with, if at all, is decided elsewhere (engines.py); what the device has no memory for is done in smaller pieces (halving.py).
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.checkpoints.load import Checkpoint
from gmcli.config import RunConfig
from gmcli.data import ItemResult, Question, Rle, TemporalSpan, VideoTask
from gmcli.engines import Engines, eager_engines
from gmcli.errors import ConfigError, ItemError
from gmcli.halving import Room
from gmcli.masks.rle import empty_rle, encode_rle
from gmcli.model.config import PADDED_TEMPORAL_TOKENS, VisualTokens
from gmcli.model.drafts import KNOWN_ANSWERS, Drafts
from gmcli.model.generate import Answer, Prefix, answer_questions, prefill
from gmcli.model.mora import visual_width
from gmcli.model.preprocess import Frame, clip_pixels, resized_size, sam_batches
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from gmcli.overlap import ahead
from gmcli.video import OpenVideo, VideoReader, frame_range, open_video, read_frames, sample_indices, time_bins
from gmcli.video.moments import at_rate, hull, nearest
from gmcli.work import Work, timed

Progress = Callable[[int], None]

# How far reading may run ahead, in batches of the image encoder, and RLE encoding behind, in masks.
_READ_AHEAD = 2
_RLE_BEHIND = 16
# Masks are brought to the frame's size some at a time: 2**25 float32 pixels are 128 MB.
_MOST_PIXELS = 1 << 25
_NOT_FINITE = "the model computed values that are not finite (NaN)"


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

    engines: the model's parts as they are to run; None means uncompiled. opener: opens videos; None means in this process.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: RunConfig,
        device: torch.device | str,
        engines: Engines | None = None,
        opener: OpenVideo | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.engines = engines or eager_engines(checkpoint.model)
        self.model = self.engines.model
        self.config = config
        self._opener = opener
        self.device = torch.device(device)
        self.dtype = next(self.model.language_model.parameters()).dtype
        self.layout: VisualTokens = config.visual_tokens or self.model.config.visual_tokens  # type: ignore[assignment]
        if self.layout == "pooled_padded" and config.frames > PADDED_TEMPORAL_TOKENS:
            raise ConfigError(f"pooled_padded holds at most {PADDED_TEMPORAL_TOKENS} frames, not {config.frames}")
        clip, stored = self.model.config.clip, self.model.config.visual_tokens
        if visual_width(clip, self.layout) != visual_width(clip, stored):
            raise ConfigError(f"visual_tokens {self.layout} does not fit this checkpoint, which was made for {stored}")
        self._room = Room({**self.engines.batch, "llm": config.questions_per_batch}, self.device)
        encode = checkpoint.tokenizer.encode
        self._drafts = Drafts([encode(answer)[1:] for answer in KNOWN_ANSWERS])

    @torch.inference_mode()
    def segment(
        self,
        task: VideoTask,
        pending: Collection[str] | None = None,
        progress: Progress | None = None,
        work: Work | None = None,
    ) -> VideoAnswer:
        """Answer a video's questions.

        pending: ids of the questions that need results; None means all. The language model is asked all of them all the
        same: in another batch the last digits of its states would differ, and a resumed run must equal an undisturbed one.
        progress: called with a number of frames each time so many have their masks.
        work: where to count; one of the caller's tells also what a video cost that failed.
        A question that cannot be asked, or for which the model computes no numbers, becomes a failed result; raises
        VideoError where the video itself is at fault, ItemError where a single frame does not fit the device's memory.
        """
        work = work or Work()
        asked = None if pending is None else set(pending)
        with timed(work, "decode"):
            opened = self._opener or open_video
            reader = opened(task.video, reader=self.config.reader, fps=task.fps)  # type: ignore[arg-type]
        with reader:
            clip = self._clip(reader, task)
            with timed(work, "decode"):
                frames = read_frames(reader, clip.sampled)
                work.decoded_frames += len(set(clip.sampled))
            plans, failures = self._ask(clip, frames, task.questions, work)
            plans = [plan for plan in plans if asked is None or plan.question.id in asked]
            keep = dict(zip(clip.sampled, frames, strict=True)) if set(clip.masked) <= set(clip.sampled) else {}
            del frames
            self._mask(clip, keep, plans, work, progress or (lambda count: None))
            done = [self._result(task, clip, plan) for plan in plans]
        order = {q.id: i for i, q in enumerate(task.questions)}
        failed = [
            ItemResult(task.id, question.id, "failed", error=error.message)
            for question, error in failures
            if asked is None or question.id in asked
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
                masked = at_rate(reader.times, span, float(fps))
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
            answers: list[list[Answer | ItemError]] = []
            for tokens in visual if asked else []:
                read = partial(prefill, self.model, self.engines.language, before, tokens.unsqueeze(0))
                prefix = self._room.once("prefix", read, work)
                work.prefixes += 1
                answers.append(self._answers(prefix, [after for _, after in asked], work))
            plans = []
            for i, (question, _) in enumerate(asked):
                try:
                    plans.append(self._plan(clip, question, [row[i] for row in answers]))
                except ItemError as error:
                    failures.append((question, error))
        return plans, failures

    def _visual(self, frames: NDArray[np.uint8], work: Work) -> torch.Tensor:
        def run(rows: slice) -> torch.Tensor:
            pixels = clip_pixels(frames[rows], self.model.config.clip.image_size)
            features: torch.Tensor = self.engines.clip(pixels.to(self.device, self.dtype))
            return features

        features = list(self._room.pieces("clip", len(frames), run, work))
        work.clip_frames += len(frames)
        return self.model.visual_embeddings(torch.cat(features), self.layout)

    def _answers(self, prefix: Prefix, suffixes: Sequence[Sequence[int]], work: Work) -> list[Answer | ItemError]:
        """Return an answer for each suffix; an error for one that does not fit the device's memory even alone."""
        answers: list[Answer | ItemError] = []

        def run(rows: slice) -> tuple[Answer, ...]:
            work.entered("llm")
            made = answer_questions(
                self.model,
                self.engines.language,
                prefix,
                left[rows],
                self.checkpoint.special,
                self.config.max_new_tokens,
                self._drafts,
            )
            work.llm_passes += made.passes
            work.drafted_tokens += made.drafted
            work.accepted_tokens += made.accepted
            return made.answers

        while left := suffixes[len(answers) :]:
            try:
                for made in self._room.pieces("llm", len(left), run, work):
                    answers += made
            except ItemError as error:
                answers.append(error)
        return answers

    def _plan(self, clip: _Clip, question: Question, replies: Sequence[Answer | ItemError]) -> _Plan:
        """Turn a question's answers into prompts. Raises ItemError where it has none, or NaN."""
        answers = [_answered(reply) for reply in replies]
        times = clip.reader.times
        if self.layout == "frame":
            # Each sampled frame answered for itself; any other frame takes the answer of the nearest one in time. A
            # single frame says nothing of time, so [LOC] is not asked.
            source = nearest(times[clip.masked], times[clip.sampled])
            inside = np.ones(len(clip.span), bool)
        else:
            source = np.zeros(len(clip.masked), np.int64)
            inside = self._inside(clip, answers[0])
        prompts = [self.model.segmentation_prompts(answer.seg_hidden) for answer in answers]
        if not torch.cat(prompts).isfinite().all():
            raise ItemError(f"{_NOT_FINITE} for [SEG]")
        texts = Counter(self.checkpoint.tokenizer.answer(answer.ids) for answer in answers)
        first = clip.span.start
        return _Plan(
            question=question,
            answer=texts.most_common(1)[0][0],
            finished=all(answer.finished for answer in answers),
            prompts=prompts,
            source=source,
            wanted=inside[np.array(clip.masked) - first],
            span=hull(inside, first),
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
        positions, count = iter(wanted), self._room.most["sam_image_encoder"]
        pixels_of = sam_batches(frames, count, self.model.visual_model.sizes.image_size)
        with ahead(pixels_of, _READ_AHEAD) as read, ThreadPoolExecutor(1, thread_name_prefix="rle") as pool:
            encoding: deque[tuple[int, _Plan, Future[Rle]]] = deque()
            while batch := list(islice(positions, count)):
                with timed(work, "decode"):
                    pixels = next(read)
                    work.decoded_frames += 0 if keep else len(batch)
                for i, plan, mask in self._mask_batch(batch, pixels, clip.reader.size, plans, work):
                    with timed(work, "rle"):
                        encoding.append((i, plan, pool.submit(encode_rle, mask)))
                        _collect(encoding, _RLE_BEHIND)
                progress(len(batch))
            with timed(work, "rle"):
                _collect(encoding, 0)
        progress(len(clip.masked) - len(wanted))

    def _mask_batch(
        self, positions: list[int], pixels: torch.Tensor, size: tuple[int, int], plans: list[_Plan], work: Work
    ) -> Iterator[tuple[int, _Plan, NDArray[np.bool_]]]:
        """Encode some frames once and decode every prompt that wants them; yield masks by frame and plan."""

        def encode(rows: slice) -> torch.Tensor:
            with timed(work, "sam_encoder"):
                found: torch.Tensor = self.engines.encode(pixels[rows].to(self.device, self.dtype))
                return found

        embeddings = torch.cat(list(self._room.pieces("sam_image_encoder", len(positions), encode, work)))
        work.sam_frames += len(positions)
        pairs = [
            (row, plan, prompt)
            for row, i in enumerate(positions)
            for plan in plans
            if plan.wanted[i]
            for prompt in plan.prompts[plan.source[i]]
        ]
        # Several [SEG] are several objects of one answer. They stand side by side, so that few masks are held at a time.
        decoded = self._decode(embeddings, pairs, size, work)
        for (row, _), same in groupby(decoded, key=lambda made: (made[0], id(made[1]))):
            first, *others = same
            yield positions[row], first[1], reduce(np.logical_or, (mask for _, _, mask in others), first[2])

    def _decode(
        self,
        embeddings: torch.Tensor,
        pairs: list[tuple[int, _Plan, torch.Tensor]],
        size: tuple[int, int],
        work: Work,
    ) -> Iterator[tuple[int, _Plan, NDArray[np.bool_]]]:
        """Draw the mask of each pair of a frame (its row among the embeddings) and a prompt, and note its score."""
        image_size = self.model.visual_model.sizes.image_size

        def run(rows: slice) -> tuple[NDArray[np.bool_], list[float]]:
            chunk = pairs[rows]
            with timed(work, "sam_decoder"):
                low_res, iou = self.engines.decode(
                    embeddings[[row for row, _, _ in chunk]], torch.stack([prompt for _, _, prompt in chunk])
                )
                # NaN > 0 would be an empty mask. A sum is the cheapest that shows one.
                sums = low_res.flatten(1).sum(dim=1, dtype=torch.float32)
                scores = iou[:, 0].where(sums.isfinite(), torch.nan)
                logits = postprocess_masks(low_res, resized_size(size, image_size), size, image_size)
                return (logits > 0).cpu().numpy(), scores.tolist()

        most, done = max(1, _MOST_PIXELS // (size[0] * size[1])), 0
        for masks, scores in self._room.pieces("sam_mask_decoder", len(pairs), run, work, most=most):
            for (row, plan, _), mask, score in zip(pairs[done : done + len(masks)], masks, scores, strict=True):
                plan.scores.append(score)
                yield row, plan, mask
            done += len(masks)
            work.decoded_pairs += len(masks)

    def _result(self, task: VideoTask, clip: _Clip, plan: _Plan) -> ItemResult:
        target = any(len(prompts) for prompts in plan.prompts)
        score = float(np.mean(plan.scores)) if plan.scores else None
        if score is not None and not np.isfinite(score):
            return ItemResult(task.id, plan.question.id, "failed", error=f"{_NOT_FINITE} for a mask")
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


def _answered(reply: Answer | ItemError) -> Answer:
    if isinstance(reply, ItemError):
        raise reply
    if not reply.finite:
        raise ItemError(f"{_NOT_FINITE} for the answer")
    return reply


def _collect(encoding: "deque[tuple[int, _Plan, Future[Rle]]]", leave: int) -> None:
    """Take finished masks from the front until so many are left."""
    while len(encoding) > leave:
        i, plan, mask = encoding.popleft()
        plan.masks[i] = mask.result()
