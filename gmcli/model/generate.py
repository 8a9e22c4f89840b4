"""Answer all questions of a video by greedy decoding over one shared video prefix.

The original runs CLIP and the whole sequence again for every token. Here the prefix (system prompt and visual tokens) is
computed once, its keys and values are repeated for the batch of questions, and each step feeds one token a question.
The ids and the states equal the original's (goldens `evaluate`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from gmcli.model.mora import Mora


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Name the ids that generation looks for. `loc` is None where the vocabulary has no [LOC]."""

    eos: int
    seg: int
    loc: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold one generated answer.

    `ids` end with </s> unless `finished` is False: then the token limit cut the answer. `seg_hidden` [S,H] and
    `loc_hidden` [L,H] are the states, after the final norm, of the positions that predicted [SEG] and [LOC].
    """

    ids: tuple[int, ...]
    seg_hidden: torch.Tensor
    loc_hidden: torch.Tensor
    finished: bool


@dataclass(frozen=True, slots=True)
class Prefix:
    """Hold the keys and values of a video's prefix, and its length in positions."""

    cache: DynamicCache
    length: int


def embed(model: Mora, ids: Sequence[int]) -> torch.Tensor:
    """Embed token ids. Returns [1,N,H]."""
    table = model.language_model.get_input_embeddings()
    embeddings: torch.Tensor = table(torch.tensor([ids], device=model.language_model.device))
    return embeddings


def prefill(model: Mora, ids_before: Sequence[int], visual: torch.Tensor) -> Prefix:
    """Run the prefix once. ids_before: the prompt before the image, with <s>. visual: [1,V,H]."""
    embeddings = torch.cat([embed(model, ids_before), visual], dim=1)
    cache = DynamicCache(config=model.language_model.config)
    model.language_model.model(inputs_embeds=embeddings, cache=cache, use_cache=True)
    return Prefix(cache, embeddings.shape[1])


def answer_questions(
    model: Mora, prefix: Prefix, suffixes: Sequence[Sequence[int]], special: SpecialIds, max_new_tokens: int
) -> list[Answer]:
    """Decode greedily one answer for each suffix (the prompt after the image), as one batch over one prefix.

    Suffixes are padded on the left, between the prefix and the suffix, so that all rows end together.
    """
    device = model.language_model.device
    rows, width = len(suffixes), max(map(len, suffixes))
    pads = torch.tensor([width - len(s) for s in suffixes], device=device)
    # Embedding id 0 at the pads is arbitrary: the mask hides them from every other position.
    ids = torch.tensor([[0] * (width - len(s)) + list(s) for s in suffixes], device=device)
    columns = torch.arange(width, device=device)
    mask = torch.ones(rows, prefix.length + width, dtype=torch.long, device=device)
    mask[:, prefix.length :] = (columns >= pads[:, None]).long()
    positions = prefix.length + (columns - pads[:, None]).clamp(min=0)

    cache = copy.deepcopy(prefix.cache)
    cache.batch_repeat_interleave(rows)
    collected = [_Row() for _ in suffixes]
    for _ in range(max_new_tokens):
        hidden = model.language_model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True
        ).last_hidden_state[:, -1]
        chosen = model.language_model.lm_head(hidden).argmax(dim=-1)
        for row, token, state in zip(collected, chosen.tolist(), hidden, strict=True):
            row.take(token, state, special)
        if all(row.finished for row in collected):
            break
        ids = chosen[:, None]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
    return [row.answer(model.config.llm.hidden_size, hidden) for row in collected]


class _Row:
    """Collect one question's tokens and the states that matter."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.seg: list[torch.Tensor] = []
        self.loc: list[torch.Tensor] = []
        self.finished = False

    def take(self, token: int, state: torch.Tensor, special: SpecialIds) -> None:
        if self.finished:
            return
        self.ids.append(token)
        if token == special.eos:
            self.finished = True
        elif token == special.seg:
            self.seg.append(state)
        elif token == special.loc:
            self.loc.append(state)

    def answer(self, hidden_size: int, like: torch.Tensor) -> Answer:
        none = like.new_empty(0, hidden_size)
        return Answer(
            ids=tuple(self.ids),
            seg_hidden=torch.stack(self.seg) if self.seg else none,
            loc_hidden=torch.stack(self.loc) if self.loc else none,
            finished=self.finished,
        )
