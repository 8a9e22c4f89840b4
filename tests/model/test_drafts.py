"""Guesses may save passes of the language model; they may never change an answer."""

import random

import pytest
import torch

from gmcli.model.drafts import KNOWN_ANSWERS, Drafts
from tests.model.test_generate import generate

EOS = 2


def test_the_most_frequent_answer_is_guessed_and_ends_where_answers_end():
    drafts = Drafts([(5, 6, 7), (5, 8), (5, 8)])
    assert drafts.guess((), 10) == (5, 8)
    assert drafts.guess((5, 6), 10) == (7,)
    assert drafts.guess((5, 6, 7), 10) == ()
    assert drafts.guess((), 1) == (5,)
    assert Drafts().guess((), 10) == ()


def test_one_answer_heard_outweighs_all_that_are_known_beforehand():
    drafts = Drafts([(1, 2), (1, 3), (1, 2)])
    drafts.learn((4, 5))
    assert drafts.guess((), 10) == (4, 5)


def test_of_equally_frequent_answers_the_first_learned_is_guessed():
    assert Drafts([(5, 6), (5, 7)]).guess((), 10) == (5, 6)


def test_an_answer_never_heard_goes_on_as_its_last_words_did():
    drafts = Drafts([(1, 30, 40, 9, 8)] * 3)
    assert drafts.guess((1, 31, 40), 10) == (9, 8)


def test_guesses_that_run_in_circles_end():
    assert len(Drafts([(4, 4, 4, 4, 4, 4, 4)] * 2, longest=12).guess((), 99)) <= 12


def test_memory_is_bounded():
    drafts = Drafts()
    rng = random.Random(1)
    for _ in range(3000):
        drafts.learn([rng.randrange(30_000) for _ in range(20)])
    assert len(drafts._after) < 51_000


class Always(Drafts):
    """Guess what it is told, whatever the truth."""

    def __init__(self, guess):
        super().__init__()
        self._guess = guess

    def guess(self, known, most):
        return tuple(self._guess[len(known) :][:most])


def adversaries(ids):
    """Guesses right, wrong at every place, too long, too short, past the end of the answer, and noise."""
    right = list(ids[:-1])
    yield right
    for wrong in range(len(right)):
        yield [*right[:wrong], 77, *right[wrong + 1 :]]
        yield right[:wrong]
    yield [*right, EOS]
    yield [*right, EOS, 5, 6]
    yield [*right, 5, 6, 7]
    yield [EOS] * 4
    rng = random.Random(len(ids))
    yield [rng.randrange(2003) for _ in range(30)]


@pytest.mark.parametrize("i", [0, 1, 2])
def test_whatever_is_guessed_ids_and_states_are_the_same_to_the_last_bit(checkpoint, golden_frames, facts, i):
    fact = facts["evaluate"][i]
    (plain,) = generate(checkpoint, golden_frames[i], fact["question"]).answers
    assert list(plain.ids) == fact["new_ids"]
    for guess in adversaries(fact["new_ids"]):
        made = generate(checkpoint, golden_frames[i], fact["question"], drafts=Always(guess))
        (answer,) = made.answers
        assert answer.ids == plain.ids, guess
        assert torch.equal(answer.seg_hidden, plain.seg_hidden), guess
        assert torch.equal(answer.loc_hidden, plain.loc_hidden), guess
        assert answer.finished
        assert made.accepted <= made.drafted


def test_a_right_guess_takes_one_pass(checkpoint, golden_frames, facts):
    fact = facts["evaluate"][3]
    made = generate(checkpoint, golden_frames[3], fact["question"], drafts=Always(fact["new_ids"][:-1]))
    assert made.passes == 1
    assert made.drafted == made.accepted == len(fact["new_ids"]) - 1
    plain = generate(checkpoint, golden_frames[3], fact["question"])
    # One a token, and the one that reads question and answer together.
    assert plain.passes == len(fact["new_ids"]) + 1
    assert plain.drafted == 0


def test_a_guess_wrong_in_one_word_takes_three_passes(checkpoint, golden_frames, facts):
    fact = facts["evaluate"][3]
    guess = list(fact["new_ids"][:-1])
    guess[4] = 99
    made = generate(checkpoint, golden_frames[3], fact["question"], drafts=Always(guess))
    assert made.passes == 3
    assert made.answers[0].ids == tuple(fact["new_ids"])


def test_answers_of_different_lengths_share_a_batch(checkpoint, golden_frames, facts):
    questions = [fact["question"] for fact in facts["evaluate"]]
    plain = generate(checkpoint, golden_frames[0], *questions).answers
    learned = Drafts([answer.ids[:-1] for answer in plain])
    for drafts in (learned, Drafts(), Always([5] * 20)):
        for want, got in zip(
            plain, generate(checkpoint, golden_frames[0], *questions, drafts=drafts).answers, strict=True
        ):
            assert got.ids == want.ids
            assert torch.equal(got.seg_hidden, want.seg_hidden)
            assert torch.equal(got.loc_hidden, want.loc_hidden)


def test_answers_are_learned_and_the_next_time_guessed(checkpoint, golden_frames, facts):
    drafts = Drafts()
    question = facts["evaluate"][1]["question"]
    first = generate(checkpoint, golden_frames[1], question, drafts=drafts)
    second = generate(checkpoint, golden_frames[1], question, drafts=drafts)
    assert first.accepted < second.accepted == len(first.answers[0].ids) - 1
    assert second.passes == 1


def test_a_limit_cuts_a_guessed_answer_where_it_cuts_a_plain_one(checkpoint, golden_frames, facts):
    fact = facts["evaluate"][3]
    for limit in (1, 3, 20):
        (plain,) = generate(checkpoint, golden_frames[3], fact["question"], limit=limit).answers
        drafts = Always(fact["new_ids"][:-1])
        (guessed,) = generate(checkpoint, golden_frames[3], fact["question"], limit=limit, drafts=drafts).answers
        assert guessed.ids == plain.ids == tuple(fact["new_ids"][:limit])
        assert torch.equal(guessed.seg_hidden, plain.seg_hidden)
        assert guessed.finished is plain.finished is False
        assert not drafts._after, "an unfinished answer is no example"


def test_the_known_answers_are_those_that_the_original_gives(checkpoint, facts):
    known = [checkpoint.tokenizer.encode(answer)[1:] for answer in KNOWN_ANSWERS]
    assert facts["evaluate"][0]["new_ids"][:-1] in known
    assert facts["evaluate"][3]["new_ids"][:-1] in known


def test_nearly_equal_tokens_do_not_let_the_guess_decide(checkpoint, golden_frames, facts, monkeypatch):
    """Where the shape of a pass changes which token wins, plain decoding has the last word."""
    from gmcli.model import generate as module

    fact = facts["evaluate"][0]
    (plain,) = generate(checkpoint, golden_frames[0], fact["question"]).answers
    real = module.read_answers

    def shifted(*arguments):
        states, chosen = real(*arguments)
        return states, [[row[0] + 1, *row[1:]] for row in chosen]

    monkeypatch.setattr(module, "read_answers", shifted)
    made = generate(checkpoint, golden_frames[0], fact["question"], drafts=Always([77]))
    assert made.answers[0].ids == plain.ids
    assert made.passes > len(plain.ids)
