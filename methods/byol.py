"""BYOL: from one view of an image, predict what a slowly moving network makes of another; nothing is pushed apart.

Source: Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020,
arXiv:2006.07733, Eqs. 1 and 2 and Algorithm 1; its schedule of 1000 epochs.
Departs: LARS with the paper's rate from 256 images per step on, below that Adam with a rate of its own, as in this
project's SimCLR; the target follows at the start of a step what the step before it learned, so the last step's share is
left out; biases have the weights' rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts import momentum_copy
from bench.parts.recipes import lars_or_adam, rising_momentum
from bench.registry import method
from bench.spec import CorpusInfo, Recipe
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Op, Solarize, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    target_momentum: float = 0.996  # of the target network at first; it rises to 1 along a cosine
    hidden: int = 4096  # width of the hidden layers of projector and predictor
    projection: int = 256  # dimensions compared
    lr: float = 0.2  # LARS, for 256 images; scaled linearly with the batch
    small_batch_lr: float = 3e-4  # Adam, below 256 images per step
    weight_decay: float = 1.5e-6  # of either optimiser
    warmup: float = 0.01  # share of the steps with a rising rate


@method(
    "byol", HParams, version=1, title="BYOL",
    paper="Grill et al. 2020, arXiv:2006.07733", groups=("instance",),
    paper_steps=8576,  # 1000 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=4096, min_batch=2, parallel="mean",
)  # fmt: skip
class BYOL(nn.Module):
    """An online network that predicts a target network."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = BYOLProjectionHead(backbone.width, hparams.hidden, hparams.projection)
        self.predictor = BYOLPredictionHead(hparams.projection, hparams.hidden, hparams.projection)
        self.target_backbone = momentum_copy(self.backbone)
        self.target_projector = momentum_copy(self.projector)
        self.similarity = NegativeCosineSimilarity()

    def views(self) -> Views:
        ops: tuple[Op, ...] = (Crop((0.08, 1.0)), Flip(), Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), Gray(0.2))
        return Views(each=((*ops, Blur(p=1.0)), (*ops, Blur(p=0.1), Solarize(0.2))))

    def recipe(self) -> Recipe:
        return lars_or_adam(self.hparams, self.batch_size)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (view.images for view in batch.views)  # (B, C, S, S)
        predicted0, predicted1 = self._predict(view0), self._predict(view1)  # (B, D)
        with torch.no_grad():
            momentum = rising_momentum(self.hparams.target_momentum, batch.progress)
            update_momentum(self.backbone, self.target_backbone, momentum)
            update_momentum(self.projector, self.target_projector, momentum)
            target0, target1 = self._target(view0), self._target(view1)
        loss = 4 + 2 * self.similarity(predicted0, target1) + 2 * self.similarity(predicted1, target0)
        return {"loss": loss}

    def _predict(self, images: Tensor) -> Tensor:
        prediction: Tensor = self.predictor(self.projector(self.backbone.pooled(images)))
        return prediction.float()

    def _target(self, images: Tensor) -> Tensor:
        projection: Tensor = self.target_projector(self.target_backbone.pooled(images))
        return projection.float()
