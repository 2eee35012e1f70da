"""Backbones, decoders and the pooling that turns pixel embeddings into patch and region vectors.

A backbone is an encoder whose feature pyramid runs from the finest to the coarsest level; pretraining and transfer use
the same object. The decoders are the U-Nets of Chen et al., "Local Discriminative Representation Learning" (its
backbone figure gives no widths): level i concatenates the upsampled map with skip i, then two 3x3 convolutions bring it
to the width of skip i and of skip i-1, which reproduces the paper's parameter counts (Table 3) for all six encoders.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.spec import BenchError

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the axes of an image
NORMALISATIONS: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLINGS: dict[int, Any] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def conv_block(inputs: int, outputs: int, dims: int = 2) -> nn.Sequential:
    """3x3 (or 3x3x3) convolution, batch normalisation, ReLU."""
    convolution, normalisation = CONVOLUTIONS[dims](inputs, outputs, 3, padding=1), NORMALISATIONS[dims](outputs)
    return nn.Sequential(convolution, normalisation, nn.ReLU(inplace=True))


def kaiming_(module: nn.Module) -> nn.Module:
    """Kaiming-normal convolutions (fan out, ReLU), zero biases, unit batch normalisation."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


# ------------------------------------------------------------------------------------------------------------ encoders


class VGGEncoder(nn.Module):
    """VGG16 with batch normalisation and no classifier; features are taken before each of the five max-poolings."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        depths, inputs, stages = (2, 2, 3, 3, 3), in_channels, []
        for width, depth in zip(widths, depths, strict=True):
            blocks = [conv_block(inputs if index == 0 else width, width) for index in range(depth)]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(widths)
        self.strides = (1, 2, 4, 8, 16)
        kaiming_(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        features, x = [], images
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else F.max_pool2d(x, 2))
            features.append(x)
        return features


class ResNetEncoder(nn.Module):
    """A ResNet whose 7x7 stem is two 3x3 convolutions and a 2x2 max-pooling (section 6.1.4 of the paper)."""

    def __init__(self, in_channels: int, name: str) -> None:
        super().__init__()
        import torchvision.models

        trunk = getattr(torchvision.models, name)(weights=None)
        self.stem = nn.Sequential(conv_block(in_channels, 64), conv_block(64, 64))
        self.layers = nn.ModuleList([trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])
        self.channels = (64, *(_out_channels(layer) for layer in self.layers))
        self.strides = (1, 2, 4, 8, 16)
        kaiming_(self.stem)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.stem(images)]
        x = F.max_pool2d(features[0], 2)
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


def _out_channels(layer: nn.Module) -> int:
    return [part for part in layer.modules() if isinstance(part, nn.BatchNorm2d)][-1].num_features


class SmpEncoder(nn.Module):
    """Any encoder of segmentation-models-pytorch, timm's `tu-` ones included, untrained."""

    def __init__(self, in_channels: int, name: str) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        try:
            self.trunk = smp.encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        except (KeyError, ValueError, RuntimeError) as error:
            raise BenchError(f"unknown backbone {name!r}: {str(error).splitlines()[0][:200]}") from None
        kept = [index for index, width in enumerate(self.trunk.out_channels) if width > 0 and index > 0]
        self._kept = kept
        self.channels = tuple(self.trunk.out_channels[index] for index in kept)
        self.strides = tuple(2**index for index in kept)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.trunk(images)
        return [features[index] for index in self._kept]


