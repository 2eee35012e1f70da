"""The protocols: how a pretrained encoder is judged on a task, image by image.

`finetune` (Chen et al., local discrimination, section 6.1.2): the decoder alone on a frozen encoder, then everything
with a new optimiser from the best state so far; Adam, soft dice (Eq. 33). `linear`: one linear layer on the features of
all levels of a frozen encoder, solved exactly, no augmentation. The validation part (20 % of train) selects the state,
or the linear layer's threshold; the test part is looked at once, at the end.

Departs from the released code: the dice loss is the paper's (smoothed above and below), images are rotated bilinearly
(their masks by nearest neighbour, as there), and lengths scale with the budget.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import data, metrics, nets, views
from bench.data import store
from bench.losses import soft_dice
from bench.registry import Registry
from bench.run.pretrain import CHECKPOINT, Report, contiguous, pack_optimizer, preparing, set_up, unpack_optimizer
from bench.spec import PROTOCOLS, BenchError, CellError, CellInterrupted, Site, TaskSpec, TransferCell, derive, digest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("bench")

LR = 1e-3  # Adam, constant
SMOOTH = 1.0  # of the dice loss
THRESHOLD = 0.5
RIDGE = 1e-3  # of the linear probe, relative to a feature's mean square
PROBE_PIXELS = 16384  # of each training image that the linear probe sees at most
THRESHOLDS = 200  # cuts that the linear probe tries on the validation part, even, and as many near the top
AUGMENT: dict[str, tuple[views.Op, ...]] = {
    "fundus": (views.Flip(0.5, 0.5), views.Rotate(180)),
    "chest": (views.Rotate(30),),
    "none": (),
}


# ----------------------------------------------------------------------------------------------------------- hand-over


def load_encoder(backbone: nets.Backbone, weights: Path) -> nets.HandOver:
    """Loads a pretrained encoder and proves that it computes what it computed when it was exported.

    Raises CellError where a weight is missing or left over, or where the features on the probe image differ.
    """
    tensors, meta = store.load_tensors(weights)
    encoder = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    report = nets.hand_over(backbone.encoder, encoder)
    log.info(
        "encoder: %d matched, %d missing, %d unexpected",
        len(report.matched),
        len(report.missing),
        len(report.unexpected),
    )
    if report.missing or report.unexpected:
        odd = (*report.missing, *report.unexpected)[0]
        raise CellError(
            "failed", f"the encoder was not handed over whole: {odd} does not match (of {len(report.matched)} that do)"
        )
    for before, after in zip(meta["probe"], nets.probe(backbone.encoder, backbone.in_channels), strict=True):
        if not math.isclose(before, after, rel_tol=1e-3, abs_tol=1e-6):
            raise CellError("failed", f"the encoder computes {after:.6g} where its pretraining computed {before:.6g}")
    return report


# -------------------------------------------------------------------------------------------------------------- batches


class _Images:
    """A dataset on the device: normalised images (N, C, S, S) and targets (N, 1, S, S)."""

    def __init__(self, dataset: data.Dataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device

    def take(self, indices: Sequence[int], ops: tuple[views.Op, ...] = (), seed: int = 0) -> tuple[Tensor, Tensor]:
        """Some images and targets, transformed alike: targets are read by nearest neighbour."""
        rows = list(indices)
        pixels = (
            torch.from_numpy(data.take(self.dataset.images, rows)).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        )
        target = torch.from_numpy(self.dataset.masks[rows]).to(self.device)[:, None].float()
        if ops:
            generator = torch.Generator().manual_seed(seed)
            size = pixels.shape[-1]
            view = views.build(pixels, views.Views(each=(ops,)), size, generator)[0]
            pixels, target = view.images, views.sample(target, view.affine, (size, size), mode="nearest")
        return views.normalise(pixels).contiguous(memory_format=torch.channels_last), target


# --------------------------------------------------------------------------------------------------------------- phases


@dataclasses.dataclass(frozen=True)
class _Phase:
    """One stretch of training with an optimiser of its own."""

    name: str
    steps: int
    lr: float
    frozen: bool  # the encoder


class _Trainer:
    """Trains a network on a task through its phases and keeps the state with the lowest validation loss."""

    def __init__(
        self, cell: TransferCell, net: nets.SegmentationNet, fabric: Fabric, site: Site, folder: Path, report: Report
    ) -> None:
        self.cell, self.net, self.fabric, self.site, self.folder, self.report = cell, net, fabric, site, folder, report
        self.phase_index, self.step, self.steps = 0, 0, 0
        self.best_loss, self.best_at = math.inf, 0
        self.best = copy.deepcopy(net.state_dict())
        self.optimizer: torch.optim.Optimizer | None = None
        self.steps_run = 0
        self.source = digest(nets.probe(net.backbone.encoder, net.backbone.in_channels))  # the encoder it started from
        self.saved = time.monotonic()

    def save(self) -> None:
        assert self.optimizer is not None
        tensors, plain = pack_optimizer(self.optimizer)
        tensors = contiguous(tensors) | contiguous(self.net.state_dict(), "net.") | contiguous(self.best, "best.")
        meta = {
            "key": self.cell.key,
            "source": self.source,
            "phase": self.phase_index,
            "step": self.step,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_at": self.best_at,
            "optimizer": plain,
        }
        store.save_tensors(self.folder / CHECKPOINT, tensors, meta, keep_previous=True)
        self.saved = time.monotonic()

    def resume(self, optimizer_of: Callable[[int], torch.optim.Optimizer]) -> None:
        """Goes back to the last checkpoint, where there is one of this cell."""
        found = store.load_checkpoint(self.folder / CHECKPOINT)
        if found is None or (found[1]["key"], found[1].get("source")) != (self.cell.key, self.source):
            return
        tensors, meta = found
        self.net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
        self.best = {name[5:]: value for name, value in tensors.items() if name.startswith("best.")}
        self.phase_index, self.step, self.best_at = meta["phase"], meta["step"], meta["best_at"]
        self.best_loss = math.inf if meta["best_loss"] is None else meta["best_loss"]
        self.optimizer = optimizer_of(self.phase_index)
        unpack_optimizer(self.optimizer, tensors, meta["optimizer"])

    def train(
        self,
        phases: Sequence[_Phase],
        parameters: Callable[[_Phase], list[nn.Parameter]],
        loss_of: Callable[[_Phase, int, int], Tensor],
        validate: Callable[[], float],
    ) -> None:
        def optimizer_of(index: int) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters(phases[index]), lr=phases[index].lr)

        self.resume(optimizer_of)
        self.steps, before = (
            sum(phase.steps for phase in phases),
            sum(phase.steps for phase in phases[: self.phase_index]),
        )
        while self.phase_index < len(phases):
            phase = phases[self.phase_index]
            if self.optimizer is None:
                self.optimizer = optimizer_of(self.phase_index)
            every = max(1, phase.steps // self.cell.checks)
            while self.step < phase.steps:
                loss = self._one_step(phase, before, loss_of)
                if self.step % every == 0 or self.step == phase.steps:
                    self._look(validate(), before + self.step)
                self._tell(phase, before, loss)
                if time.monotonic() - self.saved > self.site.checkpoint_seconds:
                    self.save()
            self.net.load_state_dict(self.best)
            before += phase.steps
            self.phase_index, self.step, self.optimizer = self.phase_index + 1, 0, None
            if self.phase_index < len(phases):
                self.best_loss = math.inf  # the last phase selects among its own states

    def _one_step(self, phase: _Phase, before: int, loss_of: Callable[[_Phase, int, int], Tensor]) -> float:
        assert self.optimizer is not None
        torch.manual_seed(derive(self.cell.seed, "transfer", self.cell.task, self.phase_index, self.step))
        self.net.train()
        with self.fabric.autocast():
            loss = loss_of(phase, self.phase_index, self.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CellError(
                "failed", f"the loss became {value} at step {before + self.step + 1} of phase {phase.name!r}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.step += 1
        self.steps_run += 1
        return value

    def _tell(self, phase: _Phase, before: int, loss: float) -> None:
        """Reports the step; a wish to stop is granted after a checkpoint."""
        step = before + self.step
        try:
            self.report({"phase": phase.name, "step": step, "steps": self.steps, "losses": {"dice loss": loss}})
        except CellInterrupted:
            self.save()
            raise

    def _look(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise CellError("failed", f"the validation loss became {loss} at step {step}")
        if loss < self.best_loss:
            self.best_loss, self.best_at = loss, step
            self.best = copy.deepcopy(self.net.state_dict())


def _phase_steps(cell: TransferCell, images: int) -> int:
    if cell.phase_steps is not None:
        return cell.phase_steps
    return cell.phase_epochs * math.ceil(images / cell.batch_size)


def _dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    return soft_dice(logits.float().sigmoid(), target, SMOOTH)


# ------------------------------------------------------------------------------------------------------------- finetune


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What a protocol ends with: a prediction, indices -> boolean masks (N, S, S) on the CPU; facts for the record."""

    predict: Callable[[Sequence[int]], Tensor]
    facts: dict[str, Any]


