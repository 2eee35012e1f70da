"""Proof that this machine computes what the house promises, method by method, on images made up on the spot.

Every method takes a few steps from one state on the CPU and on the device; is stopped, saved, and taken up again; draws
its views while somebody else draws random numbers; and computes in half precision where it is allowed to. What is off
is named. With the CPU as the device it is compared with itself, which still finds what is not saved or not seeded.
"""

from __future__ import annotations

import logging
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench import data
from bench.registry import Registry
from bench.run import pretrain
from bench.run.meter import Meter
from bench.run.ranks import Team
from bench.spec import BUDGETS, BenchError, CellError, MethodSpec, PretrainCell, Site

if TYPE_CHECKING:
    from lightning_fabric import Fabric

IMAGES, SIDE, STEPS = 16, 32, 4  # of what is proved, px
FIRST, LATER = 1e-3, 2e-2  # how far a loss in float32 may be off on another device, relatively: at once, after steps
HALF = 0.1  # the same in bfloat16, against float32
VIEWS = 1e-3  # share of a view's pixels that another device may round to something else
PACE_STEPS = 3  # that are timed, after one that is not
RESERVE = 600 * 1024**2  # bytes of a GPU that each process on it takes beside what it allocates


@dataclass
class Proof:
    """What was found of one method."""

    method: str
    faults: list[str] = field(default_factory=list)
    apart: float = 0.0  # the largest relative difference of a loss between CPU and device, in float32
    apart_half: float = 0.0  # between bfloat16 on the device and float32
    milliseconds: float = math.nan  # of a step at the size of the budget quick
    memory: int = 0  # bytes, the same step's peak


@dataclass(frozen=True)
class Page:
    """All that was found."""

    device: str
    proofs: tuple[Proof, ...]
    ranks: tuple[str, ...]  # what was found of several processes, a line each
    faults: tuple[str, ...]
    packed: int  # of the largest of these cells that share the device's memory; 0: not known
    seconds: float


