"""The page says what the run directory says, within its budget, in equal bytes for equal runs."""

import json
import re
from pathlib import Path

import pytest

from gmcli.errors import ConfigError, UsageError
from gmcli.records import LEDGER, read_records
from gmcli.report import build_report
from gmcli.report.media import LEVELS
from gmcli.report.page import SCRIPTS, STYLES, asset, json_in_html, policy, script_of
from tests.fakes import tree
from tests.report.sample import make_tasks, write_manifest, write_run


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A run that is under way, and its manifest."""
    folder = tmp_path_factory.mktemp("build")
    tasks, scenes = make_tasks(folder, videos=4, questions=4, scenes=2, frames=20)
    return write_run(folder / "run", tasks, scenes), write_manifest(folder / "m.jsonl", tasks)


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def blobs_of(page: Path) -> list:
    found = re.findall(r'<script type="application/json" id="v\d+">(.*?)</script>', page.read_text())
    return [json.loads(text) for text in found]


def test_an_unfinished_run_is_shown_with_scores_failures_and_what_is_pending(sample, tmp_path):
    run, manifest = sample
    before = tree(run, without=())
    built = build_report(run, tmp_path / "r.html", manifest=manifest, bar=False)
    data = data_of(built.path)
    assert tree(run, without=()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert built.size == built.path.stat().st_size
    assert (built.questions, data["run"]["questions"], len(data["rows"])) == (16, 16, 16)
    assert data["run"]["counts"] == {"done": 13, "failed": 1, "no_target": 1, "pending": 1}
    assert data["notes"] == []
    tables = data["scores"]["tables"]
    assert [table["name"] for table in tables] == ["run", "all_empty", "every_pixel", "random_object"]
    assert tables[0]["rows"][0]["n"] == 16
    assert data["scores"]["missing"] == 2
    done = next(row for row in data["rows"] if row["s"] == "done")
    assert set(done["m"]) >= {"j", "f", "j_and_f", "t_iou"}
    assert done["win_s"][0] == pytest.approx(done["win"][0] / 6, abs=0.001)
    assert done["ta"].startswith("The ")
    assert next(row for row in data["rows"] if row["s"] == "failed")["e"]
    assert [len(blob["n"]) for blob in blobs_of(built.path)] == [16] * 4


def test_without_a_manifest_there_are_masks_but_no_pictures(sample, tmp_path):
    built = build_report(sample[0], tmp_path / "r.html", bar=False)
    data = data_of(built.path)
    assert data["scores"] is None
    assert len(data["rows"]) == 15
    assert data["run"]["counts"]["pending"] == 1
    assert "--manifest" in built.notes[0]
    assert "1 questions without an answer are not listed" in built.notes[1]
    assert all(blob["j"] == [None] * 16 and blob["w"] == 256 for blob in blobs_of(built.path))


def test_equal_runs_give_equal_bytes(sample, tmp_path):
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        build_report(sample[0], page, manifest=sample[1], bar=False)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_no_path_and_no_host_of_this_machine_is_in_the_page(sample, tmp_path):
    page = build_report(sample[0], tmp_path / "r.html", manifest=sample[1], bar=False).path.read_text()
    assert "secret-host" not in page
    assert str(sample[1].parent) not in page


@pytest.mark.parametrize("megabytes", [0.1, 0.04, 0.02, 0])
def test_a_small_budget_is_kept_and_what_is_left_out_is_said(sample, tmp_path, megabytes):
    built = build_report(sample[0], tmp_path / "r.html", manifest=sample[1], max_mb=megabytes, bar=False)
    blobs = blobs_of(built.path)
    assert sum(len(json.dumps(blob, separators=(",", ":"))) for blob in blobs if blob) <= megabytes * 1e6
    assert "To keep within --max-mb" in built.notes[0]
    assert data_of(built.path)["notes"][0] == built.notes[0]
    if megabytes == 0:
        assert blobs == [None] * 4
        assert "neither frames nor masks" in built.notes[0]
    else:
        assert all(blob is None or len(blob["n"]) in {level.frames for level in LEVELS} for blob in blobs)


def test_scores_may_come_from_a_file(sample, tmp_path):
    scores = tmp_path / "s.json"
    row = {"video": "match000", "question": "q0", "j": 0.25}
    scores.write_text(json.dumps({"overall": {"questions": 1, "j": 0.25}, "questions_table": [row]}))
    data = data_of(build_report(sample[0], tmp_path / "r.html", scores=scores, bar=False).path)
    assert data["scores"] == {
        "tables": [{"name": "run", "rows": [{"name": "overall", "n": 1, "j": 0.25}]}],
        "missing": 0,
    }
    assert data["rows"][0]["m"] == {"j": 0.25}


def test_a_run_that_cannot_be_scored_is_shown_with_the_reason(tmp_path):
    tasks, scenes = make_tasks(tmp_path, videos=1, questions=1, scenes=1, frames=6)
    run = write_run(tmp_path / "run", tasks, scenes, spoil=False)
    manifest = write_manifest(tmp_path / "m.jsonl", tasks)
    manifest.write_text(manifest.read_text().replace("Who has to move", "Who has got to move"))
    built = build_report(run, tmp_path / "r.html", manifest=manifest, bar=False)
    assert built.notes[0].startswith("No scores: ")


def test_damage_is_shown_as_such(sample, tmp_path):
    tasks, scenes = make_tasks(tmp_path, videos=1, questions=2, scenes=1, frames=6)
    run = write_run(tmp_path / "run", tasks, scenes, spoil=False)
    (run / "items/match000/q0.json").write_text("{}")
    with (run / LEDGER).open("ab") as file:
        file.write(b"what\n")
    built = build_report(run, tmp_path / "r.html", bar=False)
    assert [row["s"] for row in data_of(built.path)["rows"]] == ["unreadable", "done"]
    assert [note for note in built.notes if "verify" in note or "damaged" in note] == list(built.notes[1:])
    assert len(read_records(run)[0]) == 2


def test_a_folder_that_is_no_run_and_a_page_inside_a_run_are_refused(sample, tmp_path):
    with pytest.raises(ConfigError, match="not a run directory"):
        build_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(UsageError, match="inside the run directory"):
        build_report(sample[0], sample[0] / "r.html")


def test_the_policy_names_what_is_inlined(sample, tmp_path):
    page = build_report(sample[0], tmp_path / "r.html", bar=False).path.read_text()
    style, script = "".join(map(asset, STYLES)), script_of(SCRIPTS)
    assert f'content="{policy(style, script)}"' in page
    assert page.count(f"<style>{style}</style>") == page.count(f"<script>{script}</script>") == 1
    # Nothing is asked for from outside, and nothing turns text into HTML.
    assert not re.search(r"https?://|@import|url\(|innerHTML|insertAdjacentHTML|document\.write|\beval\(", page)


def test_json_cannot_end_its_script():
    value = {"a": "</script><!--&\u2028"}
    text = json_in_html(json.dumps(value).encode())
    assert not set(b"<>&") & set(text)
    assert json.loads(text) == value