def _finetune(
    cell: TransferCell,
    task: TaskSpec,
    backbone: nets.Backbone,
    images: _Images,
    site: Site,
    fabric: Fabric,
    folder: Path,
    report: Report,
) -> _Judged:
    torch.manual_seed(derive(cell.seed, "decoder", cell.task))
    net = nets.SegmentationNet(backbone).to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dataset, ops = images.dataset, AUGMENT[task.augment]
    steps = _phase_steps(cell, len(dataset.train))
    phases = (_Phase("decoder", steps, LR, frozen=True), _Phase("all", steps, LR, frozen=False))

    def parameters(phase: _Phase) -> list[nn.Parameter]:
        return list((net.decoder if phase.frozen else net).parameters())

    def loss_of(phase: _Phase, index: int, step: int) -> Tensor:
        order = derive(cell.seed, "order", cell.task, index)
        drawn = [dataset.train[place] for place in data.draw(len(dataset.train), cell.batch_size, step, order)]
        pixels, target = images.take(drawn, ops, derive(cell.seed, "augment", cell.task, index, step))
        if not phase.frozen:
            return _dice_loss(net(pixels), target)
        net.backbone.eval()
        with torch.no_grad():
            features = net.backbone(pixels)
        return _dice_loss(net.decoder(features), target)

    def predict(indices: Sequence[int]) -> Tensor:
        """Probabilities (N, S, S)."""
        net.eval()
        with torch.no_grad(), fabric.autocast():
            parts = [net(images.take(indices[at : at + 4])[0]).float().sigmoid() for at in range(0, len(indices), 4)]
        return torch.cat(parts)[:, 0]

    def validate() -> float:
        _, target = images.take(dataset.validation)
        return float(soft_dice(predict(dataset.validation)[:, None], target, SMOOTH))

    trainer = _Trainer(cell, net, fabric, site, folder, report)
    trainer.train(phases, parameters, loss_of, validate)
    facts = {"validation_loss": trainer.best_loss, "best_at": trainer.best_at, "steps": trainer.steps}
    return _Judged(lambda indices: predict(indices).cpu() > THRESHOLD, facts | {"steps_run": trainer.steps_run})


