"""EMMD: an image, its second modality and their other views share a feature that no other patient's image has.

Source: Li, Jia, Islam, Yu, Xing, Self-Supervised Feature Learning via Exploiting Multi-Modal Data for Retinal Disease
Diagnosis, IEEE TMI 39(12), 2020, arXiv:2007.11067.
Departs: the second modality (there: fluorescein angiograms that a generator makes of fundus images; its weights are
not released) must be in the corpus; the length is 200 epochs of the local discrimination paper's images, as for its
other contrastive methods, and the rate drops halfway, as it does on the way to the checkpoint that the authors
evaluate (epoch 1000 of 2000); it is theirs whatever the batch. `emmd_green`, only where it is asked for by name, takes
the inverted green channel instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.losses import multimodal_instance
from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, Jitter, Views, normalise

DARK = 20 / 255  # a pixel with no channel above this lies outside the field of view


@dataclass(frozen=True)
class HParams:
    """Defaults of the released code."""

    temperature: float = 0.1  # divides the logits
    projection: int = 128  # dimensions compared
    lr: float = 1e-4  # Adam, a tenth of it in the second half
    weight_decay: float = 1e-4  # Adam
    substitute: bool = False  # the inverted green channel stands in for the second modality


@method(
    "emmd", HParams, version=1, title="EMMD",
    paper="Li et al. 2020, arXiv:2007.11067", groups=("medical",),
    paper_steps=93669,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=75, min_batch=2, needs="pairs", parallel="gather",
    note="The second modality is the corpus's own; the generator that made it in the paper is not released.",
)  # fmt: skip
@method(
    "emmd_green", HParams, version=1, title="EMMD (green channel)",
    paper="Li et al. 2020, arXiv:2007.11067", groups=("substitute",),
    paper_steps=93669,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=75, min_batch=2, parallel="gather",
    note="Not the paper's method: the inverted green channel stands in for its second modality.",
    set={"substitute": True},
)  # fmt: skip
class EMMD(nn.Module):
    """Instances of two modalities in one feature space."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams = hparams
        self.backbone = backbone
        self.projector = nn.Linear(backbone.width, hparams.projection)

    def views(self) -> Views:
        ops = (Crop((0.2, 1.0)), Gray(0.2), Jitter(0.4, 0.4, 0.4, 0.4), Flip())
        return Views(each=(ops,) * (4 if self.hparams.substitute else 2))

    def recipe(self) -> Recipe:
        stage = Stage(schedule="step", drops=(0.5,))
        return Recipe("adam", self.hparams.lr, self.hparams.weight_decay, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        first = [view.images for view in batch.views[:2]]  # 2 of (B, C, S, S)
        if self.hparams.substitute:
            second = [inverted_green(view.images) for view in batch.views[2:]]
        else:
            second = [view.images for view in batch.pairs]
        rows = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(first, second, strict=True)]  # 2 of (2B, ...)
        features = self.projector(self.backbone.pooled(torch.cat(rows)))  # (4B, D), modalities take turns
        features = torch.cat([gather(view) for view in features.chunk(2)])
        return {"loss": multimodal_instance(features, self.hparams.temperature)}


def inverted_green(images: Tensor) -> Tensor:
    """Normalised images (B, C, S, S) with every channel as bright as the green (or only) one was dark; black stays."""
    blank = images.new_zeros(1, images.shape[1], 1, 1)
    black, white = normalise(blank), normalise(blank + 1)
    pixels = (images - black) / (white - black)  # in [0, 1]
    green = pixels[:, images.shape[1] // 2, None]  # (B, 1, S, S)
    inside = pixels.amax(1, keepdim=True) > DARK
    return normalise(torch.where(inside, 1 - green, 0.0).expand_as(images))
