"""JigClu: crops of many images are shuffled into montages; the network says which belong together and where from.

Source: Chen, Liu, Jia, Jigsaw Clustering for Unsupervised Visual Representation Learning, CVPR 2021, arXiv:2104.00323,
section 3.
Departs: a crop's side is half a view's, rounded to a multiple of 16 and at least 32 px (paper: 112 of 224); the head is
as wide as the backbone (paper: 2048, its ResNet-50's width); the last map is pooled to 2 x 2 as it is (reference:
resized to 8 x 8 first); the learning rate is scaled linearly with the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor, nn

from bench.losses import jigsaw_clustering
from bench.nets import Backbone
from bench.parts.parallel import gather, part
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Op, Quadrant, Views

PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column) of the quadrants


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    temperature: float = 0.07  # divides the logits of the clustering
    location_weight: float = 1.0  # of the location's loss, against the clustering's
    overlap: float = 0.3  # by how much of the image's side a quadrant reaches over the middle
    projection: int = 128  # dimensions compared
    lr: float = 0.03  # SGD with cosine, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "jigclu", HParams, version=2, title="JC",
    paper="Chen et al. 2021, arXiv:2104.00323", groups=("cluster",),
    paper_steps=27442,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=256, min_batch=2, dims=(2,),
    dims_reason="its puzzle is a square of four quadrants, which the paper defines for images alone",
    parallel="gather",
)  # fmt: skip
class JigClu(nn.Module):
    """Jigsaw clustering."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = MoCoProjectionHead(backbone.width, backbone.width, hparams.projection)
        self.locator = nn.Linear(backbone.width, len(PLACES))

    def views(self) -> Views:
        jitter, blur = Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), Blur((0.1, 2.0), p=0.5)
        ops: tuple[Op, ...] = (Crop((0.2, 1.0), share=0.5), jitter, Gray(0.2), blur, Flip())
        return Views(each=tuple((Quadrant(row, column, self.hparams.overlap), *ops) for row, column in PLACES))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size)
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(Stage(schedule="cosine"),))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        crops = torch.cat([gather(view.images) for view in batch.views])  # (4B, C, s, s), crop p of image i at p B + i
        order = torch.randperm(len(crops)).to(crops.device)
        quadrants = split(self.backbone(part(montages(crops[order])))[-1]).chunk(len(PLACES))
        features = torch.cat([gather(quadrant) for quadrant in quadrants])  # (4B, F), row r is of crop order[r]
        images = len(crops) // len(PLACES)
        clustering = jigsaw_clustering(self.projector(features), order % images, self.hparams.temperature)
        location = F.cross_entropy(self.locator(features).float(), order.div(images, rounding_mode="floor"))
        loss = clustering + self.hparams.location_weight * location
        return {"loss": loss, "clustering": clustering.detach(), "location": location.detach()}


def montages(crops: Tensor) -> Tensor:
    """Crops (4B, C, s, s) -> (B, C, 2s, 2s): crop p B + j fills quadrant p (row-major) of montage j."""
    first, second, third, fourth = crops.chunk(len(PLACES))
    top, bottom = torch.cat([first, second], dim=3), torch.cat([third, fourth], dim=3)
    return torch.cat([top, bottom], dim=2)


def split(features: Tensor) -> Tensor:
    """Features of montages (B, F, h, w) -> one pooled vector per quadrant (4B, F), in the order of `montages`."""
    return F.adaptive_avg_pool2d(features, 2).flatten(2).permute(2, 0, 1).flatten(0, 1)
