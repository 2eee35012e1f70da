"""BYOL, SimSiam, VICReg, VICRegL, DINO against their papers' formulas in double precision; ImageNet's weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import nets, registry, views
from bench.parts.recipes import lars_or_adam, linear_rate, rising_momentum
from bench.run import pretrain
from bench.spec import CellError, MethodSpec, Site
from methods import imagenet
from methods.vicregl import cell_places
from tests.conftest import pretrain_cell, textured_corpus

SHELVES = registry.scan()
OURS = ("byol", "simsiam", "vicreg", "vicregl", "dino")
BRINGING = [name for name, spec in SHELVES.methods.items() if spec.weights]
SIZE = 64


def build(name: str, **changes: Any) -> Any:
    cell = pretrain_cell(name, image_size=SIZE, **changes)
    return pretrain.build_method(cell, SHELVES.methods[name], textured_corpus(8, SIZE, 3)).train()


def batch_of(method: Any, progress: float = 0.0, count: int = 4, seed: int = 0) -> views.Batch:
    images = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    built = views.build(images, method.views(), SIZE, torch.Generator().manual_seed(seed))
    return views.Batch(built, torch.arange(count), progress, 0)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (F.normalize(one.double(), dim=1) * F.normalize(other.double(), dim=1)).sum(1).mean()


@pytest.mark.parametrize("name", OURS)
def test_a_batch_of_one_is_refused_by_the_declaration(name: str) -> None:
    assert SHELVES.methods[name].min_batch == 2


@pytest.mark.parametrize("name", ["byol", "vicreg", "vicregl"])
def test_large_batches_have_the_papers_optimiser(name: str) -> None:
    small, large = (build(name, batch_size=size).recipe() for size in (255, 512))
    assert (small.optimizer, small.lr) == ("adam", 3e-4)
    assert (large.optimizer, large.lr, large.momentum) == ("lars", 0.2 * 2, 0.9)


# ---------------------------------------------------------------------------------------------------- byol and simsiam


def test_byol_is_two_minus_twice_the_cosine_both_ways() -> None:
    method = build("byol")
    batch = batch_of(method)
    loss = method.training_step(batch)["loss"]
    first, second = (view.images for view in batch.views)
    predicted = [method.predictor(method.projector(method.backbone.pooled(item))) for item in (first, second)]
    target = [method.target_projector(method.target_backbone.pooled(item)) for item in (first, second)]
    expected = 2 - 2 * cosine(predicted[0], target[1]) + 2 - 2 * cosine(predicted[1], target[0])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    loss.backward()
    assert all(item.grad is None for name, item in method.named_parameters() if name.startswith("target"))


def test_byols_target_follows_more_slowly_to_the_end() -> None:
    method = build("byol")
    assert [rising_momentum(0.996, at) for at in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0])
    own, target = next(method.backbone.parameters()), next(method.target_backbone.parameters())
    start = target.detach().clone()
    with torch.no_grad():
        own.add_(1.0)
    method.training_step(batch_of(method, progress=0.5))
    torch.testing.assert_close(target.detach(), start + 0.002, atol=1e-6, rtol=0)


def test_simsiam_lets_no_gradient_through_the_side_that_is_predicted() -> None:
    method = build("simsiam")
    batch = batch_of(method)
    loss = method.training_step(batch)["loss"]
    projected = [method.projector(method.backbone.pooled(view.images)) for view in batch.views]
    predicted = [method.predictor(item) for item in projected]
    expected = -(cosine(predicted[0], projected[1].detach()) + cosine(predicted[1], projected[0].detach())) / 2
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    weight = method.projector.layers[0].weight
    (wanted,) = torch.autograd.grad(expected, weight)
    (found,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["simsiam", "simtriplet"])
def test_the_predictor_keeps_its_rate(name: str) -> None:
    cell, fabric = pretrain_cell(name, steps=10, batch_size=4), pretrain.set_up(Site(Path(), Path(), None))
    run = pretrain._Run(cell, SHELVES.methods[name], textured_corpus(8, 32, 3), fabric)
    rates = []
    for step in (0, 9):
        run.enter(step)
        rates.append([run.optimizer.param_groups[0]["lr"], run.part_optimizers[0].param_groups[0]["lr"]])
    assert rates[0][0] == pytest.approx(0.05 * 4 / 256)
    assert rates[1][0] < 0.1 * rates[0][0]
    assert rates[0][1] == rates[1][1] == pytest.approx(0.05 * 4 / 256)
    owned = sum(len(group["params"]) for group in run.part_optimizers[0].param_groups)
    assert owned == len(list(run.method.predictor.parameters()))


# ----------------------------------------------------------------------------------------------------- vicreg, vicregl


def vicreg(one: Tensor, other: Tensor, covariance: float = 1.0) -> Tensor:
    """25 * mean squared distance + 25 * hinges on deviations + covariances, on (N, D) in double precision."""
    one, other = one.double(), other.double()
    total = 25 * ((one - other) ** 2).mean()
    for side in (one, other):
        centred = side - side.mean(0)
        matrix = centred.T @ centred / (len(side) - 1)
        deviations = (matrix.diagonal() + 1e-4).sqrt()
        total = total + 25 * (1 - deviations).clamp(min=0).mean() / 2
        off = matrix - torch.diag(matrix.diagonal())
        total = total + covariance * off.square().sum() / side.shape[1]
    return total


def test_vicreg_is_its_three_terms() -> None:
    method = build("vicreg", expansion=1)
    batch = batch_of(method, count=6)
    loss = method.training_step(batch)["loss"]
    sides = [method.expander(method.backbone.pooled(view.images)) for view in batch.views]
    assert float(loss.detach()) == pytest.approx(float(vicreg(*sides).detach()), rel=1e-5)


def test_cell_places_are_where_the_views_pixels_come_from() -> None:
    """Views of an image whose two channels hold x and y: the mean over a cell is the place of its centre."""
    side, line = 7, (2 * torch.arange(SIZE) + 1) / SIZE - 1
    picture = torch.stack([line.expand(SIZE, SIZE), line[:, None].expand(SIZE, SIZE)])[None].repeat(5, 1, 1, 1)
    declared = views.Views(each=((views.Crop((0.3, 0.6)), views.Flip(0.5, 0.5)),) * 3)
    for view in views.build((picture + 1) / 2, declared, 56, torch.Generator().manual_seed(3)):
        seen = F.adaptive_avg_pool2d(view.images * 2 - 1, side).permute(0, 2, 3, 1)  # (B, side, side, 2)
        torch.testing.assert_close(cell_places(view, side), seen, atol=0.02, rtol=0)


def test_vicregl_is_vicreg_of_images_and_of_matched_cells() -> None:
    method = build("vicregl", expansion=1, local_projection=16, matches=3)
    batch = batch_of(method, count=6)
    loss = method.training_step(batch)["loss"]
    vectors, cells = zip(*(method._features(view.images) for view in batch.views), strict=True)
    side = cells[0].shape[1]
    places = [cell_places(view, side).flatten(1, 2).double() for view in batch.views]
    flat = [item.flatten(1, 2).double() for item in cells]
    local = torch.zeros((), dtype=torch.float64)
    for guide in (flat, places):
        for one, other in ((0, 1), (1, 0)):
            own, partner = _closest(guide[one], guide[other], flat[one], flat[other], 3)
            ranks = [vicreg(own[:, rank], partner[:, rank], 0.5) for rank in range(3)]
            local = local + torch.stack(ranks).mean() / 2
    expected = 0.75 * vicreg(*vectors, covariance=0.5) + 0.25 * local
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def _closest(guide: Tensor, other_guide: Tensor, own: Tensor, other: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` cells that are nearest to any cell of the other view, and those cells: twice (B, count, D)."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for image in range(len(own)):
        distance = (guide[image][:, None] - other_guide[image][None]).norm(dim=2)
        nearest = distance.argmin(1)
        kept = distance.amin(1).argsort(stable=True)[:count]
        pairs.append((own[image][kept], other[image][nearest[kept]]))
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


# ----------------------------------------------------------------------------------------------------------------- dino


def test_dino_is_the_cross_entropy_of_every_other_crop_with_the_centred_teacher() -> None:
    method = build("dino", small_crops=2)
    center = torch.randn(1, 1, 8)
    method.criterion.center.copy_(center)
    batch = batch_of(method, progress=0.15)
    parts = method.training_step(batch)
    large = torch.cat([view.images for view in batch.views[:2]])
    small = torch.cat([view.images for view in batch.views[2:]])
    teacher = method.teacher(large).double().chunk(2)
    student = torch.cat([method.student(large), method.student(small)]).double().chunk(4)
    temperature = (0.04 + 0.07) / 2  # half of the warm-up over 0.3 of the steps
    shares = [((item - center[0].double()) / temperature).softmax(1) for item in teacher]
    terms = [
        -(shares[t] * (student[s] / 0.1).log_softmax(1)).sum(1).mean() for t in range(2) for s in range(4) if s != t
    ]
    assert float(parts["loss"]) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)
    entropy = torch.stack([-(item * item.log()).sum(1).mean() for item in shares]).mean()
    assert float(parts["teacher_entropy"]) == pytest.approx(float(entropy), rel=1e-4)
    assert float(parts["divergence"]) == pytest.approx(float(torch.stack(terms).mean() - entropy), rel=1e-3)
    moved = 0.9 * center + 0.1 * torch.stack(teacher).mean((0, 1), keepdim=True).float()
    torch.testing.assert_close(method.criterion.center, moved, atol=1e-5, rtol=1e-4)
    assert "criterion.center" in method.state_dict()


def test_dinos_last_layer_does_not_move_at_first() -> None:
    method = build("dino", small_crops=0)
    for progress, moves in ((0.0, False), (0.02, True)):
        method.zero_grad()
        method.training_step(batch_of(method, progress))["loss"].backward()
        assert (method.student.last.weight.grad is not None) == moves
        assert method.student.projector.layers[0].weight.grad is not None
    assert all(item.grad is None for item in method.teacher.parameters())


def test_dinos_schedules_and_crops() -> None:
    method = build("dino")
    assert [method.teacher_temperature(at) for at in (0.0, 0.3, 0.9)] == pytest.approx([0.04, 0.07, 0.07])
    assert method.hparams.teacher_momentum == 0.996
    built = views.build(torch.rand(1, 3, 64, 64), method.views(), 224, torch.Generator())
    assert [view.images.shape[-1] for view in built] == [224, 224] + [96] * 8
    assert method.student.last.weight.shape == (8, 256)
    assert math.isclose(method.recipe().lr, 0.03 * 4 / 256)


# ------------------------------------------------------------------------------------- methods that bring their weights


@pytest.mark.parametrize("name", BRINGING)
def test_a_method_that_brings_weights_says_so(name: str) -> None:
    spec: MethodSpec = SHELVES.methods[name]
    assert not spec.trains
    made = registry.load(spec)
    assert callable(made.bring_weights) and not hasattr(made, "training_step")
    cell = replace(pretrain_cell(name), weights="library")
    assert cell.trained and cell.steps == 0
    assert cell.key != pretrain_cell(name).key != replace(pretrain_cell(name), weights="f" * 64).key


def from_library(backbone: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nets.Backbone, Any]:
    """The encoder that a library is made to give, the backbone that was given its weights, and the report."""
    real, given = smp.encoders.get_encoder, []

    def get_encoder(name: str, **options: Any) -> nn.Module:
        weights = options.pop("weights", None)
        encoder: nn.Module = real(name, weights=None, **options)
        if weights is not None:
            assert weights == (True if name.startswith("tu-") else "imagenet")
            given.append(encoder)
        return encoder

    monkeypatch.setattr(smp.encoders, "get_encoder", get_encoder)
    target = nets.Backbone(backbone, channels)
    facts = imagenet.ImageNet(target, imagenet.HParams(), None).bring_weights({})
    return given[0].eval(), target.eval(), facts


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("backbone", ["vgg16", "tu-resnet18", "mobilenet_v2"])
def test_imagenet_is_what_the_library_gives(backbone: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, target, facts = from_library(backbone, channels, monkeypatch)
    assert facts["first_convolution"] == ("" if channels == 3 else "3 channels to 1")
    images = torch.randn(1, channels, 64, 64)
    with torch.no_grad():
        wanted = encoder(images.expand(-1, 3, -1, -1))
        level = -1 if backbone != "vgg16" else -2  # the library goes on with a pooling
        torch.testing.assert_close(target(images)[-1], wanted[level], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("Wrong pretrained weights `imagenet` for encoder `x`"), "the libraries have no ImageNet weights for"),
        (RuntimeError("No pretrained weights exist for x."), "the libraries have no ImageNet weights for"),
        (OSError("We couldn't connect to a host"), r"could not be fetched \(OSError\): run once with a connection"),
    ],
)
def test_weights_that_cannot_be_had_are_one_clear_sentence(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = nets.Backbone("tu-resnet18")

    def fail(name: str, **options: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(smp.encoders, "get_encoder", fail)
    with pytest.raises(CellError, match=message) as caught:
        imagenet.ImageNet(target, imagenet.HParams(), None).bring_weights({})
    assert "\n" not in str(caught.value) and "tu-resnet18" in str(caught.value)


def test_imagenet_lacks_what_nobody_trained() -> None:
    spec = SHELVES.methods["imagenet"]
    assert set(spec.lacks) == set(nets.BACKBONES) - set(imagenet.TWINS)


# -------------------------------------------------------------------------------------------------------------- recipes


def test_rates_grow_with_the_batch_and_small_batches_have_adam() -> None:
    hparams = SimpleNamespace(lr=0.2, small_batch_lr=3e-4, weight_decay=1e-6, warmup=0.01)
    large, small = lars_or_adam(hparams, 512), lars_or_adam(hparams, 255)
    assert (large.optimizer, large.lr, large.momentum) == ("lars", 0.4, 0.9)
    assert (small.optimizer, small.lr) == ("adam", 3e-4)
    assert large.stages == small.stages and large.stages[0].schedule == "cosine" and large.stages[0].warmup == 0.01
    assert large.weight_decay == small.weight_decay == 1e-6
    assert (linear_rate(0.03, 128), linear_rate(0.03, 64, 128)) == (0.015, 0.015)
