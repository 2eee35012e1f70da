"""DeepCluster: k-means groups the images by their features, and the network learns to tell the groups apart, in turns.

Source: Caron et al., Deep Clustering for Unsupervised Learning of Visual Features, ECCV 2018, arXiv:1807.05520,
sections 3.2 and 3.3.
Departs: no Sobel filter before the first layer, as the transferred encoder is to see the image itself; features are
averaged over the image, whatever its size, and the two layers after that are as wide as they are, not 4096; the loop
draws every image once an epoch, so that uniform sampling over clusters is replaced by weighting the loss with the
inverse size of the cluster; k-means is scikit-learn's, which has its own way to fill an empty cluster; components
without variance are left out of the whitening, and there is at most one for eight images, since as many as images would
leave all images equally far apart; the rates are scaled linearly with the batch; where an epoch is shorter than 100
steps, clusters last for several, as a classifier that starts afresh must have time to learn; a run shorter than an
epoch keeps the clusters of the untrained network. There are as many images
to a cluster as on ImageNet (10,000 clusters), at least 16 clusters where that leaves four images to each: what the
local discrimination table used is not published.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts import cluster_count, kmeans
from bench.parts.parallel import gather, part, ranks
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Part, Recipe
from bench.views import Batch, Crop, Flip, Views

LEAST_VARIANCE = 1e-9  # of a component, as a share of the largest
COMPONENT_IMAGES = 8  # images to a component, at least


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    clusters: int = 10000  # on ImageNet; the corpus gets as many images to a cluster, or 16 clusters
    components: int = 256  # of the whitened features that are clustered, at most one for eight images
    least_steps: int = 100  # between two clusterings; an epoch of the paper has 5,005
    dropout: float = 0.5  # after the first of the two layers before the classifier
    lr: float = 0.05  # SGD, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-5  # SGD


@method(
    "deepcluster", HParams, version=1, title="DC",
    paper="Caron et al. 2018, arXiv:1807.05520", groups=("cluster",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
class DeepCluster(nn.Module):
    """Clusters of the whole corpus as classes, new ones every epoch."""

    assignment: Tensor
    class_weight: Tensor
    age: Tensor

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.clusters = cluster_count(hparams.clusters, corpus_info.size)
        self.backbone = backbone
        self.hidden, self.projector = (nn.Linear(backbone.width, backbone.width) for _ in range(2))
        self.top_layer = nn.Linear(backbone.width, self.clusters)
        self.register_buffer("assignment", torch.arange(corpus_info.size) % self.clusters)  # (N,)
        self.register_buffer("class_weight", torch.ones(self.clusters))  # (K,)
        self.register_buffer("age", torch.zeros((), dtype=torch.long))  # of the clusters, in steps

    def views(self) -> Views:
        return Views(each=((Crop((0.08, 1.0)), Flip()),))

    def recipe(self) -> Recipe:
        lr, decay = linear_rate(self.hparams.lr, self.batch_size), self.hparams.weight_decay
        return Recipe("sgd", lr, decay, momentum=0.9, parts=(Part("top_layer.", "sgd", lr, decay),))

    def features(self, images: Tensor) -> Tensor:
        """What is clustered, and behind one more ReLU classified: (B, width)."""
        hidden = F.relu(self.hidden(self.backbone.pooled(images)))
        if self.training:  # drawn on the CPU, so that every device drops the same units
            kept = part(torch.rand(ranks() * len(hidden), hidden.shape[1])) >= self.hparams.dropout
            hidden = hidden * kept.to(hidden.device) / (1 - self.hparams.dropout)
        return self.projector(hidden)

    @torch.no_grad()
    def start_epoch(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Clusters the corpus by its features, and starts the classifier afresh, where the last time is long ago."""
        if 0 < int(self.age) < self.hparams.least_steps:
            return
        self.eval()
        features = torch.cat([self.features(images).float().cpu() for _, images in loader])  # (N, width)
        self.train()
        components = max(1, min(self.hparams.components, len(features) // COMPONENT_IMAGES))
        assignment, _ = kmeans(whiten(features, components), self.clusters)
        members = assignment.bincount(minlength=self.clusters)
        self.assignment.copy_(assignment)
        self.class_weight.copy_(torch.where(members > 0, len(assignment) / (self.clusters * members), 0.0))
        self.top_layer.weight.copy_(0.01 * torch.randn(self.top_layer.weight.shape))
        self.top_layer.bias.zero_()
        self.age.zero_()

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        logits = gather(self.top_layer(F.relu(self.features(batch.views[0].images))).float())  # (B, K)
        target = self.assignment[gather(batch.index.to(logits.device))]
        self.age += 1
        loss = F.cross_entropy(logits, target, weight=self.class_weight)
        return {"loss": loss, "accuracy": (logits.argmax(1) == target).float().mean()}


def whiten(features: Tensor, components: int) -> Tensor:
    """Features (N, D) -> their first principal components at unit variance (N, at most `components`), as unit rows."""
    centred = features.double() - features.double().mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    kept = variance[-components:] > LEAST_VARIANCE * variance[-1].clamp(min=torch.finfo(torch.float64).tiny)
    if not kept.any():  # all images alike: one cluster
        return torch.zeros(len(features), 1)
    projected = centred @ axes[:, -components:][:, kept] / variance[-components:][kept].sqrt()
    return F.normalize(projected, dim=1).float()
