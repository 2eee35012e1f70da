"""Contrastive clustering: two views must agree row by row, as instances, and column by column, as clusters.

Source: Li et al., Contrastive Clustering, AAAI 2021, arXiv:2009.09687, Algorithm 1.
Departs: images are normalised (the reference code feeds them as they are); the rate is the paper's whatever the batch,
as Adam's steps do not grow with it. The local discrimination table does not say how many clusters it asked for: ten, as
in three of the paper's own six datasets, whatever the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from bench.losses import cluster_contrast, nt_xent
from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.registry import method
from bench.spec import BenchError, CorpusInfo, Recipe
from bench.views import Batch, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    clusters: int = 10  # columns of the assignment
    projection: int = 128  # dimensions in which instances are compared
    instance_temperature: float = 0.5  # divides the logits between rows
    cluster_temperature: float = 1.0  # divides the logits between columns
    lr: float = 3e-4  # Adam


@method(
    "cc", HParams, version=1, title="CC",
    paper="Li et al. 2021, arXiv:2009.09687", groups=("cluster",),
    paper_steps=137211,  # 1000 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
class ContrastiveClustering(nn.Module):
    """Contrast of the rows and of the columns of a batch."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        if hparams.clusters < 2:
            raise BenchError(
                f"cc.clusters must be at least 2, so that there is something to tell apart, not {hparams.clusters}"
            )
        self.hparams = hparams
        self.backbone = backbone
        width = backbone.width
        self.projector = ProjectionHead([(width, width, None, nn.ReLU()), (width, hparams.projection, None, None)])
        self.cluster_head = ProjectionHead([(width, width, None, nn.ReLU()), (width, hparams.clusters, None, None)])

    def views(self) -> Views:
        ops = (Crop((0.08, 1.0)), Flip(), Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), Gray(0.2))
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        return Recipe("adam", self.hparams.lr)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        pooled0, pooled1 = (self.backbone.pooled(view.images) for view in batch.views)  # (B, width)
        view0, view1 = (gather(self.projector(item)) for item in (pooled0, pooled1))  # (B, D)
        instance = nt_xent(view0, view1, self.hparams.instance_temperature)
        assignment0, assignment1 = (self.cluster_head(item).float().softmax(1) for item in (pooled0, pooled1))  # (B, K)
        cluster = cluster_contrast(gather(assignment0), gather(assignment1), self.hparams.cluster_temperature)
        return {"loss": instance + cluster, "instance": instance.detach(), "cluster": cluster.detach()}
