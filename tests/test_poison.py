"""A poisonous checkpoint or question fails, with its reason, and takes nothing else with it."""

import copy
import dataclasses

import pytest
import torch

from gmcli.checkpoints.load import load_checkpoint
from gmcli.config import RunConfig
from gmcli.data import Question, VideoTask
from gmcli.engines import eager_engines
from gmcli.errors import ItemError
from gmcli.model.generate import Answer, EagerLanguage
from gmcli.segmenter import Segmenter
from gmcli.work import Work


@pytest.fixture(scope="module")
def small(small_folder):
    return load_checkpoint(str(small_folder))


@pytest.fixture(scope="module")
def speaks(small):
    """The small checkpoint, made to say "[SEG] [LOC]" to whatever it is asked, so that each of its parts is used."""
    checkpoint = dataclasses.replace(small, model=copy.deepcopy(small.model))
    special, llm = checkpoint.special, checkpoint.model.language_model
    steps = [special.seg, special.loc, special.eos]
    # The last layer's output is a state that knows the token before it, through tied places in both tables.
    with torch.inference_mode(False), torch.no_grad():
        table, head = llm.get_input_embeddings().weight, llm.lm_head.weight
        for layer in llm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table[:, :4], head[:, :] = 0, 0
        table[:, 0] = 50
        for i, token in enumerate(steps[:2]):
            table[token, :4] = 0
            table[token, 1 + i] = 50
        for i, token in enumerate(steps):
            head[token, i] = 1
        checkpoint.model.localizer[2].bias.fill_(100)  # selects all frames
    return checkpoint


def task(clips, *questions, name="a.mp4"):
    return VideoTask("v", str(clips / name), tuple(Question(f"q{i}", text) for i, text in enumerate(questions)))


def segment(checkpoint, asked, **settings):
    settings = {"frames": 2, "mask_frames": "sampled", "max_new_tokens": 8} | settings
    return Segmenter(checkpoint, RunConfig(**settings), "cpu").segment(asked)


def test_the_speaking_checkpoint_uses_every_part(speaks, clips):
    (result,) = segment(speaks, task(clips, "Who?")).results
    assert result.status == "done"
    assert "[SEG]" in result.answer
    assert "[LOC]" in result.answer


PARTS = {
    "clip": lambda m: m.vision_tower.embeddings.patch_embedding.weight,
    "projector": lambda m: m.mm_projector.weight,
    "language": lambda m: m.language_model.model.layers[0].self_attn.q_proj.weight,
    "norm": lambda m: m.language_model.model.norm.weight,
    "head": lambda m: m.language_model.lm_head.weight,
    "seg": lambda m: m.text_hidden_fcs[0][2].bias,
    "loc": lambda m: m.localizer[2].bias,
    "encoder": lambda m: m.visual_model.image_encoder.patch_embed.proj.weight,
    "decoder": lambda m: m.visual_model.mask_decoder.transformer.layers[0].self_attn.q_proj.weight,
    "upscaling": lambda m: m.visual_model.mask_decoder.output_upscaling[0].bias,
    "score": lambda m: m.visual_model.mask_decoder.iou_prediction_head.layers[-1].bias,
}


@pytest.mark.parametrize(
    ("part", "value", "layout"),
    [
        *((part, "nan", "pooled") for part in PARTS),
        *((part, "inf", "pooled") for part in ("projector", "head", "upscaling")),
        *((part, "nan", "frame") for part in ("seg", "decoder")),
    ],
)
def test_a_value_that_is_no_number_anywhere_is_a_failure(speaks, clips, part, value, layout):
    """Nothing is "done" or "no_target" because NaN is not greater than zero."""
    model = copy.deepcopy(speaks.model)
    with torch.inference_mode(False), torch.no_grad():
        PARTS[part](model).view(-1)[0] = float(value)
    poisoned = dataclasses.replace(speaks, model=model)
    (result,) = segment(poisoned, task(clips, "Who?"), visual_tokens=layout).results
    assert result.status == "failed"
    assert "not finite (NaN)" in result.error
    assert len(result.error) < 100


def test_only_the_questions_concerned_fail(small, clips):
    """A token's embedding is NaN: the question that has it fails, and its neighbours in the batch answer as without it."""
    questions = ("Who moves?", "Who opens the door?", "What stays?")
    good = segment(small, task(clips, *questions)).results
    model = copy.deepcopy(small.model)
    door = set(small.tokenizer.encode("Who opens the door?")) - set(
        small.tokenizer.encode("Who moves?") + small.tokenizer.encode("What stays?")
    )
    with torch.inference_mode(False), torch.no_grad():
        model.language_model.get_input_embeddings().weight[sorted(door)[-1]] = float("nan")
    results = segment(dataclasses.replace(small, model=model), task(clips, *questions)).results
    assert [r.status == "failed" for r in results] == [False, True, False]
    assert (results[0], results[2]) == (good[0], good[2])


