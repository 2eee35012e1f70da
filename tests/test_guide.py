"""The README and the guides: what they say of the code is true, their commands are understood, and all can be read."""

from __future__ import annotations

import ast
import importlib
import math
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from bench import nets, registry
from bench.cli import guide, main
from bench.cli.app import app
from bench.run.grid import profile
from tests.guides import BLOCK, HOME, STOPS, calls, floor_of, made, module_of, pages, remade

LINES = 150  # of the README, at most
TEXTS = [*pages(), HOME / "slurm" / "README.md"]
NOT_YET = ("mine", "MINE")  # what a reader is told to make


def named(path: Path) -> str:
    return str(path.relative_to(HOME))


def bench(*words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *words]
    known = os.environ | {"PYTHONPATH": str(HOME)} | environment
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


# ------------------------------------------------------------------------------------------------------------ as files


def test_every_guide_is_a_topic_and_begins_with_its_title_and_one_sentence() -> None:
    assert sorted(guide.topics()) == sorted(path.stem for path in guide.HOME.glob("*.md"))
    for topic in guide.topics():
        title, said, *_ = guide.page(topic).split("\n\n")
        assert re.fullmatch(r"# \S.*", title), topic
        assert guide.summary(topic) == said.replace("\n", " ")
        assert re.fullmatch(r"[A-Z].{20,150}[^.]\.", guide.summary(topic)), topic


def test_the_readme_is_short_and_begins_with_what_one_types() -> None:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    blocks = re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    assert blocks[0].splitlines() == [
        "    pip install -e . && bench run --methods rd,moco --tasks fundus_all",
        "    bench guide",
    ]
    assert text.count("](results/tables/") == 1, "one picture"
    assert all(f"](bench/guide/{topic}.md)" in text for topic in guide.topics())


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for place in re.findall(r"\]\(([^)]+)\)", text):
        assert place.startswith("https://") or (path.parent / place).is_file(), place
    for topic in re.findall(r"`bench guide ([a-z-]+)`", text):
        assert topic in guide.topics()


def test_the_guide_to_clusters_knows_every_key_of_a_profile() -> None:
    said = set(re.findall(r"`\[?(?:cluster\.)?(\w+)(?:\.NAME)?\]?`", guide.page("clusters")))
    assert set(profile.KEYS) <= said


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("path", pages(), ids=named)
def test_generated_blocks_are_what_their_commands_print(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<!--") == 2 * len(BLOCK.findall(text)), "a comment that is no block"
    assert remade(text) == text, "run `python -m tests.guides --write`"


def test_a_block_that_is_not_true_is_made_again() -> None:
    block = "<!-- made by: python -m tests.guides budgets -->\n{}<!-- end -->"
    told = made("python -m tests.guides budgets")
    assert "| `paper` | the method's own | 512 px |" in told
    assert remade(block.format(told.replace("512", "256"))) == remade(block.format("")) == block.format(told)


def test_fields_say_type_default_and_meaning() -> None:
    rows = made("python -m tests.guides fields TaskSpec").splitlines()
    assert '| `metrics` | tuple[str, ...] | ("dsc",) | the first is its headline |' in rows
    assert "| `revision` | str | needed | of the data |" in rows
    assert not any(row.startswith("| `origin`") for row in rows)


# ------------------------------------------------------------------------------------------------------------ commands


def code_lines(text: str) -> Iterator[str]:
    """Every line of a block of code, without a comment at its end."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `bench` of every command in blocks of code, and between backticks."""
    spans = [span for span in re.findall(r"`(bench [^`]+)`", text) if "..." not in span]
    for line in [*code_lines(text), *spans]:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True) if part.startswith("bench ") else []
            if words:
                yield words[1:]


def parsed(words: list[str]) -> Iterator[dict[str, Any]]:
    """The values that a command line gives to each command on its way; raises where typer would refuse it."""
    command: Any = typer.main.get_command(app)
    parent, rest, name = None, list(words), "bench"
    while True:
        context = command.make_context(name, rest, parent=parent)
        yield context.params
        rest = [*context._protected_args, *context.args]
        if not hasattr(command, "commands") or not rest:
            return
        name, command, rest = command.resolve_command(context, rest)
        parent = context


def test_commands_are_found_and_wrong_ones_are_refused() -> None:
    text = (
        "    pip install x && bench run --seeds 2  # twice\n\nTry `bench list methods`, or\n\n```\nbench nothing\n```\n"
    )
    first, second, third = commands(text)
    assert (first, second, third) == (["run", "--seeds", "2"], ["nothing"], ["list", "methods"])
    assert list(parsed(first))[-1]["seeds"] == 2
    for words in (second, ["run", "--seedz", "2"], ["run", "--seeds", "two"], ["data", "look"], ["table", "a", "b"]):
        with pytest.raises(typer.BadParameter.__mro__[2]):
            list(parsed(words))


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_commands_are_understood(path: Path) -> None:
    found = registry.scan()
    for words in commands(path.read_text(encoding="utf-8")):
        if words == ["--install-completion"]:
            continue  # would do it
        values = list(parsed([word for word in words if word != "--help"]))[-1]
        for kind in ("method", "task"):
            asked = values.get(f"{kind}s")
            if asked and not any(sign in asked for sign in ("/", ".toml", *NOT_YET)):
                assert found.select(kind, asked), words
        profile = values.get("profile")
        assert profile is None or (HOME / profile).is_file() or str(profile) == "FILE", words


