"""Tokenise as the original slow LlamaTokenizer (legacy) does.

transformers 5 gives other ids for the same text around added tokens, so the sentencepiece model is used directly.

Source: transformers 4.31, tokenization_utils.py (`tokenize`, `_decode`) and models/llama/tokenization_llama.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece

from gmcli.errors import CheckpointError

IMAGE_TOKEN_INDEX = -200


class Tokenizer:
    """Turn text into ids and back.

    `added` maps added tokens such as "[SEG]" to their ids. White space next to an added token belongs to it and is
    dropped; next to <s>, </s> and <unk> it is kept.
    """

    def __init__(self, model: Path, added: Mapping[str, int]) -> None:
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{model}: not a sentencepiece model ({error})", "Download it again.") from None
        self.added = dict(added)
        self.bos_id: int = self._sp.bos_id()
        self.eos_id: int = self._sp.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise CheckpointError(f"{model}: has no <s> or no </s>", "Use the tokenizer of a LLaMA model.")
        self._special = {self._sp.id_to_piece(i): i for i in (self.bos_id, self.eos_id, self._sp.unk_id()) if i >= 0}
        self._ids = self.added | self._special
        self._names = {i: token for token, i in self._ids.items()}
        # Longest first: an added token may begin with another one.
        tokens = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, tokens)) + ")")

    def __len__(self) -> int:
        """Count the ids: the pieces of the model and the added tokens beyond them."""
        return max(int(self._sp.get_piece_size()), *(i + 1 for i in self._ids.values()))

    def token_id(self, token: str) -> int | None:
        """Look up an added or special token; None where the vocabulary has none."""
        return self._ids.get(token)

    def encode(self, text: str) -> list[int]:
        """Return <s> and the ids of `text`."""
        parts = self._split.split(text)  # text, token, text, token, …, text
        for i in range(1, len(parts), 2):
            if parts[i] in self._special:
                continue
            parts[i - 1] = parts[i - 1].rstrip()
            parts[i + 1] = parts[i + 1].lstrip()
        ids = [self.bos_id]
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._ids[part])
            elif part:
                ids += self._sp.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` with all special tokens, spaced as the original spaces it."""
        texts: list[str] = []
        run: list[int] = []
        for i in ids:
            if self._names.get(i) in self.added:
                if run:
                    texts.append(self._decode_run(run))
                    run = []
                texts.append(self._names[i])
            else:
                run.append(i)
        if run:
            texts.append(self._decode_run(run))
        return " ".join(texts)

    def _decode_run(self, ids: Sequence[int]) -> str:
        out, pieces, after_special = "", list[int](), False
        for position, i in enumerate(ids):
            if self._names.get(i) in self._special:
                if not after_special and position:
                    out += " "
                out += self._sp.decode(pieces) + self._names[i]
                pieces, after_special = [], True
            else:
                pieces.append(i)
                after_special = False
        return out + str(self._sp.decode(pieces))

    def answer(self, ids: Sequence[int]) -> str:
        """Return generated ids as a person would write them: no <s> or </s>, no space before punctuation."""
        text = self.decode([i for i in ids if i not in (self.bos_id, self.eos_id)])
        return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))
