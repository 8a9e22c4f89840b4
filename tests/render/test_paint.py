"""Tints equal PIL's own blending, contours a definition by distance, and nothing else changes."""

import numpy as np
import pytest
from PIL import Image

from gmcli.render import caption, outline, overlay
from gmcli.render.paint import MASK_COLOUR, OPACITY, TRUTH_COLOUR, contour, fit, resize, resize_mask
from gmcli.render.words import ANSWER_LINES, QUESTION_LINES, font, one_line, wrap


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    return ((y - 18) / 14.0) ** 2 + ((x - 10) / 20.0) ** 2 < 1  # the left border cuts it off


def steps_to_the_outside(mask: np.ndarray) -> np.ndarray:
    """Count, for each pixel, the steps to the nearest one outside the mask or the picture, by looking at all of them."""
    framed = np.pad(mask, 1)
    outside = np.argwhere(~framed)
    distance = np.zeros(framed.shape, int)
    for y, x in np.argwhere(framed):
        distance[y, x] = np.abs(outside - (y, x)).sum(axis=1).min()
    return distance[1:-1, 1:-1]


def test_inside_is_tinted_and_outside_is_as_it_was(frame, mask):
    drawn = overlay(frame, mask, MASK_COLOUR, line=2)
    plain = Image.new("RGB", (60, 40), MASK_COLOUR)
    blended = np.asarray(Image.blend(Image.fromarray(frame), plain, OPACITY)).astype(int)
    inside = steps_to_the_outside(mask) > 3
    assert inside.any()
    assert np.abs(drawn.astype(int) - blended)[inside].max() <= 1
    np.testing.assert_array_equal(drawn[~mask], frame[~mask])
    assert (drawn[inside] != frame[inside]).any(axis=1).mean() > 0.9


def test_the_contour_lies_within_the_mask(frame, mask):
    distance = steps_to_the_outside(mask)
    for line in (1, 2, 5):
        np.testing.assert_array_equal(contour(mask, line), (distance > 0) & (distance <= line))
    drawn = overlay(frame, mask, MASK_COLOUR, line=2)
    assert (drawn[(distance > 0) & (distance <= 2)] == MASK_COLOUR).all()
    only = outline(frame, mask, TRUTH_COLOUR, line=2)
    assert (only[contour(mask, 2)] == TRUTH_COLOUR).all()
    np.testing.assert_array_equal(only[~contour(mask, 2)], frame[~contour(mask, 2)])


@pytest.mark.parametrize("whole", [True, False])
def test_full_and_empty_masks(frame, whole):
    before = frame.copy()
    drawn = overlay(frame, np.full((40, 60), whole), MASK_COLOUR)
    assert (drawn != frame).any() == whole
    np.testing.assert_array_equal(frame, before)


def test_what_does_not_fit_is_refused(frame, mask):
    for bad in (mask[1:], mask.astype(np.uint8)):
        with pytest.raises(ValueError, match="the mask is"):
            overlay(frame, bad, MASK_COLOUR)
    with pytest.raises(ValueError, match="a picture is"):
        outline(frame.astype(float), mask, MASK_COLOUR)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((192, 192), (576, 576)),
        ((48, 80), (288, 480)),
        ((720, 1280), (720, 1280)),
        ((2160, 3840), (1080, 1920)),
        ((1000, 30), (1000, 30)),  # enlarged, it would be too high
        ((600, 100), (1800, 300)),  # as far as it goes
        ((1, 9000), (1, 1920)),
        ((101, 479), (202, 958)),
    ],
)
def test_sizes(size, expected):
    assert fit(size, 480, 1920) == expected


def test_enlarged_pixels_are_squares(frame, mask):
    np.testing.assert_array_equal(resize_mask(mask, (120, 180)), mask.repeat(3, axis=0).repeat(3, axis=1))
    assert resize(frame, (120, 180)).shape == (120, 180, 3)
    assert resize(frame, (40, 60)) is frame


def test_a_caption_is_as_wide_as_asked_and_has_its_words():
    one, two = caption(480, "Who?", ""), caption(480, "Who?", "He.")
    assert one.shape[1] == two.shape[1] == 480
    assert one.shape[0] % 2 == two.shape[0] % 2 == 0
    assert two.shape[0] > one.shape[0]
    assert (two == MASK_COLOUR).all(axis=2).any()
    assert not (one == MASK_COLOUR).all(axis=2).any()
    assert (caption(480, "Who?", "He.", truth="She.") == TRUTH_COLOUR).all(axis=2).any()


@pytest.mark.parametrize(
    "text",
    ["word " * 5000, "W" * 5000, "\x00\x1b[31m\u202e\ud800\n\r\t", "漢字 " * 300, "🎾" * 200, "", " ", "{}%s<b>&amp;"],
    ids=["long", "one word", "control", "unknown letters", "emoji", "empty", "blank", "markup"],
)
def test_hostile_text_has_bounds(text):
    longest = caption(240, "q\n" * 5000, "a " * 5000, truth="t " * 5000).shape[0]
    assert caption(240, text, text, truth=text).shape[0] <= longest < 400


def test_lines_fit_and_nothing_is_lost_but_what_the_ellipsis_stands_for():
    text = "Who needs to be passed or else the man in grey cannot score, and " + "x" * 90 + " why?"
    lines = wrap(text, 16, 200, 99)
    assert all(font(16).getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    short = wrap(text, 16, 200, 2)
    assert len(short) == 2
    assert short[1].endswith("…")
    assert font(16).getlength(short[1]) <= 200


def test_control_characters_are_escaped():
    assert one_line("a\n b\x1b[2J\u202e") == "a b\\x1b[2J\\u202e"
    assert (QUESTION_LINES, ANSWER_LINES) == (4, 3)


def test_letters_that_the_font_lacks_are_spelled():
    text = one_line("Café – “naïve” Straße, Ångström … 漢")
    assert text == "Cafe - “naive” Strasse, Angstrom … 漢"
    missing = bytes(font(40).getmask("漢"))
    assert all(bytes(font(40).getmask(letter)) != missing for letter in text[:-1] if letter != " ")
