"""What a file does, as a digest: the same after tidying and on every Python, another after a change."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench import registry
from bench.registry.sources import LEDGER, is_current, source_of
from bench.spec import MethodSpec, Origin, digest
from bench.spec.meaning import meaning

HOME = Path(__file__).resolve().parent.parent
SHELVES = registry.scan()
PLUGIN = '''"""A method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.registry import method
from bench.spec import Recipe

if TYPE_CHECKING:
    from bench.nets import Backbone

PAPER = "Somebody 2020"
TITLE = f"by {PAPER}"
WARMUP = 0.1  # share


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    lr: float = 1e-3  # Adam

    def twice(self) -> float:
        return 2 * self.lr


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 2


@method("mine", HParams, version=1, title=TITLE, paper=PAPER, groups=("a",))
class Mine(nn.Module):
    """Does it."""

    rows: Tensor

    def __init__(self, backbone: Backbone, hparams: HParams) -> None:
        """Says nothing."""
        super().__init__()
        # a comment
        self.lr: float = hparams.twice() * WARMUP
        self.name = f"{hparams!r:>{10}}" "a" f"b{self.lr}"

    def training_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"loss": torch.stack(batch).mean() + math.pi}
'''
EXPECTED = "2ab4c450e554367dea7930d7fd184f3c6c4c6a9471a067f860a8cc57c59d9b0b"  # of PLUGIN, on every Python


def does(text: str) -> str:
    return meaning(text.encode())


def changed(before: str, after: str) -> str:
    assert PLUGIN.count(before) == 1, before
    return PLUGIN.replace(before, after)


# --------------------------------------------------------------------------------------------------------------- digest


def test_the_digest_is_pinned() -> None:
    """It is kept in records: where this fails, every number of before would be marked."""
    assert does(PLUGIN) == EXPECTED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""A method."""\n', '"""Another sentence.\n\nAnd more.\n"""\n'),
        ("        # a comment\n", ""),
        ('    """Does it."""\n\n    rows: Tensor\n', ""),
        ('        """Says nothing."""\n', ""),
        ("hparams.twice() * WARMUP\n", "(\n            hparams.twice()\n            * WARMUP  # of it\n        )\n"),
        ("self.lr: float =", "self.lr ="),
        ("batch: list[Tensor]) -> dict[str, Tensor]:", "batch):"),
        ("import math\nfrom dataclasses import dataclass\n", "from dataclasses import dataclass\nimport math\n"),
        (
            "import torch\nfrom torch import Tensor, nn\n",
            "from torch import Tensor\nimport torch, os\nfrom torch import nn\n",
        ),
        ("from bench.registry import method\n", "from bench.registry import method, task\n"),
        ("if TYPE_CHECKING:\n    from bench.nets import Backbone\n", "from bench.nets import Backbone\n"),
        ('title=TITLE, paper=PAPER, groups=("a",)', "title=PAPER, paper=TITLE, groups=()"),
        ('PAPER = "Somebody 2020"', 'PAPER = "Somebody else 2021"'),
        ("    lr: float = 1e-3  # Adam\n", "    lr: float = 2e-3\n    momentum: float = 0.9\n"),
        ('" "a" f"b{self.lr}"', 'ab{self.lr}"'),
        ("0.1  # share", "1e-1"),
    ],
)
def test_tidying_changes_no_digest(before: str, after: str) -> None:
    assert changed(before, after) != PLUGIN
    assert does(changed(before, after)) == EXPECTED


def test_constants_of_declarations_may_stand_on_others() -> None:
    assert does(changed("paper=PAPER", "paper=TITLE")) == EXPECTED
    assert (
        does(changed('PAPER = "Somebody 2020"', 'PAPER = "Nobody"').replace("paper=PAPER", "paper=TITLE")) == EXPECTED
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("+ math.pi", "- math.pi"),
        ("+ math.pi", "+ math.e"),
        ("WARMUP = 0.1", "WARMUP = 0.2"),
        ("return 2 * self.lr", "return 2.0 * self.lr"),
        ("import math\n", "import cmath as math\n"),
        ("import math\n", "import numpy.math as math\n"),
        ("from torch import Tensor, nn", "from torch import Tensor, fx as nn"),
        (".mean()", ".mean"),
        (".mean()", ".mean(0)"),
        (":>{10}", ":>{11}"),
        ("{hparams!r", "{hparams!s"),
        ("    y: int = 2\n", "    y: int = 3\n"),
        ("    x: int\n", "    z: int\n"),
        ("super().__init__()\n", "super().__init__()\n        if hparams:\n            return\n"),
        ("class Mine(nn.Module)", "class Mine(nn.Linear)"),
        ("@dataclass(frozen=True)\nclass Point", "@dataclass\nclass Point"),
        ("WARMUP = 0.1  # share\n", "WARMUP = 0.1\ntorch.manual_seed(3)\n"),
        ('paper=PAPER, groups=("a",))\nclass', 'paper=PAPER, groups=("a",))\n@torch.no_grad()\nclass'),
        ('return {"loss"', "return {PAPER"),
    ],
)
def test_a_change_of_what_is_done_changes_the_digest(before: str, after: str) -> None:
    assert does(changed(before, after)) != EXPECTED


def test_constants_of_several_types_and_places_are_told_apart() -> None:
    texts = [
        "x = 1",
        "x = 1.0",
        "x = True",
        "x = '1'",
        "x = b'1'",
        "x = None",
        "x = ...",
        "x = 1j",
        "x = -1",
        "x = [1]",
    ]
    texts += [
        "x = [[], [1]]",
        "x = [[1], []]",
        "x = (1,)",
        "x = {1}",
        "f(x)",
        "f(*x)",
        "f(**x)",
        "f(x=1)",
        "x: int = 2",
    ]
    texts += ["def f(a, /, b): g()", "def f(a, b): g()", "def f(a, *, b): g()", "async def f(a, b): g()"]
    texts += [
        "{**a}",
        "{None: a}",
        "a[:1]",
        "a[1:]",
        "a[::1]",
        "match a:\n case None: f()",
        "match a:\n case True: f()",
    ]
    texts += ["f'{a}b'", "f'{a}' + 'b'", "f'{a!s}b'", "from a import *", "from .a import *", "del x", "global x"]
    assert len({does(text) for text in texts}) == len(texts)
    assert does("f'{a}' 'b' f'{c}' ''") == does("f'{a}b{c}'")
    assert does("x: int = 2") == does("x = 2")
    assert does("x: int") == does("") == does("pass") == does("'''A docstring.'''")


ELSEWHERE = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("meaning", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["meaning"] = module
spec.loader.exec_module(module)
print(json.dumps({path: module.meaning(Path(path).read_bytes()) for path in sys.argv[2:]}))
"""


def other_pythons() -> list[str]:
    """Interpreters of other versions on this machine: on the path, or as pyenv keeps them."""
    installed = sorted((Path.home() / ".pyenv" / "versions").glob("3.1[1-9].*/bin/python"))
    names = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13)]
    return [str(path) for path in (*names, *installed) if path and works(str(path))]


def works(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def test_every_python_gives_the_same_digests() -> None:
    files = sorted({spec.origin.file for shelf in (SHELVES.methods, SHELVES.tasks) for spec in shelf.values()})
    files += [str(path) for path in sorted((HOME / "tests").glob("*.py"))]
    ours = {path: meaning(Path(path).read_bytes()) for path in files}
    code = HOME / "bench" / "spec" / "meaning.py"
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python is here")
    for python in pythons:
        command = [python, "-I", "-c", ELSEWHERE, str(code), *files]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert json.loads(done.stdout) == ours, python


# -------------------------------------------------------------------------------------------------------------- sources


def test_a_number_is_of_todays_source_by_version_and_digest() -> None:
    spec = MethodSpec("mine", 2, "", "", (), origin=Origin("mine.py", 1, "Mine", PLUGIN.encode()))
    assert source_of(spec) == {"version": 2, "does": EXPECTED}
    assert is_current("method", spec, {"version": 2, "does": EXPECTED})
    assert is_current("method", spec, EXPECTED)
    assert not is_current("method", spec, {"version": 1, "does": EXPECTED})
    assert not is_current("method", spec, {"version": 2, "does": "0" * 64})
    assert not is_current("method", spec, {"version": 2})
    assert not is_current("method", spec, hashlib.sha256(PLUGIN.encode()).hexdigest())
    assert not is_current("method", spec, None)


def test_files_of_release_02_are_known_by_their_bytes() -> None:
    """Records of schema 1 name the digests of whole files; a plug-in of the same declared version is the same."""
    ledger = json.loads(LEDGER.read_text())
    sha256 = next(sha256 for sha256, kinds in ledger.items() if "simclr" in kinds.get("method", {}))
    spec = replace(SHELVES.methods["simclr"], version=ledger[sha256]["method"]["simclr"])
    assert is_current("method", spec, sha256)
    assert not is_current("method", replace(spec, version=spec.version + 1), sha256)
    assert not is_current("method", replace(spec, name="byol"), sha256), "another method's file"
    assert not is_current("task", spec, sha256)


def test_every_committed_record_is_of_a_known_source() -> None:
    found = [json.loads(path.read_text()) for path in sorted((HOME / "results" / "records").glob("*.json"))]
    assert len(found) > 100
    for record in found:
        for kind in ("method", "task"):
            assert is_current(kind, SHELVES.get(kind, record[kind]), record["sources"][kind]), record["cell_key"]


def test_a_users_own_task_is_known_by_its_choices(tmp_path: Path) -> None:
    choices = {"threshold": 0.3, "crop": "none"}
    source = json.dumps(choices, sort_keys=True, separators=(",", ":")).encode()
    assert Origin(str(tmp_path / "mine.toml"), 1, "load", source).does == digest(choices)
