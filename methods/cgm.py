"""Deep generative model of anatomy: images are explained by a hierarchy of three latent levels and drawn again.

Source: Biffi et al., Explainable Anatomical Shape Analysis through Deep Hierarchical Generative Models, IEEE TMI 39,
2020, arXiv:1907.00058: a ladder variational autoencoder (Soenderby et al., NeurIPS 2016) with 64, 32 and 2 latents.
Departs, necessarily: the paper's model explains 3-D segmentations (Dice) and predicts a disease from its highest level;
the local discrimination table uses it on 2-D images without labels, in a way that is not published. Here the images
themselves are explained (normal likelihood of unit variance in normalised units) and there is no classifier. The
encoder is the shared backbone, averaged to at most 4 x 4 cells; the decoder mirrors its widths. The Kullback-Leibler
term fades in over the first tenth, as a ladder wants; widths of the layers between, rate and length are ours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.nets import CONVOLUTIONS, Backbone, conv_block, kaiming_, pool
from bench.parts.parallel import part, ranks
from bench.registry import method
from bench.spec import CorpusInfo, Recipe
from bench.views import Batch, Flip, Views

CELLS = 4  # per side, at most, between encoder and latents
LOG_VARIANCE = 8.0  # of a latent, at most this far from 0


@dataclass(frozen=True)
class HParams:
    """Latent levels of the paper; the rest is part of the reinterpretation."""

    low: int = 64  # latents of the level next to the image
    middle: int = 32  # latents of the level above
    high: int = 2  # latents of the highest level
    hidden: int = 128  # units of the layers between
    kl_weight: float = 1.0  # of the Kullback-Leibler term; 1: the evidence bound
    warmup: float = 0.1  # share of the steps over which that weight rises from 0
    lr: float = 1e-3  # Adam


@method(
    "cgm", HParams, version=1, title="CGM",
    paper="Biffi et al. 2020, arXiv:1907.00058", groups=("medical", "generative"),
    paper_steps=100000, paper_batch=8, min_batch=2, parallel="mean",
    note="reinterpreted: ladder autoencoder of 2-D images without labels; the paper's explains labelled segmentations",
)  # fmt: skip
class LadderAutoencoder(nn.Module):
    """A ladder variational autoencoder on the backbone; levels are numbered from the image up."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.size, self.strides = hparams, corpus_info.view_size, backbone.strides
        self.backbone = backbone
        self.cells = math.gcd(CELLS, self.size // backbone.strides[-1])
        latents, hidden, flat = (hparams.low, hparams.middle, hparams.high), hparams.hidden, self.cells**backbone.dims
        widths = (backbone.width * flat, hidden, hidden, hidden)
        self.up = nn.ModuleList(_layer(before, after) for before, after in itertools.pairwise(widths))
        self.evidence = nn.ModuleList(nn.Linear(hidden, 2 * count) for count in latents)
        self.prior = nn.ModuleList(
            nn.Sequential(_layer(above, hidden), nn.Linear(hidden, 2 * below))
            for below, above in itertools.pairwise(latents)
        )
        self.seed = _layer(hparams.low, backbone.width * flat)
        channels = (*backbone.channels[::-1], backbone.channels[0])
        dims = backbone.dims
        self.down = nn.ModuleList(kaiming_(conv_block(*pair, dims)) for pair in itertools.pairwise(channels))
        self.paint = CONVOLUTIONS[dims](backbone.channels[0], corpus_info.channels, 3, padding=1)

    def views(self) -> Views:
        return Views(each=((Flip(),),))

    def recipe(self) -> Recipe:
        return Recipe("adam", self.hparams.lr)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.views[0].images  # (B, C, *S)
        latents, divergence = self._infer(self.backbone(images)[-1])
        error = 0.5 * F.mse_loss(self._draw(latents).float(), images)
        divergence = divergence.mean() / images[0].numel()  # nats per value, as the error is
        weight = self.hparams.kl_weight * (min(1.0, batch.progress / self.hparams.warmup) if self.hparams.warmup else 1)
        return {"loss": error + weight * divergence, "error": error.detach(), "divergence": divergence.detach()}

    def _infer(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Coarsest features (B, W, h, w) -> a sample of the lowest level (B, low), and the divergence (B,) of all.

        Upwards evidence is gathered; downwards each level's posterior joins its evidence with the prior that the sample
        above gives, weighted by precision.
        """
        hidden = pool(features, self.cells).flatten(1)
        evidence = []
        for layer, head in zip(self.up, self.evidence, strict=True):
            hidden = layer(hidden)
            evidence.append(_mean_and_log_variance(head(hidden)))
        standard = (torch.zeros_like(evidence[-1][0]), torch.zeros_like(evidence[-1][1]))
        sample, divergence = _sample(evidence[-1]), _divergence(evidence[-1], standard)
        for level in range(len(evidence) - 2, -1, -1):
            prior = _mean_and_log_variance(self.prior[level](sample))
            posterior = _joined(evidence[level], prior)
            sample, divergence = _sample(posterior), divergence + _divergence(posterior, prior)
        return sample, divergence

    def _draw(self, latents: Tensor) -> Tensor:
        """A sample of the lowest level (B, low) -> images (B, C, *S)."""
        x = self.seed(latents).unflatten(1, (-1, *[self.cells] * self.backbone.dims))
        for block, stride in zip(self.down, self.strides[::-1], strict=True):
            x = block(F.interpolate(x, size=self.size // stride, mode="nearest"))
        return F.interpolate(self.paint(x), size=self.size, mode="nearest")


Gaussian = tuple[Tensor, Tensor]  # mean and logarithm of the variance, each (B, latents)


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU(0.1))


def _mean_and_log_variance(values: Tensor) -> Gaussian:
    mean, log_variance = values.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)


def _sample(gaussian: Gaussian) -> Tensor:
    """One draw, its noise made on the CPU so that every device sees the same: (B, latents)."""
    mean, log_variance = gaussian
    noise = part(torch.randn(ranks() * len(mean), *mean.shape[1:]))
    return mean + (0.5 * log_variance).exp() * noise.to(mean.device)


def _joined(one: Gaussian, other: Gaussian) -> Gaussian:
    """The normalised product of two normal distributions (Soenderby et al., Eq. 17 to 19)."""
    precision, other_precision = (-one[1]).exp(), (-other[1]).exp()
    total = precision + other_precision
    return (one[0] * precision + other[0] * other_precision) / total, -total.log()


def _divergence(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """Kullback-Leibler divergence of two diagonal normal distributions, in nats: (B,)."""
    spread = (posterior[1] - prior[1]).exp() + (posterior[0] - prior[0]).square() * (-prior[1]).exp()
    return 0.5 * (spread - 1 + prior[1] - posterior[1]).sum(1)
