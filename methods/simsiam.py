"""SimSiam: each of two views predicts the other, whose side takes no gradient; no negatives, no slow copy.

Source: Chen, He, Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv:2011.10566, Algorithm 1. The
predictor's rate stays constant, as its section 4.2 settles on.
Departs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Part, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Views

MOMENTUM = 0.9  # SGD's


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    projection: int = 2048  # dimensions compared, and width of the projector
    bottleneck: int = 512  # width of the predictor
    lr: float = 0.05  # SGD with cosine (the predictor's is constant), for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "simsiam", HParams, version=1, title="SimSiam",
    paper="Chen and He 2021, arXiv:2011.10566", groups=("instance",),
    paper_steps=6861,  # 100 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=512, min_batch=2, parallel="mean",
)  # fmt: skip
class SimSiam(nn.Module):
    """Two views of one image through one network."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = SimSiamProjectionHead(backbone.width, hparams.projection, hparams.projection)
        self.predictor = SimSiamPredictionHead(hparams.projection, hparams.bottleneck, hparams.projection)
        self.similarity = NegativeCosineSimilarity()

    def views(self) -> Views:
        ops = (Crop((0.2, 1.0)), Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), Gray(0.2), Blur((0.1, 2.0), p=0.5), Flip())
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        lr, decay = linear_rate(self.hparams.lr, self.batch_size), self.hparams.weight_decay
        predictor = Part("predictor.", "sgd", lr, decay, momentum=MOMENTUM)
        return Recipe("sgd", lr, decay, MOMENTUM, stages=(Stage(schedule="cosine"),), parts=(predictor,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        projected0, projected1 = (self.projector(self.backbone.pooled(view.images)).float() for view in batch.views)
        predicted0, predicted1 = self.predictor(projected0).float(), self.predictor(projected1).float()  # (B, D)
        loss0 = self.similarity(predicted0, projected1.detach())
        loss1 = self.similarity(predicted1, projected0.detach())
        return {"loss": (loss0 + loss1) / 2}
