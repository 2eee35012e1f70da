"""Prototypical contrastive learning: a query finds its own key in a queue, and its prototype among those of clusters.

Source: Li et al., Prototypical Contrastive Learning of Unsupervised Representations, ICLR 2021, arXiv:2005.04966,
Algorithm 1; the first version, without a hidden layer.
Departs: k-means is scikit-learn's, in mini-batches above 50,000 images; no shuffled batch normalisation (on one device
it is only a permutation); the learning rate is scaled linearly with the batch; the queue is never longer than the
corpus; negatives are all other prototypes where there are fewer than the paper's number. There are as many images to a
cluster as on ImageNet (25,000 clusters, 50,000 and 100,000), at least 16 clusters where that leaves four images to
each: what the local discrimination table used is not published. The tenth of the epochs without prototypes is rounded
down, so that a run of fewer than ten epochs has prototypes from its start: those of the untrained network, until the
second epoch begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from bench.losses import concentration, info_nce, proto_nce
from bench.nets import Backbone
from bench.parts import FeatureQueue, cluster_count, kmeans, momentum_copy
from bench.parts.parallel import gather
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    clusterings: int = 3  # each with twice the clusters of the one before; level where a small corpus has but 16
    clusters: int = 25000  # of the first clustering on ImageNet; the corpus gets as many images to a cluster, or 16
    restarts: int = 5  # of k-means, of which the best is taken
    warmup: float = 0.1  # share of the epochs without prototypes
    temperature: float = 0.2  # divides the logits between instances; mean density of the clusters
    negatives: int = 16384  # prototypes a query is told from, and past keys, at most as many as there are
    encoder_momentum: float = 0.999  # of the key encoder
    projection: int = 128  # dimensions of query, key and prototype
    lr: float = 0.03  # SGD, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "pcl", HParams, version=2, title="PCL",
    paper="Li et al. 2021, arXiv:2005.04966", groups=("cluster",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
class PrototypicalContrast(nn.Module):
    """Momentum contrast with prototypes; the clusterings are numbered from coarse to fine."""

    epoch: Tensor
    assignment: Tensor

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size, size = hparams, corpus_info.batch_size, corpus_info.size
        steps, batch = corpus_info.steps, corpus_info.batch_size
        self.warmup_epochs = int(hparams.warmup * min(steps, 1 + (steps - 1) * batch // size))  # of those that begin
        self.backbone = backbone
        self.projector = nn.Linear(backbone.width, hparams.projection)
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projector = momentum_copy(self.projector)
        self.queue = FeatureQueue(max(1, min(hparams.negatives, size)), hparams.projection)
        self.clusters = [cluster_count(hparams.clusters * 2**place, size) for place in range(hparams.clusterings)]
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))  # how many have begun
        self.register_buffer("assignment", torch.zeros(hparams.clusterings, size, dtype=torch.long))  # (M, N)
        for place, clusters in enumerate(self.clusters):
            self.register_buffer(f"prototypes{place}", torch.zeros(clusters, hparams.projection))  # (K, D)
            self.register_buffer(f"density{place}", torch.full((clusters,), hparams.temperature))  # (K,)

    def views(self) -> Views:
        ops = (Crop((0.2, 1.0)), Flip(), Jitter(0.4, 0.4, 0.4, 0.4), Gray(0.2))
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size)
        stage = Stage(schedule="step", drops=(0.6, 0.8))
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    @torch.no_grad()
    def start_epoch(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Clusters the corpus by its momentum features, once the warm-up is over."""
        self.epoch += 1
        if int(self.epoch) <= self.warmup_epochs:
            return
        self.eval()
        features = torch.cat([self._key(images).cpu() for _, images in loader])  # (N, D)
        self.train()
        for place, clusters in enumerate(self.clusters):
            assignment, centres = kmeans(features, clusters, self.hparams.restarts)
            squared = (features - centres[assignment]).square().sum(1)  # (N,)
            density = concentration(squared, assignment, clusters, self.hparams.temperature)
            self.assignment[place] = assignment.to(self.assignment.device)
            self.get_buffer(f"prototypes{place}").copy_(F.normalize(centres, dim=1))
            self.get_buffer(f"density{place}").copy_(density)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (view.images for view in batch.views)  # (B, C, S, S)
        query = self.projector(self.backbone.pooled(view0))  # (B, D)
        with torch.no_grad():
            update_momentum(self.backbone, self.momentum_backbone, self.hparams.encoder_momentum)
            update_momentum(self.projector, self.momentum_projector, self.hparams.encoder_momentum)
            key = self._key(view1)  # (B, D)
        parts = {"instance": info_nce(query, key, self.queue.snapshot(), self.hparams.temperature)}
        self.queue.enqueue(gather(key))
        if int(self.epoch) > self.warmup_epochs:
            parts["prototype"] = self._prototype_loss(gather(query), gather(batch.index.to(query.device)))
        return {
            "loss": torch.stack(list(parts.values())).sum(),
            **{name: part.detach() for name, part in parts.items()},
        }

    def _key(self, images: Tensor) -> Tensor:
        return F.normalize(self.momentum_projector(self.momentum_backbone.pooled(images)).float(), dim=1)

    def _prototype_loss(self, query: Tensor, index: Tensor) -> Tensor:
        own = self.assignment[:, index.to(query.device)]  # (M, B)
        prototypes = [self.get_buffer(f"prototypes{place}") for place in range(len(own))]
        density = [self.get_buffer(f"density{place}") for place in range(len(own))]
        negatives = [self._negatives(clusters, each) for clusters, each in zip(self.clusters, own, strict=True)]
        return proto_nce(query, prototypes, list(own), density, negatives)

    def _negatives(self, clusters: int, own: Tensor) -> Tensor:
        """Clusters (R,) that no image of the batch is in, drawn from their sorted numbers."""
        others = torch.ones(clusters, dtype=torch.bool).index_fill(0, own.cpu(), False).nonzero().flatten()
        return others[torch.randperm(len(others))[: self.hparams.negatives]].to(own.device)