# --------------------------------------------------------------------------------------------------------------- linear


class _LinearProbe:
    """Least squares with a ridge on the features of all levels, brought to full resolution bilinearly.

    The solution is exact, so that what is compared are features, not how fast an optimiser gets through them. A level's
    weights act before its upsampling, which is the same thing, both being linear.
    """

    def __init__(self, encoder: nets.Backbone, device: torch.device) -> None:
        self.encoder, self.device = encoder, device
        size = sum(encoder.channels) + 1
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.moment = torch.zeros(size, dtype=torch.float64, device=device)
        self.pixels = 0
        self.levels: list[Tensor] = []  # (1, C, 1, 1) each
        self.bias = 0.0

    def features(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.encoder(images)  # type: ignore[no-any-return]

    def see(self, image: Tensor, target: Tensor, places: Tensor) -> None:
        """Adds some pixels of one image: (1, C, S, S), (1, 1, S, S), flat places (P,)."""
        size = image.shape[-1]
        points = torch.stack([places % size, places.div(size, rounding_mode="floor")], dim=1)  # (P, 2) x, y
        grid = ((2 * points + 1) / size - 1).to(self.device, torch.float32)[None, None]
        columns = [
            F.grid_sample(level.float(), grid, padding_mode="border", align_corners=False)[0, :, 0]
            for level in self.features(image)
        ]
        columns.append(torch.ones(1, len(places), device=self.device))
        matrix = torch.cat(columns)  # (F + 1, P)
        self.gram += (matrix @ matrix.T).double()
        self.moment += (matrix @ target.flatten()[places.to(self.device)]).double()
        self.pixels += len(places)

    def solve(self) -> None:
        """Fixes the weights; the ridge is relative to every feature's mean square."""
        gram, moment = self.gram / self.pixels, self.moment / self.pixels
        scale = gram.diagonal().sqrt().clamp(min=1e-8)
        ridge = RIDGE * torch.eye(len(scale), dtype=torch.float64, device=self.device)
        weights = torch.linalg.solve(gram / scale[:, None] / scale + ridge, moment / scale) / scale
        *levels, bias = weights.float().split([*self.encoder.channels, 1])
        self.levels = [level[None, :, None, None] for level in levels]
        self.bias = float(bias)

    def scores(self, images: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, S, S), near 1 on the target and near 0 off it."""
        total = torch.full((len(images), 1, *images.shape[2:]), self.bias, device=self.device)
        for level, weights in zip(self.features(images), self.levels, strict=True):
            part = (level.float() * weights).sum(1, keepdim=True)
            total = total + F.interpolate(part, size=images.shape[2:], mode="bilinear")
        return total[:, 0]


def _best_threshold(scores: Tensor, target: Tensor) -> tuple[float, float]:
    """The cut of scores (N, S, S) with the highest mean DSC against boolean targets, and that DSC."""
    even = torch.linspace(0, 1, THRESHOLDS + 2, dtype=torch.float64)[1:-1]
    top = 1 - torch.logspace(-4, -0.5, THRESHOLDS, dtype=torch.float64)  # a lesion is a few pixels in a thousand
    levels = torch.cat([even, top])
    ordered = scores.flatten().double().sort().values
    cuts = ordered[(levels * (len(ordered) - 1)).long()]
    found = [metrics.mean_score(metrics.dsc(scores > cut, target).tolist()) for cut in cuts]
    best = max(range(len(found)), key=lambda index: -math.inf if math.isnan(found[index]) else found[index])
    return float(cuts[best]), found[best]


def _linear(
    cell: TransferCell,
    task: TaskSpec,
    backbone: nets.Backbone,
    images: _Images,
    site: Site,
    fabric: Fabric,
    folder: Path,
    report: Report,
) -> _Judged:
    dataset, size = images.dataset, cell.image_size
    probe = _LinearProbe(backbone.to(images.device, memory_format=torch.channels_last).eval(), images.device)  # type: ignore[call-overload]
    for step, index in enumerate(dataset.train):
        generator = torch.Generator().manual_seed(derive(cell.seed, "pixels", cell.task, step))
        places = torch.randperm(size * size, generator=generator)[:PROBE_PIXELS]
        pixels, target = images.take([index])
        probe.see(pixels, target, places)
        report({"phase": "features", "step": step + 1, "steps": len(dataset.train), "losses": {}})
    probe.solve()

    def scores(indices: Sequence[int]) -> Tensor:
        return torch.cat([probe.scores(images.take([index])[0]).cpu() for index in indices])

    truth = torch.from_numpy(dataset.masks[list(dataset.validation)]) > 0
    cut, validation = _best_threshold(scores(dataset.validation), truth)
    facts = {
        "threshold": cut,
        "validation_score": validation,
        "steps": len(dataset.train),
        "steps_run": len(dataset.train),
    }
    return _Judged(lambda indices: scores(indices) > cut, facts)


_PROTOCOLS = {"finetune": _finetune, "linear": _linear}


# ------------------------------------------------------------------------------------------------------------- transfer


def transfer(
    cell: TransferCell, registry: Registry, site: Site, folder: Path, weights: Path | None, report: Report
) -> dict[str, Any]:
    """Judges an encoder on a task; goes on where it was stopped.

    weights: what the pretraining exported; None for an encoder as initialised. Returns {"score", "image_scores" (name
    -> score, NaN where prediction and truth are both empty), "n_images", "selection", "steps", "steps_run", "seconds"}.
    Raises CellError where the loss is not finite or the hand-over fails.
    """
    if cell.protocol not in _PROTOCOLS:
        raise BenchError(f"unknown protocol {cell.protocol!r}: {', '.join(_PROTOCOLS)}")
    fabric = set_up(site)
    task: TaskSpec = registry.get("task", cell.task)
    torch.manual_seed(derive(cell.seed, "backbone", cell.pretrain.backbone, cell.pretrain.channels))
    backbone = nets.Backbone(cell.pretrain.backbone, cell.pretrain.channels)
    if weights is not None:
        load_encoder(backbone, weights)
    images = _Images(data.open_dataset(cell, registry, site, preparing(report)), fabric.device)
    began = time.monotonic()
    judged = _PROTOCOLS[cell.protocol](cell, task, backbone, images, site, fabric, folder, report)
    test, scores = images.dataset.test, list[float]()
    for at in range(0, len(test), 16):
        chunk = test[at : at + 16]
        scores += metrics.dsc(judged.predict(chunk), torch.from_numpy(images.dataset.masks[list(chunk)]) > 0).tolist()
    counted = [score for score in scores if not math.isnan(score)]
    if not counted:
        raise CellError("failed", "prediction and truth are empty in every test image: there is nothing to score")
    return {
        "score": metrics.mean_score(counted),
        "image_scores": {images.dataset.names[index]: score for index, score in zip(test, scores, strict=True)},
        "n_images": len(counted),
        "selection": PROTOCOLS[cell.protocol].selection,
        "seconds": time.monotonic() - began,
        **judged.facts,
    }
