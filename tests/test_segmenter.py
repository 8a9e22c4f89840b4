import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gmcli import segmenter as module
from gmcli.checkpoints.load import load_checkpoint
from gmcli.config import RunConfig
from gmcli.data import Question, TemporalSpan, VideoTask
from gmcli.engines import eager_engines
from gmcli.errors import ConfigError, VideoError
from gmcli.masks.rle import area, decode_rle
from gmcli.model.generate import Answer, EagerLanguage, Generated
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from gmcli.segmenter import Segmenter
from gmcli.video import open_video, read_frames, sample_indices
from gmcli.video.moments import at_rate, nearest


@pytest.fixture(scope="module")
def small(small_folder):
    return load_checkpoint(str(small_folder))


def task(clips, name="a.mp4", questions=("Who moves?",), **changes) -> VideoTask:
    asked = tuple(Question(f"q{i}", text) for i, text in enumerate(questions))
    return VideoTask("v", str(clips / name), asked, **changes)


def segment(checkpoint, task, pending=None, **settings):
    return Segmenter(checkpoint, RunConfig(**settings), "cpu").segment(task, pending)


@pytest.fixture
def say(monkeypatch, small):
    """Make the language model give chosen answers: numbers of [SEG] and of [LOC] tokens, one pair a question."""

    def choose(*counts: tuple[int, int]):
        generator = torch.Generator().manual_seed(4)
        answers = [
            Answer((5, 6), torch.randn(seg, 64, generator=generator), torch.randn(loc, 64, generator=generator), True)
            for seg, loc in counts
        ]
        monkeypatch.setattr(module, "answer_questions", lambda *_: Generated(tuple(answers), 1, 0, 0))
        return answers

    return choose


def select_bins(monkeypatch, *bins: int, count: int = 20):
    selected = torch.zeros(count, dtype=torch.bool)
    selected[list(bins)] = True
    monkeypatch.setattr("gmcli.model.mora.Mora.localize", lambda self, state: selected)


def test_golden_frames_as_a_clip_give_the_golden_masks(checkpoint, golden_frames, facts, tmp_path):
    """Layout `frame` through the whole segmenter is what the original's evaluate() does with one frame."""
    from PIL import Image

    from tests.conftest import GOLDENS

    (tmp_path / "f").mkdir()
    Image.fromarray(golden_frames[0]).save(tmp_path / "f" / "0.png")
    question = Question("q0", facts["evaluate"][0]["question"])
    (result,) = segment(checkpoint, VideoTask("v", str(tmp_path / "f"), (question,)), visual_tokens="frame").results
    want = np.array(Image.open(GOLDENS / "evaluate_masks/q0_seg0.png")) > 0
    assert result.status == "done"
    assert result.answer == "It is [SEG]."
    assert (decode_rle(result.masks[0]) != want).sum() <= 8


def test_masks_equal_a_plain_walk_frame_by_frame(small, clips, say):
    """The oracle is the straightforward way: segment-anything's own decoder on one frame and one prompt at a time."""
    answers = say((1, 0), (2, 0))
    results = segment(small, task(clips, questions=("Who?", "What?")), frames=4).results
    sam = small.model.visual_model
    with open_video(clips / "a.mp4") as reader:
        frames = read_frames(reader, range(12))
    dense = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, 8, 8)
    for result, answer in zip(results, answers, strict=True):
        prompts = small.model.text_hidden_fcs[0](answer.seg_hidden)
        scores = []
        for i, frame in enumerate(frames):
            embedding = sam.image_encoder(sam_pixels([frame], 128))
            union = np.zeros((48, 80), bool)
            for prompt in prompts:
                low_res, iou = sam.mask_decoder(
                    image_embeddings=embedding,
                    image_pe=sam.dense_pe(),
                    sparse_prompt_embeddings=prompt.view(1, 1, -1),
                    dense_prompt_embeddings=dense,
                    multimask_output=False,
                )
                full = postprocess_masks(low_res, resized_size((48, 80), 128), (48, 80), 128)
                union |= (full[0] > 0).numpy()
                scores.append(iou.item())
            assert (decode_rle(result.masks[i]) != union).sum() <= 2
        assert result.score == pytest.approx(np.mean(scores), abs=1e-5)


