"""VICReg: two views get the same features, every feature keeps its variance, and no two features say the same.

Source: Bardes, Ponce, LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR
2022, arXiv:2105.04906, Eqs. 1 to 6 and Algorithm 1.
Departs: the expander is four times as wide as the backbone (paper: 8192 on a width of 2048); the squared distance of
Eq. 5 is averaged over the features, as the paper's own Algorithm 1 has it, and the hinges of the two views (Eq. 6) are
averaged, as in its released code; LARS with the paper's rate from 256 images per step on, below that Adam with a rate
of its own, as in this project's SimCLR; biases have the weights' rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.parts.recipes import lars_or_adam
from bench.registry import method
from bench.spec import CorpusInfo, Recipe
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Solarize, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    invariance: float = 25.0  # weight of the distance between the views
    variance: float = 25.0  # weight of the hinge on every feature's standard deviation
    covariance: float = 1.0  # weight of the covariances between features
    expansion: int = 4  # width of the expander and of what is compared, in widths of the backbone
    lr: float = 0.2  # LARS, for 256 images; scaled linearly with the batch
    small_batch_lr: float = 3e-4  # Adam, below 256 images per step
    weight_decay: float = 1e-6  # of either optimiser
    warmup: float = 0.01  # share of the steps with a rising rate


@method(
    "vicreg", HParams, version=1, title="VICReg",
    paper="Bardes et al. 2022, arXiv:2105.04906", groups=("instance",),
    paper_steps=17151,  # 1000 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=2048, min_batch=2, parallel="gather",
)  # fmt: skip
class VICReg(nn.Module):
    """Variance, invariance and covariance of two views' features."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        width = hparams.expansion * backbone.width
        self.expander = VICRegProjectionHead(backbone.width, width, width)
        self.criterion = VICRegLoss(hparams.invariance, hparams.variance, hparams.covariance)

    def views(self) -> Views:
        colours = (Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), Gray(0.2), Blur(p=0.5), Solarize(0.1))
        ops = (Crop((0.08, 1.0)), Flip(), *colours)
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        return lars_or_adam(self.hparams, self.batch_size)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (self.expander(self.backbone.pooled(view.images)).float() for view in batch.views)  # (B, D)
        with torch.autocast(view0.device.type, enabled=False):  # covariances do not survive half precision
            loss = self.criterion(gather(view0), gather(view1))
        return {"loss": loss}
