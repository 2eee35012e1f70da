"""Views: exact where they promise it, in register through their affine maps, the same from the same generator."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import views
from bench.losses import instance_discrimination
from tests.conftest import GOLDEN, textured_images


def _images(count: int = 4, size: int = 32, channels: int = 3) -> Tensor:
    return torch.from_numpy(textured_images(count, size, channels)).permute(0, 3, 1, 2).float() / 255


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


GEOMETRY: list[tuple[views.Op, ...]] = [
    (views.Flip(0.5, 0.5),),
    (views.Flip(1.0, 0.0), views.QuarterTurn()),
    (views.HalfTurn(), views.QuarterTurn()),
    (views.Rotate(30),),
    (views.Crop((0.3, 0.9)),),
    (views.Quadrant(1, 0), views.Crop((0.5, 1.0)), views.Flip()),
    (views.Crop((0.1, 0.2)), views.Neighbour()),
    (
        views.Flip(0.5, 0.5),
        views.Rotate(180),
        views.Crop((0.5, 1.0)),
        views.Rotate(5),
        views.HalfTurn(),
        views.QuarterTurn(),
    ),
]


@pytest.mark.parametrize("ops", GEOMETRY, ids=range(len(GEOMETRY)))
def test_the_affine_map_leads_back_to_the_source(ops: tuple[views.Op, ...]) -> None:
    images = _images(8)
    view = views.build(images, views.Views(each=(ops,)), 32, _generator())[0]
    again = views.sample(images, view.affine, (32, 32))
    inside = views.sample(torch.ones_like(images[:, :1]), view.affine, (32, 32)) > 0.999
    error = ((view.images - again).abs() * inside).flatten(1).max(dim=1).values
    assert float(error.max()) < 0.06  # two bilinear readings differ by interpolation alone
    assert float(((view.images - again).abs() * inside).mean()) < 0.004


def test_flips_and_turns_are_exact() -> None:
    images = _images(16)
    ops = (views.Flip(0.5, 0.5), views.HalfTurn(), views.QuarterTurn())
    view = views.build(images, views.Views(each=(ops,)), 32, _generator())[0]
    for image, made in zip(images, view.images, strict=True):
        candidates = [torch.rot90(flipped, k, (1, 2)) for flipped in (image, image.flip(2)) for k in range(4)]
        assert any(torch.equal(made, candidate) for candidate in candidates)


def test_unturn_undoes_the_turns_on_any_resolution() -> None:
    images = _images(16)
    plain, turned = views.build(
        images, views.Views(each=((), (views.HalfTurn(), views.QuarterTurn()))), 32, _generator()
    )
    assert torch.equal(turned.unturn(turned.images), plain.images)
    pooled = F.avg_pool2d(turned.images, 8)
    torch.testing.assert_close(turned.unturn(pooled), F.avg_pool2d(plain.images, 8))
    assert set(turned.turns.tolist()) == {0, 1, 2, 3}


def test_turns_are_the_released_codes() -> None:
    golden = np.load(GOLDEN / "ld_view_flip_rot.npz")
    image = torch.from_numpy(golden["image"])
    made = [views.turn(image[None], torch.tensor([(2 * flip + k) % 4]))[0] for flip in (0, 1) for k in range(4)]
    assert torch.equal(torch.stack(made), torch.from_numpy(golden["views"]))


def test_alignment_gives_the_released_codes_losses() -> None:
    """Features of four images, both views of each, and four mixtures: the order is the released code's."""
    golden = np.load(GOLDEN / "ld_patch_and_mixup.npz")
    features = torch.from_numpy(golden["features"])  # (20, K, 8, 8)
    one0, other0, one1, other1, mixed = features.split(4)

    def rows(maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2).flatten(0, 1)

    def undone(maps: Tensor, flip: str, rot: str) -> Tensor:
        turns = torch.from_numpy((2 * golden[flip] + golden[rot]) % 4)
        return views.View(maps, torch.empty(0), turns).unturn(maps)

    first = torch.cat([one0, other0])
    second = torch.cat([undone(one1, "flip1", "rot1"), undone(other1, "flip2", "rot2")])
    loss = instance_discrimination(torch.cat([rows(first), rows(second)]), float(golden["T"]))
    assert float(loss) == pytest.approx(float(golden["loss_pd"]), rel=1e-5)
    weight = torch.from_numpy(golden["lam"]).float()[:, None, None, None]
    target = F.normalize(torch.lerp(other0, one0, weight), dim=1)
    loss = instance_discrimination(torch.cat([rows(mixed), rows(target)]), float(golden["T"]))
    assert float(loss) == pytest.approx(float(golden["loss_mixup"]), rel=1e-5)


