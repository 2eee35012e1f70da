"""Two dimensions and three: every method on tiny volumes from its present file, and views that know where they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import data, nets, registry, views
from bench.run import pretrain
from bench.run.grid import Request, expand
from bench.spec import BenchError, MethodSpec, Site
from bench.views import Blur, Crop, Cutout, Flip, Gray, HalfTurn, Jitter, QuarterTurn, Rotate, Solarize, Views
from tests.conftest import pretrain_cell

BALLS = Path(__file__).parent / "examples" / "balls.py"
SHELVES = registry.scan([str(BALLS)])
TRAINED = [name for name, spec in SHELVES.methods.items() if spec.trains]
SIDE = 32


def volumes(count: int, side: int) -> data.Corpus:
    """Smooth noise with one channel, grades, and negatives as second modality."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 6, 6, 6, generator=generator)
    images = nets.resize(coarse, (side,) * 3).movedim(1, -1).mul(255).byte().numpy()
    return data.Corpus(images, np.arange(count) % 3, 255 - images, classes=3)


def run_of(spec: MethodSpec) -> pretrain._Run:
    size = math.ceil(max(2, spec.min_batch) / spec.batch_multiple) * spec.batch_multiple
    small = {"queue_size": 12, "negatives": 12, "hidden": 16, "outputs": 16, "bottleneck": 8, "expansion": 1}
    fields = {name: value for name, value in small.items() if name in spec.defaults}
    cell = pretrain_cell(spec.name, batch_size=size, channels=1, image_size=SIDE, **fields)
    cell = replace(cell, backbone="example_cubes")
    fabric = pretrain.set_up(Site(Path(), Path(), None))
    run = pretrain._Run(cell, spec, volumes(max(6, size), SIDE), fabric, SHELVES)
    run.method.train()
    return run


@pytest.mark.parametrize("name", [name for name in TRAINED if 3 in SHELVES.methods[name].dims])
def test_a_method_runs_on_volumes_from_its_present_file(name: str) -> None:
    run = run_of(SHELVES.methods[name])
    for step in (0, run.cell.steps - 1):
        run.enter(step)
        losses = run.train_step()
        assert all(math.isfinite(value) for value in losses.values()), losses
    learning = [part for part in run.method.modules() if isinstance(part, nets.Backbone)]
    gradients = [
        float(item.grad.abs().sum())
        for part in learning
        for key, item in part.encoder.named_parameters()
        if item.grad is not None and not key.endswith("bias")
    ]
    assert gradients and all(gradient > 0 for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in TRAINED if 3 not in SHELVES.methods[name].dims])
def test_a_method_of_images_alone_says_why_and_is_not_run_on_volumes(name: str, tmp_path: Path) -> None:
    spec = SHELVES.methods[name]
    assert len(spec.dims_reason.split()) > 4
    request = Request(name, "example_ball", backbone="example_cubes", runs=tmp_path, results=tmp_path)
    grid = expand(request, SHELVES)
    assert grid.unavailable[name, "example_ball"].startswith(f"{name} is made for 2-D images: ")
    assert {cell.pretrain.method for cell in grid.transfers}.isdisjoint({name})


def test_a_backbone_of_other_images_is_refused(tmp_path: Path) -> None:
    request = Request("scratch", "example_ball", runs=tmp_path, results=tmp_path)
    with pytest.raises(BenchError, match="takes 2-D images and the task example_ball has 3-D ones"):
        expand(request, SHELVES)


# ---------------------------------------------------------------------------------------------------------------- views


def places(side: int, count: int = 3) -> Tensor:
    """Volumes whose channels are where a voxel is: (B, 3, S, S, S), x, y and z scaled to [0.25, 0.75]."""
    centres = (2 * torch.arange(side) + 1) / side - 1
    z, y, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    return (torch.stack([x, y, z]) * 0.25 + 0.5).expand(count, -1, -1, -1, -1).clone()


