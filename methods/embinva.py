"""EmbInva: every image of the batch is a class of its own that its other view must fall into, and no other image.

Source: Ye et al., Unsupervised Embedding Learning via Invariant and Spreading Instance Feature, CVPR 2019,
arXiv:1904.03436, Eqs. 3 to 9.
Departs: both views are augmented (the text calls the first one the original) and are queries, and keys take no
gradient, all as in the released code; the learning rate is scaled linearly with the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.losses import instance_discrimination
from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    temperature: float = 0.1  # divides the logits
    negative_weight: float = 1.0  # of the other images, against the own one
    projection: int = 128  # dimensions compared
    lr: float = 0.03  # SGD, for 128 images; scaled linearly with the batch
    weight_decay: float = 5e-4  # SGD


@method(
    "embinva", HParams, version=2, title="EmbInva",
    paper="Ye et al. 2019, arXiv:1904.03436", groups=("instance",),
    paper_steps=54884,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=128, min_batch=2, parallel="gather",
)  # fmt: skip
class EmbInva(nn.Module):
    """Softmax over the instances of the batch."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = nn.Linear(backbone.width, hparams.projection)

    def views(self) -> Views:
        ops = (Crop((0.2, 1.0)), Jitter(0.4, 0.4, 0.4, 0.4), Gray(0.2), Flip())
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size, 128)
        stage = Stage(schedule="step", drops=(0.6, 0.8))
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = torch.cat([view.images for view in batch.views])  # (2B, C, S, S)
        rows = torch.cat([gather(view) for view in self.projector(self.backbone.pooled(images)).chunk(2)])  # (2B, D)
        return {"loss": instance_discrimination(rows, self.hparams.temperature, self.hparams.negative_weight)}
