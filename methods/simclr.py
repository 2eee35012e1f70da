"""SimCLR: two views of an image must find each other among all the views of the batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709,
Algorithm 1.
Departs: LARS is the paper's optimiser for large batches (section 2.2); below 256 images per step, where its rate would
all but vanish, Adam with a rate of its own is used, with the same warm-up and cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from bench.losses import nt_xent
from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.parts.recipes import lars_or_adam
from bench.registry import method
from bench.spec import CorpusInfo, Recipe
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    temperature: float = 0.5  # divides the logits
    projection: int = 128  # dimensions compared
    lr: float = 0.3  # LARS, for 256 images; scaled linearly with the batch
    small_batch_lr: float = 3e-4  # Adam, below 256 images per step
    weight_decay: float = 1e-6  # of either optimiser
    warmup: float = 0.1  # share of the steps with a rising rate


@method(
    "simclr", HParams, version=1, title="SimCLR",
    paper="Chen et al. 2020, arXiv:2002.05709", groups=("instance",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, parallel="gather",
)  # fmt: skip
class SimCLR(nn.Module):
    """Contrast within the batch."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.projector = SimCLRProjectionHead(backbone.width, backbone.width, hparams.projection)

    def views(self) -> Views:
        ops = (Crop((0.08, 1.0)), Flip(), Jitter(0.8, 0.8, 0.8, 0.2, p=0.8), Gray(0.2), Blur((0.1, 2.0), p=0.5))
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        return lars_or_adam(self.hparams, self.batch_size)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = (self.projector(self.backbone.pooled(view.images)) for view in batch.views)  # (B, D)
        return {"loss": nt_xent(gather(view0), gather(view1), self.hparams.temperature)}