@pytest.mark.parametrize(
    "ops",
    [
        (Flip(0.5, 0.5),),
        (QuarterTurn(),),
        (HalfTurn(),),
        (Rotate(25),),
        (Crop((0.3, 0.8)),),
        (Rotate(20), Crop((0.3, 0.8)), Flip(0.5, 0.5), QuarterTurn()),
    ],
    ids=lambda ops: " ".join(type(op).__name__ for op in ops),
)
def test_a_view_of_a_volume_knows_where_it_came_from(ops: tuple[views.Op, ...]) -> None:
    """What a voxel shows is where its map says that it is, wherever it is inside."""
    view = views.build(places(SIDE), Views(each=(ops,)), SIDE, torch.Generator().manual_seed(4))[0]
    assert view.images.shape == (3, 3, SIDE, SIDE, SIDE) and view.affine.shape == (3, 3, 4)
    centres = (2 * torch.arange(SIDE, dtype=torch.float64) + 1) / SIDE - 1
    z, y, x = torch.meshgrid(centres, centres, centres, indexing="ij")
    points = torch.stack([x, y, z, torch.ones_like(x)])
    source = torch.einsum("bij,jzyx->bizyx", view.affine, points)  # where each voxel lies in the source
    inside = (source.abs() <= 1 - 1.5 / SIDE).all(1, keepdim=True).expand_as(view.images)
    assert inside.float().mean() > 0.2
    shown = (view.images.double() - 0.5) / 0.25
    assert torch.allclose(shown[inside], source[inside], atol=1e-4)


@pytest.mark.parametrize("op", [Flip(1.0, 1.0), HalfTurn(1.0), QuarterTurn()], ids=lambda op: type(op).__name__)
def test_flips_and_turns_of_volumes_are_exact(op: views.Op) -> None:
    volume = torch.rand(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    view = views.build(volume, Views(each=((op,),)), 8, torch.Generator().manual_seed(2))[0]
    for before, after in zip(volume, view.images, strict=True):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    if not isinstance(op, Flip):
        assert torch.equal(view.unturn(view.images), volume)


def test_intensities_of_volumes_and_of_their_slices_change_alike() -> None:
    """With the same draws a volume and one of its slices have the same brightness, contrast and inversion."""
    volume = torch.rand(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(1))[:, :, :1].expand(
        -1, -1, 32, -1, -1
    )
    ops = (Jitter(0.4, 0.4, 0.4, 0.1), Gray(1.0), Solarize(1.0, 0.6))
    whole = views.build(volume.contiguous(), Views(each=(ops,)), 32, torch.Generator().manual_seed(3))[0]
    flat = views.build(volume[:, :, 0].contiguous(), Views(each=(ops,)), 32, torch.Generator().manual_seed(3))[0]
    assert torch.allclose(whole.images[:, :, 7], flat.images, atol=1e-6)


def test_a_volume_is_blurred_along_every_axis_alike() -> None:
    volume = torch.zeros(1, 1, 33, 33, 33)
    volume[..., 16, 16, 16] = 1
    made = views.build(volume, Views(each=((Blur((8.0, 8.0), p=1.0),),)), 33, torch.Generator().manual_seed(0))[
        0
    ].images
    assert made.sum() == pytest.approx(1.0, abs=1e-4) and made[..., 16, 16, 16] < 0.5
    for turned in (made.transpose(2, 3), made.transpose(3, 4), made.flip(2)):
        assert torch.allclose(made, turned, atol=1e-6)


def test_a_hole_is_a_cube() -> None:
    volume = torch.rand(1, 1, 28, 28, 28, generator=torch.Generator().manual_seed(0))
    made = views.build(volume, Views(each=((Cutout(1, 56),),)), 28, torch.Generator().manual_seed(5))[0].images
    changed = (made != volume)[0, 0].nonzero()
    extent = changed.amax(0) - changed.amin(0) + 1
    assert len(changed) == int(extent.prod()) and int(extent.max()) <= 7


def test_a_crop_of_a_volume_has_the_share_it_was_asked_for() -> None:
    view = views.build(
        torch.zeros(400, 1, 8, 8, 8), Views(each=((Crop((0.3, 0.3)),),)), 8, torch.Generator().manual_seed(0)
    )[0]
    sides = torch.stack([view.affine[:, axis, axis] for axis in range(3)])
    assert torch.allclose(sides.prod(0), torch.full((400,), 0.3, dtype=torch.float64), atol=1e-6)
    assert float(sides.std()) > 0.02


def test_quadrants_are_of_images() -> None:
    with pytest.raises(BenchError, match="a view of a quadrant is of an image"):
        views.build(places(8), Views(each=((views.Quadrant(0, 0),),)), 8, torch.Generator())