@pytest.mark.parametrize("layout", ["pooled", "pooled_padded", "temporal"])
def test_answers_equal_transformers_generate_on_the_whole_sequence(small, clips, layout):
    questions = ("Who moves to the left?", "Who opens the door after the woman picks up the keys?")
    results = segment(small, task(clips, questions=questions), visual_tokens=layout).results
    with open_video(clips / "a.mp4") as reader:
        frames = read_frames(reader, sample_indices(0, 12, 20))
    model = small.model
    image = model.visual_embeddings(model.clip_features(clip_pixels(frames)), layout)
    table = model.language_model.get_input_embeddings()
    for text, result in zip(questions, results, strict=True):
        before, after = tokenize_prompt(build_prompt(text, model.config), small.tokenizer)
        whole = torch.cat([table(torch.tensor([before])), image, table(torch.tensor([after]))], dim=1)
        ids = model.language_model.generate(
            inputs_embeds=whole,
            attention_mask=torch.ones(whole.shape[:2], dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=small.special.eos,
            pad_token_id=0,
        )[0].tolist()
        assert result.answer == small.tokenizer.answer(ids)


def test_without_seg_nothing_is_masked_and_nothing_encoded(small, clips, say):
    say((0, 0), (0, 1))
    answer = segment(small, task(clips, questions=("Who?", "What?")))
    for result in answer.results:
        assert result.status == "no_target"
        assert result.span is None
        assert result.score is None
        assert len(result.masks) == 12
        assert all(area(mask) == 0 and mask.size == (48, 80) for mask in result.masks)
    assert answer.work.sam_frames == answer.work.decoded_pairs == 0


def test_loc_gates_frames_and_only_wanted_frames_are_encoded(small, clips, say, monkeypatch):
    say((1, 1), (1, 0))
    select_bins(monkeypatch, 5, 6, 7)
    answer = segment(small, task(clips, "b.mp4", questions=("Who?", "What?")), {"q0"})
    (result,) = answer.results
    assert result.span == TemporalSpan(5, 8)
    assert answer.work.sam_frames == answer.work.decoded_pairs == 3
    assert [area(mask) > 0 for mask in result.masks] == [i in (5, 6, 7) for i in range(20)]
    both = segment(small, task(clips, "b.mp4", questions=("Who?", "What?")))
    assert both.work.sam_frames == 20
    assert both.work.decoded_pairs == 23
    assert both.results[0] == result
    assert both.results[1].span == TemporalSpan(0, 20)


def test_separate_bins_leave_the_frames_between_them_empty(small, clips, say, monkeypatch):
    say((1, 1))
    select_bins(monkeypatch, 2, 10)
    (result,) = segment(small, task(clips, "b.mp4")).results
    assert result.span == TemporalSpan(2, 11)
    assert [i for i, mask in enumerate(result.masks) if area(mask)] == [2, 10]


def test_no_bin_selected_is_an_empty_window(small, clips, say, monkeypatch):
    say((1, 1))
    select_bins(monkeypatch)
    (result,) = segment(small, task(clips)).results
    assert result.status == "done"
    assert result.span == TemporalSpan(0, 0)
    assert not any(area(mask) for mask in result.masks)


def test_bins_stand_for_the_sampled_frames_of_any_clip(small, clips, say, monkeypatch):
    """The k-th of the sampled frames, which scoring looks at, is gated by the k-th bin."""
    say((1, 1))
    for bin_number in (0, 7, 19):
        select_bins(monkeypatch, bin_number)
        (result,) = segment(small, task(clips, "b.mp4"), mask_frames="sampled").results
        frame = sample_indices(0, 20, 20)[bin_number]
        assert [f for f, mask in zip(result.frames, result.masks, strict=True) if area(mask)] == [frame]


def test_localizer_runs_on_the_loc_state(small):
    torch.manual_seed(1)
    states = torch.randn(6, 64)
    logits = small.model.localizer[2](torch.relu(small.model.localizer[0](states)))
    got = torch.stack([small.model.localize(state) for state in states])
    assert torch.equal(got, torch.sigmoid(logits) > 0.5)
    assert got.any()
    assert not got.all()


def test_prefix_clip_and_decoding_happen_once_for_all_questions(small, clips, say):
    say((1, 0), (1, 0), (1, 0))
    work = segment(small, task(clips, questions=("A?", "B?", "C?")), mask_frames="sampled", frames=6).work
    assert work.prefixes == 1
    assert work.clip_frames == 6
    assert work.decoded_frames == 6
    assert work.sam_frames == 6
    assert work.decoded_pairs == 18


def counting(checkpoint):
    """Return engines that note how many frames, prompts and language-model passes they are given."""
    engines, seen = eager_engines(checkpoint.model), {"clip": [], "encode": [], "decode": [], "prefill": 0, "extend": 0}

    def counted(name):
        run = getattr(engines, name)

        def call(first, *rest):
            seen[name].append(len(first))
            return run(first, *rest)

        return call

    class Language(EagerLanguage):
        def prefill(self, embeddings):
            seen["prefill"] += 1
            return super().prefill(embeddings)

        def extend(self, *inputs):
            seen["extend"] += 1
            return super().extend(*inputs)

    language = Language(engines.model.language_model)
    parts = {name: counted(name) for name in ("clip", "encode", "decode")}
    return dataclasses.replace(engines, **parts, language=language), seen


def test_each_network_sees_no_frame_too_many(small, clips, monkeypatch):
    """Counted at the networks themselves: the union of the windows, the sampled frames, one prefix a video."""
    engines, seen = counting(small)
    asked = task(clips, "b.mp4", questions=("Who opens the door after the woman picks up the keys?", "Who moves?"))
    answers = tuple(Answer((5,), torch.randn(seg, 64), torch.randn(1, 64), True) for seg in (1, 2))
    monkeypatch.setattr(module, "answer_questions", lambda *_: Generated(answers, 1, 0, 0))
    windows = [{3, 4, 5, 6}, {5, 6, 7, 8, 9}]
    bins = iter([torch.tensor([i in window for i in range(20)]) for window in windows])
    monkeypatch.setattr("gmcli.model.mora.Mora.localize", lambda self, state: next(bins))
    work = Segmenter(small, RunConfig(frames=8), "cpu", engines).segment(asked).work
    assert sum(seen["encode"]) == work.sam_frames == len(windows[0] | windows[1]) == 7
    assert sum(seen["clip"]) == work.clip_frames == 8
    assert seen["prefill"] == work.prefixes == 1
    assert sum(seen["decode"]) == work.decoded_pairs == 4 + 2 * 5
    assert max(seen["encode"]) <= engines.batch["sam_image_encoder"]


@pytest.fixture(scope="module")
def trained():
    return load_checkpoint("mora-tiny")


def shapes(video, *questions):
    path = Path(__file__).parent.parent / "examples/shapes" / video / "video.mp4"
    return VideoTask(video, str(path), tuple(Question(f"q{i}", text) for i, text in enumerate(questions)))


def test_passes_of_the_language_model_with_right_guesses(trained):
    """Answers once given are guessed the next time: one pass for all questions of a video, whatever their number."""
    engines, seen = counting(trained)
    segmenter = Segmenter(trained, RunConfig(mask_frames="sampled"), "cpu", engines)
    asked = shapes("shapes00000", *["Which shape is the first to move?"] * 3)
    first = segmenter.segment(asked)
    assert seen["extend"] == first.work.llm_passes
    second = segmenter.segment(asked)
    assert second.results == first.results
    assert second.work.llm_passes == 1
    assert second.work.accepted_tokens == second.work.drafted_tokens == 3 * 7
    assert seen["prefill"] == 2


def test_what_was_answered_before_changes_nothing(trained):
    """Guesses differ with the history of a worker; masks may not, or a resumed run would differ from an undisturbed one."""
    asked = shapes("shapes00004", "What moves first?", "Which shape stays where it is all the time?")
    fresh = Segmenter(trained, RunConfig(mask_frames="sampled"), "cpu").segment(asked)
    experienced = Segmenter(trained, RunConfig(mask_frames="sampled"), "cpu")
    for other in ("shapes00000", "shapes00003", "shapes00000"):
        experienced.segment(shapes(other, "What moves last?", "What moves?"))
    again = experienced.segment(asked)
    assert again.work.accepted_tokens != fresh.work.accepted_tokens
    assert again.results == fresh.results
    assert all(result.status == "done" for result in again.results)


def test_only_wanted_frames_are_decoded_and_in_one_walk(small, clips, say, monkeypatch):
    say((1, 1))
    select_bins(monkeypatch, 5, 6, 7)
    read = []
    real = module.open_video

    def spying(*arguments, **options):
        reader = real(*arguments, **options)
        frames = reader.frames
        reader.frames = lambda indices: (read.append(list(indices)), frames(indices))[1]
        return reader

    monkeypatch.setattr(module, "open_video", spying)
    work = segment(small, task(clips, "b.mp4"), frames=4).work
    assert read == [[0, 6, 12, 19], [5, 6, 7]]
    assert work.decoded_frames == 7


def test_a_reader_that_fails_half_way_fails_the_video_and_leaves_no_thread(small, clips, say, monkeypatch):
    import threading

    say((1, 0))
    real = module.open_video

    def failing(*arguments, **options):
        reader = real(*arguments, **options)
        frames = reader.frames

        def broken(indices):
            for number, frame in enumerate(frames(indices)):
                if len(indices) > 4 and number == 3:
                    raise VideoError("frame 3 is damaged")
                yield frame

        reader.frames = broken
        return reader

    monkeypatch.setattr(module, "open_video", failing)
    before = threading.active_count()
    with pytest.raises(VideoError, match="frame 3 is damaged"):
        segment(small, task(clips, "b.mp4"), frames=4)
    assert threading.active_count() == before


def test_pending_questions_get_the_masks_they_get_among_all(small, clips):
    asked = task(clips, questions=("Who moves?", "What stays?", "Who falls off the chair?"))
    everything = segment(small, asked).results
    assert segment(small, asked, {"q2"}).results == everything[2:]


def test_frame_layout_answers_every_frame_by_itself(small, clips):
    answer = segment(small, task(clips, "c.mp4"), visual_tokens="frame", frames=4)
    assert answer.work.prefixes == 4
    assert len(answer.results[0].frames) == 8
    short = segment(small, task(clips, "c.mp4", end=0.25), visual_tokens="frame", frames=20)
    assert short.work.prefixes == 3


def test_start_and_end_keep_the_videos_own_numbering(small, clips):
    (result,) = segment(small, task(clips, "b.mp4", start=0.5, end=1.2)).results
    assert result.frames == tuple(range(5, 12))
    assert result.names[0] == "00005"


def test_frame_folders_keep_their_names(small, clips):
    (result,) = segment(small, task(clips, "frames", fps=6.0)).results
    assert result.names == tuple(f"frame_{i:06}" for i in range(5))


@pytest.mark.parametrize(
    ("rate", "frames"), [(10, list(range(12))), (5.0, [0, 2, 4, 6, 8, 10]), (1, [0, 10]), (0.1, [0])]
)
def test_mask_frames_by_rate(small, clips, rate, frames):
    (result,) = segment(small, task(clips), mask_frames=rate).results
    assert list(result.frames) == frames


def test_rate_follows_time_not_frame_numbers():
    times = np.array([0, 0.1, 0.2, 1.0, 2.0, 2.05])
    assert at_rate(times, range(6), 1.0) == [0, 3, 4]
    assert at_rate(times, range(2, 6), 1.0) == [2, 3]


def test_nearest_prefers_the_earlier_of_two():
    assert nearest(np.array([0.0, 0.4, 0.5, 0.6, 9.0]), np.array([0.0, 1.0])).tolist() == [0, 0, 0, 1, 1]
    assert nearest(np.array([0.0, 3.0]), np.array([1.0])).tolist() == [0, 0]


def test_a_question_too_long_fails_alone(small, clips):
    results = segment(small, task(clips, questions=("Who moves?", "why " * 3000))).results
    assert [r.status == "failed" for r in results] == [False, True]
    assert "the language model has room for" in results[1].error


def test_values_that_are_not_finite_are_a_failure(small, clips, say):
    (answer,) = say((1, 0))
    answer.seg_hidden.fill_(float("nan"))
    (result,) = segment(small, task(clips)).results
    assert result.status == "failed"
    assert "not finite" in result.error


def test_an_empty_window_and_a_broken_video_raise_video_errors(small, clips, tmp_path):
    with pytest.raises(VideoError):
        segment(small, task(clips, start=500.0))
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError):
        segment(small, task(tmp_path, "x.mp4"))


