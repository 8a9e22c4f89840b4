import dataclasses

import pytest

from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.tokenizer import IMAGE_TOKEN_INDEX


def test_tokenizer_cases_equal_the_originals(checkpoint, facts):
    got = {text: checkpoint.tokenizer.encode(text) for text in facts["tokenizer_cases"]}
    assert got == facts["tokenizer_cases"]


def test_decode_cases_equal_the_originals(checkpoint, facts):
    for case in facts["decode_cases"]:
        assert checkpoint.tokenizer.decode(case["ids"]) == case["text"]


def test_answer_reads_like_a_sentence(checkpoint, facts):
    first, second = (case["ids"] for case in facts["decode_cases"])
    assert checkpoint.tokenizer.answer(first) == "It is [SEG]."
    assert checkpoint.tokenizer.answer(second) == "Sure, [SEG] and [SEG]."


def test_white_space_is_kept_beside_special_tokens_and_dropped_beside_added_ones(checkpoint):
    encode = checkpoint.tokenizer.encode
    assert encode("x </s> y") != encode("x</s>y")
    assert encode("a  [SEG]  b") == encode("a[SEG]b")


def test_prompts_equal_the_originals(checkpoint, facts):
    for case in facts["prompts"]:
        config = dataclasses.replace(checkpoint.model.config, conversation=case["conv_type"])
        prompt = build_prompt(case["question"], config)
        assert prompt == case["prompt"]
        before, after = tokenize_prompt(prompt, checkpoint.tokenizer)
        assert [*before, IMAGE_TOKEN_INDEX, *after] == case["input_ids"]
        assert len(before) == case["image_position"]


@pytest.mark.parametrize(("flag", "image"), [(True, "<im_start><image><im_end>\n"), (False, " <image>\n")])
def test_image_is_wrapped_where_the_checkpoint_says_so(checkpoint, flag, image):
    config = dataclasses.replace(checkpoint.model.config, use_im_start_end=flag)
    assert image in build_prompt("Who?", config)


def test_instruction_is_configuration(checkpoint):
    config = dataclasses.replace(checkpoint.model.config, instruction="Please output the masks.")
    assert build_prompt(" Who? ", config).endswith("\nWho? Please output the masks. ASSISTANT:")
