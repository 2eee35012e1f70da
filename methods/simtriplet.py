"""SimTriplet: two views of an image, and a view of what lies beside it, predict one another without negatives.

Source: Liu et al., SimTriplet: Simple Triplet Representation Learning with a Single GPU, MICCAI 2021, arXiv:2103.05585,
Eqs. 1 to 3; heads and recipe of SimSiam (Chen, He, CVPR 2021, arXiv:2011.10566), as there; the predictor's rate stays
constant, as in SimSiam and in the released code.
Departs: the paper's tiles are cut from slides of many thousand pixels, and the third view comes from the next tile;
here a tile is a square window of an image, a third of its side, and its neighbour the window beside it. Weight decay
and length (100 epochs) are SimSiam's.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from bench.losses import triplet_similarity
from bench.nets import Backbone
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Part, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Neighbour, Op, Views

MOMENTUM = 0.9  # SGD's


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    tile: float = 0.111  # area of a window, as share of the image's: a third of the side, so that it has a neighbour
    projection: int = 2048  # dimensions compared, and width of the projector
    bottleneck: int = 512  # width of the predictor
    lr: float = 0.05  # SGD with cosine (the predictor's is constant), for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "simtriplet", HParams, version=1, title="SimTriplet",
    paper="Liu et al. 2021, arXiv:2103.05585", groups=("instance", "medical"),
    paper_steps=27442,  # 100 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=128, min_batch=2, parallel="mean",
    note="The neighbouring tile of a slide is re-defined as the neighbouring window, a third of the side, of an image.",
)  # fmt: skip
class SimTriplet(nn.Module):
    """Triplets of positives."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = SimSiamProjectionHead(backbone.width, hparams.projection, hparams.projection)
        self.predictor = SimSiamPredictionHead(hparams.projection, hparams.bottleneck, hparams.projection)

    def views(self) -> Views:
        tile = Crop((self.hparams.tile, self.hparams.tile), ratio=(1.0, 1.0))
        jitter, blur = Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), Blur((0.1, 2.0), p=0.5)
        ops: tuple[Op, ...] = (Crop((0.2, 1.0)), jitter, Gray(0.2), blur, Flip())
        return Views(shared=(tile,), each=(ops, ops, (Neighbour(), *ops)))

    def recipe(self) -> Recipe:
        lr, decay = linear_rate(self.hparams.lr, self.batch_size), self.hparams.weight_decay
        predictor = Part("predictor.", "sgd", lr, decay, momentum=MOMENTUM)
        return Recipe("sgd", lr, decay, MOMENTUM, stages=(Stage(schedule="cosine"),), parts=(predictor,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        projections = [self.projector(self.backbone.pooled(view.images)) for view in batch.views]  # 3 of (B, D)
        predictions = [self.predictor(projection) for projection in projections]
        return {"loss": triplet_similarity(*predictions, *projections)}
