"""docs/cron.md says what the program does: commands parse, units are valid, keys and metrics are those that there are."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gmcli.cli.main import cli
from gmcli.metrics_file import _METRICS
from gmcli.records import STATUSES
from gmcli.status import read_status
from gmcli.watch import INTERVAL_S, Watch
from tests.fakes import run_inline, video_task

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/cron.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def units():
    """Return the units by the file name in their first line."""
    return {Path(text.split("\n")[0].removeprefix("# ")).name: text for text in blocks("ini")}


def exec_start():
    return re.search(r"^ExecStart=([^\\\n]*(?:\\\n[^\\\n]*)*)", units()["gmcli-clips.service"], re.MULTILINE)[
        1
    ].replace("\\\n", " ")


def crontab_commands():
    return [line.split(maxsplit=5)[5] for line in blocks("crontab")[0].splitlines() if re.match(r"\d", line)]


def commands():
    lines = [line for block in blocks("console") for line in block.splitlines()]
    for command in crontab_commands():
        lines.append(re.search(r"/opt/gmcli/bin/(gmcli [^>]*)", command)[1])
    return [*lines, exec_start().removeprefix("/opt/gmcli/bin/")]


def test_every_command_parses():
    assert len(commands()) == 5
    for line in commands():
        program, name, *arguments = shlex.split(line)
        assert program == "gmcli"
        cli.commands[name].make_context(name, arguments)


def test_every_option_exists():
    known = {option for c in cli.commands.values() for p in c.params for option in p.opts}
    own = {"--now", "--collector", "--channel"}  # of systemctl, the node exporter and a program of the reader's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - own <= known


def test_the_crontab_is_one_that_cron_reads():
    (command,) = crontab_commands()
    assert "%" not in command  # a line end, to cron
    assert subprocess.run(["sh", "-n", "-c", command]).returncode == 0
    fields = blocks("crontab")[0].splitlines()[-1].split()[:5]
    assert all(re.fullmatch(r"\*|\d+", field) for field in fields)


def test_the_units_are_units():
    assert sorted(units()) == ["gmcli-clips.service", "gmcli-clips.timer"]
    for text in units().values():
        unit = configparser.ConfigParser(interpolation=None, strict=True)
        unit.optionxform = str
        unit.read_string(text)
        assert "Unit" in unit.sections()
    service = units()["gmcli-clips.service"]
    codes = {int(c) for c in re.search(r"^RestartPreventExitStatus=(.*)$", service, re.MULTILINE)[1].split()}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes < documented
    assert not codes & {0, 1, 4, 130}
    assert "SuccessExitStatus=130\n" in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_has_nothing_to_say_about_the_units(tmp_path):
    for name, text in units().items():
        # It looks for the program.
        (tmp_path / name).write_text(text.replace("/opt/gmcli/bin/gmcli", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in units())],
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "gmcli-clips" in line]
    assert said == []


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="there is no logrotate here")
def test_logrotate_reads_its_stanza(tmp_path):
    (tmp_path / "gmcli").write_text(blocks("logrotate")[0])
    assert subprocess.run(["logrotate", "--debug", tmp_path / "gmcli"]).returncode == 0


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with everything that can be seen of it."""
    folder = tmp_path_factory.mktemp("watched")
    watch = Watch(folder / "out", metrics_file=folder / "gmcli.prom")
    run_inline(folder / "out", [video_task(folder, "a", "q0", "none"), video_task(folder, "bad")], watch=watch)
    watch.close(6)
    success = Watch(folder / "out", metrics_file=folder / "success.prom")
    success.close(0)
    return folder, watch


def test_the_keys_of_status_are_those_of_the_page(watched):
    folder, _ = watched
    table = PAGE.partition("| key | meaning |")[2].partition("\n\n")[0]
    keys = [key for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert sorted(keys) == sorted(read_status(folder / "out"))


def test_the_metrics_are_those_of_the_page(watched):
    folder, _ = watched
    table = PAGE.partition("| metric | labels | meaning |")[2].partition("\n\n")[0]
    names = re.findall(r"`(gmcli_\w+)`", table)
    assert sorted(names) == sorted(name for name, _, _ in _METRICS)
    text = (folder / "gmcli.prom").read_text() + (folder / "success.prom").read_text()
    assert all(f"\n{name}{{" in text for name in names)


def test_the_alerts_are_of_metrics_and_labels_that_there_are(watched):
    folder, _ = watched
    rules = [rule for group in yaml.safe_load(blocks("yaml")[0])["groups"] for rule in group["rules"]]
    assert len(rules) == 5
    names = {name for name, _, _ in _METRICS}
    families = list(text_string_to_metric_families((folder / "gmcli.prom").read_text()))
    for rule in rules:
        assert set(re.findall(r"gmcli_\w+", rule["expr"])) <= names
        assert rule["expr"].count("(") == rule["expr"].count(")")
        for name, label, value in re.findall(r'(gmcli_\w+)\{(\w+)="(\w+)"\}', rule["expr"]):
            assert value in {s.labels[label] for f in families if f.name == name for s in f.samples}


def test_the_notification_is_what_the_page_says(watched, monkeypatch):
    _, watch = watched
    text = PAGE.partition("## Being told")[2].partition("On its standard input is")[2]
    keys = set(re.findall(r"`([a-z_]+)`", text))
    assert keys == set(watch.summary(6))
    told = {}

    class Program:
        returncode = 0

        def __init__(self, _command, env, **_settings) -> None:
            told.update({k: v for k, v in env.items() if k.startswith("GMCLI_")})

        def communicate(self, text, timeout) -> None:
            json.loads(text)

    from gmcli import notify

    monkeypatch.setattr("subprocess.Popen", Program)
    notify.notify(["x"], watch.summary(6))
    assert {name for name, value in told.items() if value} == set(re.findall(r"`(GMCLI_\w+)`", text))


def test_the_page_has_the_programs_numbers():
    assert f"every {INTERVAL_S:.0f} seconds" in " ".join(PAGE.split())
    assert all(f"`{status}`" in PAGE for status in STATUSES)


def test_links_lead_to_the_page():
    assert "(docs/cron.md)" in (ROOT / "README.md").read_text()
