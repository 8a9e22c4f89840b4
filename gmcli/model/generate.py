"""Answer all questions of a video by greedy decoding over one shared video prefix.

The original runs CLIP and the whole sequence again for every token. Here the prefix (system prompt and visual tokens) is
computed once, and all questions are one batch behind it. A guess of the answer (drafts.py) is fed along with the question:
the pass that reads the question also says, for every token guessed, whether greedy decoding would have chosen it. Tokens it
would not have chosen are dropped, so the ids are those of plain greedy decoding, and a bad guess costs a few tokens of one pass.

Equal questions get equal states, to the last bit, whatever was guessed: the states are always those of one pass over the
questions and their final answers, in one shape. Where a guess was right to the end, it was that pass; otherwise it is made.
The ids and the states equal the original's (goldens `evaluate`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, LlamaForCausalLM

from gmcli.model.drafts import Drafts
from gmcli.model.mora import Mora

# Stands for a token that could not be chosen: the model's values at its place are NaN or infinite.
_NOT_FINITE = -1


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
    `loc_hidden` [L,H] are the states, after the final norm, of the positions that predicted [SEG] and [LOC]. Where not
    `finite`, the model computed NaN or infinity, and the answer ends there.
    """

    ids: tuple[int, ...]
    seg_hidden: torch.Tensor
    loc_hidden: torch.Tensor
    finished: bool
    finite: bool = True


@dataclass(frozen=True, slots=True)
class Generated:
    """Hold the answers of a batch and what they cost: passes of the language model, tokens guessed and guessed right."""

    answers: tuple[Answer, ...]
    passes: int
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """Hold what the language model keeps of a video's prefix, and its length in positions."""

    cache: Any
    length: int


