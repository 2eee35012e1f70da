"""The conference version of local discrimination: patches are told apart while every pixel is drawn to its cluster.

Source: Chen et al., Unsupervised Learning of Local Discriminative Representation for Medical Images, IPMI 2021,
arXiv:2012.09333, as its successor describes it (local discrimination, version 2, section 6.1.3: "the optimization
objective is to minimize the distance between the pixel embedding and its assigned center embedding"; both branches are
trained at once, in one stage).
Departs: unknown, for there is no code of it. Patch discrimination, views, networks, optimiser and assignment entropy
are the successor's; hypersphere mixup, which neither text attributes to the conference version, is left out. Distance
is squared and Euclidean, between unit vectors; centres are those of the batch, like the successor's prototypes. That
clusters are held to equal areas is a relic in the successor's code; form and weights of the two terms are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.losses import assignment_entropy, instance_discrimination
from bench.nets import Backbone, PixelDecoder, patch_embeddings
from bench.parts.parallel import gather, ranks
from bench.registry import method
from bench.spec import BenchError, CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, HalfTurn, Jitter, Op, QuarterTurn, Rotate, Views


@dataclass(frozen=True)
class HParams:
    """Those of the successor, and two weights that nobody published."""

    grid: int = 8  # patches per side
    clusters: int = 16  # regions
    embedding: int = 32  # channels of a pixel embedding
    temperature: float = 0.1  # divides the patch logits
    center_weight: float = 1.0  # of the distance between a pixel and its centre
    area_weight: float = 1.0  # of the clusters' deviation from equal areas
    entropy_weight: float = 0.1  # of the assignment entropy
    lr: float = 1e-3  # Adam, halved after every tenth of the run


@method(
    "ipmi21", HParams, version=1, title="IPMI21",
    paper="Chen et al. 2021, arXiv:2012.09333", groups=("ld", "dense", "medical"),
    paper_steps=100000, paper_batch=8, min_batch=2, parallel="gather",
    note="reinterpreted: no code of the conference version exists; its center and area terms follow the later papers",
)  # fmt: skip
class ConferenceLocalDiscrimination(nn.Module):
    """Patch discrimination and pixel clustering, trained together."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        if hparams.clusters < 2:
            raise BenchError(f"ipmi21.clusters must be at least 2, not {hparams.clusters}; without regions it is pd")
        self.hparams = hparams
        self.backbone = backbone
        self.decoder = PixelDecoder(backbone, hparams.embedding, hparams.clusters)

    def views(self) -> Views:
        each: tuple[Op, ...] = (Rotate(2), Jitter(0.4, 0.4, 0.4, 0.02), Gray(0.2))
        shared = (Flip(0.5, 0.5), Rotate(180), Crop((0.9, 1.0)))
        return Views(shared=shared, each=(each, (*each, HalfTurn(), QuarterTurn())))

    def recipe(self) -> Recipe:
        return Recipe("adam", self.hparams.lr, stages=(Stage(schedule="halve", period=0.1),))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        grid = self.hparams.grid
        pixels, assignment = self.decoder(self.backbone(torch.cat([view.images for view in batch.views])))
        first, second = patch_embeddings(pixels, grid).chunk(2)  # (B, G, K), K channels of an embedding
        cells = second.transpose(1, 2).unflatten(2, (grid,) * self.backbone.dims)  # (B, K, g, g)
        second = batch.views[1].unturn(cells).flatten(2).transpose(1, 2)
        rows = torch.cat([gather(first).flatten(0, 1), gather(second).flatten(0, 1)])  # (2 B G, K)
        parts = {
            "patch": instance_discrimination(rows, self.hparams.temperature),
            "center": center_distance(pixels, assignment),
            "area": area_deviation(assignment),
            "entropy": assignment_entropy(assignment),
        }
        weights = (1.0, self.hparams.center_weight, self.hparams.area_weight, self.hparams.entropy_weight)
        loss = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.backbone.encoder, "decoder": self.decoder}


def center_distance(pixels: Tensor, assignment: Tensor) -> Tensor:
    """Mean squared distance of a pixel embedding to the centre of its cluster, in [0, 4]; nothing is detached.

    A centre T_c is the sum s_c = sum_nhw r_nc v_n as unit vector. As all vectors are of unit length and a pixel's
    memberships r sum to 1, the mean of r |v - T|^2 is 2 - 2 sum_c |s_c| / (number of pixels).

    Args:
        pixels: v, (N, K, H, W), unit vectors along K.
        assignment: r, (N, C, H, W), sums to 1 over C.
    """
    count = ranks() * pixels.shape[0] * pixels.shape[2] * pixels.shape[3]
    with torch.autocast(pixels.device.type, enabled=False):
        sums = torch.bmm(assignment.flatten(2).float(), pixels.flatten(2).transpose(1, 2).float()).sum(0)  # (C, K)
        sums = gather(sums[None]).sum(0)
    return 2 - 2 * torch.linalg.vector_norm(sums, dim=1).sum() / count


def area_deviation(assignment: Tensor) -> Tensor:
    """Mean squared deviation of the clusters' areas, relative to equal ones: (N, C, H, W) -> 0 where all are equal."""
    area = gather(assignment.float().mean(dim=(0, 2, 3))[None]).mean(0)  # (C,)
    return (area * len(area) - 1).square().mean()