def test_a_guess_that_is_no_number_does_not_fail_the_question(small, clips, monkeypatch):
    """Tokens that were only guessed are seen by the pass; where they poison it, plain decoding decides."""
    (plain,) = segment(small, task(clips, "Who moves?")).results
    model = copy.deepcopy(small.model)
    unused = 1234
    assert unused not in small.tokenizer.encode("Who moves?")
    with torch.inference_mode(False), torch.no_grad():
        model.language_model.get_input_embeddings().weight[unused] = float("nan")
    monkeypatch.setattr("gmcli.model.drafts.Drafts.guess", lambda self, known, most: (unused,) * min(1, most))
    (result,) = segment(dataclasses.replace(small, model=model), task(clips, "Who moves?")).results
    assert result == plain


def test_a_question_of_100000_characters_fails_at_once_and_changes_nothing(small, clips):
    questions = ("Who moves?", "What stays?")
    alone = segment(small, task(clips, *questions)).results
    for long in ("why " * 25_000, "a" * 100_000, "\u2603" * 100_000):
        results = segment(small, task(clips, questions[0], questions[1], long)).results
        assert results[:2] == alone
        assert results[2].status == "failed"
        assert "tokens; the language model has room for" in results[2].error
        assert len(results[2].error) < 120


def test_many_questions_hold_few_masks_at_a_time(small, clips, monkeypatch):
    """As many masks as wait for their RLE, whatever the number of questions."""
    from gmcli import segmenter as module

    monkeypatch.setattr(module, "_RLE_BEHIND", 4)
    held, most = 0, 0
    real = module.encode_rle

    def encode(mask):
        nonlocal held
        held -= 1
        return real(mask)

    class Pool(module.ThreadPoolExecutor):
        def submit(self, run, mask):
            nonlocal held, most
            held += 1
            most = max(most, held)
            return super().submit(run, mask)

    monkeypatch.setattr(module, "encode_rle", encode)
    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    generator = torch.Generator().manual_seed(4)
    state = torch.randn(1, 64, generator=generator)
    monkeypatch.setattr(
        module,
        "answer_questions",
        lambda *a: module_generated([Answer((5, 6), state, state[:0], True) for _ in a[3]]),
    )
    results = segment(small, task(clips, *["Who?"] * 30), frames=1).results
    assert [r.status for r in results] == ["done"] * 30
    assert most <= 4 + 1


def module_generated(answers):
    from gmcli.model.generate import Generated

    return Generated(tuple(answers), 1, 0, 0)


# --- a device without room --------------------------------------------------------------------------------------------


def narrow(checkpoint, **fits):
    """Return engines whose parts have room for so many rows, and a list of the sizes that were tried."""
    engines, tried = eager_engines(checkpoint.model), []

    def limited(name, run):
        def call(first, *rest):
            tried.append((name, len(first)))
            if len(first) > fits.get(name, 1000):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore.")
            return run(first, *rest)

        return call

    class Language(EagerLanguage):
        def prefill(self, embeddings):
            if "prefix" in fits:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().prefill(embeddings)

        def extend(self, cache, embeddings, positions, keep):
            tried.append(("language", len(embeddings)))
            if len(embeddings) > fits.get("language", 1000) or embeddings.shape[1] > fits.get("columns", 10_000):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().extend(cache, embeddings, positions, keep)

    parts = {name: limited(name, getattr(engines, name)) for name in ("clip", "encode", "decode")}
    batch = {"clip": 4, "llm": 16, "sam_image_encoder": 4, "sam_mask_decoder": 8}
    language = Language(engines.model.language_model)
    return dataclasses.replace(engines, **parts, language=language, batch=batch), tried


