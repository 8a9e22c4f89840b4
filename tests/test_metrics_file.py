"""The metrics' format, read by Prometheus' own parser."""

import dataclasses
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gmcli import __version__
from gmcli.errors import UsageError
from gmcli.metrics_file import RunFacts, Snapshot, check_metrics_file, last_success_in, metrics_text, write_metrics

RUN = RunFacts("ab" * 16, Path("/data/runs/clips"), "running", 1.7e9, 1.7e9 + 60, last_success=1.6e9)
SNAPSHOT = Snapshot(
    statuses={"done": 5, "no_target": 1, "failed": 2, "pending": 92},
    videos=40,
    videos_pending=38,
    answered=8,
    failed=2,
    frames=1234,
    frames_s=20.5,
    eta_s=6000,
    stage_seconds={"sam": 12.5, "llm": 3},
    restarts=0,
    at_work={},
)


def parsed(text):
    return list(text_string_to_metric_families(text))


def test_every_sample_has_help_type_and_the_run_directory():
    families = parsed(metrics_text(RUN, SNAPSHOT))
    assert len(families) == 14
    for family in families:
        assert family.documentation
        assert family.type == ("counter" if f"{family.name}_total" in metrics_text(RUN, SNAPSHOT) else "gauge")
        assert all(sample.labels["output"] == "/data/runs/clips" for sample in family.samples)
    info = next(f for f in families if f.name == "gmcli_run_info")
    assert info.samples[0].labels | {"output": ""} == {"output": "", "run_id": RUN.run_id, "version": __version__}


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "line\nend", "ünïcode", "\\n", 'end\\"', "tab\tand\x1b[31m"])
def test_names_survive_as_label_values(name):
    run = dataclasses.replace(RUN, output=Path("/runs") / name)
    snapshot = dataclasses.replace(SNAPSHOT, stage_seconds={name: 1.0})
    text = metrics_text(run, snapshot)
    assert "\x1b" not in text
    by_name = {f.name: f for f in parsed(text)}
    stage = by_name["gmcli_stage_seconds"].samples[0].labels["stage"]
    assert stage == name.replace("\t", "\\t").replace("\x1b", "\\x1b")
    assert by_name["gmcli_run_info"].samples[0].labels["output"] == f"/runs/{stage}"


def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    run = dataclasses.replace(RUN, output=tmp_path / "caf\udce9")
    write_metrics(tmp_path / "m.prom", run, SNAPSHOT)
    assert parsed((tmp_path / "m.prom").read_text())[0].samples[0].labels["output"].endswith("caf\\udce9")
    assert last_success_in(tmp_path / "m.prom", run.output) == 1.6e9


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "m.prom"
    write_metrics(file, RUN, SNAPSHOT)
    old = file.read_bytes()

    def fail(*_arguments):
        assert [p.suffix for p in tmp_path.iterdir() if p != file] == [".tmp"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_metrics(file, dataclasses.replace(RUN, state="finished"), SNAPSHOT)
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (old, [file])


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "clips.yaml").write_text("version: 1\n")
    (tmp_path / "empty").touch()
    for name in ("clips.yaml", "empty", "."):
        with pytest.raises(UsageError, match="holds no metrics of gmcli; it was left alone"):
            check_metrics_file(tmp_path / name, tmp_path / "run")
    with pytest.raises(UsageError, match="lies inside the run directory"):
        check_metrics_file(tmp_path / "run/metrics.prom", tmp_path / "run")
    write_metrics(tmp_path / "m.prom", RUN, None)
    check_metrics_file(tmp_path / "m.prom", tmp_path / "run")
    check_metrics_file(tmp_path / "new.prom", tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"\xff", b"gmcli_last_success_timestamp_seconds 5\n"])
def test_a_last_success_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / "m.prom").write_bytes(content)
    assert last_success_in(tmp_path / "m.prom", RUN.output) is None
