"""The command from end to end, its report, its pictures, and its tables over sizes."""

import json
import sys

import pytest
from click.testing import CliRunner

from gmcli.bench import light, measure, scaling, show
from gmcli.bench.options import Options, read_scaling
from gmcli.cli.bench import bench
from gmcli.errors import EnvironmentProblem, GmcliError, UsageError
from tests.bench.conftest import FRAME

KEYS = {
    "ratio_cpu_seconds",
    "ratio_wall_seconds",
    "stages",
    "mask_iou",
    "foreground_share",
    "answers_equal",
    "counts",
    "speed_of_light",
    "machine",
    "settings",
    "scaling",
}
SCALING = {
    "workers": [{"workers": 1, "ratio": 1.0, "machine_ratio": 1.0}, {"workers": 2, "ratio": 1.9, "machine_ratio": 2.0}],
    "length": [{"length_s": 10, "peak_rss_mib": 900.0, "loaded_rss_mib": 800.0}],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    peak = light.Peak(100.0, "torch.matmul 8x8x8", {"torch.matmul": 100.0})
    monkeypatch.setattr(light, "measure_peak", lambda device, dtype: peak)
    monkeypatch.setenv("GMCLI_CACHE", str(tmp_path / "cache"))


def test_the_command_compares_both_sides_and_writes_json(tmp_path):
    arguments = ["--size", "tiny", "--questions", "2", "--frames", "2", "--against", "published", "--device", "cpu"]
    out = tmp_path / "deep" / "bench.json"
    result = CliRunner().invoke(bench, [*arguments, "--threads", "1", "--json", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert set(report) >= KEYS
    assert report["answers_equal"]
    assert report["answers"] == ["Sure, it is [SEG]."] * 2
    assert set(report["mask_iou"]) == {"min", "mean"}
    assert report["mask_iou"]["min"] >= 0.999
    assert 0.02 < report["foreground_share"] < 0.98
    assert report["ratio_cpu_seconds"] > 0
    assert report["counts"]["published"]["sam_frames"] == 4
    assert report["counts"]["ours"]["sam_frames"] == 2
    stage = report["stages"]["sam_encoder"]
    assert set(stage) >= {"published_cpu_s", "ours_cpu_s", "ratio", "share"}
    assert sum(row["share"] for row in report["stages"].values()) == pytest.approx(1)
    assert report["settings"]["frame_size"] == [720, 1280]
    assert report["localizer"] is None
    assert "masks equal: IoU at least" in result.output
    assert "published schedule, 1 of 1" in result.stderr
    assert not list((tmp_path / "cache" / "bench").glob("model-*"))


def options(**changes) -> Options:
    return Options(size="tiny", questions=1, frames=2, frame_size=FRAME, **changes)


def test_a_bench_of_gmcli_alone_tells_what_loc_saves(small_folder):
    report = measure.run_bench(options(checkpoint=str(small_folder), repeat=2), print)
    assert report["ratio_cpu_seconds"] is None
    assert len(report["seconds"]["ours"]["cpu_s"]) == 2
    found = report["localizer"]["counts"]
    assert found["windowed"]["sam_frames"] <= found["whole"]["sam_frames"]
    assert any("[LOC] saves" in line for line in show.text(report))


def test_masks_that_would_agree_with_anything_are_an_error(monkeypatch):
    monkeypatch.setattr(measure.compare, "foreground", lambda masks: {"share": 0.0, "empty": 2, "full": 0, "masks": 2})
    with pytest.raises(GmcliError, match="all empty or full"):
        measure.run_bench(options(), print)


def test_plots_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    stages = {"clip": {"ours_cpu_s": 1.0, "published_cpu_s": 3.0}, "other": {"ours_cpu_s": 0.1, "published_cpu_s": 0.0}}
    report = {
        "stages": stages,
        "scaling": SCALING,
        "settings": {"model": "random weights, tiny"},
        "machine": {"gpu": None, "cpu": "some"},
    }
    written = show.write_plots(tmp_path / "plots", report)
    assert [path.name for path in written] == ["stages.png", "workers.png", "length.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_missing_matplotlib_comes_with_the_command_that_mends_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentProblem, match="plots need matplotlib") as caught:
        show.write_plots(tmp_path, {})
    assert caught.value.hint == "pip install 'gmcli[bench]'"


def test_tables_align_and_show_what_is_missing():
    assert show.table([{"stage": "clip", "ratio": 2.5}, {"stage": "rle", "ratio": None}]) == [
        "stage  ratio",
        "clip    2.50",
        "rle        –",
    ]
    assert show.table([]) == []


@pytest.mark.parametrize(
    ("value", "points"),
    [
        (None, {}),
        ("questions=1,4,frames", {"questions": (1, 4), "frames": (4, 16, 64, 256)}),
        ("workers, length=10", {"workers": (1, 2), "length": (10,)}),
    ],
)
def test_scaling_names_tables_with_or_without_points(value, points):
    assert read_scaling(value) == points


@pytest.mark.parametrize("value", ["cores", "4", "frames=x", "frames=0", "frames=4,-1", "frames=", ","])
def test_what_is_no_table_or_point_is_refused(value):
    with pytest.raises(UsageError, match="--scaling"):
        read_scaling(value)


def test_points_are_measured_in_processes_of_their_own(random_folder, tmp_path):
    subject = scaling.Subject(str(random_folder), options(), tmp_path / "clips")
    (row,) = scaling.scale(subject, "questions", [2], print)
    assert row["questions"] == 2
    assert row["masked_frames"] == 2
    assert row["warm_s"] > 0
    assert row["load_s"] < row["cold_s"]
    assert row["peak_rss_mib"] >= row["loaded_rss_mib"] > 100


def test_workers_are_real_processes_beside_the_machines_limit(random_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(scaling._MULTIPLY, "seconds", 0.1)
    subject = scaling.Subject(str(random_folder), options(), tmp_path / "clips")
    (row,) = scaling.scale(subject, "workers", [1], print)
    assert row["ratio"] == row["machine_ratio"] == 1
    assert row["videos"] == 5
    assert row["warm_frames_s"] > 0
    assert row["cold_s"] > 0


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_rate_of_workers_does_not_depend_on_their_phase(workers, phase):
    # Each answers a video a second; the phase is by how much each lags behind the one before it.
    start_s = 20.0
    ends = sorted(start_s + (phase * worker) % 1 + video for worker in range(workers) for video in range(5))
    assert scaling.steady_rate(ends, workers) == pytest.approx(workers)


def test_a_measuring_process_that_dies_is_an_error(capfd):
    with pytest.raises(GmcliError, match="measuring process ended with exit code 1"):
        scaling._together([{"do": "nothing"}])
    assert "KeyError: 'nothing'" in capfd.readouterr().err
