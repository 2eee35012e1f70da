"""Side maps of a corpus: registered by a plug-in, computed once, cached beside the images, cut as they are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import data, registry, views
from bench.data import Corpus
from bench.data.store import Store
from bench.run import pretrain, upkeep
from bench.run.cell import run_cell
from bench.run.grid import Request, expand
from bench.spec import BenchError, PretrainCell, Site, cell_to_dict, site_to_dict
from bench.views import Blur, Crop, Cutout, Flip, HalfTurn, Jitter, Op, QuarterTurn, Rotate, Views
from tests.conftest import pretrain_cell, textured_corpus

PLUGIN = '''
"""Follows the red of an image."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.registry import method, side_map
from bench.spec import Recipe
from bench.views import Crop, Flip, QuarterTurn, Views


@side_map("red", version=1)
def red(image):
    with (Path(__file__).parent / "calls").open("a") as stream:
        stream.write("x")
    return image[..., 0] / 255


@side_map("both", version=1)
def both(image):
    return image[..., :2] / 255.0


@dataclass(frozen=True)
class HParams:
    lr: float = 1e-3


@method("follower", HParams, version=1, title="F", paper="none", groups=(), maps=("red", "both"), paper_steps=1,
        paper_batch=4)
class Follower(nn.Module):
    def __init__(self, backbone, hparams, corpus_info):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.width, 1)

    def views(self):
        return Views(each=((Crop((0.5, 1.0)),), (Crop((0.3, 1.0), share=0.5), Flip(), QuarterTurn())))

    def recipe(self):
        return Recipe("adam", 1e-3)

    def training_step(self, batch):
        loss = 0
        for view, red, both in zip(batch.views, batch.maps["red"], batch.maps["both"], strict=True):
            assert red.shape == (len(view.images), 1, *view.images.shape[2:])
            assert torch.equal(both[:, :1], red)
            wanted = (red - 0.485) / 0.229
            torch.testing.assert_close(view.images[:, :1], wanted, rtol=0, atol=2e-6)
            loss = loss + (self.head(self.backbone.pooled(view.images)) - red.mean((2, 3))).square().mean()
        return {"loss": loss}

    def export(self):
        return {"encoder": self.backbone.encoder}
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "plugin").mkdir()
    path = tmp_path / "plugin" / "follower.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def clean() -> None:
    """Names that the tests register are forgotten: each has its own file."""
    known = registry._objects
    for key in [key for key in known if key[0] == "side_map" or key[1] == "follower"]:
        del known[key]


def calls(plugin: Path) -> int:
    path = plugin.parent / "calls"
    return len(path.read_text()) if path.exists() else 0


def cell_of(plugin: Path, site: Site) -> tuple[PretrainCell, registry.Registry]:
    asked = Request(methods=str(plugin), tasks="chase", budget="smoke", steps=2, batch_size=4, runs=site.runs)
    found = expand(asked, registry.scan([str(plugin)]))
    (cell,) = [cell for cell in found.pretrainings if cell.method == "follower"]
    return cell, registry.scan([str(plugin)])


def seen(corpus: Corpus, *ops: Op, shared: tuple[Op, ...] = (), batch_size: int = 6) -> views.Batch:
    cell = pretrain_cell("simclr", batch_size=batch_size)
    declared = Views(each=(ops, ops), shared=shared)
    return pretrain.make_batch(corpus, cell, declared, 3, 0, torch.device("cpu"))


def with_maps(count: int = 7, size: int = 32) -> Corpus:
    corpus = textured_corpus(count, size, 3)
    values = corpus.images.astype(np.float32) / np.float32(255)
    return replace(corpus, maps={"red": values[..., 0], "rest": values[..., 1:]})


def as_seen(batch: views.Batch, at: int) -> torch.Tensor:
    """The red of a view, in [0, 1] again."""
    return batch.views[at].images[:, :1] * 0.229 + 0.485


# ------------------------------------------------------------------------------------------------------- views and maps


@pytest.mark.parametrize(
    ("ops", "shared"),
    [
        ((Crop((0.2, 1.0)),), ()),
        ((Crop((0.2, 1.0), share=0.5), Flip(0.5, 0.5), Rotate(40.0)), ()),
        ((Flip(), Crop((0.3, 0.8)), QuarterTurn(), Rotate(20.0)), (Crop((0.5, 0.9)), Flip())),
    ],
)
def test_maps_go_where_the_images_go(ops: tuple[Op, ...], shared: tuple[Op, ...]) -> None:
    batch = seen(with_maps(), *ops, shared=shared)
    for at in (0, 1):
        assert batch.maps["red"][at].shape == batch.views[at].images[:, :1].shape
        torch.testing.assert_close(batch.maps["red"][at], as_seen(batch, at), rtol=0, atol=1e-6)
        rest = batch.views[at].images[:, 1:] * torch.tensor([0.224, 0.225]).view(2, 1, 1)
        rest += torch.tensor([0.456, 0.406]).view(2, 1, 1)
        torch.testing.assert_close(batch.maps["rest"][at], rest, rtol=0, atol=1e-6)
    assert not torch.equal(batch.maps["red"][0], batch.maps["red"][1])


