"""Make the small tokenizer: a sentencepiece model of the words that MotionShapes uses, with bytes for all others."""

import io
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from gmcli.synth.questions import wordings
from gmcli.synth.scene import COLOURS, SHAPES

VOCABULARY = 600
ANSWER = "{} [SEG] [LOC]."


def write_tokenizer(path: Path) -> dict[str, int]:
    """Train the tokenizer and write its model to `path`; return the ids of the tokens added to it.

    The same call gives the same bytes. Its 600 pieces are 256 bytes, the words, and what they are merged from.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return {"[SEG]": VOCABULARY, "[LOC]": VOCABULARY + 1}


def _sentences() -> Iterator[str]:
    names = [f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for text in wordings():
        for name in names if "{}" in text else names[:1]:
            yield "USER:"
            yield f"{text.format(name)} ASSISTANT:"
    for name in names:
        yield f"{name[0].upper()}{name[1:]}"
        yield f"{name}."
