"""The small model's stages: what they are shown is true, what they pack equals what it stands for, and they chain."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gmcli.checkpoints.load import load_checkpoint
from gmcli.cli.main import cli
from gmcli.errors import ConfigError
from gmcli.model.config import MoraConfig
from gmcli.model.mora import Mora
from gmcli.model.tokenizer import Tokenizer
from gmcli.resources import share_dir
from gmcli.synth.questions import type_of
from gmcli.synth.scene import COLOURS, FPS, SECONDS, SHAPES
from gmcli.train.losses import IGNORED
from gmcli.train.tiny.build import PHRASES
from gmcli.train.tiny.language import LanguageModule, Packer, Question, pack, packed_mask, read
from gmcli.train.tiny.lessons import EVENTS
from gmcli.train.tiny.motion import MotionBatches, MotionModule, lower_states
from gmcli.train.tiny.options import LanguageOptions, MotionOptions
from gmcli.train.tiny.sam import iou_of, sam_batch
from gmcli.train.tiny.stills import make_stills
from gmcli.train.tiny.strips import strips
from gmcli.train.tiny.tower import tower_batch
from gmcli.train.tiny.videos import Videos
from gmcli.train.tiny.vocabulary import VOCABULARY, write_tokenizer

SIZES = {
    "visual_tokens": "temporal",
    "conversation": "plain",
    "instruction": "",
    "use_im_start_end": False,
    "localizer_bins": 20,
    "llm": {
        "vocab_size": VOCABULARY + 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    },
    "clip": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 12,
        "select_layer": -1,
    },
    "sam": {
        "image_size": 64,
        "patch_size": 16,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "mlp_dim": 48,
        "global_attn_indexes": [0],
        "window_size": 4,
        "prompt_dim": 32,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "decoder_mlp_dim": 32,
        "iou_head_hidden_dim": 32,
    },
}
CONFIG = MoraConfig.from_json(SIZES, "test")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    added = write_tokenizer(path)
    return Tokenizer(path, added)


@pytest.fixture
def mora():
    torch.manual_seed(0)
    return Mora(CONFIG).eval()


def test_the_vocabulary_is_the_same_each_time_and_knows_every_text(tokenizer, tmp_path):
    write_tokenizer(tmp_path / "one")
    write_tokenizer(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for text in ("What does the green star push?", "Où est Zoë? 猫 \U0001f600"):
        assert tokenizer.answer(tokenizer.encode(text)) == text
    names = [f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    assert {len(tokenizer.encode(name)) for name in names} == {4}


def test_what_is_said_of_a_frame_is_in_the_frame():
    stills = make_stills(5, 0, 16)
    batch = tower_batch(5, 16, 48, 12, 0)
    for row, still in enumerate(stills):
        for colour in range(len(COLOURS)):
            own = [k for k, thing in enumerate(still.things) if thing.colour == COLOURS[colour]]
            pixels = np.argwhere(still.mask == own[0] + 1) if own else np.empty((0, 2))
            if batch["visible"][row, colour] > 0.95:
                # Nothing hides it: its middle is the middle of its pixels.
                y, x = (pixels.mean(axis=0) + 0.5) / still.mask.shape[0]
                assert batch["place"][row, colour].tolist() == pytest.approx([x, y], abs=0.025)
            assert (batch["visible"][row, colour] > 0) == (len(pixels) > 0)
        coarse = batch["patch"][row].view(12, 12).numpy()
        inside = {0} | {COLOURS.index(thing.colour) + 1 for thing in still.things}
        assert set(coarse.ravel()) <= inside


def test_batches_are_functions_of_seed_and_index():
    assert all((a == b).all() for a, b in zip(*(tower_batch(1, 4, 48, 4, 7).values() for _ in range(2)), strict=True))
    assert not (tower_batch(1, 4, 48, 4, 7)["pixels"] == tower_batch(1, 4, 48, 4, 8)["pixels"]).all()


def test_sams_truth_is_the_masks():
    batch = sam_batch(3, 4, 64, 0)
    stills = make_stills(4, 0, 4)
    for row, phrase, mask in zip(batch["rows"], batch["phrases"], batch["masks"], strict=True):
        still = stills[row]
        names = [COLOURS.index(t.colour) * len(SHAPES) + SHAPES.index(t.shape) for t in still.things]
        own = still.mask == names.index(int(phrase)) + 1
        assert float(mask.mean()) == pytest.approx(own.mean(), abs=1e-4)


def test_iou_counts_pixels():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    truth = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert iou_of(logits, truth).tolist() == pytest.approx([1 / 3, 1.0])


def questions(rng, count):
    def ids(low, high):
        return [int(i) for i in rng.integers(10, 500, rng.integers(low, high))]

    window = np.zeros(20, np.float32)
    return [
        Question("test", ids(5, 12), [*ids(1, 4), VOCABULARY, VOCABULARY + 1, *ids(1, 2), 2], 0, window)
        for _ in range(count)
    ]


def test_packed_questions_have_the_states_that_they_have_alone(mora):
    rng = np.random.default_rng(0)
    videos = [questions(rng, 3), questions(rng, 2)]
    module = LanguageModule(mora, torch.zeros(24, 32), [1, 30, 31], 1)
    temporal = torch.randn(2, 20, 32)
    batch = pack(videos, 23, VOCABULARY, VOCABULARY + 1) | {"temporal": temporal}
    with torch.no_grad():
        states, _ = module.states(batch)
        found = read(mora, states, batch)
        at = 0
        for video, asked in enumerate(videos):
            for question in asked:
                # transformers' own causal forward over this question and nothing else
                ids = torch.tensor([question.prompt + question.answer])
                embed = mora.language_model.model.embed_tokens
                alone = torch.cat(
                    [embed(torch.tensor([[1, 30, 31]])), mora.mm_projector(temporal[[video]]), embed(ids)], 1
                )
                out = mora.language_model(inputs_embeds=alone, output_hidden_states=True)
                first = 23 + len(question.prompt) - 1
                logits = out.logits[0, first : first + len(question.answer)]
                torch.testing.assert_close(
                    found["logits"][at : at + len(question.answer)], logits, atol=1e-5, rtol=1e-5
                )
                at += len(question.answer)
        assert at == len(found["logits"])
        assert (batch["labels"] != IGNORED).sum() == at


def test_the_prompts_are_those_of_the_states_that_predict_them(mora):
    batch = pack([questions(np.random.default_rng(1), 3)], 23, VOCABULARY, VOCABULARY + 1)
    for name, token in (("seg", VOCABULARY), ("loc", VOCABULARY + 1)):
        video, position = batch[name].T
        assert (batch["labels"][video, position] == token).all()
        assert (batch["ids"][video, position + 1] == token).all()


def test_no_question_sees_another():
    mask = packed_mask(torch.tensor([[0, 0, 1, 1, 2]]), 2)[0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]


def test_videos_are_made_once_and_are_what_they_were(mora, tmp_path):
    videos = Videos(mora, "train", 0, 2, 20, tmp_path)
    tensors, lines = videos.tensors(3), videos.questions(3)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again, same = videos.tensors(3), videos.questions(3)
    assert lines == same
    assert all((tensors[k] == again[k]).all() for k in tensors)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_the_dense_lessons_agree_with_the_questions(mora, tmp_path, tokenizer):
    videos = Videos(mora, "train", 0, 24, 20, tmp_path)
    tensors, lines = videos.tensors(0), videos.questions(0)
    packer = Packer(videos, tokenizer, mora, LanguageOptions(), 0)
    event = {name: 3 + number for number, name in enumerate(EVENTS)}
    seen = set()
    for video, asked in enumerate(lines):
        for line in asked:
            seen.add(line.kind)
            colour = line.phrase // len(SHAPES)
            whole, steps = tensors["whole"][video, colour], tensors["steps"][video, :, colour].numpy()
            assert whole[0] == 1
            assert whole[8 + line.phrase % len(SHAPES)] == 1
            window = packer._question(line).window
            assert window.sum() == pytest.approx((line.end - line.start) * FPS / 60 * 20, abs=1.5)
            about = [c for c, name in enumerate(COLOURS) if f"the {name} " in line.text]
            other = tensors["steps"][video, :, about[0]].numpy() if about else None
            match line.kind:
                case "drill":
                    assert whole[5:7].tolist() == pytest.approx([line.start / 10, line.end / 10])
                    # Part k of the clip lies between the samples k and k + 1, or nearly so.
                    assert np.abs(steps[1:, 2] - window[:-1]).max() <= 0.67
                    assert steps[:, event["sets off"]].sum() == 1
                    assert steps[:, event["comes to rest"]].sum() == (line.end < SECONDS)
                    way = steps[:, :2].sum(axis=0) / 10
                    assert way.tolist() == pytest.approx(whole[2:4].tolist(), abs=0.07)
                case "pusher" | "needed":
                    assert (other[:, event["is pushed"]] * steps[:, event["pushes"]]).sum() == 1
                case "pushed" | "dependent":
                    assert (steps[:, event["is pushed"]] * other[:, event["pushes"]]).sum() == 1
                case "front":
                    both = steps[:, event["passes in front"]] * other[:, event["is passed behind"]]
                    assert (both * window).sum() == both.sum() > 0
                case "behind":
                    assert (steps[:, event["is passed behind"]] * other[:, event["passes in front"]]).any()
                case "right" | "down":
                    assert steps[:, "rd".index(line.kind[0])].max() > 0
                case "left" | "up":
                    assert steps[:, "lu".index(line.kind[0])].min() < 0
    assert {"drill", "pusher", "pushed", "front", "left"} <= seen


def test_lower_states_are_the_language_models_own(mora):
    embedded = torch.randn(2, 23, 32)
    llama = mora.language_model.model
    with torch.no_grad():
        expected = llama(inputs_embeds=embedded, output_hidden_states=True, use_cache=False).hidden_states[1]
        torch.testing.assert_close(lower_states(llama, embedded, 1), expected, rtol=0, atol=1e-6)


def test_motion_and_language_see_the_same_states(mora):
    """What the motion stage teaches the lower layers is where the language stage reads it."""
    temporal = torch.randn(2, 20, 32)
    batch = pack([questions(np.random.default_rng(2), 2) for _ in range(2)], 23, VOCABULARY, VOCABULARY + 1)
    motion, language = MotionModule(mora, [1, 30, 31], 1), LanguageModule(mora, torch.zeros(24, 32), [1, 30, 31], 1)
    with torch.no_grad():
        _, lower = language.states(batch | {"temporal": temporal})
        torch.testing.assert_close(lower[:, 3:23], motion.states(temporal), rtol=0, atol=1e-6)


def test_motion_draws_from_a_pool_that_grows(mora, tmp_path):
    options = MotionOptions(groups=3, pool=2, fresh_every=4)
    batches = MotionBatches(Videos(mora, "train", 0, 1, 20, tmp_path), options, seed=0)
    for index in range(12):
        assert batches(index)["temporal"].shape == (3, 20, 32)
        assert {int(path.stem) for path in tmp_path.iterdir()} <= set(range(2 + index // 4))
    assert len({path.stem for path in tmp_path.iterdir()}) == 4
    assert torch.equal(batches(4)["temporal"], batches(4)["temporal"])


def test_too_many_lower_layers_are_refused(mora):
    with pytest.raises(ConfigError, match="lessons_after is 3; the language model has 2 layers"):
        MotionModule(mora, [1], 3)


def test_questions_are_drawn_evenly_by_type_and_kind(mora, tmp_path, tokenizer):
    videos = Videos(mora, "train", 0, 24, 20, tmp_path)
    packer = Packer(videos, tokenizer, mora, LanguageOptions(questions=3, drills=0), 0)
    drawn = Counter(type_of(kind) for kind in packer.make(0, np.random.default_rng(0))[1])
    there = Counter(type_of(line.kind) for video in videos.questions(0) for line in video if line.kind != "drill")
    assert max(drawn.values()) - min(drawn.values()) < 0.3 * (max(there.values()) - min(there.values()))
    assert drawn["Descriptive"] > 0.2 * drawn.total() > there["Descriptive"] / there.total()


def test_packer_draws_from_a_pool_that_grows(mora, tmp_path, tokenizer):
    options = LanguageOptions(questions=4, pool=1, fresh_every=4, drills=0)
    packer = Packer(Videos(mora, "train", 0, 2, 20, tmp_path), tokenizer, mora, options, 0)
    for index in range(12):
        batch = packer(index)
        assert len(batch["phrases"]) <= 8
        assert batch["positions"].shape[1] == 23 + batch["ids"].shape[1] == 23 + batch["labels"].shape[1]
        assert {int(path.stem) for path in tmp_path.iterdir()} <= set(range(1 + index // 4))
    assert {path.stem for path in tmp_path.iterdir()} == {"000000", "000001", "000002"}
    again = packer(11)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_the_stages_chain_into_a_checkpoint_that_answers(tmp_path):
    settings = {"steps": 2, "warmup_steps": 1, "save_every": 1, "validate_every": 2}
    config = {
        "seed": 3,
        "model": SIZES,
        "stages": [
            {"kind": "tower", "batch_size": 2, **settings},
            {"kind": "sam", "batch_size": 2, **settings},
            {"kind": "motion", "videos": 2, "groups": 2, "pool": 1, "lessons_after": 1, **settings},
            {"kind": "language", "videos": 2, "questions": 3, "pool": 1, "checks": 1, "lessons_after": 1, **settings},
        ],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["train", str(path), "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    tower, sam, motion, best = (
        load_checkpoint(str(out / name / "best")) for name in ("tower", "sam", "motion", "language")
    )
    assert best.model.config == MoraConfig.from_json(SIZES, "test")

    def equal(a, b, part):
        one, two = (getattr(c.model, part).state_dict() for c in (a, b))
        return all(torch.equal(one[k], two[k]) for k in one)

    # Each stage trains its own part and leaves the others alone.
    assert equal(tower, sam, "vision_tower")
    assert equal(sam, best, "vision_tower")
    assert not equal(tower, sam, "visual_model")
    assert equal(sam, best, "visual_model")
    assert equal(tower, sam, "language_model")
    assert not equal(sam, motion, "language_model")
    assert not equal(motion, best, "language_model")
    assert equal(sam, motion, "text_hidden_fcs")
    for stage, picture in (("sam", "masks"), ("motion", "moving"), ("language", "windows")):
        events = EventAccumulator(str(out / stage / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Images(picture)] == [2]
    assert len(json.loads((out / "language" / "best" / PHRASES).read_text())) == len(COLOURS) * len(SHAPES)
    clips = tmp_path / "shapes"
    runner = CliRunner()
    assert runner.invoke(cli, ["synth", "--seed", "1", "--questions", "2", "-o", str(clips)]).exit_code == 0
    done = runner.invoke(
        cli,
        [
            "infer",
            str(clips / "manifest.yaml"),
            "-o",
            str(tmp_path / "run"),
            "--checkpoint",
            str(out / "language" / "best"),
        ],
    )
    assert done.exit_code == 0, done.output


def test_strips_show_true_over_found():
    picture = strips(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]]))
    assert picture.shape == (24, 16, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[7, 8].tolist() == [90, 220, 110]
    assert picture[8, 0].tolist() == [255, 255, 255]
    assert picture[15, 15].tolist() == [128, 128, 128]
    assert not picture[16:].any()


def test_the_shipped_configuration_is_read_and_checked():
    result = CliRunner().invoke(cli, ["train", "mora-tiny", "-o", "unused", "--check"])
    assert result.exit_code == 0, result.output
    raw = yaml.safe_load((share_dir("configs") / "mora-tiny.yaml").read_text("utf-8"))
    MoraConfig.from_json(raw["model"], "mora-tiny")


def test_language_needs_the_stage_before(tmp_path):
    config = {"model": SIZES, "stages": [{"kind": "language", "steps": 1, "warmup_steps": 0}]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(cli, ["train", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert "phrases.json" in result.output
