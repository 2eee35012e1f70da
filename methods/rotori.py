"""RotOri: predict how an image was turned, beside a feature that tells images apart at every turn.

Source: Li, Hu, Qi, Yu, Zhao, Heng, Xing, Rotation-Oriented Collaborative Self-Supervised Learning for Retinal Disease
Diagnosis, IEEE TMI 40(9), 2021.
Departs: the length is 200 epochs of the local discrimination paper's images, as for its other contrastive methods (the
authors evaluate the checkpoint after 2000 epochs of a far smaller set), and the rate drops halfway, as it does there;
it is theirs whatever the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.losses import rotation_instance
from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the released code."""

    temperature: float = 0.1  # divides the logits
    rotation_weight: float = 1.0  # of the rotation's loss, against the instances'
    projection: int = 128  # dimensions of either half of the feature
    lr: float = 1e-4  # Adam, a tenth of it in the second half
    weight_decay: float = 1e-4  # Adam


@method(
    "rotori", HParams, version=1, title="RotOri",
    paper="Li et al. 2021, IEEE TMI 40(9)", groups=("medical",),
    paper_steps=93669,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=75, min_batch=2, parallel="gather",
)  # fmt: skip
class RotOri(nn.Module):
    """Four turns of two views: half of the feature knows the turn, the other half the image."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams = hparams
        self.backbone = backbone
        self.projector = nn.Linear(backbone.width, 2 * hparams.projection)
        self.classifier = nn.Linear(hparams.projection, 4)

    def views(self) -> Views:
        ops = (Crop((0.2, 1.0)), Gray(0.2), Jitter(0.4, 0.4, 0.4, 0.4), Flip())
        return Views(each=(ops, ops))

    def recipe(self) -> Recipe:
        stage = Stage(schedule="step", drops=(0.5,))
        return Recipe("adam", self.hparams.lr, self.hparams.weight_decay, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = torch.cat([view.images for view in batch.views])  # (2B, C, *S)
        turned = torch.stack([torch.rot90(images, turns, (-2, -1)) for turns in range(4)], dim=1).flatten(0, 1)
        orientation, instance = self.projector(self.backbone.pooled(turned)).chunk(2, dim=1)  # (8B, D) each
        turns = torch.arange(4, device=images.device).repeat(len(images))  # (8B,)
        rotation = F.cross_entropy(self.classifier(orientation).float(), turns)
        instance = torch.cat([gather(view) for view in instance.chunk(2)])
        contrast = rotation_instance(instance, self.hparams.temperature)
        loss = contrast + self.hparams.rotation_weight * rotation
        return {"loss": loss, "instance": contrast.detach(), "rotation": rotation.detach()}
