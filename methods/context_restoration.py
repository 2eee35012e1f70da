"""Context restoration: pairs of small patches of an image change places, and a network puts them back.

Source: Chen et al., Self-Supervised Learning for Medical Image Analysis Using Image Context Restoration, Medical Image
Analysis 58, 2019, section 3: T swaps of two isolated patches, L2 loss, for segmentation a U-Net whose analysis part is
what is transferred.
Departs: there is no official code, and number and size of the patches for the local discrimination table are not
published: 10 swaps of squares of a tenth of the side; Adam with the rate and the length that the table's own methods
have; apart from the swaps an image is only mirrored. Images are restored in normalised units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets import Backbone, SegmentationNet
from bench.parts.parallel import part, ranks
from bench.registry import method
from bench.spec import BenchError, CorpusInfo, Recipe
from bench.views import Batch, Flip, Views

LARGEST_PATCH = 1 / 3  # of the side: with larger ones a patch may leave no room for a second


@dataclass(frozen=True)
class HParams:
    """The paper describes the scheme; the numbers are usual choices."""

    swaps: int = 10  # pairs of patches that change places, one pair after another
    patch: float = 0.1  # side of a patch as a share of the image's, at most a third
    lr: float = 1e-3  # Adam


@method(
    "context_restoration", HParams, version=1, title="CR",
    paper="Chen et al. 2019, Medical Image Analysis 58", groups=("medical", "generative"),
    paper_steps=100000, paper_batch=8, parallel="mean",
)  # fmt: skip
class ContextRestoration(nn.Module):
    """Restores images whose patches were swapped."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        if not 0 < hparams.patch <= LARGEST_PATCH:
            raise BenchError(
                f"context_restoration.patch must be above 0 and at most {LARGEST_PATCH:.3f} of the image's side, "
                f"so that two patches always fit side by side, not {hparams.patch}"
            )
        self.hparams = hparams
        self.backbone = backbone
        self.decoder = SegmentationNet(backbone, corpus_info.channels).decoder

    def views(self) -> Views:
        return Views(each=((Flip(),),))

    def recipe(self) -> Recipe:
        return Recipe("adam", self.hparams.lr)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0].images  # (B, C, *S)
        side = max(1, int(self.hparams.patch * images.shape[-1]))
        restored = self.decoder(self.backbone(swap_patches(images, side, self.hparams.swaps)))
        return {"loss": F.mse_loss(restored.float(), images)}

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.backbone.encoder, "decoder": self.decoder}


def swap_patches(images: Tensor, side: int, swaps: int) -> Tensor:
    """Images (B, C, *S) in each of which `swaps` pairs of separate squares or cubes changed places, one after another.

    `side` of a square in px, at most (S + 1) / 3.
    """
    out, batch, dims = images.clone(), len(images), images.dim() - 2
    image = torch.arange(batch, device=images.device).view(-1, *[1] * dims)
    inside = torch.arange(side)
    for _ in range(swaps):
        where = list[Any]()
        for corners in _separate_corners(ranks() * batch, images.shape[-1] - side, side, dims):
            places = part(corners)[:, :, None] + inside  # (B, D, side)
            along = [[side if at == axis else 1 for at in range(dims)] for axis in range(dims)]
            axes = [places[:, axis].view(batch, *shape).to(images.device) for axis, shape in enumerate(along)]
            where.append((image, slice(None), *axes))
        first, second = out[where[0]], out[where[1]]  # (B, side, side, C)
        out[where[0]], out[where[1]] = second, first
    return out


def _separate_corners(batch: int, room: int, side: int, dims: int) -> tuple[Tensor, Tensor]:
    """First corners (B, D), each in 0..room, of two squares that are at least `side` apart along a random axis."""
    first, second = torch.randint(room + 1, (2, batch, dims))
    axis = torch.randint(dims, (batch, 1))
    start = first.gather(1, axis)
    before = (start - side + 1).clamp(min=0)  # places on the low side of the first square
    after = (room - side - start + 1).clamp(min=0)
    place = (torch.rand(batch, 1, dtype=torch.float64) * (before + after)).long()
    apart = torch.where(place < before, place, place - before + start + side)
    return first, second.scatter(1, axis, apart)