def test_padded_layout_of_the_checkpoint_limits_frames(small_folder, tmp_path):
    from tests.small_model import write_small_checkpoint

    padded = load_checkpoint(str(write_small_checkpoint(tmp_path / "padded", visual_tokens="pooled_padded")))
    with pytest.raises(ConfigError, match="100 frames"):
        Segmenter(padded, RunConfig(frames=101), "cpu")


def test_progress_counts_every_frame_once(small, clips, say, monkeypatch):
    say((1, 1))
    select_bins(monkeypatch, 0, 1)
    seen = []
    Segmenter(small, dataclasses.replace(RunConfig()), "cpu").segment(task(clips), None, seen.append)
    assert sum(seen) == 12


def test_bf16_masks_agree_with_fp32(small_folder, small, clips, say):
    answers = say((1, 0))
    full = segment(small, task(clips)).results[0]
    reduced = load_checkpoint(str(small_folder), dtype="bf16")
    answers[0] = dataclasses.replace(answers[0], seg_hidden=answers[0].seg_hidden.bfloat16())
    half = segment(reduced, task(clips), dtype="bf16").results[0]
    for a, b in zip(full.masks, half.masks, strict=True):
        first, second = decode_rle(a), decode_rle(b)
        assert (first & second).sum() >= 0.9 * (first | second).sum()


def test_a_layout_of_another_width_is_refused(small):
    with pytest.raises(ConfigError, match="changes does not fit this checkpoint, which was made for pooled"):
        Segmenter(small, RunConfig(visual_tokens="changes"), "cpu")
