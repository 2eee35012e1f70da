"""Supervised: the encoder learns the corpus's image-level grades, the usual alternative to learning without labels.

Source: Chen et al., local discrimination, version 2, Table 2, row "Supervised" ("based on classification labels"); the
paper gives neither labels nor hyper-parameters.
Departs: unknown. The grades are those that the corpus declares; recipe and views are those of torchvision's reference
training of ImageNet classifiers (stochastic gradient descent, a tenth of the rate after each third, random resized
crops and flips), over the 200 epochs of the rows it stands beside, with the rate scaled linearly with the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets import Backbone
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import BenchError, CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of torchvision's reference training."""

    lr: float = 0.1  # SGD, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD
    label_smoothing: float = 0.0  # share of the target spread over all grades


@method(
    "supervised", HParams, version=1, title="Supervised",
    paper="Chen et al. 2022, local discrimination, Table 2", groups=("reference",),
    paper_steps=27442,  # 200 epochs of the paper's 35,126 fundus images
    paper_batch=256, min_batch=2, needs="labels", parallel="mean",
    note="the paper gives no details: cross-entropy on the corpus's image-level grades, torchvision's reference recipe",
)  # fmt: skip
class Supervised(nn.Module):
    """A linear classifier of grades on the pooled features."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        if corpus_info.classes < 2:
            raise BenchError(
                f"supervised needs a corpus with at least two image-level grades, this one has {corpus_info.classes}: "
                "choose a corpus that declares its classes"
            )
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.width, corpus_info.classes)

    def views(self) -> Views:
        return Views(each=((Crop((0.08, 1.0)), Flip()),))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size)
        stage = Stage(schedule="step", drops=(1 / 3, 2 / 3))
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        logits = self.classifier(self.backbone.pooled(batch.views[0].images)).float()  # (B, classes)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.hparams.label_smoothing)
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return {"loss": loss, "accuracy": accuracy}
