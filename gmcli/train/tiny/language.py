"""Train projector, language model, [SEG] head and localizer on the trained tower's features.

All questions of a video share its prefix, in training as in inference: a sequence is the prefix and then every question with
its answer, each of which sees the prefix and itself only.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gmcli.model.mora import Mora
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.tokenizer import Tokenizer
from gmcli.synth.questions import TYPES, type_of
from gmcli.synth.samples import stream
from gmcli.synth.scene import FPS, FRAMES
from gmcli.train.losses import IGNORED
from gmcli.train.tiny.lessons import Lessons
from gmcli.train.tiny.motion import check_layers, embed_prefix, ids_before
from gmcli.train.tiny.options import LanguageOptions
from gmcli.train.tiny.strips import strips
from gmcli.train.tiny.videos import Line, VideoCache, Videos
from gmcli.train.tiny.vocabulary import ANSWER
from gmcli.video import sample_indices

_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Question:
    """Hold one question's ids: its own part of the prompt, and the answer with </s>."""

    kind: str
    prompt: list[int]
    answer: list[int]
    phrase: int
    window: NDArray[np.float32]


class LanguageModule(nn.Module):
    """Hold the parts that learn, and helpers that only training has."""

    phrases: torch.Tensor
    before: torch.Tensor

    def __init__(self, mora: Mora, phrases: torch.Tensor, before: list[int], lessons_after: int) -> None:
        super().__init__()
        self.mora = mora.requires_grad_(False)
        assert mora.localizer is not None
        for part in (mora.mm_projector, mora.language_model, mora.text_hidden_fcs, mora.localizer):
            part.requires_grad_(True)
        self.register_buffer("phrases", phrases)
        self.register_buffer("before", torch.tensor(before))
        self.lessons = Lessons(mora.config.llm.hidden_size)
        self._lessons_after = check_layers(mora, lessons_after)

    def states(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the final states of packed sequences and those that the lessons are read off, both [V, L, H]."""
        llama = self.mora.language_model.model
        prefix = embed_prefix(self.mora, self.before, batch["temporal"])
        out = llama(
            inputs_embeds=torch.cat([prefix, llama.embed_tokens(batch["ids"])], dim=1),
            attention_mask=packed_mask(batch["owner"], prefix.shape[1]).unsqueeze(1),
            position_ids=batch["positions"],
            use_cache=False,
            output_hidden_states=True,
        )
        return out.last_hidden_state, out.hidden_states[self._lessons_after]

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `pack`."""
        states, lower = self.states(batch)
        found = read(self.mora, states, batch)
        words = functional.cross_entropy(found["logits"], batch["labels"][batch["labels"] != IGNORED])
        phrase = functional.mse_loss(found["prompts"], self.phrases[batch["phrases"]])
        window = functional.binary_cross_entropy_with_logits(found["bins"], batch["windows"])
        first = len(self.before)
        lessons, parts = self.lessons(lower[:, first : first + batch["temporal"].shape[1]], batch)
        loss = 8 * words + 2 * phrase + 2 * window + lessons
        return {"loss": loss, "words": words, "phrase": phrase, "window": window, **parts}


def read(mora: Mora, states: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read off the states what they predict: word logits, SAM prompts of [SEG], window bins of [LOC]."""
    assert mora.localizer is not None
    rows, columns = (batch["labels"] != IGNORED).nonzero(as_tuple=True)
    start = states.shape[1] - batch["labels"].shape[1]
    picked = states[rows, columns + start]
    seg = states[batch["seg"][:, 0], batch["seg"][:, 1] + start]
    loc = states[batch["loc"][:, 0], batch["loc"][:, 1] + start]
    return {
        "logits": mora.language_model.lm_head(picked),
        "prompts": mora.segmentation_prompts(seg),
        "bins": mora.localizer(loc),
    }


def packed_mask(owner: torch.Tensor, prefix: int) -> torch.Tensor:
    """Return who may look at whom, bool [V, L, L]: all at the prefix before them, a question at its own part before it.

    owner: [V, S] which question each position behind the prefix belongs to.
    """
    whole = functional.pad(owner, (prefix, 0), value=-1)
    causal = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
    return causal & ((whole[:, None, :] == -1) | (whole[:, None, :] == whole[:, :, None]))


def pack(videos: Sequence[Sequence[Question]], prefix: int, seg: int, loc: int) -> dict[str, torch.Tensor]:
    """Lay the questions of each video one after the other behind its prefix.

    `labels[v, p]` is what position p predicts; `seg` and `loc` hold (video, position) pairs that predict these tokens.
    """
    length = max(sum(len(q.prompt) + len(q.answer) for q in questions) for questions in videos)
    shape = (len(videos), length)
    ids, owner = np.zeros(shape, np.int64), np.full(shape, -2, np.int64)
    labels, positions = np.full(shape, IGNORED, np.int64), np.zeros(shape, np.int64)
    segs, locs, asked = [], [], []
    for v, questions in enumerate(videos):
        at = 0
        for number, question in enumerate(questions):
            both = question.prompt + question.answer
            end = at + len(both)
            ids[v, at:end], owner[v, at:end] = both, number
            positions[v, at:end] = np.arange(prefix, prefix + len(both))
            first = at + len(question.prompt) - 1
            labels[v, first : end - 1] = question.answer
            segs.append((v, first + question.answer.index(seg)))
            locs.append((v, first + question.answer.index(loc)))
            asked.append(question)
            at = end
        # Padding looks at itself, so that no row of the attention is empty.
        owner[v, at:] = len(questions)
    before = np.broadcast_to(np.arange(prefix), (len(videos), prefix))
    return {
        "ids": torch.from_numpy(ids),
        "owner": torch.from_numpy(owner),
        "labels": torch.from_numpy(labels),
        "positions": torch.from_numpy(np.concatenate([before, positions], axis=1)),
        "seg": torch.tensor(segs),
        "loc": torch.tensor(locs),
        "phrases": torch.tensor([q.phrase for q in asked]),
        "windows": torch.from_numpy(np.stack([q.window for q in asked])),
    }


class Packer:
    """Make micro-batches: a batch of videos, some of their questions drawn, packed."""

    def __init__(self, videos: Videos, tokenizer: Tokenizer, mora: Mora, options: LanguageOptions, seed: int) -> None:
        self._videos, self._options, self._seed = videos, options, seed
        self._config, self._before = mora.config, len(ids_before(mora, tokenizer))
        self._tokenizer = tokenizer
        self._seg, self._loc = tokenizer.added["[SEG]"], tokenizer.added["[LOC]"]
        self._centres = np.array(sample_indices(0, FRAMES, mora.config.localizer_bins))

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a micro-batch."""
        rng = stream("train", self._seed + 2, index)
        batch = int(rng.integers(self._options.pool + index // self._options.fresh_every))
        return self.make(batch, rng)[0]

    def make(self, batch: int, rng: np.random.Generator | None = None) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return the tensors of a batch of videos and the kinds of its questions: every one, or some where `rng` draws them."""
        tensors = self._videos.tensors(batch)
        counts: Counter[str] = Counter()
        chosen = []
        for video in self._videos.questions(batch):
            real = [line for line in video if line.kind != "drill"]
            if rng is not None:
                drills = [line for line in video if line.kind == "drill"]
                some = [line for line in drills if rng.random() < self._options.drills]
                shuffled = [real[i] for i in rng.permutation(len(real))]
                real = _rarest(shuffled, self._options.questions - len(some), counts) + some
            chosen.append([self._question(line) for line in real])
        prefix = self._before + tensors["temporal"].shape[1]
        packed = pack(chosen, prefix, self._seg, self._loc)
        return tensors | packed, [q.kind for video in chosen for q in video]

    def _question(self, line: Line) -> Question:
        prompt = tokenize_prompt(build_prompt(line.text, self._config), self._tokenizer)[1]
        answer = [*self._tokenizer.encode(ANSWER.format(f"The {line.answer}"))[1:], self._tokenizer.eos_id]
        window = (self._centres >= line.start * FPS) & (self._centres < line.end * FPS)
        return Question(line.kind, prompt, answer, line.phrase, window.astype(np.float32))


def _rarest(lines: Sequence[Line], most: int, counts: Counter[str]) -> list[Line]:
    """Pick lines of the types, and of these the kinds, that are rarest so far, and count them: some kinds are far more common."""
    left = list(lines)
    chosen: list[Line] = []
    while left and len(chosen) < most:
        best = min(left, key=lambda line: (counts[type_of(line.kind)], counts[line.kind]))
        left.remove(best)
        chosen.append(best)
        counts.update((type_of(best.kind), best.kind))
    return chosen


class LanguageStage:
    """Train the language model."""

    def __init__(
        self,
        mora: Mora,
        phrases: torch.Tensor,
        tokenizer: Tokenizer,
        cache: VideoCache,
        options: LanguageOptions,
        seed: int,
        save: Any,
    ) -> None:
        self.name = "language"
        self.batch = Packer(cache.training, tokenizer, mora, options, seed)
        checker = Packer(cache.validation, tokenizer, mora, options, seed)
        self._checks = [checker.make(i) for i in range(options.checks)]
        torch.manual_seed(seed)
        self.module = LanguageModule(mora, phrases, ids_before(mora, tokenizer), options.lessons_after)
        self._save = save

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score on videos of the validation split: answers right to the letter, temporal IoU, phrases; each type counts alike.

        An answer is right where each of its tokens is the likeliest one given the right ones before it: then, and only
        then, greedy decoding writes it.
        """
        self.module.eval()
        rows: list[tuple[str, float, float, float]] = []
        for batch, kinds in self._checks:
            found = read(self.module.mora, self.module.states(batch)[0], batch)
            wanted = batch["labels"] != IGNORED
            right = torch.zeros_like(wanted)
            right[wanted] = found["logits"].argmax(-1) == batch["labels"][wanted]
            bins, true = found["bins"] > 0, batch["windows"] > 0.5
            overlap = (bins & true).sum(1) / (bins | true).sum(1).clamp(min=1)
            near = torch.cdist(found["prompts"], self.module.phrases).argmin(1) == batch["phrases"]
            for number, (video, seg) in enumerate(batch["seg"].tolist()):
                own = batch["owner"][video] == batch["owner"][video, seg]
                exact = bool((right[video] | ~wanted[video])[own].all())
                rows.append((kinds[number], float(exact), float(overlap[number]), float(near[number])))
        figures = {f"answer_{kind}": _mean(r[1] for r in rows if r[0] == kind) for kind in sorted({r[0] for r in rows})}
        types = [[row for row in rows if type_of(row[0]) == name] for name in TYPES]
        answer, t_iou, phrase = (_mean(_mean(row[k] for row in own) for own in types if own) for k in (1, 2, 3))
        return {"score": answer + t_iou, "answer": answer, "t_iou": t_iou, "phrase": phrase, **figures}

    @torch.no_grad()
    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Draw the windows of the first questions: true over found."""
        self.module.eval()
        batch = self._checks[0][0]
        found = read(self.module.mora, self.module.states(batch)[0], batch)["bins"].sigmoid()
        return {"windows": strips(batch["windows"][:_SHOWN], found[:_SHOWN])}

    def save(self, folder: Path) -> None:
        """Write the whole model as a checkpoint."""
        self._save(folder)


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
