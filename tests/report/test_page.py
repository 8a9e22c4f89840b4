"""In a browser: masks are decoded as pycocotools does, strangers' text stays text, the page is quick and can be used."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gmcli.data import VideoTask
from gmcli.ledger import Ledger
from gmcli.masks.rle import decode_rle, encode_rle
from gmcli.records import Record, inputs_of
from gmcli.report import build_report
from gmcli.report.page import asset
from tests.report.browser import MISSING, Browser
from tests.report.sample import IDENTITY, make_tasks, write_manifest, write_run

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)><svg onload=alert(3)>",
    "line\u2028and\u2029paragraph \x00\x07\x1b[31m \u202egnp.exe",
    "<!--<script>]]>&lt;b&gt; <!--gmcli:script--> ${alert(4)} {{7*7}} \"'`\\",
)
ROWS = "document.querySelectorAll('#rows tr').length"
PAINTED = "document.querySelectorAll('#rows canvas.painted').length"


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tasks, scenes = make_tasks(folder, videos=30, questions=4, scenes=2, frames=12)
    run = write_run(folder / "run", tasks, scenes)
    manifest = write_manifest(folder / "m.jsonl", tasks)
    return build_report(run, folder / "run.html", manifest=manifest, bar=False).path


def test_masks_are_decoded_as_pycocotools_does(browser, tmp_path):
    random = np.random.RandomState(7)
    masks = [random.rand(*random.randint(1, 70, 2)) < density for density in (0.02, 0.2, 0.5, 0.9) for _ in range(12)]
    masks += [np.zeros((9, 5), bool), np.ones((9, 5), bool), np.eye(256, dtype=bool)]
    cases = [{"counts": encode_rle(m).counts, "h": m.shape[0], "w": m.shape[1]} for m in masks]
    (tmp_path / "rle.html").write_text(f"<!doctype html><script>{asset('rle.js')}</script>")
    browser.open(tmp_path / "rle.html")
    script = "return arguments[0].map((c) => Array.from(decodeRle(c.counts, c.w, c.h)).join(''))"
    for case, mask, found in zip(cases, masks, browser.run(script, cases), strict=True):
        expected = decode_rle(encode_rle(mask))
        assert (expected == mask).all()
        assert found == "".join(map(str, mask.astype(int).ravel())), case
    refuse = "try { decodeRle(arguments[0], 4, 4); return 'read' } catch (e) { return e.message }"
    for counts in ("", "o", "0", "zzzzzzzzz", "_1", "@@@@@@@@@@"):
        assert browser.run(refuse, counts) == "bad RLE", counts


def test_text_of_strangers_stays_text(browser, tmp_path):
    tasks, _ = make_tasks(tmp_path, videos=1, questions=4, scenes=1, truth=False, frames=6)
    asked = tuple(replace(q, text=HOSTILE[i], type=HOSTILE[1]) for i, q in enumerate(tasks[0].questions))
    task = VideoTask("v", tasks[0].video, asked, fps=6.0)
    with Ledger.open(tmp_path / "run", IDENTITY) as ledger:
        for question, text in zip(asked, HOSTILE, strict=True):
            ledger.append(Record(task.id, question.id, "failed", inputs_of(task, question), error=text))
        # No manifest allows such an id: the ledger's line counts as damaged, and nobody sees it.
        ledger.append(Record(HOSTILE[1].replace("/", ""), "q0", "failed", {}, error="x"))
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"overall": {"j": 1}, "by_type": {text: {"j": 1} for text in HOSTILE}}))
    path = build_report(tmp_path / "run", tmp_path / "r.html", scores=scores, bar=False).path
    browser.open(path)
    assert browser.wait(ROWS) == 4
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    browser.run("document.querySelector('#rows .thumb').click()")
    assert browser.run("return document.getElementById('player').open")
    assert browser.dialog() is None
    assert browser.run("return document.querySelectorAll('img, svg, iframe, #rows script, dialog script').length") == 0
    assert browser.run("return document.scripts.length") == 2 + 1
    texts = browser.run("return [...document.querySelectorAll('#rows .question .text')].map((e) => e.textContent)")
    assert texts[:2] == list(HOSTILE[:2])
    assert texts[2] == "line\\u2028and\\u2029paragraph \\x00\\x07\\x1b[31m \\u202egnp.exe"
    assert texts[3] == HOSTILE[3]
    assert browser.log() == []


def test_the_policy_forbids_other_scripts(browser, page):
    browser.open(page)
    browser.wait(ROWS)
    browser.run("window.ran = 0; document.body.append(Object.assign(document.createElement('img'), {src: 'data:,x'}))")
    blocked = "try { document.body.innerHTML = '<b>x</b>'; return 'allowed' } catch (e) { return e.name }"
    assert browser.run(blocked) == "TypeError"
    assert any("TrustedHTML" in line for line in browser.log())


def test_rows_come_as_they_are_needed(browser, page):
    browser.open(page)
    assert browser.wait(ROWS) < 120
    browser.run("document.getElementById('questions').scrollIntoView()")
    browser.wait(PAINTED)
    for _ in range(10):
        browser.run("scrollTo(0, document.body.scrollHeight)")
        if browser.run(f"return {ROWS}") == 120:
            break
        browser.run("document.getElementById('more').click()")
    assert browser.run(f"return {ROWS}") == 120
    assert browser.log() == []


def test_search_filter_and_sort(browser, page):
    browser.open(page)
    browser.wait(ROWS)
    put = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event(arguments[2]))"
    browser.run(put, "search", "MATCH003 kite", "input")
    assert browser.run(f"return {ROWS}") == browser.run("return document.querySelectorAll('#rows bdi').length") / 2
    found = browser.run("return document.getElementById('found').textContent")
    assert found.endswith("of 120 questions")
    browser.run(put, "search", "nothing like it", "input")
    assert browser.run(
        "return [document.getElementById('none').hidden, document.getElementById('rows').children.length]"
    ) == [
        False,
        0,
    ]
    browser.run(put, "search", "", "input")
    browser.run(put, "status", "failed", "change")
    assert browser.run(
        "return [...document.querySelectorAll('#rows .pill')].every((p) => p.className === 'pill failed')"
    )
    browser.run(put, "status", "", "change")
    browser.run("document.querySelector('[data-sort=t_iou] button').click()")
    values = browser.run(
        "return [...document.querySelectorAll('#rows td[data-label=tIoU]')].map((e) => +e.textContent)"
    )
    assert values == sorted(values, reverse=True)
    assert browser.run("return document.querySelector('[data-sort=t_iou]').getAttribute('aria-sort')") == "descending"


def test_the_player_is_driven_by_keys(browser, page):
    browser.open(page, "#match000%2Fq0")
    browser.wait("document.getElementById('player').open")
    clock = "document.getElementById('clock').textContent"
    pixel = (
        "const c = document.getElementById('canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i]; return n"
    )
    browser.wait("document.getElementById('canvas').width > 300")
    first = browser.wait(clock)
    with_mask = browser.run(pixel)
    browser.press("m")
    browser.wait("document.getElementById('mask').getAttribute('aria-pressed') === 'false'")
    browser.wait(f"((() => {{ {pixel} }})()) !== {with_mask}")
    browser.press("\ue014")
    assert browser.wait(clock) != first
    browser.press("\ue012")
    assert browser.wait(clock) == first
    browser.press(" ")
    browser.wait("document.getElementById('play').textContent === 'Pause'")
    browser.wait(f"{clock} !== {json.dumps(first)}")
    browser.press("n")
    browser.wait("document.getElementById('player-where').textContent.includes('q1')")
    browser.press("\ue00c")
    browser.wait("!document.getElementById('player').open")
    # This test's own reading of pixels is remarked upon.
    assert [line for line in browser.log() if "Canvas2D" not in line] == []


def test_every_control_has_a_name_and_ids_are_single(browser, page):
    browser.open(page)
    browser.wait(ROWS)
    nameless = (
        "return [...document.querySelectorAll('button, input, select')].filter((e) => !(e.getAttribute('aria-label') ||"
        " e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert browser.run(nameless) == []
    assert (
        browser.run(
            "const ids = [...document.querySelectorAll('[id]')].map((e) => e.id); return ids.length - new Set(ids).size"
        )
        == 0
    )


def test_it_fits_a_phone(page):
    with Browser(size=(390, 844), mobile=True, dark=True) as phone:
        phone.open(page)
        phone.wait(ROWS)
        assert phone.run("return document.documentElement.scrollWidth <= 390")
        assert phone.run("return getComputedStyle(document.querySelector('#head')).display") == "none"
        dark = phone.run("return getComputedStyle(document.body).backgroundColor")
        phone.run("document.getElementById('theme').click()")
        assert phone.run("return getComputedStyle(document.body).backgroundColor") != dark
        phone.run("document.querySelector('#rows .thumb').click()")
        assert phone.run("return document.getElementById('player').scrollWidth <= 390")
