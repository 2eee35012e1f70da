"""linear: one linear layer on the features of all levels of a frozen encoder, solved exactly, without augmentation.

What is compared are features, then, not how fast an optimiser gets through them. The validation part selects the
threshold of every structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import metrics, nets
from bench.parts.cases import Cases
from bench.parts.phases import Effort
from bench.registry import protocol

RIDGE = 1e-3  # relative to a feature's mean square
PIXELS = 16384  # of each training image that are seen at most
THRESHOLDS = 200  # cuts that are tried on the validation part, even, and as many near the top
HALFWAY = 0.5  # between off (0) and on (1) a structure, to which the layer is fitted


class Probe:
    """Least squares with a ridge on the features of all levels, brought to full resolution linearly.

    A level's weights act before its upsampling, which is the same thing, both being linear.
    """

    def __init__(self, encoder: nets.Backbone, structures: int, device: torch.device) -> None:
        self.encoder, self.device = encoder, device
        size = sum(encoder.channels) + 1
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.moments = [torch.zeros(size, dtype=torch.float64, device=device) for _ in range(structures)]
        self.pixels = 0
        self.layers: list[list[Tensor]] = []  # of each structure the weights of each level, (C,)
        self.biases: list[float] = []

    def features(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.encoder(images)  # type: ignore[no-any-return]

    def see(self, image: Tensor, truth: Tensor, places: Tensor) -> None:
        """Adds some pixels of one image: (1, C, *S), (1, 1, *S), flat places (P,)."""
        size, dims = image.shape[-1], image.dim() - 2
        axes = [places.div(size**axis, rounding_mode="floor") % size for axis in range(dims)]
        points = torch.stack(axes, dim=1)  # (P, D) x, y, ...
        grid = ((2 * points + 1) / size - 1).to(self.device, torch.float32)[(None,) * dims]
        columns = [
            F.grid_sample(level.float(), grid, padding_mode="border", align_corners=False).flatten(2)[0]
            for level in self.features(image)
        ]
        columns.append(torch.ones(1, len(places), device=self.device))
        matrix = torch.cat(columns)  # (F + 1, P)
        self.gram += (matrix @ matrix.T).double()
        marked = truth.flatten()[places.to(self.device)]
        for place, moment in enumerate(self.moments, 1):
            moment += (matrix @ (marked == place).float()).double()
        self.pixels += len(places)

    def solve(self) -> None:
        """Fixes the weights; the ridge is relative to every feature's mean square."""
        gram = self.gram / self.pixels
        scale = gram.diagonal().sqrt().clamp(min=1e-8)
        ridge = RIDGE * torch.eye(len(scale), dtype=torch.float64, device=self.device)
        for moment in self.moments:
            target = moment / self.pixels / scale
            weights = torch.linalg.solve(gram / scale[:, None] / scale + ridge, target) / scale
            *levels, bias = weights.float().split([*self.encoder.channels, 1])
            self.layers.append(levels)
            self.biases.append(float(bias))

    def scores(self, images: Tensor) -> Tensor:
        """(n, C, *S) -> (n, K, *S), near 1 on a structure and near 0 off it."""
        shape = images.shape[2:]
        features = [level.float() for level in self.features(images)]
        totals = []
        for levels, bias in zip(self.layers, self.biases, strict=True):
            total = torch.full((len(images), 1, *shape), bias, device=self.device)
            for level, weights in zip(features, levels, strict=True):
                part = (level * weights[(None, slice(None), *[None] * len(shape))]).sum(1, keepdim=True)
                total = total + nets.resize(part, shape)
            totals.append(total)
        return torch.cat(totals, dim=1)


def best_threshold(scores: Tensor, target: Tensor) -> tuple[float, float]:
    """The cut of scores (n, *S) with the highest mean DSC against boolean targets, and that DSC.

    Images without target say nothing; where all are so the cut is halfway between off and on, with no DSC.
    """
    there = target.flatten(1).any(dim=1)
    if not there.any():
        return HALFWAY, math.nan
    even = torch.linspace(0, 1, THRESHOLDS + 2, dtype=torch.float64)[1:-1]
    top = 1 - torch.logspace(-4, -0.5, THRESHOLDS, dtype=torch.float64)  # a lesion is a few pixels in a thousand
    levels = torch.cat([even, top])
    ordered = scores.flatten().double().sort().values
    cuts = ordered[(levels * (len(ordered) - 1)).long()]
    found = [metrics.mean_score(metrics.dsc(scores[there] > cut, target[there]).tolist()) for cut in cuts]
    best = max(range(len(found)), key=lambda index: -math.inf if math.isnan(found[index]) else found[index])
    return float(cuts[best]), found[best]


@dataclass(frozen=True)
class Judge:
    """The solved layer and its thresholds."""

    probe: Probe
    cuts: Sequence[float]
    facts: dict[str, Any]

    def predict(self, images: Tensor) -> Tensor:
        """(n, C, *S) -> (n, *S), 0 or one more than the place of the structure that is furthest above its threshold."""
        scores = _one_by_one(self.probe, images).double()
        cuts = torch.tensor(self.cuts, dtype=torch.float64)[(None, slice(None), *[None] * (scores.dim() - 2))]
        margin, place = (scores - cuts).max(dim=1)
        return (place + 1) * (margin > 0)


def _one_by_one(probe: Probe, images: Tensor) -> Tensor:
    return torch.cat([probe.scores(image).cpu() for image in images.split(1)])


@protocol(
    "linear",
    title="one linear layer on frozen features",
    selection="threshold with the highest validation DSC (20 % of train)",
    truths=("mask",),
    order=1,
)
def fit(encoder: nets.Backbone, cases: Cases, effort: Effort) -> Judge:
    """Solves the layer on pixels of the training images."""
    moved = encoder.to(cases.device, memory_format=nets.memory_format(encoder.dims)).eval()  # type: ignore[call-overload]
    structures, steps = max(1, len(cases.spec.structures)), len(cases.train)
    probe = Probe(moved, structures, cases.device)
    for step, index in enumerate(cases.train):
        generator = torch.Generator().manual_seed(effort.seed("pixels", step))
        images, truth = cases.take([index])
        places = torch.randperm(images[0, 0].numel(), generator=generator)[:PIXELS]
        probe.see(images, truth, places)
        effort.report({"phase": "features", "step": step + 1, "steps": steps, "losses": {}})
    probe.solve()
    taken = [cases.take([index]) for index in cases.validation]
    scores = torch.cat([probe.scores(images).cpu() for images, _ in taken])
    truth = torch.cat([truth.cpu() for _, truth in taken])[:, 0]
    found = [best_threshold(scores[:, place], truth == place + 1) for place in range(structures)]
    facts = {
        "threshold": found[0][0] if structures == 1 else [cut for cut, _ in found],
        "validation_score": math.fsum(score for _, score in found) / structures,
        "steps": steps,
        "steps_run": steps,
    }
    return Judge(probe, [cut for cut, _ in found], facts)