_VGG16 = (64, 128, 256, 512, 512)
BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "tiny_vgg16": lambda channels: VGGEncoder(channels, [width // 4 for width in _VGG16]),
    "small_vgg16": lambda channels: VGGEncoder(channels, [width // 2 for width in _VGG16]),
    "vgg16": lambda channels: VGGEncoder(channels, _VGG16),
    "resnet18": lambda channels: ResNetEncoder(channels, "resnet18"),
    "resnet34": lambda channels: ResNetEncoder(channels, "resnet34"),
    "resnet50": lambda channels: ResNetEncoder(channels, "resnet50"),
}


class Backbone(nn.Module):
    """An encoder by name: images (B, C, *S) -> feature pyramid, finest level first.

    `channels` and `strides` describe the levels, `dims` the axes of an image. Sides must be multiples of the last
    stride. Raises BenchError for an unknown name.
    """

    def __init__(self, name: str, in_channels: int = 3, build: Callable[[int], nn.Module] | None = None) -> None:
        """build: makes the encoder of a plug-in; None: one of ours, or of segmentation-models-pytorch."""
        super().__init__()
        build = build or BACKBONES.get(name)
        self.name, self.in_channels = name, in_channels
        self.encoder: nn.Module = build(in_channels) if build else SmpEncoder(in_channels, name)
        self.channels: tuple[int, ...] = tuple(self.encoder.channels)  # type: ignore[arg-type]
        self.strides: tuple[int, ...] = tuple(self.encoder.strides)  # type: ignore[arg-type]
        self.dims: int = getattr(self.encoder, "dims", 2)

    @property
    def width(self) -> int:
        """Channels of the coarsest level."""
        return self.channels[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.encoder(images)
        return features

    def pooled(self, images: Tensor) -> Tensor:
        """Global average of the coarsest level: (B, C, *S) -> (B, width)."""
        return average(self(images)[-1])


_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
_MODES = {2: "bilinear", 3: "trilinear"}


def memory_format(dims: int) -> torch.memory_format:
    """The order of bytes that convolutions over so many axes are fastest with."""
    return _FORMATS[dims]


def resize(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Maps (B, C, *S) at another size, linearly: (B, C, *shape)."""
    return F.interpolate(maps, size=tuple(shape), mode=_MODES[maps.dim() - 2])


def average(maps: Tensor) -> Tensor:
    """Global average of maps (B, C, *S): (B, C)."""
    return maps.mean(dim=tuple(range(2, maps.dim())))


def pool(maps: Tensor, side: int) -> Tensor:
    """Maps (B, C, *S) averaged over the cells of a grid: (B, C, side, side[, side])."""
    pooled: Tensor = _POOLINGS[maps.dim() - 2](maps, side)
    return pooled


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------------------------------------------------ decoders


class UNetDecoder(nn.Module):
    """Feature pyramid -> fused map (B, width, *S): upsampled coarse path and finest skip side by side.

    Nearest upsampling, skips by concatenation; a pyramid that starts below full resolution is upsampled at the end.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], dims: int = 2) -> None:
        super().__init__()
        self.factors = [coarse // fine for fine, coarse in itertools.pairwise(strides)][::-1]
        levels, inputs = [], channels[-1]
        for index in range(len(channels) - 2, 0, -1):
            skip, outputs = channels[index], channels[index - 1]
            levels.append(nn.Sequential(conv_block(inputs + skip, skip, dims), conv_block(skip, outputs, dims)))
            inputs = outputs
        self.levels = nn.ModuleList(levels)
        self.last_factor = strides[0]
        self.width = inputs + channels[0]
        kaiming_(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        for index, (skip, factor) in enumerate(zip(features[-2::-1], self.factors, strict=True)):
            x = torch.cat([F.interpolate(x, scale_factor=factor, mode="nearest"), skip], dim=1)
            if index < len(self.levels):
                x = self.levels[index](x)
        return F.interpolate(x, scale_factor=self.last_factor, mode="nearest") if self.last_factor > 1 else x


class PixelDecoder(nn.Module):
    """U-Net decoder with an embedding head and, where `clusters` > 0, a clustering head.

    Feature pyramid -> pixel embedding (B, K, *S), unit vectors, and soft assignment (B, C, *S), summing to 1 over C
    (None without clusters): a sigmoid, then l1 normalisation, as the authors' code has it; the paper only asks for a
    probability per pixel.
    """

    def __init__(self, backbone: Backbone, embedding: int = 32, clusters: int = 16) -> None:
        super().__init__()
        self.unet = UNetDecoder(backbone.channels, backbone.strides, backbone.dims)
        self.embed = _head(self.unet.width, embedding, backbone.dims)
        self.cluster = _head(self.unet.width, clusters, backbone.dims) if clusters else None

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        fused = self.unet(features)
        pixels = F.normalize(self.embed(fused), dim=1)
        if self.cluster is None:
            return pixels, None
        scores = self.cluster(fused).sigmoid() + 1e-9
        return pixels, scores / scores.sum(dim=1, keepdim=True)


def _head(inputs: int, outputs: int, dims: int) -> nn.Module:
    last = CONVOLUTIONS[dims](outputs, outputs, 3, padding=1)
    return kaiming_(nn.Sequential(conv_block(inputs, outputs, dims), last))


class SegmentationNet(nn.Module):
    """A backbone with the transfer decoder: images (B, C, *S) -> logits (B, classes, *S)."""

    def __init__(self, backbone: Backbone, classes: int = 1) -> None:
        super().__init__()
        self.backbone = backbone
        dims, width = backbone.dims, backbone.channels[0]
        unet, last = UNetDecoder(backbone.channels, backbone.strides, dims), CONVOLUTIONS[dims]
        head = nn.Sequential(
            conv_block(unet.width, width, dims), conv_block(width, width, dims), last(width, classes, 3, padding=1)
        )
        self.decoder = nn.Sequential(unet, kaiming_(head))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.backbone(images))
        return out


# ------------------------------------------------------------------------------------------------------------- pooling


def patch_embeddings(pixels: Tensor, grid: int) -> Tensor:
    """Mean pixel embedding of every cell of a grid, as unit vectors (Eq. 3).

    pixels (B, K, *S) as given -> (B, grid ** D, K), row-major. Pools adaptively where a side is not divisible.
    """
    batch, width, *sides = pixels.shape
    if all(side % grid == 0 for side in sides):
        parted = [size for side in sides for size in (grid, side // grid)]
        cells = pixels.reshape(batch, width, *parted).mean(dim=tuple(range(3, 3 + 2 * len(sides), 2)))
    else:
        cells = pool(pixels, grid)
    return F.normalize(cells.flatten(2).transpose(1, 2), dim=2)  # (B, grid ** D, K)


def region_embeddings(pixels: Tensor, assignment: Tensor) -> Tensor:
    """Pixel embeddings averaged by soft assignment, as unit vectors (Eq. 10).

    pixels (B, K, *S), assignment (B, C, *S), both as given -> (B, C, K).
    """
    return F.normalize(torch.bmm(assignment.flatten(2), pixels.flatten(2).transpose(1, 2)), dim=2)


# ----------------------------------------------------------------------------------------------------------- hand-over


@dataclass(frozen=True)
class HandOver:
    """What became of the weights that were handed over."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # the network has them, the file does not
    unexpected: tuple[str, ...]  # the file has them, the network does not, or not in this shape


def hand_over(target: nn.Module, weights: Mapping[str, Tensor]) -> HandOver:
    """Loads `weights` into `target` by name and shape and says what matched; BenchError where nothing did."""
    own = target.state_dict()
    matched = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    report = HandOver(
        tuple(matched),
        tuple(name for name in own if name not in matched),
        tuple(name for name in weights if name not in matched),
    )
    if not matched:
        raise BenchError(
            f"none of the {len(weights)} weights fits the encoder (it wants {next(iter(own), 'nothing')}, the file "
            f"starts with {next(iter(weights), 'nothing')}): check --backbone"
        )
    target.load_state_dict(matched, strict=False)
    return report


def probe(encoder: nn.Module, in_channels: int, size: int = 64) -> list[float]:
    """Mean absolute feature of every level on a fixed image, in eval mode: tells whether two encoders agree."""
    ramp = torch.linspace(-1.0, 1.0, size)
    plane = torch.sin(7.0 * ramp[:, None] + 3.0 * ramp[None, :]) + ramp[None, :] * ramp[:, None]
    image = torch.stack([plane.roll(5 * index, 0) for index in range(in_channels)])[None]
    for _ in range(getattr(encoder, "dims", 2) - 2):  # the same in every slice, each a little darker
        image = image[..., ::2, ::2].unsqueeze(2) * torch.linspace(1.0, 0.5, size // 2)[:, None, None]
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        features = encoder(image.to(next(encoder.parameters()).device))
    encoder.train(was_training)
    return [float(level.double().abs().mean()) for level in features]
