"""Guess how an answer goes on, so that one pass can check many tokens instead of making one.

Answers are short and formulaic ("It is [SEG]."). Whatever is guessed, the language model decides: see generate.py.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

# Answers that the published checkpoints were taught; more are learned as they come.
KNOWN_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the target object is [SEG], and the temporal boundary is [LOC].",
)
# How many tokens back a guess looks. Answers differ in a word or two: four tokens tell most places in a formula apart.
_CONTEXT = 4
# More different contexts than this are no formula; forgetting the rest bounds memory.
_MOST_CONTEXTS = 50_000


class Drafts:
    """Learn answers, and guess the most frequent continuation of the beginning of one.

    `answers` are token ids of answers to begin with, without </s>; a single one that is learned counts for more than all of
    them. Guesses end where an answer would, before </s>.
    """

    def __init__(self, answers: Sequence[Sequence[int]] = (), longest: int = 32) -> None:
        self._longest = longest
        self._after: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for answer in answers:
            self._count(answer, 1)
        self._weight = len(answers) + 1

    def learn(self, answer: Sequence[int]) -> None:
        """Take note of a finished answer's ids, without </s>."""
        self._count(answer, self._weight)

    def _count(self, answer: Sequence[int], weight: int) -> None:
        if len(self._after) > _MOST_CONTEXTS:
            self._after.clear()
        # -1 stands before an answer, and for its end behind it.
        ids = (-1, *answer, -1)
        for end in range(1, len(ids)):
            for start in range(max(0, end - _CONTEXT), end):
                self._after[ids[start:end]][ids[end]] += weight

    def guess(self, known: Sequence[int], most: int) -> tuple[int, ...]:
        """Return the likely tokens after the known ones, at most `most`; none where nothing like it was learned."""
        ids = [-1, *known]
        for _ in range(min(most, self._longest)):
            following = self._following(ids)
            if following == -1:
                break
            ids.append(following)
        return tuple(ids[len(known) + 1 :])

    def _following(self, ids: Sequence[int]) -> int:
        """Return the most frequent follower of the longest known context; of equally frequent ones the first learned."""
        for length in range(min(_CONTEXT, len(ids)), 0, -1):
            followers = self._after.get(tuple(ids[-length:]))
            if followers:
                return followers.most_common(1)[0][0]
        return -1