# ------------------------------------------------------------------------------------------------------------ programs


@pytest.mark.parametrize("topic", guide.topics())
def test_programs_in_guides_declare_what_can_be_declared(topic: str, tmp_path: Path) -> None:
    """A block of Python with imports is a plug-in file that `bench` reads; every other one is at least Python."""
    for at, block in enumerate(re.findall(r"```python\n(.*?)```", guide.page(topic), re.DOTALL)):
        ast.parse(block)
        if "import" in block:
            path = tmp_path / f"block{at}.py"
            path.write_text(block)
            assert registry.scan().add_file(path)
            compile(block, path, "exec")


def test_the_metric_and_the_backbone_of_the_guides_work(tmp_path: Path) -> None:
    shelves = registry.scan()
    for topic in ("metric", "backbone"):
        (block,) = re.findall(r"```python\n(.*?)```", guide.page(topic), re.DOTALL)
        (tmp_path / f"{topic}.py").write_text(block)
        (name,) = shelves.add_file(tmp_path / f"{topic}.py")
        made = registry.load(getattr(shelves, f"{topic}s")[name])
        if topic == "metric":
            predicted, wanted = np.array([[1, 1, 0, 0], [0, 0, 0, 0]]) == 1, np.array([[1, 0, 0, 1], [1, 0, 0, 0]]) == 1
            np.testing.assert_array_equal(made(predicted, wanted), [0.5, math.nan])
        else:
            net = nets.Backbone(name, 1, made)
            images = torch.zeros(2, 1, 32, 32)
            assert [tuple(level.shape) for level in net(images)] == [(2, 16, 32, 32), (2, 32, 16, 16)]


# --------------------------------------------------------------------------------------------------------------- house


def found_as(dotted: str) -> Any:
    """The module, class, function or attribute of this name; LookupError where there is none."""
    parts = dotted.split(".")
    if parts[-1] == "__main__":
        return module_of(dotted)  # to import it is to run it
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(value, name):
                raise LookupError(dotted)
            value = getattr(value, name)
        return value
    raise LookupError(dotted)


@pytest.mark.parametrize("topic", [topic for topic in guide.topics() if topic != "changes"])
def test_what_a_guide_names_exists(topic: str) -> None:
    text = re.sub(r"```.*?```", "", guide.page(topic), flags=re.DOTALL)
    for dotted in re.findall(r"`(bench(?:\.\w+)+)`", text):
        found_as(dotted)


