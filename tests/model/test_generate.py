import numpy as np
import pytest
import torch
from PIL import Image

from gmcli.model.generate import EagerLanguage, answer_questions, embed, prefill
from gmcli.model.mora import Mora
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from tests.conftest import GOLDENS
from tests.random_tiny import RANDOM_TINY


def visual(checkpoint, frame) -> torch.Tensor:
    features = checkpoint.model.clip_features(clip_pixels([frame]))
    return checkpoint.model.visual_embeddings(features, "frame")


def generate(checkpoint, frame, *questions, limit=64, drafts=None, language=None):
    model = checkpoint.model
    language = language or EagerLanguage(model.language_model)
    prompts = [tokenize_prompt(build_prompt(q, model.config), checkpoint.tokenizer) for q in questions]
    prefix = prefill(model, language, prompts[0][0], visual(checkpoint, frame))
    suffixes = [after for _, after in prompts]
    return answer_questions(model, language, prefix, suffixes, checkpoint.special, limit, drafts)


def ask(checkpoint, frame, *questions, limit=64):
    return generate(checkpoint, frame, *questions, limit=limit).answers


def test_teacher_forced_forward_equals_the_originals(checkpoint, golden, facts):
    model: Mora = checkpoint.model
    want = golden("llava_forward")
    pixels = golden("clip_tower")["pixel_values_f16"][:1].float()
    features = model.clip_features(pixels)
    torch.testing.assert_close(features, want["image_features"], atol=2e-5, rtol=0)
    image = model.visual_embeddings(features, "frame")
    torch.testing.assert_close(image, want["projected_image_features"], atol=2e-5, rtol=0)
    ids = facts["teacher_forced"]["input_ids"]
    at = ids.index(-200)
    embeddings = torch.cat([embed(model, ids[:at]), image, embed(model, ids[at + 1 :])], dim=1)
    torch.testing.assert_close(embeddings, want["inputs_embeds"], atol=2e-5, rtol=0)
    out = model.language_model.model(inputs_embeds=embeddings, output_hidden_states=True)
    states = out.last_hidden_state
    torch.testing.assert_close(out.hidden_states[1], want["hidden_states_layer0_out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(states, want["hidden_states_last"], atol=2e-5, rtol=0)
    logits = model.language_model.lm_head(states)
    torch.testing.assert_close(logits[:, -24:], want["logits_last24"], atol=2e-4, rtol=0)
    prompts = model.segmentation_prompts(states[0])
    torch.testing.assert_close(prompts[-24:], want["text_hidden_fcs_out"][0], atol=2e-5, rtol=0)
    torch.testing.assert_close(prompts[want["seg_mask"][0]], want["pred_embeddings"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("i", range(4))
def test_answers_and_masks_equal_the_originals(checkpoint, golden, golden_frames, facts, i):
    model, want, fact = checkpoint.model, golden("evaluate"), facts["evaluate"][i]
    (answer,) = ask(checkpoint, golden_frames[i], fact["question"])
    assert list(answer.ids) == fact["new_ids"]
    assert answer.finished
    prompts = model.segmentation_prompts(answer.seg_hidden)
    torch.testing.assert_close(prompts, want[f"q{i}_pred_embeddings"], atol=1e-4, rtol=0)
    assert len(answer.loc_hidden) == (1 if i == 3 else 0)
    if not len(prompts):
        return
    sam = model.visual_model
    embeddings = sam.encode_images(sam_pixels([golden_frames[i]])).expand(len(prompts), -1, -1, -1)
    low_res, iou = sam.decode_masks(embeddings, prompts, sam.dense_pe())
    torch.testing.assert_close(low_res[..., ::4, ::4], want[f"q{i}_low_res_masks_stride4"], atol=2e-3, rtol=0)
    torch.testing.assert_close(iou, want[f"q{i}_iou"], atol=1e-4, rtol=0)
    size = golden_frames[i].shape[:2]
    logits = postprocess_masks(low_res, resized_size(size), size, 1024)
    for k, mask in enumerate(logits):
        torch.testing.assert_close(mask[::8, ::8], want[f"q{i}_mask{k}_stride8"], atol=2e-3, rtol=0)
        picture = torch.from_numpy(np.array(Image.open(GOLDENS / f"evaluate_masks/q{i}_seg{k}.png")) > 0)
        assert (picture != (mask > 0)).sum() <= 8


@pytest.mark.parametrize("i", range(4))
def test_states_of_a_cached_run_equal_the_originals_uncached_ones(checkpoint, golden, golden_frames, facts, i):
    """The recorded states are those of the last full pass; with a cache they come from prefix, suffix and steps."""
    fact = facts["evaluate"][i]
    model = checkpoint.model
    before, after = tokenize_prompt(build_prompt(fact["question"], model.config), checkpoint.tokenizer)
    prefix = prefill(model, EagerLanguage(model.language_model), before, visual(checkpoint, golden_frames[i]))
    states = [model.language_model.model(input_ids=torch.tensor([after]), cache=prefix.cache).last_hidden_state]
    for token in fact["new_ids"][:-1]:
        step = model.language_model.model(input_ids=torch.tensor([[token]]), cache=prefix.cache)
        states.append(step.last_hidden_state)
    got = torch.cat(states, dim=1)[:, -48:]
    torch.testing.assert_close(got, golden("evaluate")[f"q{i}_hidden_last48"][:, -got.shape[1] :], atol=1e-4, rtol=0)


def test_questions_asked_together_get_the_answers_they_get_alone(checkpoint, golden_frames, facts):
    questions = [fact["question"] for fact in facts["evaluate"]]
    together = ask(checkpoint, golden_frames[0], *questions)
    for question, batched in zip(questions, together, strict=True):
        (alone,) = ask(checkpoint, golden_frames[0], question)
        assert batched.ids == alone.ids
        torch.testing.assert_close(batched.seg_hidden, alone.seg_hidden, atol=1e-5, rtol=0)


def test_ids_equal_transformers_generate(checkpoint, golden_frames, facts):
    model = checkpoint.model
    for fact in facts["evaluate"]:
        before, after = tokenize_prompt(build_prompt(fact["question"], model.config), checkpoint.tokenizer)
        image = visual(checkpoint, golden_frames[0])
        embeddings = torch.cat([embed(model, before), image, embed(model, after)], dim=1)
        generated = model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=checkpoint.special.eos,
            pad_token_id=0,
        )
        (answer,) = ask(checkpoint, golden_frames[0], fact["question"])
        assert list(answer.ids) == generated[0].tolist()


def test_the_prefix_is_not_changed_by_an_answer(checkpoint, golden_frames, facts):
    prompts = [
        tokenize_prompt(build_prompt(f["question"], checkpoint.model.config), checkpoint.tokenizer)
        for f in facts["evaluate"]
    ]
    model, language = checkpoint.model, EagerLanguage(checkpoint.model.language_model)
    prefix = prefill(model, language, prompts[0][0], visual(checkpoint, golden_frames[0]))
    first = answer_questions(model, language, prefix, [prompts[0][1]], checkpoint.special, 64).answers
    again = answer_questions(model, language, prefix, [prompts[0][1]], checkpoint.special, 64).answers
    assert first[0].ids == again[0].ids
    assert torch.equal(first[0].seg_hidden, again[0].seg_hidden)
    assert prefix.cache.get_seq_length() == prefix.length


def test_a_limit_cuts_the_answer_and_says_so(checkpoint, golden_frames, facts):
    (answer,) = ask(checkpoint, golden_frames[3], facts["evaluate"][3]["question"], limit=3)
    assert len(answer.ids) == 3
    assert not answer.finished
    assert answer.seg_hidden.shape == (0, 64)


def test_bf16_gives_the_same_ids(golden_frames, facts):
    from gmcli.checkpoints.load import load_checkpoint

    reduced = load_checkpoint(RANDOM_TINY, dtype="bf16")
    assert reduced.model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    features = reduced.model.clip_features(clip_pixels([golden_frames[0]]).bfloat16())
    fact = facts["evaluate"][0]
    before, after = tokenize_prompt(build_prompt(fact["question"], reduced.model.config), reduced.tokenizer)
    language = EagerLanguage(reduced.model.language_model)
    prefix = prefill(reduced.model, language, before, reduced.model.visual_embeddings(features, "frame"))
    (answer,) = answer_questions(reduced.model, language, prefix, [after], reduced.special, 64).answers
    assert list(answer.ids) == fact["new_ids"]
