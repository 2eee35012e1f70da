"""`bench doctor --prove`: what holds is said to hold, and planted faults are found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry, views
from bench.cli import main
from bench.run import pretrain, prove

SOUND = """
from dataclasses import dataclass

import torch
from torch import nn

from bench.registry import method
from bench.spec import Recipe
from bench.views import Flip, Views


@dataclass(frozen=True)
class HParams:
    lr: float = 1e-2  # of Adam


@method("{name}", HParams, version=1, title="T", paper="-", groups=(), paper_steps=9, paper_batch=8)
class Planted(nn.Module):
    def __init__(self, backbone, hparams, corpus_info):
        super().__init__()
        self.backbone, self.hparams = backbone, hparams
        self.head = nn.Linear(backbone.width, 4)
        self.register_buffer("seen", torch.zeros(()), persistent={saved})

    def views(self):
        return Views(each=((Flip(),),))

    def recipe(self):
        return Recipe("adam", self.hparams.lr)

    def training_step(self, batch):
        self.seen += 1
        made = self.head(self.backbone.pooled(batch.views[0].images))
        return {{"loss": (made{full} - self.seen).square().mean(){half}}}

    def export(self):
        return {{"encoder": self.backbone.encoder}}
"""
FAULTS = {
    "sound": ({"saved": True, "full": ".float()", "half": ""}, ""),
    "unsaved": ({"saved": False, "full": ".float()", "half": ""}, "when it is stopped and taken up again"),
    "half": ({"saved": True, "full": "", "half": ".to(made.dtype)"}, "leaves its loss in half precision"),
}


def proved(name: str, folder: Path, kind: str = "") -> prove.Page:
    (folder / f"{name}.py").write_text(SOUND.format(name=name, **FAULTS[kind or name][0]))
    shelves = registry.scan([str(folder / f"{name}.py")])
    return prove.prove(shelves, [name], "cpu")


@pytest.mark.parametrize("name", list(FAULTS))
def test_what_is_off_is_named(name: str, tmp_path: Path) -> None:
    page, expected = proved(name, tmp_path), FAULTS[name][1]
    if not expected:
        assert page.faults == () and page.proofs[0].milliseconds > 0 and page.proofs[0].memory > 0
    else:
        assert len(page.faults) == 1 and page.faults[0].startswith(name) and expected in page.faults[0]


def test_views_of_a_global_generator_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = views.build

    def careless(images: Any, declared: Any, size: int, generator: Any, *rest: Any) -> Any:
        return build(images, declared, size, torch.Generator().manual_seed(int(torch.randint(1 << 30, ()))), *rest)

    monkeypatch.setattr(pretrain.views, "build", careless)
    page = proved("viewed", tmp_path, "sound")
    assert any("draws its views from a global generator" in fault for fault in page.faults), page.faults


def test_a_step_that_listens_to_anybodys_random_numbers_is_found(tmp_path: Path) -> None:
    text = SOUND.replace("import torch\nfrom torch", "import random\n\nimport torch\nfrom torch")
    text = text.replace("self.seen += 1", "self.seen += random.random()")
    (tmp_path / "listener.py").write_text(text.format(name="listener", **FAULTS["sound"][0]))
    page = prove.prove(registry.scan([str(tmp_path / "listener.py")]), ["listener"], "cpu")
    assert any("depends on what else draws random numbers" in fault for fault in page.faults)


def test_a_method_that_breaks_is_a_fault_and_not_the_end(tmp_path: Path) -> None:
    text = SOUND.format(name="broken", **FAULTS["sound"][0]).replace("self.seen += 1", "raise RuntimeError('no')")
    (tmp_path / "broken.py").write_text(text)
    page = prove.prove(registry.scan([str(tmp_path / "broken.py")]), ["broken", "scratch"], "cpu")
    assert page.faults == ("broken stopped with RuntimeError: no",)


def test_the_page_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("half", "sound"):
        (tmp_path / f"{kind}_page.py").write_text(SOUND.format(name=f"{kind}_page", **FAULTS[kind][0]))
    asked = ["doctor", "--prove", "--device", "cpu", "--methods", str(tmp_path / "half_page.py")]
    assert main(asked) == 1
    told = capsys.readouterr().out
    assert "half_page leaves its loss in half precision" in told and "1 fault" in told
    asked[-1] = str(tmp_path / "sound_page.py")
    assert main([*asked, "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["faults"] == [] and page["proofs"][0]["method"] == "sound_page"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_method_is_proven_on_the_cpu() -> None:
    shelves = registry.scan()
    page = prove.prove(shelves, list(shelves.methods), "cpu")
    assert page.faults == ()
    assert len(page.ranks) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_every_method_is_proven_on_the_gpu() -> None:
    shelves = registry.scan()
    page = prove.prove(shelves, list(shelves.methods), "cuda:0")
    assert page.faults == ()
