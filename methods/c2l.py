"""C2L: momentum contrast of images, of mixed images and of mixed features.

Source: Zhou, Yu, Bian, Hu, Ma, Zheng, Comparing to Learn: Surpassing ImageNet Pretraining on Radiographs by Comparing
Image Representations, MICCAI 2020, arXiv:2007.07423.
Departs from the paper, as its released code does: three holes are cut out of every view; the queue is filled three
times per step, after each of the three comparisons (keys, keys of mixed images, mixed keys), so that later comparisons
of a step meet its earlier keys as negatives. Departs from that code: softmax and not noise contrast, its own option;
as for MoCo, no shuffled batch normalisation, a learning rate scaled linearly with the batch, and a queue that wraps
and is never longer than the corpus; holes have the mean of the image, not of ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from bench.losses import info_nce
from bench.nets import Backbone
from bench.parts import FeatureQueue, momentum_copy
from bench.parts.parallel import gather, part
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Cutout, Flip, Gray, Jitter, Rotate, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the released code."""

    temperature: float = 0.07  # divides the logits
    queue_size: int = 16384  # past keys, at most as many as the corpus has images
    encoder_momentum: float = 0.999  # of the key encoder
    mixing: float = 1.0  # both parameters of the beta distribution of the mixing weight
    projection: int = 128  # dimensions of query and key
    lr: float = 0.03  # SGD, for 128 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "c2l", HParams, version=1, title="C2L",
    paper="Zhou et al. 2020, arXiv:2007.07423", groups=("instance", "medical"),
    paper_steps=32931,  # 120 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=128, min_batch=2, parallel="gather",
)  # fmt: skip
class C2L(nn.Module):
    """Comparing to learn."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = nn.Linear(backbone.width, hparams.projection)
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projector = momentum_copy(self.projector)
        self.queue = FeatureQueue(max(1, min(hparams.queue_size, corpus_info.size)), hparams.projection)

    def views(self) -> Views:
        geometry = (Crop((0.2, 1.0)), Rotate(10), Flip())
        ops = (*geometry, Gray(0.2), Jitter(0.4, 0.4, 0.4, 0.4), Cutout(3, 32))
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size, 128)
        stage = Stage(schedule="step", drops=(60 / 120, 80 / 120, 100 / 120))
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (view.images for view in batch.views)  # (B, C, S, S)
        all0, all1 = gather(view0), gather(view1)
        order = torch.randperm(len(all0)).to(view0.device)
        share = torch.distributions.Beta(self.hparams.mixing, self.hparams.mixing).sample()
        weight = float(torch.maximum(share, 1 - share))  # of the image itself, in [0.5, 1]
        query = self.projector(self.backbone.pooled(view0))  # (B, D)
        mixed_query = self.projector(self.backbone.pooled(part(_mix(all0, order, weight))))
        with torch.no_grad():
            update_momentum(self.backbone, self.momentum_backbone, self.hparams.encoder_momentum)
            update_momentum(self.projector, self.momentum_projector, self.hparams.encoder_momentum)
            key = self.momentum_projector(self.momentum_backbone.pooled(view1)).float()
            mixed_key = self.momentum_projector(self.momentum_backbone.pooled(part(_mix(all1, order, weight))))
        parts = self.compare(query, mixed_query, key, mixed_key, part(_mix(gather(key), order, weight)))
        loss = torch.stack(list(parts.values())).mean()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def compare(
        self, query: Tensor, mixed_query: Tensor, key: Tensor, mixed_key: Tensor, key_mix: Tensor
    ) -> dict[str, Tensor]:
        """The three comparisons, all (B, D); each fills the queue before the next one reads it."""
        rows = {"image": (query, key), "mixed": (mixed_query, mixed_key), "feature": (mixed_query, key_mix)}
        parts = {}
        for name, (own, partner) in rows.items():
            parts[name] = info_nce(own, partner, self.queue.snapshot(), self.hparams.temperature)
            self.queue.enqueue(gather(F.normalize(partner.float(), dim=1)))
        return parts


def _mix(rows: Tensor, order: Tensor, weight: float) -> Tensor:
    """Every row (B, ...) with another one of the batch, `weight` of itself."""
    return torch.lerp(rows[order], rows, weight)
