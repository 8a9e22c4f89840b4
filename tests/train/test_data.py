import dataclasses
import pickle

import numpy as np
import pytest
import torch

from gmcli.errors import ConfigError, ManifestError
from gmcli.evaluate import window_frames
from gmcli.manifest import read_manifest
from gmcli.model.generate import Answer
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.train.config import MoraOptions
from gmcli.train.data import MoraBatches, check_tasks, frames_inside, list_questions, teach, true_bins
from tests.train.sample import write_dataset

LOC = "Sure, the target object is [SEG], and the temporal boundary is [LOC]."


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def make_batches(manifest, checkpoint, **changes) -> MoraBatches:
    options = MoraOptions(str(manifest), str(manifest), **changes)
    config = dataclasses.replace(
        checkpoint.model.config,
        localizer_bins=options.localizer_bins,
        visual_tokens=options.visual_tokens or "pooled",
        sam=dataclasses.replace(checkpoint.model.config.sam, image_size=128),
    )
    tasks = read_manifest(manifest)
    return MoraBatches(tasks, list_questions(tasks), options, config, checkpoint.tokenizer, 1, True)


def test_the_conversation_is_the_originals(golden, facts, checkpoint):
    """The recorded training sample: ids, and labels of its last 35 positions, where text follows the image."""
    original = golden("llava_forward")
    question = facts["prompts"][0]["question"]
    before, after, labels = teach(question, "It is [SEG].", checkpoint.model.config, checkpoint.tokenizer)
    assert [*before, -200, *after] == facts["teacher_forced"]["input_ids"]
    assert [-100] * (len(before) + 1) + labels == original["labels"][0].tolist()


def test_llama_2_conversations_end_with_a_space(checkpoint):
    """Source: LLaVA conversation.py, SeparatorStyle.LLAMA_2."""
    config = dataclasses.replace(checkpoint.model.config, conversation="llava_llama_2")
    tokenizer = checkpoint.tokenizer
    before, after, labels = teach("Who?", "It is [SEG].", config, tokenizer)
    prompt_before, prompt_after = tokenize_prompt(build_prompt("Who?", config), tokenizer)
    assert before == prompt_before
    assert after[: len(prompt_after)] == prompt_after
    assert "".join(tokenizer.decode(after[len(prompt_after) :]).split()) == "Itis[SEG].</s>"
    assert labels[: len(prompt_after)] == [-100] * len(prompt_after)
    assert labels[len(prompt_after) :] == after[len(prompt_after) :]


def test_a_sample_is_a_function_of_seed_and_index(manifest, checkpoint):
    batches = make_batches(manifest, checkpoint)
    first, again = batches(5), pickle.loads(pickle.dumps(batches))(5)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = dataclasses.replace(batches, seed=2)
    assert any(not torch.equal(batches(i)["masks"], other(i)["masks"]) for i in range(3))


def test_every_pass_has_every_question_once_in_an_order_of_its_own(manifest, checkpoint):
    batches = make_batches(manifest, checkpoint)
    passes = [[batches._question(i)[1].line for i in range(4 * p, 4 * p + 4)] for p in range(8)]
    assert all(sorted(p) == sorted(passes[0]) for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_shapes_and_true_masks(manifest, checkpoint):
    sample = make_batches(manifest, checkpoint, mask_frames=12, frames=12)(0)
    assert sample["clip"].shape == (12, 3, 224, 224)
    assert sample["sam"].shape == (12, 3, 128, 128)
    assert sample["masks"].shape == (12, 48, 80)
    assert sample["resized"].tolist() == [77, 128]
    assert "bins" not in sample
    # Frames 3 to 8 are in the window of 0.5 to 1.5 s at 6 fps; the other object is never part of it.
    areas = sample["masks"].flatten(1).sum(1).tolist()
    assert areas == [0, 0, 0, *[256] * 6, 0, 0, 0]
    square = sample["masks"][3]
    assert square[16:32, 13:29].all()


def test_with_a_localizer_frames_come_from_the_window(manifest, checkpoint):
    batches = make_batches(manifest, checkpoint, localizer_bins=20, answers=(LOC,), mask_frames=3)
    for index in range(6):
        sample = batches(index)
        assert (sample["masks"].flatten(1).sum(1) == 256).all()
        assert sample["bins"].shape == (20,)


def test_in_layout_frame_the_model_sees_the_masked_frames(manifest, checkpoint):
    sample = make_batches(manifest, checkpoint, visual_tokens="frame", mask_frames=2)(0)
    assert len(sample["clip"]) == len(sample["sam"]) == 2


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (0.5, 1.5), (0.4, 1.3), (None, 2 / 3), (1.0, None), (9.0, 12.0)]
)
def test_windows_are_the_protocols(start, end):
    times = np.arange(30) / 6
    inside = np.flatnonzero(frames_inside(times, start, end))
    window = window_frames(start, end, 6.0, 30)
    assert inside.tolist() == list(range(window.start, window.end))


