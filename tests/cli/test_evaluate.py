"""`gmcli eval` as it is typed: the kept manifest, files for spreadsheets and reports, several processes, video files."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gmcli.cli.evaluate import evaluate as eval_command
from gmcli.data import ItemResult, TemporalSpan
from gmcli.errors import ConfigError, EnvironmentProblem
from gmcli.evaluate import METRICS, SAMPLES, evaluate
from gmcli.evaluate.tables import write_report
from gmcli.files import write_file
from gmcli.items import write_item
from gmcli.kept_manifest import KEPT_MANIFEST, manifest_content
from gmcli.ledger import Ledger
from gmcli.manifest import read_manifest
from gmcli.masks.rle import encode_rle
from gmcli.progress import Progress
from gmcli.records import Record, inputs_of
from gmcli.video import sample_indices
from tests.clips import write_clip
from tests.fakes import IDENTITY
from tests.test_evaluate import golden_manifest, write_run


@pytest.fixture
def manifest(tmp_path) -> Path:
    return golden_manifest(tmp_path)


@pytest.fixture
def out(tmp_path, manifest) -> Path:
    tasks = read_manifest(manifest)
    truths = {(t.id, q.id): q.ground_truth.answer for t in tasks for q in t.questions}

    def answer(result):
        return replace(result, answer=f'{truths[result.video_id, result.question_id]}, "so" [SEG].')

    out = write_run(tmp_path / "run", tasks, change=answer)
    write_file(out, KEPT_MANIFEST, manifest_content(tasks))
    return out


def invoke(*arguments: object):
    return CliRunner().invoke(eval_command, [str(argument) for argument in arguments])


def test_a_run_directory_is_enough(tmp_path, manifest, out):
    named = invoke(out, "--manifest", manifest, "--json", tmp_path / "a.json", "--workers", 1)
    manifest.unlink()
    kept = invoke(out, "--json", tmp_path / "b.json", "--workers", 1)
    assert named.exit_code == kept.exit_code == 0, kept.output
    assert named.output == kept.output
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_table_has_the_interval_of_all_questions(out):
    lines = invoke(out, "--workers", 1).output.splitlines()
    scores = evaluate(out, read_manifest(out / KEPT_MANIFEST))
    low, high = scores["overall"]["ci95"]["j"]
    rows = [line for line in lines if line.startswith("  95 % interval")]
    assert len(rows) == 1
    assert rows[0].split()[3] == f"{100 * low:.2f}–{100 * high:.2f}"
    assert lines[lines.index(rows[0]) - 1].startswith("  overall")


def test_the_csv_has_a_row_a_question(tmp_path, out):
    assert invoke(out, "--csv", tmp_path / "x" / "q.csv", "--workers", 1).exit_code == 0
    scores = evaluate(out, read_manifest(out / KEPT_MANIFEST))
    with (tmp_path / "x" / "q.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert list(rows[0]) == ["video", "question", "type", *METRICS, "answer", "true_answer", "status"]
    for row, wanted in zip(rows, scores["questions_table"], strict=True):
        assert row["answer"].endswith(', "so" [SEG].')
        for name, value in wanted.items():
            assert row[name] == ("" if value is None else str(value))
    assert np.mean([float(row["j"]) for row in rows]) == pytest.approx(scores["overall"]["j"], rel=0, abs=1e-12)


def test_the_markdown_says_how_it_was_made(tmp_path, out):
    assert invoke(out, "--markdown", tmp_path / "t.md", "--workers", 1).exit_code == 0
    text = (tmp_path / "t.md").read_text()
    table, how = text.rstrip("\n").split("\n\n")
    assert "\n" not in how
    assert "20 frames a clip" in how
    assert "1000 resamples" in how
    lines = table.splitlines()
    assert {line.count(" | ") for line in lines} == {8}
    assert len(lines) == 2 + 4 * 5
    overall = [line for line in lines if "| overall |" in line]
    assert ["[" in line for line in overall] == [True, False, False, False]


def test_bars_in_names_do_not_break_the_markdown(tmp_path, manifest):
    manifest.write_text(manifest.read_text().replace("type: Causal", "type: 'Ca|us\\al'"))
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks)
    assert invoke(out, "--manifest", manifest, "--markdown", tmp_path / "t.md", "--workers", 1).exit_code == 0
    assert "| Ca\\|us\\\\al | 2 |" in (tmp_path / "t.md").read_text()


def test_reports_are_whole_or_not_there_and_leave_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x" / "r.md"
    write_report(path, "old")
    assert [p.name for p in path.parent.iterdir()] == ["r.md"]
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(EnvironmentProblem, match=r"r\.md: cannot be written \(No space left"):
        write_report(path, "new")
    assert path.read_text() == "old"


def test_reports_follow_links_and_spare_devices(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_report(tmp_path / "link", "content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "content"
    write_report(Path("/dev/null"), "content")
    assert not Path("/dev/null").is_file()


def test_an_incomplete_run_is_refused_without_a_manifest_too(tmp_path, manifest):
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks, without={("ballX-9_z_0130_0138", "1")})
    refused = invoke(out)
    assert isinstance(refused.exception, ConfigError)
    assert KEPT_MANIFEST in refused.exception.message
    write_file(out, KEPT_MANIFEST, manifest_content(tasks))
    refused = invoke(out)
    assert refused.exception.message.splitlines()[1:] == ["  ballX-9_z_0130_0138/1"]
    assert isinstance(invoke(tmp_path / "nothing").exception, ConfigError)


# Several processes


def test_the_number_of_processes_changes_no_digit(out):
    tasks = read_manifest(out / KEPT_MANIFEST)
    progress = Progress(videos=2, questions=6, bar=False)
    alone, both = evaluate(out, tasks, workers=1), evaluate(out, tasks, workers=2, progress=progress)
    assert json.dumps(alone) == json.dumps(both)
    assert (progress.videos_done, progress.questions_done, progress.frames) == (2, 6, 120)


def test_an_error_in_another_process_is_the_same(tmp_path, out):
    tasks = read_manifest(out / KEPT_MANIFEST)
    (out / "items" / tasks[1].id / "0.json").write_text("{}")
    messages = []
    for workers in (1, 2):
        with pytest.raises(ConfigError) as caught:
            evaluate(out, tasks, workers=workers)
        messages.append((caught.value.message, caught.value.hint))
    assert messages[0] == messages[1]
    assert "its content differs" in messages[0][0]


# Video files


def film(folder: Path, *, frames: int = 12, images: int = 12, fps: int = 6) -> Path:
    """Write a clip as a file and as images beside its masks; an object moves through frames 4 to 9."""
    for part in ("images", "masks"):
        (folder / "clip" / part).mkdir(parents=True)
    write_clip(folder / "clip" / "clip.mp4", frames, 1, fps=fps)
    for number in range(images):
        # Numbered from 7, every third: only the order counts.
        name = f"frame_{7 + 3 * number}"
        Image.new("RGB", (80, 48)).save(folder / "clip" / "images" / f"{name}.jpg")
        if 4 <= number < 10:
            pixels = np.zeros((48, 80), np.uint8)
            pixels[10:30, 4 * number : 4 * number + 20] = 2
            Image.fromarray(pixels).save(folder / "clip" / "masks" / f"{name}.png")
    truth = {"masks": "clip/masks", "object_ids": [2], "start": 0.5, "end": 1.5}
    questions = [{"id": "q", "text": "Who?", "ground_truth": truth}]
    video = {"id": "clip", "path": "clip/clip.mp4", "questions": questions}
    (folder / "file.yaml").write_text(json.dumps({"version": 1, "videos": [video]}))
    video = video | {"path": "clip/images", "fps": fps}
    (folder / "folder.yaml").write_text(json.dumps({"version": 1, "videos": [video]}))
    return folder


def answer_film(out: Path, tasks, names: list[str]) -> Path:
    masks = np.zeros((len(names), 48, 80), bool)
    for number in range(3, 8):
        masks[number, 12:30, 4 * number : 4 * number + 20] = True
    sampled = sorted(set(sample_indices(0, len(names), SAMPLES)))
    result = ItemResult(
        "clip",
        "q",
        "done",
        frames=tuple(sampled),
        names=tuple(names[i] for i in sampled),
        masks=tuple(encode_rle(masks[i]) for i in sampled),
        span=TemporalSpan(3, 8),
    )
    with Ledger.open(out, IDENTITY) as ledger:
        (task,) = tasks
        sha256 = write_item(out, result, task.questions[0], ("rle",))
        ledger.append(Record("clip", "q", "done", inputs_of(task, task.questions[0]), sha256))
    return out


@pytest.mark.parametrize("fps", [6, 25])
def test_a_video_file_scores_as_the_images_beside_it(tmp_path, fps):
    film(tmp_path, fps=fps)
    in_file, in_folder = read_manifest(tmp_path / "file.yaml"), read_manifest(tmp_path / "folder.yaml")
    a = answer_film(tmp_path / "a", in_file, [f"{number:05}" for number in range(12)])
    b = answer_film(tmp_path / "b", in_folder, [f"frame_{7 + 3 * number}" for number in range(12)])
    scores = evaluate(a, in_file)
    assert scores == evaluate(b, in_folder)
    if fps == 6:
        assert 0.2 < scores["overall"]["window_j_and_f"] < 0.95
        assert scores["overall"]["t_iou"] == 5 / 6


@pytest.mark.parametrize("images", [11, 13])
def test_a_video_file_with_another_number_of_images_is_refused(tmp_path, images):
    film(tmp_path, images=images)
    tasks = read_manifest(tmp_path / "file.yaml")
    out = answer_film(tmp_path / "out", tasks, [f"{number:05}" for number in range(12)])
    with pytest.raises(ConfigError, match=rf"has 12 frames, but .*images {images}: which frame"):
        evaluate(out, tasks)


def test_a_mask_for_every_frame_will_do(tmp_path):
    film(tmp_path)
    tasks = read_manifest(tmp_path / "file.yaml")
    out = answer_film(tmp_path / "out", tasks, [f"{number:05}" for number in range(12)])
    scores = evaluate(out, tasks)
    shutil.rmtree(tmp_path / "clip" / "images")
    for number in range(12):
        path = tmp_path / "clip" / "masks" / f"frame_{7 + 3 * number}.png"
        if not path.exists():
            Image.new("L", (80, 48)).save(path)
    assert evaluate(out, tasks) == scores


def test_a_video_file_without_images_is_refused(tmp_path):
    film(tmp_path)
    shutil.rmtree(tmp_path / "clip" / "images")
    tasks = read_manifest(tmp_path / "file.yaml")
    out = answer_film(tmp_path / "out", tasks, [f"{number:05}" for number in range(12)])
    with pytest.raises(ConfigError, match=r"has 12 frames, but .*masks 6 masks, and no folder"):
        evaluate(out, tasks)
