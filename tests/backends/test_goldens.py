"""What the original classes gave, on every backend that runs without a GPU."""

import numpy as np
import pytest
import torch
from PIL import Image

from gmcli.backends.store import Store
from gmcli.engines import prepare_engines
from gmcli.model.generate import answer_questions, prefill
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from tests.conftest import GOLDENS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["eager", "openvino", "aot_inductor"])
def engines(request, checkpoint, tmp_path_factory):
    if request.param == "openvino":
        pytest.importorskip("openvino")
    store = Store(tmp_path_factory.mktemp("store") / "engines")
    made = prepare_engines(checkpoint, request.param, questions=4, store=store)
    assert all(label.split("-")[-2 if "-" in label else 0] == request.param for label in made.used.values())
    return made


@pytest.mark.parametrize("i", range(4))
def test_answers_and_masks_equal_the_originals(engines, checkpoint, golden, golden_frames, facts, i):
    model, want, fact = engines.model, golden("evaluate"), facts["evaluate"][i]
    frame = golden_frames[i]
    with torch.inference_mode():
        visual = model.visual_embeddings(engines.clip(clip_pixels([frame])), "frame")
        before, after = tokenize_prompt(build_prompt(fact["question"], model.config), checkpoint.tokenizer)
        prefix = prefill(model, engines.language, before, visual)
        made = answer_questions(model, engines.language, prefix, [after], checkpoint.special, 64)
        (answer,) = made.answers
        assert list(answer.ids) == fact["new_ids"]
        prompts = model.segmentation_prompts(answer.seg_hidden)
        torch.testing.assert_close(prompts, want[f"q{i}_pred_embeddings"], atol=1e-4, rtol=0)
        if not len(prompts):
            return
        embedding = engines.encode(sam_pixels([frame]))
        for k, prompt in enumerate(prompts):
            low_res, iou = engines.decode(embedding, prompt[None])
            torch.testing.assert_close(
                low_res[0, :, ::4, ::4], want[f"q{i}_low_res_masks_stride4"][k], atol=2e-3, rtol=0
            )
            torch.testing.assert_close(iou[0], want[f"q{i}_iou"][k], atol=1e-4, rtol=0)
            size = frame.shape[:2]
            mask = postprocess_masks(low_res, resized_size(size), size, 1024)[0] > 0
            picture = torch.from_numpy(np.array(Image.open(GOLDENS / f"evaluate_masks/q{i}_seg{k}.png")) > 0)
            assert (picture != mask).sum() <= 8


def test_image_embeddings_equal_the_originals(engines, golden, golden_frames):
    want = golden("sam")
    for i in (0, 1):
        got = engines.encode(sam_pixels([golden_frames[i]]))
        torch.testing.assert_close(got[..., ::4, ::4], want[f"image_embeddings_{i}_stride4"], atol=1e-4, rtol=0)


def test_clip_features_equal_the_originals(engines, golden):
    want = golden("clip_tower")
    got = engines.clip(want["pixel_values_f16"].float())
    torch.testing.assert_close(got, want["features"], atol=1e-4, rtol=0)
