"""Training in phases: what the protocols that learn by gradients have in common.

Every phase has an optimiser of its own and starts from the best state so far; the state with the lowest validation loss
of the last phase is what is left. A run that was stopped at any instant goes on from its checkpoint with the same bits.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.data import store
from bench.parts.checkpoints import CHECKPOINT, Report, contiguous, pack_optimizer, unpack_optimizer
from bench.spec import CellError, CellInterrupted, derive

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Effort:
    """What a protocol may spend on one encoder, and where it does."""

    key: str  # of the cell
    task: str
    repetition: int  # the cell's seed
    image_size: int  # px
    batch_size: int
    phase_steps: int | None  # optimiser steps of each phase; None: phase_epochs decide
    phase_epochs: int
    checks: int  # how often the validation part is looked at in each phase
    folder: Path  # for checkpoints
    checkpoint_seconds: float
    fabric: Fabric  # device and precision
    report: Report

    def seed(self, *purpose: str | int) -> int:
        """A seed for one purpose, the same in every attempt."""
        first, *rest = purpose
        return derive(self.repetition, first, self.task, *rest)

    def steps(self, images: int) -> int:
        """Optimiser steps of a phase that learns from so many images."""
        if self.phase_steps is not None:
            return self.phase_steps
        return self.phase_epochs * math.ceil(images / self.batch_size)


@dataclass(frozen=True)
class Phase:
    """One stretch of training with an optimiser of its own."""

    name: str
    steps: int
    lr: float
    frozen: bool  # the encoder


class Trainer:
    """Trains a network on a task through its phases and keeps the state with the lowest validation loss."""

    def __init__(self, effort: Effort, net: nn.Module, source: str) -> None:
        """source: what tells this start from another one; a checkpoint that began elsewhere is not taken up."""
        self.effort, self.net, self.source = effort, net, source
        self.phase_index, self.step, self.steps = 0, 0, 0
        self.best_loss, self.best_at = math.inf, 0
        self.best = copy.deepcopy(net.state_dict())
        self.optimizer: torch.optim.Optimizer | None = None
        self.steps_run = 0
        self.saved = time.monotonic()

    @property
    def facts(self) -> dict[str, Any]:
        """What the record says of the training."""
        return {
            "validation_loss": self.best_loss,
            "best_at": self.best_at,
            "steps": self.steps,
            "steps_run": self.steps_run,
        }

    def save(self) -> None:
        assert self.optimizer is not None
        tensors, plain = pack_optimizer(self.optimizer)
        tensors = contiguous(tensors) | contiguous(self.net.state_dict(), "net.") | contiguous(self.best, "best.")
        meta = {
            "key": self.effort.key,
            "source": self.source,
            "phase": self.phase_index,
            "step": self.step,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_at": self.best_at,
            "optimizer": plain,
        }
        store.save_tensors(self.effort.folder / CHECKPOINT, tensors, meta, keep_previous=True)
        self.saved = time.monotonic()

    def resume(self, optimizer_of: Callable[[int], torch.optim.Optimizer]) -> None:
        """Goes back to the last checkpoint, where there is one of this cell."""
        found = store.load_checkpoint(self.effort.folder / CHECKPOINT)
        if found is None or (found[1]["key"], found[1].get("source")) != (self.effort.key, self.source):
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
        phases: Sequence[Phase],
        parameters: Callable[[Phase], list[nn.Parameter]],
        loss_of: Callable[[Phase, int, int], Tensor],
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
            every = max(1, phase.steps // self.effort.checks)
            while self.step < phase.steps:
                loss = self._one_step(phase, before, loss_of)
                if self.step % every == 0 or self.step == phase.steps:
                    self._look(validate(), before + self.step)
                self._tell(phase, before, loss)
                if time.monotonic() - self.saved > self.effort.checkpoint_seconds:
                    self.save()
            self.net.load_state_dict(self.best)
            before += phase.steps
            self.phase_index, self.step, self.optimizer = self.phase_index + 1, 0, None
            if self.phase_index < len(phases):
                self.best_loss = math.inf  # the last phase selects among its own states

    def _one_step(self, phase: Phase, before: int, loss_of: Callable[[Phase, int, int], Tensor]) -> float:
        assert self.optimizer is not None
        torch.manual_seed(self.effort.seed("transfer", self.phase_index, self.step))
        self.net.train()
        with self.effort.fabric.autocast():
            loss = loss_of(phase, self.phase_index, self.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CellError(
                "failed", f"the loss became {value} at step {before + self.step + 1} of phase {phase.name!r}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.effort.fabric.backward(loss)
        self.optimizer.step()
        self.step += 1
        self.steps_run += 1
        return value

    def _tell(self, phase: Phase, before: int, loss: float) -> None:
        """Reports the step; a wish to stop is granted after a checkpoint."""
        step = before + self.step
        try:
            self.effort.report({"phase": phase.name, "step": step, "steps": self.steps, "losses": {"dice loss": loss}})
        except CellInterrupted:
            self.save()
            raise

    def _look(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise CellError("failed", f"the validation loss became {loss} at step {step}")
        if loss < self.best_loss:
            self.best_loss, self.best_at = loss, step
            self.best = copy.deepcopy(self.net.state_dict())