def test_shared_draws_are_shared() -> None:
    images = _images()
    shared = (views.Flip(0.5, 0.5), views.Rotate(180), views.Crop((0.5, 1.0)))
    one, other = views.build(images, views.Views(shared=shared, each=((), ())), 24, _generator())
    assert torch.equal(one.images, other.images)
    assert one.images.shape == (4, 3, 24, 24)


def test_hue_is_hsv_hue() -> None:
    images, shift = _images(3, 8), torch.tensor([0.1, -0.3, 0.5])
    made = views.shift_hue(images, shift)
    for image, turned, amount in zip(images, made, shift.tolist(), strict=True):
        for pixel, found in zip(image.flatten(1).T.tolist(), turned.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert found == pytest.approx(colorsys.hsv_to_rgb((hue + amount) % 1, saturation, value), abs=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_photometry_keeps_range_and_shape(channels: int) -> None:
    images = _images(6, channels=channels)
    ops = (views.Jitter(0.8, 0.8, 0.8, 0.2), views.Gray(0.5), views.Blur(p=0.7))
    made = views.build(images, views.Views(each=(ops,)), 32, _generator())[0].images
    assert made.shape == images.shape
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1 + 1e-6
    assert not torch.equal(made, images)


def test_blur_is_a_gaussian_average() -> None:
    flat = torch.full((2, 3, 32, 32), 0.25)
    made = views.build(flat, views.Views(each=((views.Blur((2.0, 4.0), p=1.0),),)), 32, _generator())[0].images
    torch.testing.assert_close(made, flat)
    noise = torch.rand(2, 3, 64, 64, generator=_generator())
    soft = views.build(noise, views.Views(each=((views.Blur((6.0, 6.0), p=1.0),),)), 64, _generator())[0].images
    assert float(soft.std()) < 0.4 * float(noise.std())


def test_the_same_generator_gives_the_same_views() -> None:
    images = _images()
    ops = (views.Crop((0.2, 1.0)), views.Flip(), views.Jitter(0.4, 0.4, 0.4, 0.1), views.Gray(0.2), views.Blur())
    one = views.build(images, views.Views(each=(ops, ops)), 32, _generator(5))
    other = views.build(images, views.Views(each=(ops, ops)), 32, _generator(5))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0].images, one[1].images)


