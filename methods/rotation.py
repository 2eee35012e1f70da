"""Rotation: tell by how many quarter turns an image was turned.

Source: Gidaris, Singh, Komodakis, Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018,
arXiv:1803.07728, section 2; the recipe is its ImageNet one.
Departs: the classifier sits on the pooled coarsest map (the paper's networks have fully connected layers between); the
learning rate is scaled linearly with the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    lr: float = 0.01  # SGD, for 192 images; scaled linearly with the batch
    weight_decay: float = 5e-4  # SGD


@method(
    "rotation", HParams, version=1, title="Rotation",
    paper="Gidaris et al. 2018, arXiv:1803.07728", groups=("instance",),
    paper_steps=5488,  # 30 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=192, parallel="mean",
)  # fmt: skip
class Rotation(nn.Module):
    """Every image in all its four turns, each to be recognised."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.width, 4)

    def views(self) -> Views:
        area = (224 / 256) ** 2
        return Views(each=((Crop((area, area), ratio=(1.0, 1.0)), Flip()),))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size, 192)
        stage = Stage(schedule="step", drops=(1 / 3, 2 / 3))
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0].images  # (B, C, *S)
        turned = torch.cat([torch.rot90(images, turns, (-2, -1)) for turns in range(4)])  # (4B, C, *S)
        turns = torch.arange(4, device=images.device).repeat_interleave(len(images))  # (4B,)
        scores = self.classifier(self.backbone.pooled(turned)).float()  # (4B, 4)
        return {"loss": F.cross_entropy(scores, turns)}
