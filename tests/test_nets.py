"""Backbones, decoders and pooling against the paper's sizes and frozen numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import nets
from bench.spec import BenchError
from tests.conftest import GOLDEN

# Table 3 of Chen et al., version 2: encoder and decoder in millions
TABLE_3 = {
    "tiny_vgg16": (0.92, 0.49),
    "small_vgg16": (3.68, 1.97),
    "resnet18": (11.2, 2.66),
    "vgg16": (14.72, 7.86),
    "resnet34": (21.31, 2.66),
    "resnet50": (23.54, 40.37),
}


def _fill(module: nn.Module) -> nn.Module:
    """The frozen forward pass's deterministic weights, by position in the state."""
    state = module.state_dict()
    for index, (name, value) in enumerate(state.items()):
        if not value.is_floating_point():
            continue
        if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
            state[name] = torch.ones_like(value)
        elif name.endswith("running_mean"):
            state[name] = torch.zeros_like(value)
        elif value.dim() == 1:
            state[name] = torch.full_like(value, 0.01)
        else:
            fan = value.numel() / value.shape[0]
            wave = np.sin(0.7 * np.arange(value.numel()) + index) * math.sqrt(2 / fan)
            state[name] = torch.from_numpy(wave.astype(np.float32)).reshape(value.shape)
    module.load_state_dict(state)
    return module.eval()


@pytest.mark.parametrize("name", list(TABLE_3))
def test_sizes_are_the_papers(name: str) -> None:
    backbone = nets.Backbone(name)
    decoder = nets.SegmentationNet(backbone).decoder
    encoder_millions, decoder_millions = TABLE_3[name]
    assert nets.parameters(backbone) / 1e6 == pytest.approx(encoder_millions, abs=0.0062)
    assert nets.parameters(decoder) / 1e6 == pytest.approx(decoder_millions, abs=0.0062)


def test_tiny_vgg16_has_the_released_codes_sizes() -> None:
    backbone = nets.Backbone("tiny_vgg16")
    assert nets.parameters(backbone) == 922_896
    assert nets.parameters(nets.PixelDecoder(backbone, embedding=32, clusters=16)) == 510_384
    assert nets.parameters(nets.SegmentationNet(backbone).decoder) == 492_001


def test_forward_pass_is_the_released_codes() -> None:
    """In float64, so that it does not depend on the processor; the vector is of float32, and 2e-5 off in 7 patches."""
    stored = np.load(GOLDEN / "ld_network_forward.npz")
    golden = {key: stored[key].astype(np.float64) for key in ("image", "attention", "patch", "region")}
    backbone = nets.Backbone("tiny_vgg16")
    decoder = nets.PixelDecoder(backbone, embedding=32, clusters=16)
    _fill(backbone)
    _fill(decoder)
    with torch.no_grad():
        pixels, assignment = decoder.double()(backbone.double()(torch.from_numpy(golden["image"])))
    assert assignment is not None
    torch.testing.assert_close(assignment, torch.from_numpy(golden["attention"]), atol=1e-6, rtol=1e-5)
    patches = nets.patch_embeddings(pixels, 8).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(patches, torch.from_numpy(golden["patch"]), atol=3e-5, rtol=1e-5)
    far = (patches - torch.from_numpy(golden["patch"])).abs() > 5e-6
    assert int(far.any(dim=1).sum()) <= 7  # of 64
    regions = nets.region_embeddings(pixels, assignment)
    torch.testing.assert_close(regions, torch.from_numpy(golden["region"]), atol=1e-6, rtol=1e-5)


def test_pooling_is_the_released_codes() -> None:
    golden = np.load(GOLDEN / "ld_pooling.npz")
    pixels = torch.from_numpy(golden["pixel_embedding"])
    patches = nets.patch_embeddings(pixels, 8).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(patches, torch.from_numpy(golden["patch_features_8x8"]), atol=1e-6, rtol=1e-5)
    regions = nets.region_embeddings(pixels, torch.from_numpy(golden["attention"]))
    torch.testing.assert_close(regions, torch.from_numpy(golden["region_features"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "grid"), [(12, 12, 4), (13, 10, 4), (7, 9, 8), (8, 8, 1)])
def test_patch_embeddings_average_the_cells(height: int, width: int, grid: int) -> None:
    pixels = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = nets.patch_embeddings(pixels, grid)
    for row in range(grid):
        for column in range(grid):
            rows = slice(row * height // grid, math.ceil((row + 1) * height / grid))
            columns = slice(column * width // grid, math.ceil((column + 1) * width / grid))
            mean = pixels[:, :, rows, columns].mean(dim=(2, 3))
            torch.testing.assert_close(found[:, row * grid + column], mean / mean.norm(dim=1, keepdim=True))


def test_region_embeddings_are_weighted_means_and_finite_on_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    weights = torch.rand(2, 4, 4, 5, dtype=torch.float64, generator=generator)
    weights[0, 1] = 0
    found = nets.region_embeddings(pixels, weights)
    for image in range(2):
        for region in range(4):
            total: Tensor = (weights[image, region] * pixels[image]).sum(dim=(1, 2))
            torch.testing.assert_close(found[image, region], F.normalize(total, dim=0))
    assert found[0, 1].abs().sum() == 0


@pytest.mark.parametrize("name", [*TABLE_3, "mobilenet_v2", "tu-convnext_atto"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_backbone_carries_both_decoders(name: str, channels: int) -> None:
    backbone = nets.Backbone(name, channels).eval()
    images = torch.zeros(1, channels, 64, 64)
    with torch.no_grad():
        features = backbone(images)
        assert [feature.shape[1] for feature in features] == list(backbone.channels)
        assert [64 // feature.shape[2] for feature in features] == list(backbone.strides)
        pixels, assignment = nets.PixelDecoder(backbone, 8, 4).eval()(features)
        assert assignment is not None
        assert pixels.shape == (1, 8, 64, 64)
        assert assignment.shape == (1, 4, 64, 64)
        assert nets.SegmentationNet(backbone).eval()(images).shape == (1, 1, 64, 64)


def test_unknown_backbone_is_named() -> None:
    with pytest.raises(BenchError, match="unknown backbone 'resnet1'"):
        nets.Backbone("resnet1")


def test_hand_over_reports_and_refuses_nothing() -> None:
    target = nets.Backbone("tiny_vgg16").encoder
    weights = dict(nets.Backbone("tiny_vgg16").encoder.state_dict())
    removed = weights.pop(next(iter(weights)))
    weights["extra"] = removed
    report = nets.hand_over(target, weights)
    assert len(report.missing) == 1
    assert report.unexpected == ("extra",)
    assert len(report.matched) == len(target.state_dict()) - 1
    with pytest.raises(BenchError, match="none of the 1 weights fits"):
        nets.hand_over(target, {"other": removed})


def test_probe_tells_encoders_apart() -> None:
    torch.manual_seed(0)
    one, other = nets.Backbone("tiny_vgg16").encoder, nets.Backbone("tiny_vgg16").encoder
    assert nets.probe(one, 3) != pytest.approx(nets.probe(other, 3), rel=1e-3)
    other.load_state_dict(one.state_dict())
    assert nets.probe(one, 3) == nets.probe(other, 3)
    assert one.training
