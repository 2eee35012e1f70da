"""InstDisc: every image is a class of its own, recognised by one remembered vector per image.

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination, CVPR 2018,
arXiv:1805.01978, Eqs. 2 to 7, without the proximal term, as its released code.
Departs: no more noise is drawn than the corpus has images, where it would be the image itself many times over; a
remembered vector is renewed after the loss instead of inside the backward pass (the same values); where a batch reaches
over the end of an epoch and holds an image twice, its last feature is remembered; the learning rate is scaled linearly
with the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.losses import instdisc_nce, instdisc_normaliser, instdisc_softmax, updated_bank
from bench.nets import Backbone
from bench.parts.parallel import gather
from bench.parts.recipes import linear_rate
from bench.registry import method
from bench.spec import CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, Jitter, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    temperature: float = 0.07  # divides the logits
    noise: int = 4096  # images drawn as noise for every image, at most as many as the corpus has
    bank_momentum: float = 0.5  # share of the old vector when a remembered one is renewed
    projection: int = 128  # dimensions of a feature
    lr: float = 0.03  # SGD, for 256 images; scaled linearly with the batch
    weight_decay: float = 1e-4  # SGD


@method(
    "instdisc", HParams, version=1, title="InstDisc",
    paper="Wu et al. 2018, arXiv:1805.01978", groups=("instance",),
    paper_steps=27442,  # 200 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=256, parallel="gather",
)  # fmt: skip
class InstDisc(nn.Module):
    """Noise-contrastive estimation against a bank with one vector per image.

    The part `softmax`, logged beside the loss, is what the loss estimates, the cross-entropy over the whole bank (Eq.
    2): it shows progress where the loss rises because the bank fills with features instead of random vectors.
    """

    bank: Tensor
    normaliser: Tensor

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.noise = min(hparams.noise, corpus_info.size)
        self.backbone = backbone
        self.projector = nn.Linear(backbone.width, hparams.projection)
        bound = (3 / hparams.projection) ** 0.5  # vectors of length about 1
        self.register_buffer("bank", (torch.rand(corpus_info.size, hparams.projection) * 2 - 1) * bound)  # (N, D)
        self.register_buffer("normaliser", torch.zeros(()))  # Z, from the first batch; 0: not estimated yet

    def views(self) -> Views:
        return Views(each=((Crop((0.2, 1.0)), Gray(0.2), Jitter(0.4, 0.4, 0.4, 0.4), Flip()),))

    def recipe(self) -> Recipe:
        lr = linear_rate(self.hparams.lr, self.batch_size)
        stage = Stage(schedule="step", drops=(0.6, 0.8))
        return Recipe("sgd", lr, self.hparams.weight_decay, momentum=0.9, stages=(stage,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0].images  # (B, C, S, S)
        feature = gather(self.projector(self.backbone.pooled(images)))  # (B, D)
        index = gather(batch.index.to(images.device))
        noise = torch.randint(len(self.bank), (len(index), self.noise)).to(images.device)  # (B, K)
        drawn = (feature, self.bank, index, noise, self.hparams.temperature)
        if self.normaliser == 0:
            self.normaliser.copy_(instdisc_normaliser(*drawn))
        loss = instdisc_nce(*drawn, self.normaliser)
        exact = instdisc_softmax(feature.detach(), self.bank, index, self.hparams.temperature)
        self.bank = updated_bank(self.bank, index, feature, self.hparams.bank_momentum)
        return {"loss": loss, "softmax": exact}