@pytest.mark.parametrize("op", [Flip(0.5, 0.5), HalfTurn(), QuarterTurn()])
def test_flips_and_turns_of_maps_are_exact(op: Op) -> None:
    corpus = with_maps()
    batch = seen(corpus, op)
    moved = 0
    for view, red in zip(batch.views, batch.maps["red"], strict=True):
        source = torch.from_numpy(corpus.maps["red"])[batch.index][:, None]
        assert torch.equal(red.flatten(1).sort(1)[0], source.flatten(1).sort(1)[0])
        assert torch.equal(red, views.sample(source, view.affine.float(), red.shape[2:], mode="nearest"))
        moved += int((red != source).flatten(1).any(1).sum())
    assert moved > 0


def test_what_changes_colours_leaves_maps_alone() -> None:
    corpus = with_maps()
    plain = seen(corpus, Flip())
    changed = seen(corpus, Flip(), Jitter(0.8, 0.8, 0.8, 0.2), Blur(p=1.0), Cutout(2, 80.0))
    assert not torch.equal(plain.views[0].images, changed.views[0].images)
    assert torch.equal(plain.maps["red"][0], changed.maps["red"][0])


def test_maps_change_no_image_and_no_draw() -> None:
    ops = (Crop((0.2, 1.0)), Flip(), Jitter(0.4, 0.4, 0.4, 0.1), QuarterTurn())
    without, beside = seen(textured_corpus(7, 32, 3), *ops), seen(with_maps(), *ops)
    assert without.maps == {}
    for one, other in zip(without.views, beside.views, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.maps is None


# ----------------------------------------------------------------------------------------------------- once, and cached


@pytest.mark.usefixtures("clean")
def test_a_method_gets_the_maps_it_names(plugin: Path, site: Site) -> None:
    site = replace(site, plugins=(str(plugin),))
    cell, shelves = cell_of(plugin, site)
    outcome = run_cell(cell_to_dict(cell), site_to_dict(site))
    assert outcome.status == "done", outcome
    images = len(data.open_corpus(cell, shelves, site))
    assert images <= calls(plugin) <= images + 1
    data.open_corpus(replace(cell, seed=1), shelves, site)
    assert calls(plugin) <= images + 1, "they were computed before"


@pytest.mark.usefixtures("clean")
def test_maps_are_made_again_without_the_images(plugin: Path, site: Site) -> None:
    cell, shelves = cell_of(plugin, site)
    first = data.open_corpus(cell, shelves, site)
    assert np.array_equal(first.maps["red"], (first.images[..., 0] / 255).astype(np.float32))
    assert first.maps["both"].shape == (*first.images.shape[:3], 2)
    folders, images = data.map_folders(cell, shelves, site), data.corpus_folder(cell, site)
    assert set(folders) == {"red", "both"}
    made = images.stat().st_mtime_ns
    kept = np.array(first.maps["red"])
    (folders["red"] / "damage").write_bytes(b"damaged")
    (folders["red"] / "damage").rename(folders["red"] / "map.npy")  # what is mapped stays whole
    before = calls(plugin)
    again = data.open_corpus(cell, shelves, site)
    assert np.array_equal(again.maps["red"], kept)
    assert calls(plugin) >= before + len(again)
    assert images.stat().st_mtime_ns == made

    plugin.write_text(PLUGIN.replace('side_map("red", version=1)', 'side_map("red", version=2)'))
    changed = registry.scan([str(plugin)])
    assert data.map_folders(cell, changed, site)["red"] != folders["red"]
    assert replace(cell, seed=3).choices.keys() == cell.choices.keys()


@pytest.mark.usefixtures("clean")
def test_maps_in_use_are_no_litter(plugin: Path, site: Site) -> None:
    site = replace(site, plugins=(str(plugin),))
    cell, shelves = cell_of(plugin, site)
    assert run_cell(cell_to_dict(cell), site_to_dict(site)).status == "done"
    store, folder = Store(site.runs, site.results), data.map_folders(cell, shelves, site)["red"]
    old = site.cache / f"{folder.name[:-1]}{'1' if folder.name[-1] == '0' else '0'}"
    old.mkdir()
    (old / "map.npy").touch()
    os.utime(old, (0, 0))
    os.utime(folder, (0, 0))

    def litter(known: registry.Registry) -> list[Path]:
        return [item.place for item in upkeep.litter(store, known) if item.place.parent == site.cache]

    assert litter(shelves) == [old]
    assert litter(registry.scan()) == [], "it may be the map of a method that is not read here"


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.usefixtures("clean")
def test_an_unknown_map_is_refused_before_anything_runs(plugin: Path, site: Site) -> None:
    plugin.write_text(PLUGIN.replace('maps=("red", "both")', 'maps=("rad",)'))
    with pytest.raises(BenchError, match=r"unknown side_map 'rad'; did you mean 'red'"):
        cell_of(plugin, site)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "image[0, :, 0] / 255",
            r"red made \(64,\) of an image \(64, 64, 3\), not a value for each place",
        ),
        ("image[..., 0] / 0.0", "the side map red made a value that is not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_map_that_does_not_lie_on_its_image_is_refused(plugin: Path, site: Site, body: str, words: str) -> None:
    plugin.write_text(PLUGIN.replace("return image[..., 0] / 255\n", f"return {body}\n"))
    cell, shelves = cell_of(plugin, site)
    with pytest.raises(BenchError, match=words):
        data.open_corpus(cell, shelves, site)
    assert not data.map_folders(cell, shelves, site)["red"].exists()