def test_normalisation_uses_imagenet_statistics_for_three_channels() -> None:
    images = torch.stack([torch.full((4, 4), value) for value in (0.485, 0.456, 0.406)])[None]
    assert float(views.normalise(images).abs().max()) < 1e-6
    torch.testing.assert_close(views.normalise(torch.full((1, 1, 2, 2), 1.0)), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_crops_of_a_quadrant_stay_in_it(row: int, column: int) -> None:
    ops = (views.Quadrant(row, column, overlap=0.3), views.Crop((0.2, 1.0)))
    view = views.build(_images(64), views.Views(each=(ops,)), 32, _generator())[0]
    corners = torch.tensor([(-1.0, -1.0, 1.0), (1.0, 1.0, 1.0)], dtype=torch.float64)
    reached = torch.einsum("bij,cj->bci", view.affine, corners)  # (B, 2, 2) x, y of both corners
    for axis, far in ((0, column), (1, row)):
        low, high = (-0.6, 1.0) if far else (-1.0, 0.6)  # 0.8 of the side
        assert float(reached[..., axis].min()) >= low - 1e-9
        assert float(reached[..., axis].max()) <= high + 1e-9


def test_a_neighbour_touches_its_crop_and_stays_in_the_image() -> None:
    each = ((), (views.Neighbour(),))
    here, there = views.build(
        _images(64), views.Views(shared=(views.Crop((0.05, 0.11), (1.0, 1.0)),), each=each), 32, _generator()
    )
    step = (there.affine[:, :, 2] - here.affine[:, :, 2]).abs()  # between the centres
    side = 2 * here.affine[:, (0, 1), (0, 1)]
    torch.testing.assert_close((step / side).sort(dim=1).values, torch.tensor([[0.0, 1.0]]).double().expand(64, 2))
    assert float((there.affine[:, :, 2].abs() + side / 2).max()) <= 1 + 1e-9  # windows under a third of the side
    moved = (there.affine - here.affine)[:, :, 2]
    assert all(bool((moved[:, axis] * sign > 1e-6).any()) for axis in (0, 1) for sign in (-1, 1))


@pytest.mark.parametrize(("share", "side"), [(1.0, 96), (96 / 224, 48), (0.5, 48), (0.1, 32)])
def test_a_crop_has_its_share_of_the_side(share: float, side: int) -> None:
    ops = (views.Crop((0.2, 0.5), share=share), views.Flip(), views.Blur(p=1.0))
    view = views.build(_images(4, 96), views.Views(each=(ops,)), 96, _generator())[0]
    assert view.images.shape == (4, 3, side, side)


def test_a_small_crop_is_blurred_by_as_many_pixels_as_a_large_one() -> None:
    """A step edge under sigma 2 of 224 px: the same slope in pixels, whatever the crop's size."""
    slopes = []
    for share in (1.0, 0.5):
        edge = torch.zeros(1, 1, 224, 224)
        edge[..., 112:] = 1
        ops = (views.Crop((1.0, 1.0), (1.0, 1.0), share=share), views.Blur((2.0, 2.0), p=1.0))
        row = views.build(edge, views.Views(each=(ops,)), 224, _generator(), finish=lambda images: images)[0].images[
            0, 0, 20
        ]
        slopes.append(float(row.diff().abs().max()))
    assert slopes[0] == pytest.approx(1 / (2 * (2 * math.pi) ** 0.5), rel=0.03)
    assert slopes[1] == pytest.approx(slopes[0], rel=0.1)


def test_solarize_inverts_the_bright() -> None:
    images = _images()
    view = views.build(images, views.Views(each=((views.Solarize(1.0, 0.4),),)), 32, _generator())[0]
    assert torch.equal(view.images, torch.where(images >= 0.4, 1 - images, images))
    untouched = views.build(images, views.Views(each=((views.Solarize(0.0),),)), 32, _generator())[0]
    assert torch.equal(untouched.images, images)


def test_cutout_blanks_squares_with_the_mean() -> None:
    images = _images(32, 64)
    view = views.build(images, views.Views(each=((views.Cutout(3, 32),),)), 64, _generator())[0]
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    blank = (view.images != images).any(dim=1)  # (B, H, W)
    assert torch.equal(view.images[blank[:, None].expand_as(images)], mean[blank[:, None].expand_as(images)])
    side = round(32 * 64 / 224)
    assert blank.flatten(1).sum(1).max() <= 3 * side**2
    assert blank.flatten(1).sum(1).float().mean() > 2 * side**2  # holes may overlap and pass the border


EVERYTHING = (
    views.Quadrant(0, 1),
    views.Crop((0.1, 1.0)),
    views.Neighbour(),
    views.Rotate(20),
    views.Flip(0.5, 0.5),
    views.QuarterTurn(),
    views.HalfTurn(),
    views.Jitter(0.8, 0.8, 0.8, 0.2, p=0.8),
    views.Gray(0.3),
    views.Blur(p=0.5),
    views.Solarize(0.3),
    views.Cutout(2, 30),
)


@pytest.mark.parametrize("piece", [1, 3, 4])
def test_the_pieces_a_batch_is_worked_on_in_change_nothing(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = views.Views(shared=(views.Flip(),), each=(EVERYTHING, (views.Crop((0.2, 1.0), share=0.5),)))
    monkeypatch.setattr(views, "PIECE", 11)
    whole = views.build(_images(11, 64), declared, 64, _generator(), views.ready)
    monkeypatch.setattr(views, "PIECE", piece)
    pieces = views.build(_images(11, 64), declared, 64, _generator(), views.ready)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one.images, other.images)
        assert torch.equal(one.affine, other.affine)
        assert torch.equal(one.turns, other.turns)
        assert other.images.is_contiguous(memory_format=torch.channels_last)


def test_sampling_grids_are_those_of_torch() -> None:
    affine = torch.randn(3, 2, 3, generator=_generator())
    expected = torch.nn.functional.affine_grid(affine, [3, 1, 20, 31], align_corners=False)
    torch.testing.assert_close(views._grid(affine, (20, 31)), expected)