def prove(
    registry: Registry, names: Sequence[str], device: str, tick: Callable[[str], None] = lambda name: None
) -> Page:
    """Proves methods on a device ("cpu", "cuda" or "cuda:N"); `tick` is told each one's name before it begins."""
    began, proofs = time.monotonic(), []
    import lightning_fabric  # first: it sets the level of its logger, which tells of every Fabric that is made

    logging.getLogger(lightning_fabric.__name__).setLevel(logging.ERROR)
    for name in names:
        spec: MethodSpec = registry.get("method", name)
        if not spec.trains or 2 not in spec.dims:  # what is made up here are images
            continue
        tick(name)
        proof = Proof(name)
        try:
            _Trial(spec, registry, device, proof).all()
        except Exception as error:
            proof.faults.append(f"stopped with {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        proofs.append(proof)
    tick("several processes")
    told, lost = _ranks(registry, [proof.method for proof in proofs], device)
    faults = [f"{proof.method} {fault}" for proof in proofs for fault in proof.faults]
    packed = _packed(device, max((proof.memory for proof in proofs), default=0))
    return Page(device, tuple(proofs), tuple(told), (*faults, *lost), packed, time.monotonic() - began)


# ----------------------------------------------------------------------------------------------------------- one method


class _Trial:
    """One method at work on CPU and device."""

    def __init__(self, spec: MethodSpec, registry: Registry, device: str, proof: Proof) -> None:
        self.spec, self.registry, self.device, self.proof = spec, registry, device, proof
        self.corpus = self._made_up(IMAGES, SIDE)
        self.cell = _cell(spec, SIDE, STEPS)

    def all(self) -> None:
        self._agrees()
        self._half()
        self._resumes()
        self._draws()
        self._pace()

    def _made_up(self, count: int, side: int) -> data.Corpus:
        corpus = made_up(count, side)
        wanted = [self.registry.get("side_map", name) for name in self.spec.maps]
        return replace(corpus, maps={item.name: data.computed_map(corpus.images, item) for item in wanted})

    def _run(self, device: str, precision: str = "32", cell: PretrainCell | None = None) -> pretrain._Run:
        site = Site(Path(), Path(), None, device=device, threads=torch.get_num_threads())
        chosen = replace(cell or self.cell, precision=precision)
        run = pretrain._Run(chosen, self.spec, self.corpus, pretrain.set_up(site, precision), self.registry)
        run.method.train()
        return run

    def _losses(self, run: pretrain._Run, first: int = 0, end: int = STEPS) -> list[dict[str, float]]:
        found = []
        for step in range(first, end):
            run.enter(step)
            found.append(run.train_step())
        return found

    def _fault(self, text: str) -> None:
        self.proof.faults.append(text)

    def _agrees(self) -> None:
        """The same losses on the device, though other random numbers were drawn in this process before."""
        with disturbed(0):
            expected = self._losses(self._run("cpu"))
        with disturbed(1):
            found = self._losses(self._run(self.device))
        exact = self.device == "cpu"
        for step, (one, other) in enumerate(zip(expected, found, strict=True), 1):
            for name in one:
                apart = _apart(one[name], other[name])
                self.proof.apart = max(self.proof.apart, apart)
                if apart > (0 if exact else FIRST if step == 1 else LATER):
                    how = "depends on what else draws random numbers" if exact else "is another one on the device"
                    self._fault(f"{how}: its {name} at step {step} is {other[name]:.6g}, not {one[name]:.6g}")
                    return
        self.expected = expected[0]

    def _half(self) -> None:
        """In bfloat16 networks compute in half, but losses and everything that is remembered do not."""
        run = self._run(self.device, "bf16")
        run.enter(0)
        batch = pretrain.make_batch(run.corpus, run.cell, run.declared, 0, run.stage, run.fabric.device, run.multiple)
        for turn in run.turns:
            with run.fabric.autocast(), torch.no_grad():
                torch.manual_seed(0)
                parts = run.method.training_step(replace(batch, turn=turn.number))  # type: ignore[operator]
            half = [name for name, value in parts.items() if value.dtype in (torch.bfloat16, torch.float16)]
            if half:
                self._fault(f"leaves its {half[0]} in half precision under bf16: take it to float32 before the loss")
        run = self._run(self.device, "bf16")
        found = self._losses(run, 0, 1)[0]
        for name, value in run.method.state_dict().items():
            if value.dtype in (torch.bfloat16, torch.float16):
                self._fault(f"keeps {name} in half precision: what is remembered is float32")
        expected = getattr(self, "expected", found)
        self.proof.apart_half = max((_apart(expected[name], found[name]) for name in found), default=0.0)
        if self.proof.apart_half > HALF:
            self._fault(f"is {self.proof.apart_half:.0%} off in bf16 at the first step")

    def _resumes(self) -> None:
        """Stopped in the middle and taken up again in another process's place it ends with the same bits."""
        middle = STEPS // 2
        whole = self._run(self.device)
        with tempfile.TemporaryDirectory(prefix="bench-prove-") as place:
            folder = Path(place)
            losses = self._losses(whole, 0, middle)
            whole.save(folder, middle)
            losses += self._losses(whole, middle, STEPS)
            again = self._run(self.device)
            if again.resume(folder) != middle:
                self._fault("does not take up its checkpoint")
                return
            with disturbed(2):
                rest = self._losses(again, middle, STEPS)
        odd = [
            name
            for name, value in whole.method.state_dict().items()
            if not torch.equal(value, again.method.state_dict()[name])
        ]
        if odd:
            self._fault(f"ends with another {odd[0]} when it is stopped and taken up again: something is not saved")
        elif rest != losses[middle:]:
            self._fault("has other losses when it is stopped and taken up again: something is not saved")

    def _draws(self) -> None:
        """Views come from the step's own generator: what else is drawn changes none of them, and they draw no other."""
        run = self._run("cpu")
        run.enter(0)

        def views(device: str) -> list[Tensor]:
            batch = pretrain.make_batch(run.corpus, run.cell, run.declared, 1, 0, torch.device(device), run.multiple)
            return [view.images.cpu() for view in (*batch.views, *batch.pairs)]

        with disturbed(3):
            before = _random_state()
            one = views("cpu")
            untouched = _random_state() == before
        with disturbed(4):
            other = views("cpu")
        if not untouched or not all(map(torch.equal, one, other)):
            self._fault("draws its views from a global generator: a stopped run would draw others")
        if self.device != "cpu":
            shares = [
                float(((a - b).abs() > 1e-2).float().mean()) for a, b in zip(one, views(self.device), strict=True)
            ]
            if max(shares, default=0.0) > VIEWS:
                self._fault(f"sees other views on the device: {max(shares):.1%} of the pixels differ")

    def _pace(self) -> None:
        """Milliseconds and memory of a step of the budget `quick`."""
        quick = BUDGETS["quick"]
        cell = _cell(self.spec, quick.image_size, 1 + PACE_STEPS, quick.batch_cap)
        self.corpus = self._made_up(max(IMAGES, cell.batch_size), quick.image_size)
        meter, run = Meter(self.device), self._run(self.device, cell=cell)
        self._losses(run, 0, 1)
        _finish(self.device)
        began = time.monotonic()
        self._losses(run, 1, 1 + PACE_STEPS)
        _finish(self.device)
        self.proof.milliseconds = 1000 * (time.monotonic() - began) / PACE_STEPS
        self.proof.memory = meter.peak_memory


def _cell(spec: MethodSpec, side: int, steps: int, cap: int | None = None) -> PretrainCell:
    """A pretraining of that method, as small as it allows."""
    least = -(-max(4, spec.min_batch) // spec.batch_multiple) * spec.batch_multiple
    batch = least if cap is None else max(least, cap // spec.batch_multiple * spec.batch_multiple)
    return PretrainCell(
        method=spec.name,
        version=spec.version,
        hparams=tuple(sorted(spec.defaults.items())),
        label=spec.name,
        corpus="made up",
        corpus_fingerprint="",
        phantom=True,
        backbone="tiny_vgg16",
        channels=3,
        budget="proof",
        steps=steps,
        image_size=side,
        batch_size=batch,
        seed=0,
    )


def made_up(count: int, side: int) -> data.Corpus:
    """Smooth random images in colour with three grades, and their negatives as a second modality."""
    generator = np.random.default_rng(0)
    parts = [torch.from_numpy(generator.random((count, 3, grid, grid), dtype=np.float32)) for grid in (4, 16)]
    coarse, fine = (torch.nn.functional.interpolate(part, size=(side, side), mode="bilinear") for part in parts)
    images = (0.7 * coarse + 0.3 * fine).movedim(1, -1).mul(255).byte().numpy()
    return data.Corpus(images, np.arange(count) % 3, 255 - images, classes=3)


def _apart(one: float, other: float) -> float:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(1.0, abs(one))


@contextmanager
def disturbed(seed: int) -> Iterator[None]:
    """Meanwhile the global generators stand somewhere else; afterwards they are where they were."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))


def _packed(device: str, memory: int) -> int:
    """How many of the largest of these cells share the device's memory."""
    if not device.startswith("cuda") or not memory:
        return 0
    total: int = torch.cuda.get_device_properties(torch.device(device)).total_memory
    return total * 9 // 10 // (memory + RESERVE)


# ---------------------------------------------------------------------------------------------------- several processes


def _first_losses(fabric: Fabric, arguments: tuple[list[str], Site]) -> dict[str, float]:
    """The first loss of methods in this process; in a process of its own the registry is read anew."""
    from bench.registry import scan

    names, site = arguments
    pretrain.settle(site)
    found, shelves = {}, scan(site.plugins)
    for name in names:
        spec: MethodSpec = shelves.get("method", name)
        cell = _cell(spec, SIDE, STEPS)
        cell = replace(cell, batch_size=cell.batch_size * (2 if cell.batch_size % (2 * spec.batch_multiple) else 1))
        run = pretrain._Run(cell, spec, made_up(IMAGES, SIDE), fabric, shelves)
        run.method.train()
        run.enter(0)
        found[name] = run.train_step()["loss"]
    return found


def _ranks(registry: Registry, names: Sequence[str], device: str) -> tuple[list[str], list[str]]:
    """Whether two processes give what is declared, of one method of each kind: what was found, and what is off."""
    kinds: dict[str, str] = {}
    for name in names:
        spec: MethodSpec = registry.get("method", name)
        if spec.parallel:
            kinds.setdefault(spec.parallel, name)
    if not kinds:
        return [], []
    if device.startswith("cuda") and torch.cuda.device_count() < 2:
        return ["several processes: not tried, there is one GPU"], []
    site = Site(Path(), Path(), None, device=device.partition(":")[0], ranks=2, plugins=tuple(registry.plugins))
    chosen, told, lost = list(kinds.values()), list[str](), list[str]()
    alone = _first_losses(pretrain.set_up(replace(site, ranks=1)), (chosen, site))
    with tempfile.TemporaryDirectory(prefix="bench-prove-") as place:
        arguments = chosen, site
        try:
            with Team(site, _first_losses, arguments, Path(place) / "log.txt") as fabric:  # type: ignore[arg-type]
                shared = _first_losses(fabric, arguments)
        except (CellError, BenchError) as error:
            return told, [f"several processes: {error}"]
    for kind, name in kinds.items():
        apart = _apart(alone[name], shared[name])
        told.append(f"two processes, {kind} ({name}): loss {shared[name]:.5f}, of one process {alone[name]:.5f}")
        if apart > FIRST:
            lost.append(f"{name} on two processes has the loss {shared[name]:.6g}, not {alone[name]:.6g}")
    return told, lost
