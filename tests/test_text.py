"""Whatever strangers write: it can be shown on one line, and stored as JSON that means the same."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmcli.text import json_text, one_line, printable

BOUNDED = settings(max_examples=300, deadline=None, derandomize=True, database=None)
# Unicode's own classes of what controls, is invisible or ends lines; the two joiners make letters and emoji.
UNSEEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}
JOINERS = "\u200c\u200d"
ODD = '\x00\x1b\x7f\x85\xad\u061c\u200b\u200e\u2028\u2029\u202e\u2066\ufeff\udcff\U000e0041\r\n\t"\\</é漢🙂'
TEXTS = st.text(st.characters() | st.sampled_from(ODD))


def unseen(text: str) -> set[str]:
    return {char for char in text if unicodedata.category(char) in UNSEEN and char not in JOINERS}


@BOUNDED
@given(TEXTS)
def test_what_is_shown_is_one_line_without_control_characters(text):
    shown = one_line(text)
    assert not unseen(shown)
    assert len(shown.splitlines()) <= 1
    assert unseen(printable(text)) <= {"\n"}


@BOUNDED
@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5))
def test_json_means_the_same_and_can_be_shown_and_written(value):
    text = json_text(value)
    assert json.loads(text.encode("utf-8")) == value
    assert not unseen(text) & set(ODD)
    assert json.loads(json_text(value, indent=1)) == value


def test_letters_stay_letters():
    assert printable("зачем 🙂 é") == "зачем 🙂 é"
    assert json_text({"a": "зачем 🙂"}) == '{"a": "зачем 🙂"}'
    assert json_text("\U000e0041\x7f\u202e") == '"\\udb40\\udc41\\u007f\\u202e"'


@pytest.mark.parametrize("char", [chr(code) for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F))])
def test_no_character_that_a_terminal_obeys_gets_through(char):
    assert char not in json_text(f"a{char}b")
    assert char not in one_line(f"a{char}b")
