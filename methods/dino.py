"""DINO: a student must say of any crop of an image what a slowly moving teacher says of its large crops.

Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, arXiv:2104.14294,
Algorithm 1, with the authors' recipe for convolutional networks (SGD, wider range of crops, 100 epochs of 512 images).
Departs: no more outputs than the corpus has images (paper: 65536 for ImageNet's 1.3 million); gradients are not
clipped; the cosine ends at 0. lightly's head cannot be copied for the teacher (its weight normalisation is a hook), so
its layers are put together here, with the last one normalised in the forward pass, which is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from lightly.models.modules.heads import ProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts import momentum_copy
from bench.parts.parallel import gather
from bench.parts.recipes import linear_rate, rising_momentum
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Op, Solarize, Views

LARGE_CROPS = 2  # the views the teacher sees
SMALL_SIDE = 96 / 224  # of a small crop, as a share of a large one's


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper, and of its recipe for convolutional networks."""

    outputs: int = 65536  # over which student and teacher give a distribution, at most as many as the corpus has images
    hidden: int = 2048  # width of the projector
    bottleneck: int = 256  # dimensions before the outputs
    small_crops: int = 8  # views of 96 px where the two large ones have 224 px
    student_temperature: float = 0.1  # divides the student's logits
    teacher_temperature: float = 0.07  # divides the teacher's logits, after the warm-up
    first_teacher_temperature: float = 0.04  # divides the teacher's logits at first
    temperature_warmup: float = 0.3  # share of the steps in which the teacher's temperature rises (30 epochs)
    teacher_momentum: float = 0.996  # of the teacher at first; it rises to 1 along a cosine
    center_momentum: float = 0.9  # of the mean that is taken off the teacher's logits
    frozen: float = 0.01  # share of the steps in which the last layer does not move (1 epoch)
    lr: float = 0.03  # SGD with cosine, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD
    warmup: float = 0.1  # share of the steps with a rising rate


class _Network(nn.Module):
    """Images (B, C, S, S) -> logits (B, K)."""

    def __init__(self, backbone: Backbone, hparams: HParams, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        layers = [(backbone.width, hparams.hidden, None, nn.GELU()), (hparams.hidden, hparams.hidden, None, nn.GELU())]
        self.projector = ProjectionHead([*layers, (hparams.hidden, hparams.bottleneck, None, None)])
        self.last = nn.Linear(hparams.bottleneck, outputs, bias=False)
        for layer in self.projector.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, frozen: bool = False) -> Tensor:
        features = F.normalize(self.projector(self.backbone.pooled(images)).float(), dim=1)  # (B, bottleneck)
        weight = F.normalize(self.last.weight.float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            return features @ (weight.detach() if frozen else weight).T


@method(
    "dino", HParams, version=2, title="DINO",
    paper="Caron et al. 2021, arXiv:2104.14294", groups=("instance",),
    paper_steps=6861,  # 100 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=512, min_batch=2, parallel="gather",
)  # fmt: skip
class DINO(nn.Module):
    """Self-distillation between crops of several sizes."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        outputs = max(2, min(hparams.outputs, corpus_info.size))
        self.student = _Network(backbone, hparams, outputs)
        self.teacher = momentum_copy(self.student)
        self.criterion = DINOLoss(
            outputs, student_temp=hparams.student_temperature, center_momentum=hparams.center_momentum
        )

    def views(self) -> Views:
        colours: tuple[Op, ...] = (Flip(), Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), Gray(0.2))
        large, small = Crop((0.14, 1.0)), Crop((0.05, 0.14), share=SMALL_SIDE)
        first, second = (large, *colours, Blur(p=1.0)), (large, *colours, Blur(p=0.1), Solarize(0.2))
        return Views(each=(first, second) + ((small, *colours, Blur(p=0.5)),) * self.hparams.small_crops)

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size)
        stage = Stage(schedule="cosine", warmup=self.hparams.warmup)
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = [view.images for view in batch.views]  # (B, C, S, S), small ones (B, C, s, s)
        large = torch.cat(images[:LARGE_CROPS])
        sizes = [large, torch.cat(images[LARGE_CROPS:])] if len(images) > LARGE_CROPS else [large]
        frozen = batch.progress < self.hparams.frozen
        student = torch.cat([self.student(part, frozen) for part in sizes]).chunk(len(images))  # V of (B, K)
        with torch.no_grad():
            update_momentum(self.student, self.teacher, rising_momentum(self.hparams.teacher_momentum, batch.progress))
            teacher = torch.cat([gather(part) for part in self.teacher(large).chunk(LARGE_CROPS)])  # (2 B, K)
        temperature = self.teacher_temperature(batch.progress)
        entropy = self._entropy(teacher, temperature)  # before the criterion moves the centre
        with torch.autocast(large.device.type, enabled=False):
            loss = self.criterion(teacher.chunk(LARGE_CROPS), [gather(part) for part in student], temperature)
        return {"loss": loss, "divergence": loss.detach() - entropy, "teacher_entropy": entropy}

    def _entropy(self, logits: Tensor, temperature: float) -> Tensor:
        """Mean entropy of what the teacher says, in nats: 0 where it is sure of one output, log K where of none."""
        shares = ((logits - self.criterion.center[0]) / temperature).log_softmax(1)  # (2 B, K)
        return -(shares.exp() * shares).sum(1).mean()

    def teacher_temperature(self, progress: float) -> float:
        """Rises linearly, then stays."""
        first, last = self.hparams.first_teacher_temperature, self.hparams.teacher_temperature
        done = min(1.0, progress / self.hparams.temperature_warmup) if self.hparams.temperature_warmup else 1.0
        return first + (last - first) * done

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.teacher.backbone.encoder}  # as the authors do, who evaluate the teacher