def test_moved_modules_are_where_the_changes_say() -> None:
    moved = guide.page("changes").partition("## 0.2.0")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`bench.+) \|$", moved, re.MULTILINE)]
    assert len(rows) > 5
    for old, new in rows:
        names, places = re.findall(r"`(bench[.\w]+)`", old), re.findall(r"`(bench[.\w]+)`", new)
        if "the same names" in new:
            places = [f"{places[0]}.{name.rpartition('.')[2]}" for name in names]
        for name in places:
            found_as(name)
        for name in names:
            assert not HOME.joinpath(*name.split(".")).with_suffix(".py").exists(), name


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert found_as("bench.data.store.Store.write").__name__ == "write"
    for dotted in ("bench.nothing", "bench.data.store.Store.nothing", "bench.run.launch.fly"):
        with pytest.raises(LookupError):
            found_as(dotted)


def test_the_house_walks_eight_stops_in_the_order_of_the_tree() -> None:
    text = guide.page("house")
    headings = re.findall(r"^## (\d)\. .*: `(.+)`$", text, re.MULTILINE)
    assert headings == [(str(number), name) for number, (name, _) in enumerate(STOPS, 1)]
    assert len(STOPS) == 8
    for number, (name, caller) in enumerate(STOPS, 1):
        assert callable(found_as(name))
        assert caller < number
        if caller:
            above = STOPS[caller - 1][0]
            assert calls(above, name), f"{above} does not reach {name}"
            assert floor_of(name) < floor_of(above), f"{name} does not lie below {above}"
    assert not calls("bench.run.transfer.transfer", "bench.run.launch.run")


# ---------------------------------------------------------------------------------------------------------- on the line


def test_the_list_of_guides_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == guide.topics()
    assert guide.summary("house") in lines[-2]


def test_a_guide_is_plain_where_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", "catalogue"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# What there is\n\n")
    assert "\x1b" not in text
    assert "<!--" not in text
    assert "made by" not in text
    assert re.sub(r"<!--.*?-->\n?", "", (guide.HOME / "catalogue.md").read_text(encoding="utf-8")) == text


@pytest.mark.parametrize(
    ("asked", "told"), [("hous", "did you mean 'house'"), ("zzz", ", ".join(guide.topics())), ("../cli/x", "there are")]
)
def test_an_unknown_topic_is_refused(asked: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", asked]) == 2
    assert told in capsys.readouterr().err


def test_a_guide_needs_no_torch() -> None:
    code = (
        "import sys; from bench.cli import main; main(sys.argv[1:]); "
        "print(*{'torch', 'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    for words in (["guide"], ["guide", "house"]):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
        assert done.stderr.split() == []


def on_a_terminal(*words: str, keyboard: bool, **environment: str) -> str:
    """What a terminal of 80 columns and 24 lines is shown."""
    master, slave = pty.openpty()
    known = os.environ | {"PYTHONPATH": str(HOME), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words],
        stdin=slave if keyboard else subprocess.DEVNULL,
        stdout=slave,
        env=known | environment,
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
    assert process.wait() == 0
    return b"".join(pieces).decode()


@pytest.mark.parametrize(("topic", "keyboard", "paged"), [("house", True, True), ("house", False, False)])
def test_on_a_terminal_it_is_drawn_and_a_long_one_is_paged(
    topic: str, keyboard: bool, paged: bool, tmp_path: Path
) -> None:
    text = on_a_terminal("guide", topic, keyboard=keyboard, PAGER=f"tee {tmp_path / 'paged'}")
    assert (tmp_path / "paged").exists() == paged
    assert "\x1b[" in text
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
    assert "## " not in shown
    assert "The house" in shown
    assert max(map(len, shown.splitlines())) <= 80


# ---------------------------------------------------------------------------------------------------------- completion

TYPED = {
    "rd,mo": ["rd,moco", "rd,mocov2"],
    "all,!scr": ["all,!scratch"],
    "rd,rd": ["rd,rd_v1"],  # what stands there already is not offered again
    "ld_table": ["ld_table2"],
    "nothing": [],
}


def completed(shell: str, line: str) -> list[str]:
    """What a shell is offered for a line that ends with an unfinished word."""
    words = line.split(" ")
    environment = {"_BENCH_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return re.findall(r"[\w,!-]+", bench(**environment).stdout.replace("_arguments", "").replace("'*: :", ""))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_offered_names(shell: str) -> None:
    assert completed(shell, "bench run --methods rd,mo") == TYPED["rd,mo"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        *((f"bench run --methods {typed}", offered) for typed, offered in TYPED.items()),
        ("bench plan --tasks idrid_od,idrid_", ["idrid_od,idrid_he"]),
        ("bench run --budget q", ["quick"]),
        ("bench run --protocol l", ["linear"]),
        ("bench run --backbone tiny", ["tiny_vgg16"]),
        ("bench run --corpus hann", ["hannover"]),
        ("bench table ld_table4", ["ld_table4"]),
        ("bench show scr_l", ["scr_lung"]),
        ("bench list da", ["datasets"]),
        ("bench guide ho", ["house"]),
        ("bench gu", ["guide"]),
    ],
)
def test_what_is_offered(line: str, offered: list[str]) -> None:
    assert completed("bash", line) == offered


def test_completion_needs_no_torch() -> None:
    code = (
        "import sys; from bench.cli import main\ntry: main([])\n"
        "finally: print(*{'torch', 'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    environment = os.environ | {"_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "bench show r", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, env=environment, capture_output=True, text=True, check=False
    )
    assert "rd" in done.stdout.split()
    assert done.stderr.split() == []


@pytest.mark.parametrize(
    ("shell", "script"),
    [
        ("bash", ".bash_completions/bench.sh"),
        ("zsh", ".zfunc/_bench"),
        ("fish", ".config/fish/completions/bench.fish"),
    ],
)
def test_completion_installs_itself_below_the_home_folder(shell: str, script: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    said = bench("--install-completion", shell, **environment).stdout
    assert f"{shell} completion installed in {tmp_path / script}" in " ".join(said.split())
    text = (tmp_path / script).read_text()
    assert "_BENCH_COMPLETE" in text
    assert bench("--show-completion", shell, **environment).stdout.strip() in text.strip()


def test_the_script_for_bash_works_in_bash(tmp_path: Path) -> None:
    script = bench("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    command = tmp_path / "bench"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={HOME} exec {sys.executable} -m bench "$@"\n')
    command.chmod(0o755)
    line = "COMP_WORDS=(bench run --methods rd,mo); COMP_CWORD=3"
    asked = f'{script}\n{line}\n_bench_completion {command}\necho "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == TYPED["rd,mo"]


def test_the_help_shows_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out
