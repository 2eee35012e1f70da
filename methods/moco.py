"""MoCo: a query must find its key among a queue of past keys made by a slowly moving encoder.

Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, arXiv:1911.05722, Algorithm
1; version 2: Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020, arXiv:2003.04297.
Departs: grey after the jitter in both versions (version 1's reference has it before); no shuffled batch normalisation
(on one device it is only a permutation); the learning rate is scaled linearly with the batch (the reference's advice
for other batches than 256); the queue is never longer than the corpus, where it would hold an image's own earlier
keys many times over, and a batch that passes its end is wrapped, so that its length need not be a multiple of the
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from bench.losses import info_nce
from bench.nets import Backbone
from bench.parts import FeatureQueue, momentum_copy
from bench.parts.parallel import gather
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Op, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of version 1."""

    temperature: float = 0.07  # divides the logits
    queue_size: int = 65536  # past keys, at most as many as the corpus has images
    encoder_momentum: float = 0.999  # of the key encoder
    projection: int = 128  # dimensions of query and key
    hidden_layer: bool = False  # version 2: fc-ReLU-fc instead of one fc
    strong_views: bool = False  # version 2: jitter with p 0.8 and less hue, blur
    cosine: bool = False  # version 2: cosine schedule instead of two drops
    lr: float = 0.03  # SGD, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "moco", HParams, version=2, title="MoCo",
    paper="He et al. 2020, arXiv:1911.05722", groups=("instance",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
@method(
    "mocov2", HParams, version=1, title="MoCoV2",
    paper="Chen et al. 2020, arXiv:2003.04297", groups=("instance",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
    set={"temperature": 0.2, "hidden_layer": True, "strong_views": True, "cosine": True},
)  # fmt: skip
class MoCo(nn.Module):
    """Momentum contrast; both versions, told apart by their hyper-parameters."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        width = backbone.width
        self.projector = (
            MoCoProjectionHead(width, width, hparams.projection)
            if hparams.hidden_layer
            else nn.Linear(width, hparams.projection)
        )
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projector = momentum_copy(self.projector)
        self.queue = FeatureQueue(max(1, min(hparams.queue_size, corpus_info.size)), hparams.projection)

    def views(self) -> Views:
        jitter = Jitter(0.4, 0.4, 0.4, 0.1, p=0.8) if self.hparams.strong_views else Jitter(0.4, 0.4, 0.4, 0.4)
        ops: tuple[Op, ...] = (Crop((0.2, 1.0)), Flip(), jitter, Gray(0.2))
        if self.hparams.strong_views:
            ops = (*ops, Blur((0.1, 2.0), p=0.5))
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        stage = Stage(schedule="cosine") if self.hparams.cosine else Stage(schedule="step", drops=(0.6, 0.8))
        lr = linear_rate(self.hparams.lr, self.batch_size)
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (view.images for view in batch.views)  # (B, C, S, S)
        query = self.projector(self.backbone.pooled(view0))  # (B, D)
        with torch.no_grad():
            update_momentum(self.backbone, self.momentum_backbone, self.hparams.encoder_momentum)
            update_momentum(self.projector, self.momentum_projector, self.hparams.encoder_momentum)
            key = F.normalize(self.momentum_projector(self.momentum_backbone.pooled(view1)).float(), dim=1)  # (B, D)
        loss = info_nce(query, key, self.queue.snapshot(), self.hparams.temperature)
        self.queue.enqueue(gather(key))
        return {"loss": loss}
