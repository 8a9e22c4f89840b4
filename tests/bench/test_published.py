import numpy as np
import pytest
import torch
from PIL import Image

from gmcli.bench import compare
from gmcli.bench.models import ANSWER_TOKENS
from gmcli.bench.options import ANSWERS
from gmcli.bench.ours import build_segmenter, run_ours, without_localizer
from gmcli.bench.published import generate, run_published
from gmcli.bench.stopwatch import Stopwatch
from gmcli.checkpoints.load import load_checkpoint
from gmcli.config import RunConfig
from gmcli.data import Question, VideoTask
from gmcli.errors import GmcliError
from gmcli.model.generate import embed
from gmcli.model.preprocess import clip_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from tests.conftest import GOLDENS

CPU = torch.device("cpu")
QUESTIONS, FRAMES = 2, 3


def published(checkpoint, task, layout, **settings):
    clock = Stopwatch(CPU)
    return run_published(checkpoint, task, RunConfig(frames=FRAMES, **settings), layout, clock), clock


def test_the_published_schedule_gives_the_originals_mask(checkpoint, golden_frames, facts, tmp_path):
    (tmp_path / "f").mkdir()
    Image.fromarray(golden_frames[0]).save(tmp_path / "f" / "0.png")
    question = Question("q0", facts["evaluate"][0]["question"])
    found, clock = published(checkpoint, VideoTask("v", str(tmp_path / "f"), (question,)), "frame")
    want = np.array(Image.open(GOLDENS / "evaluate_masks/q0_seg0.png")) > 0
    assert found.answers == ("It is [SEG].",)
    assert (found.masks[0][0] != want).sum() <= 8
    assert clock.counts["llm_passes"] == len(facts["evaluate"][0]["new_ids"])


@pytest.mark.parametrize("most", [64, 3])
def test_ids_equal_transformers_generate_without_a_cache(checkpoint, golden_frames, facts, most):
    model, question = checkpoint.model, facts["evaluate"][3]["question"]
    with torch.inference_mode():
        ids, states = generate(checkpoint, question, [golden_frames[3]], "frame", most, Stopwatch(CPU))
        before, after = tokenize_prompt(build_prompt(question, model.config), checkpoint.tokenizer)
        image = model.visual_embeddings(model.clip_features(clip_pixels([golden_frames[3]])), "frame")
        want = model.language_model.generate(
            inputs_embeds=torch.cat([embed(model, before), image, embed(model, after)], dim=1),
            max_new_tokens=most,
            use_cache=False,
            do_sample=False,
            eos_token_id=checkpoint.special.eos,
            pad_token_id=0,
        )
    assert ids == want[0].tolist()
    assert len(states) == ids.count(checkpoint.special.seg)


@pytest.mark.parametrize("layout", ["pooled", "frame"])
def test_both_sides_find_the_same_and_do_what_they_should(random_tiny, bench_task, layout):
    theirs, clock = published(random_tiny, bench_task, layout)
    config = RunConfig(frames=FRAMES, mask_frames="sampled", visual_tokens=layout)
    ours = run_ours(build_segmenter(random_tiny, config, CPU), bench_task)
    assert theirs.answers == ours.answers == (ANSWERS["unknown"],) * QUESTIONS
    assert [sorted(masks) for masks in theirs.masks] == [[0, 29, 59]] * QUESTIONS
    found = compare.agreement(theirs, ours)
    assert found["answers_equal"]
    assert found["masks_equal"]
    assert found["mask_iou"]["min"] >= 0.999
    shown = compare.foreground(theirs.masks)
    assert shown["empty"] == shown["full"] == 0
    assert 0.02 < shown["share"] < 0.98
    asked = QUESTIONS * (FRAMES if layout == "frame" else 1)
    assert clock.counts["llm_passes"] == asked * ANSWER_TOKENS
    assert clock.counts["clip_frames"] == QUESTIONS * FRAMES * ANSWER_TOKENS
    assert clock.counts["sam_frames"] == clock.counts["decoded_pairs"] == QUESTIONS * FRAMES
    assert set(clock.cpu) == set(clock.wall) == {"decode", "clip", "llm", "sam_encoder", "sam_decoder"}
    assert ours.counts["clip_frames"] == ours.counts["sam_frames"] == FRAMES
    assert ours.counts["llm_prefixes"] == (FRAMES if layout == "frame" else 1)
    assert ours.counts["decoded_pairs"] == QUESTIONS * FRAMES
    assert ours.counts["llm_passes"] < clock.counts["llm_passes"]


def test_published_tokens_are_those_of_the_whole_sequences(random_tiny, bench_task):
    config = random_tiny.model.config
    _, clock = published(random_tiny, bench_task, "pooled", max_new_tokens=2)
    prompts = [tokenize_prompt(build_prompt(q.text, config), random_tiny.tokenizer) for q in bench_task.questions]
    first = sum(len(before) + FRAMES + config.clip.patches + len(after) for before, after in prompts)
    assert clock.counts["llm_tokens"] == 2 * first + QUESTIONS
    # Cut before [SEG]: nothing to point at, yet every frame is encoded.
    assert clock.counts["sam_frames"] == QUESTIONS * FRAMES
    assert clock.counts["decoded_pairs"] == 0


def test_without_a_localizer_every_frame_is_inside(small_folder, bench_task, monkeypatch):
    """The checkpoint itself keeps its localizer."""
    small = load_checkpoint(str(small_folder))
    deaf = without_localizer(small)
    assert deaf.model.config.localizer_bins == 0
    assert small.model.config.localizer_bins == 20
    assert deaf.model.visual_model is small.model.visual_model


def test_stages_share_the_cpu_seconds(random_tiny, bench_task):
    ours = run_ours(build_segmenter(random_tiny, RunConfig(frames=2, mask_frames="sampled"), CPU), bench_task)
    stages = ours.cpu_by_stage()
    assert sum(stages.values()) == pytest.approx(ours.cpu_s)
    assert "other" in stages


def test_iou_counts_pixels_and_refuses_other_frames():
    def masks(*values):
        return [dict(enumerate(np.array(v, bool) for v in values))]

    assert compare.mask_iou(masks([1, 1, 0, 0], [0, 0]), masks([1, 0, 0, 1], [0, 0])) == {
        "min": pytest.approx(1 / 3),
        "mean": pytest.approx(2 / 3),
    }
    with pytest.raises(GmcliError, match="different frames"):
        compare.mask_iou(masks([1]), masks([1], [1]))


def test_a_failed_question_is_an_error(random_tiny, bench_task):
    import dataclasses

    long = dataclasses.replace(bench_task, questions=(Question("q0", "why " * 3000),))
    with pytest.raises(GmcliError, match="q0 failed"):
        run_ours(build_segmenter(random_tiny, RunConfig(frames=2), CPU), long)
