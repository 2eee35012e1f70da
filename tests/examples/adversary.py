"""An adversarial autoencoder: a generator paints thumbnails from features, a discriminator tells them from true ones.

One file holds a method with two optimisers that take turns: `bench run --methods ./adversary.py --tasks chase`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets import Backbone
from bench.registry import method
from bench.spec import CorpusInfo, Part, Recipe
from bench.views import Batch, Flip, Views

SIDE = 8  # px of a thumbnail


@dataclass(frozen=True)
class HParams:
    """How hard both sides learn."""

    lr: float = 2e-4  # Adam, of both
    pixels: float = 10.0  # weight of the pixels' difference beside the discriminator's verdict


@method("example_adversary", HParams, version=1, title="Adversary", paper="not published", groups=("own",),
        paper_steps=1000, paper_batch=16)  # fmt: skip
class Adversary(nn.Module):
    """Encoder and generator learn in the first turn of a step, the discriminator in the second."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.backbone, self.hparams = backbone, hparams
        pixels = corpus_info.channels * SIDE**2
        self.generator = nn.Sequential(nn.Linear(backbone.width, 64), nn.ReLU(), nn.Linear(64, pixels))
        self.discriminator = nn.Sequential(nn.Linear(pixels, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def views(self) -> Views:
        return Views(each=((Flip(),),))

    def recipe(self) -> Recipe:
        part = Part("discriminator.", "adam", self.hparams.lr, loss="discriminator", turn=1)
        return Recipe("adam", self.hparams.lr, parts=(part,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0].images
        true = F.adaptive_avg_pool2d(images, SIDE).flatten(1)  # (B, C * SIDE ** 2)
        made = self.generator(self.backbone.pooled(images))
        if batch.turn == 0:
            verdict = F.softplus(-self.discriminator(made)).mean()
            return {"loss": verdict + self.hparams.pixels * F.mse_loss(made, true), "verdict": verdict}
        false = torch.cat([self.discriminator(true), -self.discriminator(made.detach())])
        return {"discriminator": F.softplus(-false).mean()}

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.backbone.encoder}