def read_back(times, target, bins, checkpoint) -> np.ndarray:
    """Let the segmenter read the bins as it reads those of an answer."""
    from types import SimpleNamespace

    from gmcli.segmenter import Segmenter

    segmenter = SimpleNamespace(
        model=SimpleNamespace(
            config=SimpleNamespace(localizer_bins=bins), localize=lambda state: torch.from_numpy(target) > 0
        )
    )
    clip = SimpleNamespace(span=range(len(times)), reader=SimpleNamespace(times=times))
    answer = Answer((), torch.zeros(0, 1), torch.zeros(1, 1), True)
    return Segmenter._inside(segmenter, clip, answer)


@pytest.mark.parametrize("count", [20, 61, 200])
def test_bins_read_back_give_the_window(count, checkpoint):
    """Exactly so where bins are frames; within half a bin at either side where they are coarser."""
    rng = np.random.default_rng(0)
    times = np.arange(count) / 6
    for _ in range(40):
        first, last = sorted(rng.integers(0, count, 2))
        inside = np.zeros(count, bool)
        inside[first : last + 1] = True
        target = true_bins(times, range(count), inside, 20)
        assert target.sum() >= 1
        found = read_back(times, target, 20, checkpoint)
        assert np.count_nonzero(found != inside) <= (0 if count == 20 else count / 19 + 1)


def test_a_window_between_two_bins_selects_the_nearest():
    inside = np.zeros(200, bool)
    inside[13:16] = True
    target = true_bins(np.arange(200) / 6, range(200), inside, 20)
    assert np.flatnonzero(target).tolist() == [1]


def test_the_answer_in_words_stands_in_the_template(tmp_path, manifest, checkpoint):
    text = manifest.read_text().replace("start: 0.5", "answer: the square, start: 0.5")
    named = manifest.parent / "named.yaml"
    named.write_text(text)
    batches = make_batches(named, checkpoint, answers=("{answer}: [SEG].",))
    sample = batches(0)
    taught = [i for i in sample["labels"].tolist() if i != -100]
    assert taught[: len(checkpoint.tokenizer.encode("the square")) - 1] == checkpoint.tokenizer.encode("the square")[1:]
    check_tasks(batches.tasks, "m", ("{answer} [SEG]",))


def test_what_cannot_be_trained_on_is_named(manifest):
    tasks = read_manifest(manifest)
    with pytest.raises(ManifestError, match=r"m: v0/q0: its ground truth has no 'answer'") as raised:
        check_tasks(tasks, "m", ("{answer} [SEG]",))
    assert len(raised.value.problems) == 4
    bare = [
        dataclasses.replace(t, questions=tuple(dataclasses.replace(q, ground_truth=None) for q in t.questions))
        for t in tasks
    ]
    with pytest.raises(ManifestError, match="m: v1/q1: has no ground truth"):
        check_tasks(bare, "m", ("[SEG]",))
    with pytest.raises(ManifestError, match="m: has no questions"):
        check_tasks([], "m", ("[SEG]",))


def test_a_mask_of_another_size_is_refused(tmp_path, checkpoint):
    from PIL import Image

    manifest = write_dataset(tmp_path, videos=1)
    for path in (tmp_path / "v0/masks").iterdir():
        Image.new("P", (8, 8)).save(path)
    with pytest.raises(ConfigError, match=r"the mask is \(8, 8\), the frame \(48, 80\)"):
        make_batches(manifest, checkpoint)(0)
