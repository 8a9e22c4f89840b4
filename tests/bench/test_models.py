import pytest
import torch

from gmcli.bench.clips import QUESTIONS, make_task
from gmcli.bench.models import ANSWER_TOKENS, check_answer, draw_weight, model_config, write_random_checkpoint
from gmcli.bench.options import ANSWERS, SIZES
from gmcli.errors import CheckpointError
from gmcli.model.mora import build_on_meta
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.video import open_video, read_frames


def test_greedy_decoding_gives_the_taught_answer_and_nothing_is_zero(random_tiny):
    check_answer(random_tiny, ANSWERS["unknown"], torch.device("cpu"))
    assert all(tensor.any() for tensor in random_tiny.model.state_dict().values())
    with pytest.raises(CheckpointError, match="answers 'Look, that is"):
        check_answer(random_tiny, ANSWERS["known"], torch.device("cpu"))


def test_equal_arguments_give_equal_weights(random_folder, tmp_path):
    write_random_checkpoint("tiny", tmp_path / "again", ANSWERS["unknown"])
    write_random_checkpoint("tiny", tmp_path / "other", ANSWERS["unknown"], seed=1)
    first, again, other = (
        (folder / "model.safetensors").read_bytes()
        for folder in (random_folder, tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


@pytest.mark.parametrize("answer", ANSWERS.values())
def test_answers_are_eight_different_tokens(random_tiny, answer):
    ids = random_tiny.tokenizer.encode(answer)
    assert len(set(ids)) == ANSWER_TOKENS
    assert ids.count(random_tiny.special.seg) == 1


def test_prompts_have_about_a_piece_a_word(random_tiny):
    before, after = tokenize_prompt(build_prompt(QUESTIONS[0], random_tiny.model.config), random_tiny.tokenizer)
    assert 28 <= len(before) <= 45  # LLaMA's tokenizer has 42
    assert len(after) <= 16


@pytest.mark.parametrize(("size", "millions"), [("tiny", 3), ("vit_b-160m", 345), ("vit_h-7b", 7703)])
def test_sizes_are_those_of_their_names(size, millions):
    model = build_on_meta(model_config(size))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == pytest.approx(millions, rel=0.02)
    assert set(SIZES) == {"tiny", "vit_b-160m", "vit_h-7b"}


def test_activations_are_about_unit_scale():
    config = model_config("tiny")
    weight = draw_weight(
        "visual_model.image_encoder.blocks.0.attn.qkv.weight", torch.Size((192, 64)), config, _seeded()
    )
    assert weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    table = draw_weight("visual_model.image_encoder.blocks.0.attn.rel_pos_h", torch.Size((7, 32)), config, _seeded())
    assert 0.1 < table.std().item() < 0.3
    inner = "visual_model.mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"
    assert draw_weight(inner, torch.Size((128, 256)), config, _seeded()).std().item() == pytest.approx(1 / 16, rel=0.05)


def test_clips_are_as_long_and_large_as_asked_and_made_once(tmp_path):
    task = make_task(tmp_path, frames=7, questions=3, size=(32, 48))
    made = (tmp_path / f"{task.id}.mp4").stat()
    assert make_task(tmp_path, frames=7, questions=1, size=(32, 48)).video == task.video
    assert (tmp_path / f"{task.id}.mp4").stat().st_mtime_ns == made.st_mtime_ns
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
    with open_video(task.video) as reader:
        frames = read_frames(reader, range(len(reader.times)))
    assert frames.shape == (7, 32, 48, 3)
    assert (frames[0] != frames[6]).any()
    assert len({question.text for question in task.questions}) == 3
    with pytest.raises(ValueError, match="questions"):
        make_task(tmp_path, frames=7, questions=len(QUESTIONS) + 1, size=(32, 48))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)
