"""finetune: the decoder alone on a frozen encoder, then everything with a new optimiser from the best state so far.

Source: Chen et al., local discrimination, section 6.1.2; Adam, soft dice (Eq. 33). The validation part selects.
Departs from the released code: the dice loss is the paper's (smoothed above and below), images are rotated bilinearly
(their masks by nearest neighbour, as there), and lengths scale with the budget. Several structures have a channel each,
and a pixel belongs to the most probable one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import data, nets
from bench.losses import soft_dice
from bench.parts.cases import Cases
from bench.parts.phases import Effort, Phase, Trainer
from bench.registry import protocol
from bench.spec import digest

LR = 1e-3  # Adam, constant
SMOOTH = 1.0  # of the dice loss
THRESHOLD = 0.5
AT_ONCE = 4  # images that are predicted together


@dataclass(frozen=True)
class Judge:
    """The trained network."""

    net: nets.SegmentationNet
    effort: Effort
    facts: dict[str, Any]

    def probabilities(self, images: Tensor) -> Tensor:
        """(n, C, *S) -> (n, K, *S)."""
        self.net.eval()
        with torch.no_grad(), self.effort.fabric.autocast():
            parts = [self.net(part).float().sigmoid() for part in images.split(AT_ONCE)]
        return torch.cat(parts)

    def predict(self, images: Tensor) -> Tensor:
        """(n, C, *S) -> (n, *S), 0 or one more than the place of the structure."""
        highest, place = self.probabilities(images).max(dim=1)
        return (place + 1) * (highest > THRESHOLD)


@protocol(
    "finetune",
    title="decoder alone, then everything",
    selection="lowest validation loss (20 % of train) in the last phase",
    truths=("mask",),
    phases=2,
    order=0,
)
def fit(encoder: nets.Backbone, cases: Cases, effort: Effort) -> Judge:
    """Trains a segmentation network whose encoder starts as handed over."""
    torch.manual_seed(effort.seed("decoder"))
    structures = max(1, len(cases.spec.structures))
    net = nets.SegmentationNet(encoder, structures).to(cases.device, memory_format=nets.memory_format(encoder.dims))  # type: ignore[call-overload]
    trainer = Trainer(effort, net, digest(nets.probe(encoder.encoder, encoder.in_channels)))
    judge, steps = Judge(net, effort, {}), effort.steps(len(cases.train))
    phases = (Phase("decoder", steps, LR, frozen=True), Phase("all", steps, LR, frozen=False))

    def wanted(truth: Tensor) -> Tensor:
        return torch.cat([(truth == place + 1).float() for place in range(structures)], dim=1)  # (n, K, *S)

    def parameters(phase: Phase) -> list[nn.Parameter]:
        return list((net.decoder if phase.frozen else net).parameters())

    def loss_of(phase: Phase, index: int, step: int) -> Tensor:
        drawn = data.draw(len(cases.train), effort.batch_size, step, effort.seed("order", index))
        rows = [cases.train[place] for place in drawn]
        images, truth = cases.take(rows, cases.augmentation, effort.seed("augment", index, step))
        if not phase.frozen:
            return _dice_loss(net(images), wanted(truth))
        net.backbone.eval()
        with torch.no_grad():
            features = net.backbone(images)
        return _dice_loss(net.decoder(features), wanted(truth))

    def validate() -> float:
        images, truth = cases.take(cases.validation)
        return float(soft_dice(judge.probabilities(images), wanted(truth), SMOOTH))

    trainer.train(phases, parameters, loss_of, validate)
    return Judge(net, effort, trainer.facts)


def _dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    return soft_dice(logits.float().sigmoid(), target, SMOOTH)
