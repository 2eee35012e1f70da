"""Barlow Twins: the features of two views agree dimension by dimension, and no two dimensions say the same.

Source of `barlow`: Zbontar, Jing, Misra, LeCun, Deny, Barlow Twins: Self-Supervised Learning via Redundancy Reduction,
ICML 2021, arXiv:2103.03230, Algorithm 1.
Departs: the projector is four times as wide as the backbone (paper: 8192 on a width of 2048); below 256 images per
step, where the rate of LARS would all but vanish, Adam with a rate of its own is used; biases have the weights' rate.

Source of `barlow_pixel`: Li, Quan, Zhou, MixCL: Pixel Label Matters to Contrastive Learning, section 2.2: the identity
consistency, without the paper's other two terms. Every pixel of every level of the encoder is a sample, correlations
are not centred, as printed.
Departs: 2-D and convolutional levels where the paper has volumes and a UNETR; the second term has C_ij (printed: C_ii,
a misprint); the paper does not give the weight of that term, so Barlow Twins' is taken; views share one geometry, as
there, but without its elastic deformation, and differ in colour and blur where the paper has shift, gamma, blur and
noise. The length is that of the paper's 1000 iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor, nn

from bench.losses import barlow_twins
from bench.nets import CONVOLUTIONS, NORMALISATIONS, Backbone
from bench.parts.parallel import gather
from bench.parts.recipes import lars_or_adam
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Op, Rotate, Solarize, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of Barlow Twins."""

    redundancy_weight: float = 0.0051  # of the correlations between dimensions
    expansion: int = 4  # width of the projector and of what is compared, in widths of the backbone
    lr: float = 0.2  # LARS, for 256 images; scaled linearly with the batch
    small_batch_lr: float = 3e-4  # Adam, below 256 images per step
    weight_decay: float = 1e-6  # of either optimiser
    warmup: float = 0.01  # share of the steps with a rising rate


@method(
    "barlow", HParams, version=1, title="Barlow Twins",
    paper="Zbontar et al. 2021, arXiv:2103.03230", groups=("instance",),
    paper_steps=17151,  # 1000 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=2048, min_batch=2, parallel="gather",
)  # fmt: skip
class BarlowTwins(nn.Module):
    """Cross-correlation of image features."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        width = hparams.expansion * backbone.width
        self.projector = BarlowTwinsProjectionHead(backbone.width, width, width)

    def views(self) -> Views:
        ops: tuple[Op, ...] = (Crop((0.08, 1.0)), Flip(), Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), Gray(0.2))
        return Views(each=((*ops, Blur(p=1.0)), (*ops, Blur(p=0.1), Solarize(0.2))))

    def recipe(self) -> Recipe:
        return lars_or_adam(self.hparams, self.batch_size)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (self.projector(self.backbone.pooled(view.images)) for view in batch.views)  # (B, D)
        return {"loss": barlow_twins(gather(view0), gather(view1), self.hparams.redundancy_weight)}


@dataclass(frozen=True)
class PixelHParams:
    """Defaults of MixCL, as far as it gives them."""

    redundancy_weight: float = 0.0051  # of the correlations between dimensions
    change: float = 0.2  # probability of each change of colour or sharpness of a view
    lr: float = 1e-4  # AdamW with cosine
    weight_decay: float = 1e-5  # AdamW


@method(
    "barlow_pixel", PixelHParams, version=1, title="Barlow Twins (pixels)",
    paper="Li et al. 2022, MixCL", groups=("dense", "medical"),
    paper_steps=1000, paper_batch=6,
    note="Pixel identity of MixCL on 2-D encoder maps; the paper's weight of the redundancy term is not given.",
)  # fmt: skip
class PixelBarlowTwins(nn.Module):
    """Cross-correlation of pixel features, at every level of the encoder."""

    def __init__(self, backbone: Backbone, hparams: PixelHParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams = hparams
        self.backbone = backbone
        self.projectors = nn.ModuleList(_pixel_projector(width, backbone.dims) for width in backbone.channels)

    def views(self) -> Views:
        p = self.hparams.change
        each: tuple[Op, ...] = (Jitter(0.4, 0.4, 0.4, 0.1, p=p), Blur(p=p))
        return Views(shared=(Flip(0.5, 0.5), Rotate(15), Crop((0.7, 1.0))), each=(each, each))

    def recipe(self) -> Recipe:
        return Recipe("adamw", self.hparams.lr, self.hparams.weight_decay, stages=(Stage(schedule="cosine"),))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (self._pixels(view.images) for view in batch.views)  # per level (B H W, 2c)
        weight = self.hparams.redundancy_weight
        levels = [barlow_twins(one, other, weight, center=False) for one, other in zip(view0, view1, strict=True)]
        return {"loss": torch.stack(levels).sum()}

    def _pixels(self, images: Tensor) -> list[Tensor]:
        maps = [projector(level) for projector, level in zip(self.projectors, self.backbone(images), strict=True)]
        return [level.movedim(1, -1).flatten(0, -2) for level in maps]


def _pixel_projector(width: int, dims: int) -> nn.Module:
    """Three 1x1 convolutions of width, width and twice the width."""
    convolution, normalisation = CONVOLUTIONS[dims], NORMALISATIONS[dims]
    layers = [(convolution(width, width, 1), normalisation(width), nn.ReLU(inplace=True)) for _ in range(2)]
    return nn.Sequential(*(part for layer in layers for part in layer), convolution(width, 2 * width, 1))