class Language(Protocol):
    """Run the language model's layers with memory of what came before. A cache belongs to who made it."""

    def prefill(self, embeddings: torch.Tensor) -> Prefix:
        """Read a video's prefix. embeddings: [1,P,H]."""

    def start(self, prefix: Prefix, rows: int, room: int) -> Any:
        """Return a cache for so many rows behind a prefix, which stays as it is; `room` more columns will follow."""

    def extend(self, cache: Any, embeddings: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Read more columns; return their states after the final norm, [B,S,H].

        embeddings: [B,S,H]. positions: [B,S]. keep: [B,C+S] bool for all columns so far and now, False where hidden.
        """


class EagerLanguage:
    """Run transformers' own model with its own cache."""

    def __init__(self, llm: LlamaForCausalLM) -> None:
        self._model = llm.model

    def prefill(self, embeddings: torch.Tensor) -> Prefix:
        """Read a video's prefix. embeddings: [1,P,H]."""
        cache = DynamicCache(config=self._model.config)
        self._model(inputs_embeds=embeddings, cache=cache, use_cache=True)
        return Prefix(cache, embeddings.shape[1])

    def start(self, prefix: Prefix, rows: int, room: int) -> DynamicCache:
        """Copy a prefix for so many rows."""
        cache: DynamicCache = copy.deepcopy(prefix.cache)
        cache.batch_repeat_interleave(rows)
        return cache

    def extend(
        self, cache: DynamicCache, embeddings: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """Read more columns; see Language."""
        states: torch.Tensor = self._model(
            inputs_embeds=embeddings, attention_mask=keep.long(), position_ids=positions, cache=cache, use_cache=True
        ).last_hidden_state
        return states


@dataclass(slots=True)
class _Past:
    """Hold keys and values in a buffer of fixed size [L,2,B,G,C,D], of which the first `filled` columns are used."""

    buffer: torch.Tensor
    filled: int


class TensorLanguage:
    """Run a compiled LanguageStep. Its memory is a buffer of one size a batch, so that shapes stay few."""

    def __init__(self, step: Callable[..., tuple[torch.Tensor, torch.Tensor]], llm: LlamaForCausalLM) -> None:
        self._step = step
        config = llm.config
        self._shape = (
            config.num_hidden_layers,
            config.num_key_value_heads or config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
        )

    def prefill(self, embeddings: torch.Tensor) -> Prefix:
        """Read a video's prefix. embeddings: [1,P,H]."""
        layers, groups, size = self._shape
        length = embeddings.shape[1]
        # One hidden column stands for "nothing before": compiled graphs want no empty axis.
        past = embeddings.new_zeros(layers, 2, 1, groups, 1, size)
        hidden = torch.zeros(1, 1, dtype=torch.bool, device=embeddings.device)
        positions = torch.arange(length, device=embeddings.device)[None]
        _, present = self._step(embeddings, positions, hidden, torch.ones_like(positions, dtype=torch.bool), past)
        return Prefix(present, length)

    def start(self, prefix: Prefix, rows: int, room: int) -> _Past:
        """Copy a prefix for so many rows into a buffer with room for what follows."""
        layers, groups, size = self._shape
        capacity = -(-(prefix.length + room) // 64) * 64
        buffer = prefix.cache.new_zeros(layers, 2, rows, groups, capacity, size)
        buffer[..., : prefix.length, :] = prefix.cache
        return _Past(buffer, prefix.length)

    def extend(
        self, cache: _Past, embeddings: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """Read more columns; see Language."""
        new, filled, capacity = embeddings.shape[1], cache.filled, cache.buffer.shape[4]
        keep_past = torch.zeros(len(keep), capacity, dtype=torch.bool, device=keep.device)
        keep_past[:, :filled] = keep[:, :filled]
        states, present = self._step(embeddings, positions, keep_past, keep[:, filled:].contiguous(), cache.buffer)
        cache.buffer[..., filled : filled + new, :] = present
        cache.filled += new
        return states


def embed(model: Mora, ids: Sequence[int]) -> torch.Tensor:
    """Embed token ids. Returns [1,N,H]."""
    table = model.language_model.get_input_embeddings()
    embeddings: torch.Tensor = table(torch.tensor([ids], device=model.language_model.device))
    return embeddings


def prefill(model: Mora, language: Language, ids_before: Sequence[int], visual: torch.Tensor) -> Prefix:
    """Run the prefix once. ids_before: the prompt before the image, with <s>. visual: [1,V,H]."""
    return language.prefill(torch.cat([embed(model, ids_before), visual], dim=1))


def answer_questions(
    model: Mora,
    language: Language,
    prefix: Prefix,
    suffixes: Sequence[Sequence[int]],
    special: SpecialIds,
    max_new_tokens: int,
    drafts: Drafts | None = None,
) -> Generated:
    """Decode greedily one answer for each suffix (the prompt after the image), as one batch over one prefix.

    drafts: guesses answers, and learns these; None guesses nothing and makes a pass a token.
    """
    ids, states, passes, drafted, accepted = _decode(model, language, prefix, suffixes, special, max_new_tokens, drafts)
    # NaN of a token that was only guessed reaches all that is behind it.
    doubtful = any(row[-1] == _NOT_FINITE for row in ids)
    if states is None:
        states, chosen = read_answers(model, language, prefix, suffixes, ids)
        passes += 1
        # Two tokens may be so nearly equal that they change places with the shape of a pass.
        doubtful |= any(list(row) != list(own) for row, own in zip(chosen, ids, strict=True))
    if drafts and doubtful:
        # Plain decoding decides.
        plain = answer_questions(model, language, prefix, suffixes, special, max_new_tokens)
        return Generated(plain.answers, passes + plain.passes, drafted, accepted)
    answers = [_answer(row, own, special) for row, own in zip(ids, states, strict=True)]
    if drafts:
        for answer in answers:
            if answer.finished:
                drafts.learn(answer.ids[:-1])
    return Generated(tuple(answers), passes, drafted, accepted)


def _answer(ids: Sequence[int], states: torch.Tensor, special: SpecialIds) -> Answer:
    """Pick the states that matter. states: [N,H], of the positions that predicted each of `ids`."""
    finite = ids[-1] != _NOT_FINITE
    ids = ids if finite else ids[:-1]
    at, states = torch.tensor(ids, device=states.device), states[: len(ids)]
    none = states[:0]
    return Answer(
        ids=tuple(ids),
        seg_hidden=states[at == special.seg],
        loc_hidden=none if special.loc is None else states[at == special.loc],
        finished=finite and ids[-1] == special.eos,
        finite=finite,
    )


def _decode(
    model: Mora,
    language: Language,
    prefix: Prefix,
    suffixes: Sequence[Sequence[int]],
    special: SpecialIds,
    limit: int,
    drafts: Drafts | None,
) -> tuple[list[list[int]], list[torch.Tensor] | None, int, int, int]:
    """Find the ids of all answers. Returns them, the states where one pass of the final shape found all, and the costs."""
    ids: list[list[int]] = [[] for _ in suffixes]
    feed = [list(suffix) for suffix in suffixes]
    # Wrong guesses stay in the cache, hidden; so many columns of them are enough.
    spare = 2 * limit
    room = max(map(len, suffixes)) + limit + spare
    batch = _Batch(model, language, prefix, language.start(prefix, len(suffixes), room), len(suffixes))
    passes = drafted = accepted = 0
    while True:
        guesses = [
            drafts.guess(row, min(limit - len(row) - 1, spare)) if drafts and more else ()
            for row, more in zip(ids, feed, strict=True)
        ]
        spare -= max(map(len, guesses))
        states, chosen = batch.read(feed, guesses)
        passes += 1
        kept = []
        for row, more, guess, choice in zip(ids, feed, guesses, chosen, strict=True):
            good = _agreed(guess, choice) if more else 0
            if more:
                row += _until(choice[: good + 1], special.eos)[: limit - len(row)]
            kept.append(good)
        drafted += sum(map(len, guesses))
        accepted += sum(kept)
        batch.keep_guesses(guesses, kept)
        done = [row[-1] in (special.eos, _NOT_FINITE) or len(row) == limit for row in ids]
        if all(done):
            width = max(map(len, guesses))
            final = passes == 1 and width == max(map(len, ids)) - 1
            found = [own[: len(row)] for row, own in zip(ids, states, strict=True)] if final else None
            return ids, found, passes, drafted, accepted
        feed = [[] if end else [row[-1]] for row, end in zip(ids, done, strict=True)]


def _agreed(guess: Sequence[int], chosen: Sequence[int]) -> int:
    """Count the guessed tokens, from the first on, that greedy decoding chose."""
    wrong = (i for i, token in enumerate(guess) if token != chosen[i])
    return next(wrong, len(guess))


def _until(ids: Sequence[int], eos: int) -> list[int]:
    return list(ids[: ids.index(eos) + 1]) if eos in ids else list(ids)


def read_answers(
    model: Mora, language: Language, prefix: Prefix, suffixes: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]
) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Read questions and answers in one pass; return each answer's states [N,H], and what greedy decoding says there."""
    longest = max(map(len, suffixes)) + max(map(len, ids))
    batch = _Batch(model, language, prefix, language.start(prefix, len(suffixes), longest), len(suffixes))
    states, chosen = batch.read([list(s) for s in suffixes], [tuple(row[:-1]) for row in ids])
    return (
        [own[: len(row)] for row, own in zip(ids, states, strict=True)],
        [own[: len(row)] for row, own in zip(ids, chosen, strict=True)],
    )


class _Batch:
    """Feed a batch of rows of unequal lengths behind one prefix, and remember which columns count."""

    def __init__(self, model: Mora, language: Language, prefix: Prefix, cache: Any, rows: int) -> None:
        self._model, self._language, self._cache = model, language, cache
        self._device = model.language_model.device
        self._keep = torch.ones(rows, prefix.length, dtype=torch.bool, device=self._device)
        self._next = [prefix.length] * rows

    def read(
        self, feed: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Read what is certain, then what is guessed; return states [B,1+guessed,H] and choices from the last certain on.

        Certain tokens are padded on the left and guesses on the right, so that all rows' first choices share a column.
        A row with nothing certain is done: all its columns are hidden.
        """
        width, guessed = max(map(len, feed)), max(map(len, guesses))
        ids, keep, positions = [], [], []
        for row, (sure, guess) in enumerate(zip(feed, guesses, strict=True)):
            left, right = width - len(sure), guessed - len(guess)
            # The id at a hidden column is arbitrary.
            ids.append([0] * left + [*sure, *guess] + [0] * right)
            keep.append([False] * left + [True] * (len(sure) + len(guess)) + [False] * right)
            first = self._next[row]
            positions.append([first] * left + list(range(first, first + len(sure) + guessed)))
            self._next[row] += len(sure)
        self._keep = torch.cat([self._keep, torch.tensor(keep, device=self._device)], dim=1)
        table = self._model.language_model.get_input_embeddings()
        embeddings = table(torch.tensor(ids, device=self._device))
        at = torch.tensor(positions, device=self._device)
        states = self._language.extend(self._cache, embeddings, at, self._keep)[:, width - 1 :]
        # The largest of a position's logits tells for nothing whether all are numbers: NaN and infinity are larger.
        largest, chosen = self._model.language_model.lm_head(states).max(dim=-1)
        return states, torch.where(largest.isfinite(), chosen, _NOT_FINITE).tolist()

    def keep_guesses(self, guesses: Sequence[Sequence[int]], kept: Sequence[int]) -> None:
        """Hide the guesses of the last pass that were wrong, and all behind them."""
        guessed, columns = max(map(len, guesses)), self._keep.shape[1]
        for row, good in enumerate(kept):
            self._keep[row, columns - guessed + good :] = False
            self._next[row] += good
