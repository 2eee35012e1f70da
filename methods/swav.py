"""SwAV: the cluster that one crop of an image falls into must be predicted from every other crop of it.

Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020,
arXiv:2006.09882, Algorithm 1 and the recipe for 256 images per step.
Departs: LARS with the paper's rate from 256 images per step on, below that Adam with a rate of its own, as in this
project's SimCLR; the cosine ends at 0, not at a thousandth of the rate; the queue fills from the first step, though it
is used from the same epoch on. Queue and prototypes are as many as the paper's on a corpus of at least 3,840 images; a
smaller one has a queue of its own length and prototypes in proportion. Prototypes are a plain layer: lightly's has a
bias, which the paper's has not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import SwaVProjectionHead
from torch import Tensor, nn

from bench.losses import swapped_prediction
from bench.nets import Backbone
from bench.parts import FeatureQueue
from bench.parts.parallel import gather
from bench.registry import method
from bench.spec import BenchError, CorpusInfo, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Views

LARGE_BATCH = 256  # images per step from which on the paper's optimiser is used
LARGE_CROPS = 2  # the views that codes are made for
SMALL_SIDE = 96 / 224  # of a small crop, as a share of a large one's


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper's recipe for 256 images per step, of 200 epochs."""

    prototypes: int = 3000  # for a full queue; fewer in proportion where the corpus is shorter than the queue
    queue_size: int = 3840  # past features that share in the codes, at most as many as the corpus has images
    queue_start: float = 0.075  # share of the steps without a queue (15 epochs)
    frozen: float = 0.005  # share of the steps in which the prototypes do not move (1 epoch)
    small_crops: int = 6  # views of 96 px where the two large ones have 224 px
    temperature: float = 0.1  # divides the scores in a prediction
    epsilon: float = 0.05  # smoothness of the codes
    iterations: int = 3  # of Sinkhorn's algorithm
    projection: int = 128  # dimensions of features and prototypes
    lr: float = 0.6  # LARS, for 256 images; scaled linearly with the batch
    small_batch_lr: float = 3e-4  # Adam, below 256 images per step
    weight_decay: float = 1e-6  # of either optimiser


@method(
    "swav", HParams, version=2, title="SwAV",
    paper="Caron et al. 2020, arXiv:2006.09882", groups=("cluster",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
class SwAV(nn.Module):
    """Swapped assignments between crops of several sizes."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        if hparams.queue_size < 1:
            raise BenchError("swav.queue_size must be at least 1; `--set swav.queue_start=1` runs without a queue")
        self.hparams, self.steps, self.batch_size = hparams, corpus_info.steps, corpus_info.batch_size
        self.backbone = backbone
        self.projector = SwaVProjectionHead(backbone.width, backbone.width, hparams.projection)
        size = max(1, min(hparams.queue_size, corpus_info.size))
        self.queues = nn.ModuleList(FeatureQueue(size, hparams.projection) for _ in range(LARGE_CROPS))
        prototypes = max(2, hparams.prototypes * size // hparams.queue_size)
        self.prototypes = nn.Linear(hparams.projection, prototypes, bias=False)

    def views(self) -> Views:
        colours = (Flip(), Jitter(0.8, 0.8, 0.8, 0.2, p=0.8), Gray(0.2), Blur((0.1, 2.0), p=0.5))
        large, small = Crop((0.14, 1.0)), Crop((0.05, 0.14), share=SMALL_SIDE)
        return Views(each=((large, *colours),) * LARGE_CROPS + ((small, *colours),) * self.hparams.small_crops)

    def recipe(self) -> Recipe:
        stage = Stage(schedule="cosine")
        if self.batch_size < LARGE_BATCH:
            return Recipe("adam", self.hparams.small_batch_lr, self.hparams.weight_decay, stages=(stage,))
        lr = self.hparams.lr * self.batch_size / LARGE_BATCH
        return Recipe("lars", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = [view.images for view in batch.views]
        sizes = [part for part in (images[:LARGE_CROPS], images[LARGE_CROPS:]) if part]
        pooled = torch.cat([self.backbone.pooled(torch.cat(part)) for part in sizes])  # (V B, width)
        features = F.normalize(self.projector(pooled).float(), dim=1)  # (V B, D)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        prototypes = self.prototypes.weight
        if batch.progress < self.hparams.frozen:
            prototypes = prototypes.detach()
        with torch.autocast(features.device.type, enabled=False):
            features = torch.cat([gather(view) for view in features.chunk(len(images))])
            scores = (features @ prototypes.T).unflatten(0, (len(images), -1))  # (V, B, P)
            past = self._queue_scores(batch.progress)
        settings = (self.hparams.temperature, self.hparams.epsilon, self.hparams.iterations)
        loss = swapped_prediction(scores, LARGE_CROPS, *settings, queue_scores=past)
        for queue, rows in zip(self.queues, features.detach().unflatten(0, (len(images), -1)), strict=False):
            queue.enqueue(rows)  # type: ignore[operator]
        return {"loss": loss}

    @torch.no_grad()
    def _queue_scores(self, progress: float) -> Tensor | None:
        """Scores (2, Q, P) of past features, once queues are due and full."""
        rows = torch.stack([queue.get_buffer("rows") for queue in self.queues])
        full = round(progress * self.steps) * self.batch_size >= rows.shape[1]
        return rows @ self.prototypes.weight.T if full and progress >= self.hparams.queue_start else None