@pytest.mark.parametrize(
    ("name", "fits", "sizes"),
    [
        ("clip", 1, [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("encode", 2, [4, 2, 2, 2, 2]),
        ("decode", 3, [8, 4, 2, 2, 2, 2]),
    ],
)
def test_a_batch_without_room_is_halved_and_the_size_remembered(small, clips, caplog, name, fits, sizes):
    asked = task(clips, "Who moves?", "What stays?", name="c.mp4")
    config = RunConfig(frames=8, mask_frames="sampled")
    states = torch.randn(1, 64, generator=torch.Generator().manual_seed(4))
    answers = [Answer((5, 6), states, states[:0], True)] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmcli.segmenter.answer_questions", lambda *a: module_generated(answers))
        want, _ = narrow(small)
        want = Segmenter(small, config, "cpu", want).segment(asked)
        engines, tried = narrow(small, **{name: fits})
        segmenter = Segmenter(small, config, "cpu", engines)
        got = segmenter.segment(asked)
        first = [size for part, size in tried if part == name]
        assert first[: len(sizes)] == sizes
        assert got.work.out_of_memory == got.work.counts()["out_of_memory"] == sum(size > fits for size in first) > 0
        assert "has no room for" in caplog.text
        assert [r.status for r in got.results] == [r.status for r in want.results] == ["done", "done"]
        for a, b in zip(got.results, want.results, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
        tried.clear()
        assert segmenter.segment(asked).work.out_of_memory == 0
        assert max(size for part, size in tried if part == name) <= fits


def test_questions_without_room_are_asked_in_smaller_batches(small, clips, caplog):
    asked = task(clips, *[f"Who is number {i}?" for i in range(5)])
    engines, tried = narrow(small, language=2)
    segmenter = Segmenter(small, RunConfig(frames=2, mask_frames="sampled", max_new_tokens=8), "cpu", engines)
    got = segmenter.segment(asked)
    in_twos = segment(small, asked, questions_per_batch=2)
    assert tried[1] == ("language", 5)
    assert got.work.out_of_memory == 1
    assert got.results == in_twos.results
    assert "from now on 2" in caplog.text


def test_a_question_without_room_fails_alone(small, clips):
    asked = task(clips, "Who moves?", "Who opens " + "the door and " * 30 + "leaves?", "What stays?")
    engines, _ = narrow(small, columns=100)
    config = RunConfig(frames=2, mask_frames="sampled", max_new_tokens=8)
    got = Segmenter(small, config, "cpu", engines).segment(asked)
    assert [r.status == "failed" for r in got.results] == [False, True, False]
    assert "no room for one question in the llm (CUDA out of memory.)" in got.results[1].error


@pytest.mark.parametrize("name", ["clip", "encode", "decode"])
def test_a_single_row_without_room_fails_the_video_with_a_reason(speaks, clips, name):
    engines, _ = narrow(speaks, **{name: 0})
    work = Work()
    part, unit = {
        "clip": ("clip", "frame"),
        "encode": ("sam_image_encoder", "frame"),
        "decode": ("sam_mask_decoder", "mask"),
    }[name]
    with pytest.raises(ItemError, match=f"has no room for one {unit} in the {part} .CUDA out of memory. Tried"):
        Segmenter(speaks, RunConfig(frames=2, mask_frames="sampled"), "cpu", engines).segment(
            task(clips, "Who?"), None, None, work
        )
    assert work.out_of_memory >= 1


def test_a_prefix_without_room_fails_the_video_with_a_reason(small, clips):
    engines, _ = narrow(small, prefix=0)
    with pytest.raises(ItemError, match="no room for one video in the prefix"):
        Segmenter(small, RunConfig(frames=4), "cpu", engines).segment(task(clips, "Who?"))


def test_other_errors_are_not_taken_for_a_lack_of_memory(small, clips, monkeypatch):
    engines, _ = narrow(small)
    broken = dataclasses.replace(engines, clip=lambda pixels: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Segmenter(small, RunConfig(frames=4), "cpu", broken).segment(task(clips, "Who?"))


def test_the_stages_are_those_of_the_settings(speaks, clips):
    from gmcli.config import STAGES

    entered = []
    work = Work(entered=entered.append)
    Segmenter(speaks, RunConfig(frames=2, mask_frames="sampled"), "cpu").segment(task(clips, "Who?"), None, None, work)
    assert set(entered) == set(STAGES) == set(work.seconds)


def test_a_prompt_that_is_no_number_is_a_failure_also_where_no_frame_is_drawn(speaks, clips):
    model = copy.deepcopy(speaks.model)
    with torch.inference_mode(False), torch.no_grad():
        model.localizer[2].bias.fill_(-100)
    (empty,) = segment(dataclasses.replace(speaks, model=model), task(clips, "Who?")).results
    assert (empty.status, empty.score) == ("done", None)
    with torch.inference_mode(False), torch.no_grad():
        PARTS["seg"](model).view(-1)[0] = float("nan")
    (result,) = segment(dataclasses.replace(speaks, model=model), task(clips, "Who?")).results
    assert result.error == "the model computed values that are not finite (NaN) for [SEG]"
