"""DenseCL: momentum contrast of whole images and, at the same time, of the cells of a grid.

Source: Wang et al., Dense Contrastive Learning for Self-Supervised Visual Pre-Training, CVPR 2021, arXiv:2011.09157,
Eqs. 1 to 4; the queue of the grid takes one pooled vector per image, as in the released code.
Departs: the coarsest map is pooled to the paper's 7 x 7 cells (its own is 7 x 7 at 224 px and stride 32; ours has more
cells), before the heads and before the matching; heads are as wide as the backbone (paper: 2048, its ResNet-50's
width); as for MoCo, no shuffled batch normalisation, a learning rate scaled linearly with the batch, and queues that
wrap and are never longer than the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import DenseCLProjectionHead, MoCoProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from bench.losses import dense_info_nce, info_nce
from bench.nets import Backbone, average, pool
from bench.parts import FeatureQueue, momentum_copy
from bench.parts.parallel import gather
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    dense_weight: float = 0.5  # of the grid's loss; the image's has the rest
    grid: int = 7  # cells per side, at most the side of the coarsest map
    temperature: float = 0.2  # divides the logits
    queue_size: int = 65536  # past keys of either kind, at most as many as the corpus has images
    encoder_momentum: float = 0.999  # of the key encoder
    projection: int = 128  # dimensions compared
    lr: float = 0.03  # SGD with cosine, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


class _Heads(nn.Module):
    """Images (B, C, H, W) -> image vectors (B, D), cell vectors (B, S, D) and the cells' features (B, S, F)."""

    def __init__(self, backbone: Backbone, hparams: HParams) -> None:
        super().__init__()
        self.backbone, self.grid = backbone, hparams.grid
        self.projector = MoCoProjectionHead(backbone.width, backbone.width, hparams.projection)
        self.dense_projector = DenseCLProjectionHead(backbone.width, backbone.width, hparams.projection)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(images)[-1]  # (B, F, h, w)
        side = min(self.grid, *features.shape[2:])
        cells = pool(features, side).flatten(2).transpose(1, 2)  # (B, S, F)
        return self.projector(average(features)), self.dense_projector(cells), cells


@method(
    "densecl", HParams, version=1, title="DenseCL",
    paper="Wang et al. 2021, arXiv:2011.09157", groups=("instance", "dense"),
    paper_steps=27442,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
class DenseCL(nn.Module):
    """Momentum contrast with a global and a dense branch."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.query = _Heads(backbone, hparams)
        self.momentum_key = momentum_copy(self.query)
        size = max(1, min(hparams.queue_size, corpus_info.size))
        self.queue = FeatureQueue(size, hparams.projection)
        self.dense_queue = FeatureQueue(size, hparams.projection)

    def views(self) -> Views:
        jitter, blur = Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), Blur((0.1, 2.0), p=0.5)
        ops = (Crop((0.2, 1.0)), jitter, Gray(0.2), blur, Flip())
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size)
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(Stage(schedule="cosine"),))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (view.images for view in batch.views)  # (B, C, S, S)
        query, query_grid, query_cells = self.query(view0)
        with torch.no_grad():
            update_momentum(self.query, self.momentum_key, self.hparams.encoder_momentum)
            key, key_grid, key_cells = self.momentum_key(view1)
        temperature, weight = self.hparams.temperature, self.hparams.dense_weight
        image = info_nce(query, key, self.queue.snapshot(), temperature)
        dense_queue = self.dense_queue.snapshot()
        dense = dense_info_nce(query_grid, key_grid, query_cells, key_cells, dense_queue, temperature)
        self.queue.enqueue(gather(F.normalize(key.float(), dim=1)))
        self.dense_queue.enqueue(gather(F.normalize(key_grid.float().mean(1), dim=1)))
        loss = torch.lerp(image, dense, weight)
        return {"loss": loss, "image": image.detach(), "dense": dense.detach()}

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.query.backbone.encoder}
