"""The language model with tensors for memory, as backends compile it, equals transformers' own with its cache."""

import pytest
import torch

from gmcli.model.drafts import Drafts
from gmcli.model.generate import EagerLanguage, TensorLanguage
from gmcli.model.language import LanguageStep
from tests.model.test_generate import generate


@pytest.fixture(scope="module")
def tensors(checkpoint):
    llm = checkpoint.model.language_model
    return TensorLanguage(LanguageStep(llm), llm)


@pytest.mark.parametrize("guess", [False, True])
def test_ids_equal_and_states_agree(checkpoint, golden_frames, facts, tensors, guess):
    questions = [fact["question"] for fact in facts["evaluate"]]
    drafts = Drafts([facts["evaluate"][3]["new_ids"][:-1]]) if guess else None
    want = generate(checkpoint, golden_frames[0], *questions)
    got = generate(checkpoint, golden_frames[0], *questions, language=tensors, drafts=drafts)
    for a, b in zip(want.answers, got.answers, strict=True):
        assert a.ids == b.ids
        torch.testing.assert_close(a.seg_hidden, b.seg_hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.loc_hidden, b.loc_hidden, atol=1e-5, rtol=0)


def test_states_equal_the_goldens(checkpoint, golden, golden_frames, facts, tensors):
    for i in range(4):
        (answer,) = generate(checkpoint, golden_frames[i], facts["evaluate"][i]["question"], language=tensors).answers
        assert list(answer.ids) == facts["evaluate"][i]["new_ids"]
        prompts = checkpoint.model.segmentation_prompts(answer.seg_hidden)
        torch.testing.assert_close(prompts, golden("evaluate")[f"q{i}_pred_embeddings"], atol=1e-4, rtol=0)


def test_grouped_keys_and_values_and_padding_equal_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    ).eval()  # fmt: skip
    both = EagerLanguage(llm), TensorLanguage(LanguageStep(llm), llm)
    keep = torch.ones(3, 7 + 5, dtype=torch.bool)
    keep[0, 7:9] = False
    keep[2, 11:] = False
    positions = torch.tensor([[7, 7, 7, 8, 9], [7, 8, 9, 10, 11], [7, 8, 9, 10, 11]])
    first, then = torch.randn(1, 7, 32), torch.randn(3, 5, 32)
    more, at = torch.randn(3, 1, 32), torch.tensor([[10], [12], [11]])
    outs = []
    with torch.inference_mode():
        for language in both:
            prefix = language.prefill(first)
            cache = language.start(prefix, 3, 6)
            states = language.extend(cache, then, positions, keep)
            last = language.extend(cache, more, at, torch.cat([keep, keep.new_ones(3, 1)], dim=1))
            outs.append((states[keep[:, 7:]], last))
    torch.testing.assert_close(outs[0][0], outs[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(outs[0][1], outs[1][1], atol=1e-5, rtol=0)
