"""The command line: every command, every refusal in one line, the exit codes, and no torch where none is needed."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import cli, registry
from bench.cli import offers, options, show, speak
from bench.data.store import Store
from bench.run import launch
from bench.run.cell import CellOutcome
from bench.run.grid import OPTIONS, Request
from bench.spec import FAILED, SCHEMA
from bench.table import load_layouts

HOME = Path(__file__).resolve().parent.parent
SMOKE = ["--budget", "smoke", "--steps", "1", "--image-size", "32", "--device", "cpu"]
ASKED = ["--methods", "simclr", "--tasks", "chase", *SMOKE]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in an empty folder with no data configured."""
    monkeypatch.chdir(tmp_path)
    for name in ("BENCH_DATA", "BENCH_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a refused command says."""
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that succeeds prints."""
    assert cli.main(words) == 0
    return capsys.readouterr().out


def test_a_record_of_a_later_version_is_named_and_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert Store(Path("runs"), Path("results")).write({"schema": SCHEMA + 1, "cell_key": "ab" * 32})
    assert f"1 record with schema {SCHEMA + 1} left out" in said(capsys, "table")
    assert "No records to show" in said(capsys, "table", "--methods", "rd", "--tasks", "chase")
    assert "no record has the budget 'quick'" in refused(capsys, "table", "--budget", "quick")
    assert f"schema {SCHEMA + 1}, this version reads {SCHEMA}" in said(capsys, "status")


# ------------------------------------------------------------------------------------------------------------ refusals

BAD_REQUESTS = [
    (["--methods", "rdd"], "unknown method 'rdd'; did you mean 'rd'"),
    (["--tasks", "chse"], "unknown task 'chse'; did you mean 'chase'?"),
    (["--methods", "./nowhere.py"], r"there is no file \./nowhere\.py"),
    (["--seeds", "0"], "--seeds must be at least 1"),
    (["--seeds", "two"], "'--seeds'.*see `bench plan --help`"),
    (["--budget", "quik"], "unknown budget 'quik'; did you mean 'quick'"),
    (["--protocol", "linaer"], "unknown protocol 'linaer'; did you mean 'linear'"),
    (["--backbone", "tiny_vgg"], "unknown backbone 'tiny_vgg'"),
    (["--corpus", "kagle_dr"], "unknown corpus 'kagle_dr'; did you mean 'kaggle_dr'"),
    (["--corpus", "folder:nowhere"], "nowhere is no folder"),
    (["--label-fraction", "0.5,2"], r"--label-fraction must be in \(0, 1\], not 2"),
    (["--label-fraction", "half"], "--label-fraction takes numbers"),
    (["--set", "simclr.temprature=1"], "simclr has no field 'temprature'; did you mean 'temperature'"),
    (["--set", "simclr.temperature=hot"], "simclr.temperature takes a value of type float, not 'hot'"),
    (["--set", "temperature"], "--set takes METHOD.FIELD=VALUE"),
    (["--steps", "0"], "--steps must be at least 1"),
    (["--image-size", "33"], "--image-size must be a multiple of 32"),
    (["--batch-size", "1"], "simclr needs at least 2 images"),
    (["--jobs", "0"], "--jobs must be at least 1"),
    (["--checkpoint-seconds", "-1"], "--checkpoint-seconds must be at least 0, not -1"),
    (["--checkpoint-seconds", "nan"], "--checkpoint-seconds must be at least 0, not nan"),
    (["--data", "nowhere"], "nowhere is no folder"),
    (["--stepz", "3"], "no such option: --stepz.*see `bench plan --help`"),
    (["--seeds"], "'--seeds' requires an argument"),
    (["extra"], "unexpected extra argument"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD_REQUESTS, ids=[" ".join(words) for words, _ in BAD_REQUESTS])
def test_a_wrong_request_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert re.search(sentence, refused(capsys, "plan", "--methods", "simclr", "--tasks", "chase", *words))
    assert list(Path.cwd().iterdir()) == []


OTHER_REFUSALS = [
    (["rnu"], "no such command 'rnu'.*see `bench --help`"),
    (["--nope"], "no such option: --nope"),
    (["plan", "--tasks", "chase"], "name some methods with --methods"),
    (["run", "--methods", "rd"], "name some tasks with --tasks"),
    (["list", "method"], "`bench list` knows methods, .*did you mean 'methods'"),
    (["list"], "(?i)missing argument"),
    (["show", "simclrr"], "nothing is called 'simclrr'; did you mean 'simclr'"),
    (["show", "idird"], "nothing is called 'idird'; did you mean 'idrid'"),
    (["show", "chase", "--kind", "corpus"], "chase is a task and a dataset: --kind takes no 'corpus' for it"),
    (["table", "ld_tabel2"], "no table layout is called 'ld_tabel2'; did you mean 'ld_table2'"),
    (["table", "--format", "pdf"], "no table format is called 'pdf'"),
    (["table", "--against", "published"], "needs a layout"),
    (["table", "ld_table2", "--against", "theirs"], "--against knows published, not 'theirs'"),
    (["table", "--budget", "quick"], "no record has the budget 'quick'; there are no records"),
    (["logs", "chase/rd"], "no cell is called 'chase/rd'"),
    (["show", "chase", "--sheet", "/dev/null/a.png"], "/dev/null/a.png cannot be written: a file stands where"),
    (["new", "corpus", "mine"], "makes a method or a task, not 'corpus'"),
    (["new", "method", "3d"], "'3d' cannot name a method"),
]


@pytest.mark.parametrize(("words", "sentence"), OTHER_REFUSALS, ids=[" ".join(words) for words, _ in OTHER_REFUSALS])
def test_every_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert re.search(sentence, refused(capsys, *words))


def test_a_fault_of_ours_is_one_line_and_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr(registry, "scan", fail)
    line = refused(capsys, "plan", *ASKED, "--runs", "here", code=1)
    assert "ZeroDivisionError: of all things" in line
    [file] = Path("here").iterdir()
    assert str(file) in line
    assert "Traceback" in file.read_text()
    monkeypatch.setenv("BENCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan", *ASKED])


def test_an_interrupted_command_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "scan", interrupt)
    assert "interrupted" in refused(capsys, "plan", *ASKED, code=130)


# ------------------------------------------------------------------------------------------------------------- options


def test_the_options_are_those_of_a_request_and_the_help_tells_its_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(options.REQUEST) == set(OPTIONS.values()) | {"profile"}
    text = " ".join(said(capsys, "run", "--help").split())
    for name in ("seeds", "budget", "backbone"):
        default = next(field.default for field in dataclasses.fields(Request) if field.name == name)
        assert re.search(rf"--{name} [^(]*\(default: {default}\)", text), name
    for option in options.REQUEST:
        assert f"--{option.replace('_', '-')} " in text
    shared = " ".join(said(capsys, "plan", "--help").split()).split("Options:")[1].split("--json")[0]
    assert shared in text, "run and plan take the same request"


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(said(capsys, "plan", "--json", *words))
    return plan


def test_the_command_line_wins_over_the_profile_and_the_profile_over_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Path("mine.toml")
    profile.write_text('methods = ["simclr"]\ntasks = "chase"\nseeds = 2\nlabel-fraction = [0.5, 1.0]\nset = []\n')
    cells = planned(capsys, "--profile", "mine.toml")["cells"]
    assert {(cell["seed"], cell["label_fraction"]) for cell in cells if cell["kind"] == "transfer"} == {
        (0, 0.5),
        (0, 1.0),
        (1, 0.5),
        (1, 1.0),
    }
    over = planned(capsys, "--profile", "mine.toml", "--seeds", "1", "--label-fraction", "0.2", "--tasks", "hrf")
    assert {(cell["task"], cell["seed"], cell["label_fraction"]) for cell in over["cells"]} == {
        (None, 0, None),
        ("hrf", 0, 0.2),
    }
    monkeypatch.setenv("BENCH_DATA", "nowhere")
    assert "nowhere is no folder" in refused(capsys, "plan", "--profile", "mine.toml")
    profile.write_text('methods = "simclr"\ntasks = "chase"\ndata = "elsewhere"\n')
    assert "elsewhere is no folder" in refused(capsys, "plan", "--profile", "mine.toml")
    assert "there is no folder" not in refused(capsys, "plan", "--profile", "mine.toml", "--data", "third")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sedes = 3", "unknown key 'sedes'; did you mean 'seeds'"),
        ('seeds = "3"', "sets seeds to '3', but it takes a whole number"),
        ('checkpoint-seconds = "3"', "sets checkpoint_seconds to '3', but it takes a number"),
        ("seeds = ", "is no TOML"),
    ],
)
def test_a_misspelt_profile_is_refused(capsys: pytest.CaptureFixture[str], content: str, sentence: str) -> None:
    Path("mine.toml").write_text(content + "\n")
    assert sentence in refused(capsys, "plan", "--profile", "mine.toml", *ASKED)


def test_a_changed_hyper_parameter_is_in_the_label(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *ASKED, "--set", "simclr.temperature=0.1", "--set", "simclr.projection=32")
    assert {cell["label"] for cell in plan["cells"]} == {"scratch", "simclr[projection=32,temperature=0.1]"}


def test_missing_data_is_an_error_unless_it_may_be_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    assert re.search("chase.* under data", refused(capsys, "plan", *ASKED, "--data", "data"))
    assert "nothing is left to run" in refused(capsys, "plan", *ASKED, "--data", "data", "--skip-missing")


# ------------------------------------------------------------------------------------------------------------ listings


@pytest.mark.parametrize("kind", [kind for kind in offers.KINDS if kind != "backbones"])
def test_lists_hold_everything_for_people_and_programs(
    capsys: pytest.CaptureFixture[str], shelves: registry.Registry, kind: str
) -> None:
    rows = json.loads(said(capsys, "list", kind, "--json"))
    names = [row[next(iter(row))] for row in rows]
    lines = said(capsys, "list", kind).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == names
    wanted = {
        "methods": set(shelves.methods),
        "tasks": set(shelves.tasks),
        "corpora": set(shelves.corpora),
        "datasets": set(shelves.datasets),
        "protocols": set(shelves.protocols),
        "metrics": set(shelves.metrics),
        "groups": {*shelves.groups("method"), *shelves.groups("task")},
    }
    assert set(names) == wanted.get(kind, set(load_layouts()))


def test_backbones_are_listed_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["backbone"]: row for row in json.loads(said(capsys, "list", "backbones", "--json"))}
    assert rows["tiny_vgg16"] == {
        "backbone": "tiny_vgg16",
        "images": "2-D",
        "encoder_parameters": 922_896,
        "decoder_parameters": 510_384,
        "transfer_decoder_parameters": 492_001,
    }
    assert set(rows) == {"tiny_vgg16", "small_vgg16", "vgg16", "resnet18", "resnet34", "resnet50"}


def test_show_tells_hyper_parameters_paper_licence_and_file(
    capsys: pytest.CaptureFixture[str], shelves: registry.Registry
) -> None:
    spec = shelves.methods["simclr"]
    text = said(capsys, "show", "simclr")
    assert spec.paper in text
    assert f"{spec.origin.file}:{spec.origin.line}" in text
    for item in spec.fields:
        assert re.search(rf"{item.name} +{item.type} +{item.default} +{re.escape(item.doc)}", text)
    shown = json.loads(said(capsys, "show", "chase", "--json"))
    assert (shown["plugin"], shown["name"], shown["licence"]) == ("task", "chase", shelves.tasks["chase"].licence)
    assert shelves.corpora["kaggle_dr"].source in said(capsys, "show", "kaggle_dr")


def test_show_tells_a_dataset_by_what_belongs_to_its_images_and_by_what_stands_on_it(
    capsys: pytest.CaptureFixture[str], shelves: registry.Registry
) -> None:
    spec = shelves.datasets["idrid"]
    text = said(capsys, "show", "idrid")
    for value in (spec.licence, spec.citation, spec.source, ", ".join(spec.folders), spec.layout):
        assert f"  {value}\n" in text
    assert re.search(r"^tasks +idrid_od, idrid_he\ncorpora +idrid_grading\nfile +", text, re.MULTILINE)
    assert "stand in" not in text
    assert re.search(r"^dataset +idrid$", said(capsys, "show", "idrid_he"), re.MULTILINE)


def test_show_asks_which_kind_where_several_share_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", "drive")
    assert text.startswith("task ")
    assert text.endswith("drive is also a dataset: bench show drive --kind dataset\n")
    shown = json.loads(said(capsys, "show", "drive", "--kind", "dataset", "--json"))
    assert (shown["plugin"], shown["tasks"], shown["corpora"]) == ("dataset", ["drive", "rite"], [])
    assert "also" not in said(capsys, "show", "idrid")


def test_doctor_names_broken_plug_ins_and_missing_data_and_ends_with_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = registry.scan()
    broken.broken["methods/odd.py"] = "methods/odd.py cannot be read as Python"
    monkeypatch.setattr(registry, "scan", lambda: broken)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # whatever cluster this machine belongs to
    (tmp_path / "data" / "CHASEDB1").mkdir(parents=True)
    checks = {check["name"]: check for check in json.loads(said(capsys, "doctor", "--data", "data", "--json"))}
    assert checks["torch"]["state"] == "ok"
    assert checks["plug-in"] == {
        "name": "plug-in",
        "state": "problem",
        "detail": "methods/odd.py cannot be read as Python",
    }
    assert checks["chase"]["state"] == "note"
    assert checks["chase"]["detail"].startswith("data/CHASEDB1, 0/28 images: 56 files are missing (")
    assert checks["hrf"]["state"] == "note"
    assert broken.tasks["hrf"].source in checks["hrf"]["detail"]
    assert "1 problem found" in said(capsys, "doctor")
    (tmp_path / "file").write_text("")
    text = said(capsys, "doctor", "--runs", "file/runs", "--data", "file")
    assert re.search("runs +problem", text)
    assert re.search("data +problem +file is a file: give --data the folder", text)


def test_new_tells_where_it_wrote_and_how_to_try_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "new", "method", "mine_alone")
    assert "wrote mine_alone.py" in text
    assert "bench run --methods ./mine_alone.py" in text
    assert planned(capsys, "--methods", "./mine_alone.py", "--tasks", "chase")["totals"]["to_run"] == 3


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a small grid ran, and what the run printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = bench(folder, "run", *ASKED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in an interpreter of its own, without a terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "BENCH_DATA"}
    environment |= {"PYTHONPATH": str(HOME)}
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_run_says_what_it_does_and_ends_with_the_table(finished: tuple[Path, str]) -> None:
    _, text = finished
    lines = text.splitlines()
    assert lines[0].startswith("scratch, simclr on chase · 1 seed · budget smoke (steps=1, image_size=32)")
    assert lines[1] == "no data root configured: running on phantoms (generated images, not data)"
    assert lines[2].startswith("1 pretraining (1 new), 2 transfers (2 new); time and disk unknown")
    assert sum(bool(re.match(r"\[[123]/3\] .*, seed 0 done \(", line)) for line in lines) == 3
    assert "phantom: generated images, not data" in text
    assert re.match(r"2 of 2 results in results/records; 1 pretraining and 2 transfers run in ", lines[-1])
    assert "\x1b" not in text


def test_the_second_run_trains_nothing(finished: tuple[Path, str]) -> None:
    folder, text = finished
    records = {path: path.stat().st_mtime_ns for path in (folder / "results" / "records").iterdir()}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    again = bench(folder, "run", *ASKED)
    assert (
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5
    )  # of a processor: a busy machine is slower
    assert again.returncode == 0
    assert "nothing was trained" in again.stdout
    table = text[text.index("Methods by tasks") : text.index("2 of 2 results")]
    assert table in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / "results" / "records").iterdir()} == records


def test_json_of_a_run_is_all_that_stands_on_standard_output(finished: tuple[Path, str]) -> None:
    done = bench(finished[0], "run", *ASKED, "--json")
    summary = json.loads(done.stdout)
    assert (summary["cells"], summary["counts"], summary["exit_code"]) == (2, {"done": 2}, 0)
    assert (summary["pretrained"], summary["transferred"], summary["phantom"]) == (0, 0, True)
    assert summary["failures"] == summary["warnings"] == []
    assert "phantoms" in done.stderr


def test_plan_and_status_know_what_is_there(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished[0])
    cells = planned(capsys, *ASKED)["cells"]
    assert [(cell["kind"], cell["state"]) for cell in cells] == [("pretrain", "cached"), *[("transfer", "done")] * 2]
    assert "nothing to train" in said(capsys, "plan", *ASKED)
    more = said(capsys, "plan", *ASKED, "--tasks", "hrf")
    assert re.search(r"pretrain +simclr +kaggle_dr +1 +cached", more)
    assert re.search(r"transfer +scratch +hrf +1 +new +[\d.]+ s +[\d.]+ [kM]B", more)
    states = json.loads(said(capsys, "status", "--json"))
    assert [(state["kind"], state["state"]) for state in states] == [("pretrain", "done"), *[("transfer", "done")] * 2]
    assert "3 cells: 3 done" in said(capsys, "status")


def test_logs_finds_a_cell_by_key_name_and_task_and_method(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished[0])
    states = json.loads(said(capsys, "status", "--json"))
    cell = next(state for state in states if state["name"].startswith("chase-simclr"))
    log = (Path(cell["folder"]) / "log.txt").read_text()
    for name in (cell["key"], cell["key"][:8], cell["name"], f"transfer/{cell['name']}", "chase/simclr"):
        assert said(capsys, "logs", name) == log
    assert "could be any of 2 cells" in refused(capsys, "logs", "chase")


def test_tables_come_from_records_alone_in_every_format(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished[0])
    text = said(capsys, "table")
    assert text in finished[1] + "\n"
    for form in ("md", "csv", "latex", "json"):
        assert "scratch" in said(capsys, "table", "--format", form)
    for form, line in (("text", "\ncost of these"), ("md", "\n- cost of these")):
        assert line in said(capsys, "table", "--format", form), "the costs belong to the list of notes"
    assert "simclr" not in said(capsys, "table", "--methods", "scratch")
    assert "scratch" in said(capsys, "table", "--corpus", "kaggle_dr"), "what uses no corpus belongs to all"
    assert "budget 'paper'; records have smoke" in refused(capsys, "table", "--budget", "paper")
    beside = said(capsys, "table", "ld_table2", "--against", "published", "--format", "md")
    assert "phantom" in beside


def test_a_changed_source_is_told(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry.scan()
    spec = found.methods["simclr"]
    found.methods["simclr"] = dataclasses.replace(spec, origin=dataclasses.replace(spec.origin, source=b"other = 1"))
    monkeypatch.setattr(registry, "scan", lambda *_: found)
    monkeypatch.chdir(finished[0])
    capture: list[str] = []
    monkeypatch.setattr(speak, "warn", capture.append)
    assert cli.main(["run", *ASKED]) == 0
    assert any("2 cells were made by an older source" in line for line in capture)


def test_a_failed_cell_gives_code_1_and_points_to_its_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(grid: Any, store: Any, site: Any, jobs: Any, observer: Any, **_: Any) -> launch.Outcome:
        outcome = launch.Outcome()
        how = CellOutcome(FAILED, "the loss became nan at step 3", ran=True)
        observer.ended(grid.pretrainings[0], how)
        outcome.failures.append((grid.pretrainings[0], how))
        outcome.counts.update({"done": 1, "blocked": 1})
        return outcome

    monkeypatch.setattr(launch, "run", fail)
    assert cli.main(["run", *ASKED]) == 1
    out, err = capsys.readouterr()
    assert "[1/3] simclr on kaggle_dr, seed 0 failed: the loss became nan at step 3" in out
    assert "1 of 2 results in results/records (1 blocked)" in out
    assert re.search(r"warning: simclr on kaggle_dr, seed 0: failed: the loss .*; see `bench logs [0-9a-f]{12}`", err)
    assert cli.main(["run", *ASKED, "--runs", "my runs"]) == 1
    assert re.search(r"see `bench logs [0-9a-f]{12} --runs 'my runs'`", capsys.readouterr().err)


def test_control_c_is_one_clear_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    words = ["run", "--methods", "simclr", "--tasks", "chase", "--budget", "smoke", "--steps", "100000"]
    command = [sys.executable, "-m", "bench", *words, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(HOME)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/pretrain/*/progress.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"error: interrupted with \d results? to go; the same command goes on .*\n", errors)
    states = json.loads(bench(tmp_path, "status", "--json").stdout)
    assert "interrupted" in {state["state"] for state in states}
    assert "running" not in {state["state"] for state in states}


# ------------------------------------------------------------------------------------------------------------ terminal


def on_a_terminal(folder: Path, *words: str, code: int = 0) -> str:
    """Everything a command that ends with `code` prints on a terminal of 80 columns."""
    master, slave = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(HOME), "COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words], cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    pieces = []
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux ends a terminal whose last process is gone with an error
            piece = b""
        if not piece:
            break
        pieces.append(piece)
    os.close(master)
    assert process.wait() == code
    return b"".join(pieces).decode()


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def test_on_a_terminal_nothing_is_wider_than_it_and_errors_stay_one_line(finished: tuple[Path, str]) -> None:
    error = on_a_terminal(finished[0], "plan", "--methods", "rdd", "--tasks", "chase", code=2)
    assert visible(error).splitlines() == ["error: unknown method 'rdd'; did you mean 'rd' or 'rd_v1'?"]
    assert "\x1b[31m" in error
    for words in (["run", *ASKED], ["list", "tasks"], ["status"], ["plan", *ASKED], ["show", "chase"], ["--help"]):
        text = visible(on_a_terminal(finished[0], *words))
        assert max(len(line) for line in text.splitlines() if not line.startswith("warning: ")) <= 80, words
        assert "Traceback" not in text


def test_a_damaged_record_is_healed_under_a_bar_and_told(finished: tuple[Path, str], tmp_path: Path) -> None:
    for name in ("runs", "results"):
        shutil.copytree(finished[0] / name, tmp_path / name)
    record = next(path for path in (tmp_path / "results" / "records").iterdir() if '"scratch"' in path.read_text())
    score = json.loads(record.read_text())["score"]
    record.write_text(record.read_text()[:100])
    text = on_a_terminal(tmp_path, "run", *ASKED)
    assert "━" in text
    assert re.search(r"all cells .* 0/1", visible(text))
    assert "[1/1] chase from scratch, seed 0 done" in visible(text)
    assert "2 of 2 results in results/records; 0 pretrainings and 1 transfer run" in visible(text)
    assert "is damaged and was moved to" in " ".join(visible(text).split())
    assert "Traceback" not in text
    assert json.loads(record.read_text())["score"] == score


# --------------------------------------------------------------------------------------------------------------- light


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["plan", *ASKED],
        ["run", *ASKED],
        ["status"],
        ["table"],
        ["table", "ld_table2", "--against", "published"],
        ["list", "tasks"],
        ["show", "simclr"],
        ["logs", "chase/simclr"],
        ["data", "status"],
        ["data", "--help"],
    ],
    ids=" ".join,
)
def test_no_torch_where_nothing_is_computed(finished: tuple[Path, str], words: list[str]) -> None:
    code = (
        "import sys; from bench.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported') or ('rich' in sys.modules and 'rich was'))"
    )
    command = [sys.executable, "-c", code, *words]
    environment = os.environ | {"PYTHONPATH": str(HOME)}
    done = subprocess.run(command, cwd=finished[0], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------- amounts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (7325, "2 h 02 min")],
)
def test_seconds(seconds: float | None, text: str) -> None:
    assert show.seconds_text(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [(None, "?"), (999, "999 B"), (1500, "1.5 kB"), (2e12, "2.0 TB")])
def test_bytes(amount: float | None, text: str) -> None:
    assert show.bytes_text(amount) == text


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("--runs", ["--runs", "x"]), ("the current folder", []), ("the last of two", ["--runs", "y", "--runs", "x"])],
)
def test_tracebacks_lie_with_the_runs(name: str, chosen: list[str]) -> None:
    file = cli._keep_traceback(["plan", *chosen])
    assert file.parent == Path("x" if chosen else "runs"), name
