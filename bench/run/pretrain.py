"""The pretraining loop: it owns optimiser, schedule, device, precision, views, checkpoints; the method owns its loss.

Every random draw of a step comes from (seed, step), so a checkpoint holds the model, the optimiser and the step, and a
run that was killed at any instant ends with the same bits as one that never stopped (same machine type).
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench import data, nets, views
from bench.data import store
from bench.nets import weights
from bench.parts import parallel
from bench.parts.checkpoints import CHECKPOINT, Report, contiguous, pack_optimizer, unpack_optimizer
from bench.registry import Registry, hparams_of, load, scan
from bench.run.ranks import Team
from bench.run.turns import Turn, losses_of, owners, turns
from bench.spec import (
    PRECISIONS,
    BenchError,
    CellError,
    CellInterrupted,
    CorpusInfo,
    MethodSpec,
    Part,
    PretrainCell,
    Recipe,
    Site,
    Stage,
    derive,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("bench")

ENCODER = "encoder.safetensors"
SWEEP_SECONDS = 10.0  # what may be lost to a kill while a method looks at the whole corpus
SWEEP_BATCH = 64  # images at a time when a method looks at the whole corpus


def view_size(image_size: int) -> int:
    """Side of a view: 7/8 of the prepared image as in the paper (448 of 512), as a multiple of 32."""
    return max(32, 32 * round(image_size * 7 / 8 / 32))


# ------------------------------------------------------------------------------------------------------------- schedule


def stage_bounds(recipe: Recipe, steps: int) -> list[int]:
    """First step of every stage, and the end."""
    shares = [stage.share for stage in recipe.stages]
    return [round(steps * sum(shares[:index]) / sum(shares)) for index in range(len(shares) + 1)]


def learning_rate(recipe: Recipe | Part, stage: Stage, progress: float) -> float:
    """The rate at `progress` in [0, 1) of a stage."""
    if progress < stage.warmup:
        return recipe.lr * (progress + 1e-9) / stage.warmup
    after = (progress - stage.warmup) / (1 - stage.warmup)
    if stage.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * after))
    if stage.schedule == "halve":
        return recipe.lr * 0.5 ** math.floor(after / stage.period + 1e-9)
    if stage.schedule == "step":
        return recipe.lr * 0.1 ** sum(after >= drop for drop in stage.drops)
    if stage.schedule == "constant":
        return recipe.lr
    raise ValueError(f"unknown schedule {stage.schedule!r}: constant, cosine, halve or step")


def build_optimizer(recipe: Recipe | Part, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that a recipe, or a part of one, names."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "lars":
        from lightly.utils.lars import LARS

        weights = [item for item in parameters if item.dim() > 1]
        others = [
            item for item in parameters if item.dim() <= 1
        ]  # biases and normalisation: neither decayed nor scaled
        groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return LARS([group for group in groups if group["params"]], lr=recipe.lr, momentum=recipe.momentum)
    raise ValueError(f"unknown optimizer {recipe.optimizer!r}: adam, adamw, sgd or lars")


# ---------------------------------------------------------------------------------------------------------------- setup


def set_up(site: Site, precision: str = "32") -> Fabric:
    """Fabric on the site's device in that precision, deterministic, with the site's number of threads."""
    from lightning_fabric import Fabric

    settle(site)
    kind, _, index = site.device.partition(":")
    named: Any = PRECISIONS[precision]
    if kind != "cuda":
        return Fabric(accelerator="cpu", devices=1, precision=named)
    return Fabric(accelerator="cuda", devices=[int(index or 0)], precision=named)


def settle(site: Site) -> None:
    """The site's number of threads, and what makes torch deterministic; float32 is float32, not TF32."""
    torch.set_num_threads(site.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def preparing(report: Report) -> Callable[[int, int], None]:
    """Tells how far the images are prepared, in the words of a step."""
    return lambda done, count: report({"phase": "preparing images", "step": done, "steps": count, "losses": {}})


def build_method(
    cell: PretrainCell, spec: MethodSpec, corpus: data.Corpus | None, registry: Registry | None = None
) -> nn.Module:
    """The method on a fresh encoder; every method of a repetition starts from the same encoder.

    registry: knows the backbones of plug-ins.
    """
    torch.manual_seed(derive(cell.seed, "backbone", cell.backbone, cell.channels))
    backbone = nets.Backbone(cell.backbone, cell.channels, registry.encoder(cell.backbone) if registry else None)
    torch.manual_seed(derive(cell.seed, "method", cell.method))
    size, classes = (0, 0) if corpus is None else (len(corpus), corpus.classes)
    info = CorpusInfo(size, cell.channels, view_size(cell.image_size), cell.batch_size, cell.steps, classes)
    built: nn.Module = load(spec)(backbone, hparams_of(spec, dict(cell.hparams)), info)
    return built.to(memory_format=nets.memory_format(backbone.dims))  # type: ignore[call-overload, no-any-return]


def _pixels(images: Any, rows: Sequence[int], device: torch.device) -> Tensor:
    """Rows of a memory map, read in their order on disk: (B, C, *S) in [0, 1]."""
    pixels = torch.from_numpy(data.take(images, rows))
    return pixels.to(device).movedim(-1, 1).float().div_(255)


def _beside(values: Any, dims: int, rows: Sequence[int], device: torch.device) -> Tensor:
    """Rows of a side map (N, *S) or (N, *S, K) of images with `dims` axes, N and C included: (B, K, *S)."""
    taken = torch.from_numpy(data.take(values, rows)).to(device)
    return (taken if taken.dim() == dims else taken[..., None]).movedim(-1, 1)


def _by_name(built: Sequence[views.View], channels: Mapping[str, int]) -> dict[str, list[Tensor]]:
    """The maps of every view (B, K, *S), parted by their names."""
    found: dict[str, list[Tensor]] = {name: [] for name in channels}
    for view in built if channels else ():
        assert view.maps is not None
        for name, values in zip(channels, view.maps.split(list(channels.values()), 1), strict=True):
            found[name].append(values)
    return found


def make_batch(
    corpus: data.Corpus,
    cell: PretrainCell,
    declared: views.Views,
    step: int,
    stage: int,
    device: torch.device,
    multiple: int = 1,
) -> views.Batch:
    """The views of one step, drawn from (seed, step) alone; labels, maps, views of the second modality where known.

    Of several processes each makes its own rows of the one batch; `multiple` is the method's `batch_multiple`.
    """
    places = parallel.own_rows(cell.batch_size, multiple)
    whole = data.draw(len(corpus), cell.batch_size, step, cell.seed)
    rows = [whole[place] for place in places]

    def made(images: Any, purpose: str, maps: Tensor | None = None) -> list[views.View]:
        generator = torch.Generator().manual_seed(derive(cell.seed, purpose, step))
        pixels, size = _pixels(images, rows, device), view_size(cell.image_size)
        return views.build(pixels, declared, size, generator, views.ready, places, cell.batch_size, maps)

    maps = {name: _beside(values, corpus.images.ndim, rows, device) for name, values in corpus.maps.items()}
    built = made(corpus.images, "views", torch.cat(list(maps.values()), 1) if maps else None)
    pairs = list[views.View]() if corpus.pairs is None else made(corpus.pairs, "pair views")
    labels = None if corpus.labels is None else torch.from_numpy(corpus.labels[rows]).to(device)
    sides = _by_name(built, {name: values.shape[1] for name, values in maps.items()})
    return views.Batch(built, torch.tensor(rows), step / cell.steps, stage, labels, pairs, maps=sides)


class Sweep:
    """One pass over the whole corpus in its order, as often as wanted: (index (b,), images (b, C, *S) normalised)."""

    def __init__(self, corpus: data.Corpus, cell: PretrainCell, device: torch.device) -> None:
        self.corpus, self.cell, self.device = corpus, cell, device

    def __len__(self) -> int:
        return math.ceil(len(self.corpus) / SWEEP_BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        plain, size = views.Views(each=((),)), view_size(self.cell.image_size)
        for first in range(0, len(self.corpus), SWEEP_BATCH):
            rows = list(range(first, min(first + SWEEP_BATCH, len(self.corpus))))
            pixels = _pixels(self.corpus.images, rows, self.device)
            images = views.build(pixels, plain, size, torch.Generator(), views.ready)[0].images
            yield torch.tensor(rows), images


# ----------------------------------------------------------------------------------------------------------------- loop


class _Run:
    """One pretraining under way: what a checkpoint holds."""

    def __init__(
        self,
        cell: PretrainCell,
        spec: MethodSpec,
        corpus: data.Corpus,
        fabric: Fabric,
        registry: Registry | None = None,
    ) -> None:
        self.cell, self.fabric, self.source = cell, fabric, spec.origin.does
        self.corpus = corpus if spec.needs == "pairs" else dataclasses.replace(corpus, pairs=None)
        self.multiple = spec.batch_multiple
        self.method = build_method(cell, spec, corpus, registry).to(fabric.device)
        self.recipe: Recipe = self.method.recipe()  # type: ignore[operator]
        self.owners = owners(self.method, self.recipe, cell.method)
        self.turns = turns(self.method, self.recipe, cell.method)
        self.network = self._shared()
        self.declared: views.Views = self.method.views()  # type: ignore[operator]
        self.bounds = stage_bounds(self.recipe, cell.steps)
        self.stage, self.step = -1, 0
        self.optimizer = self._fresh_optimizer()
        self.part_optimizers = [build_optimizer(part, self._owned(part)) for part in self.recipe.parts]

    def _shared(self) -> nn.Module:
        """What a step is made with: of several processes, each one's gradients are averaged with the others'."""
        step = _Step(self.method, [turn.loss for turn in self.turns])
        if parallel.ranks() == 1:
            return step
        parallel.synchronise(self.method)
        return self.fabric.strategy.setup_module(step)

    def _owned(self, owner: Recipe | Part) -> list[nn.Parameter]:
        """The parameters of a part of the recipe, or those that are the recipe's own."""
        return [item for name, item in self.method.named_parameters() if self.owners.get(name) is owner]

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.recipe, self._owned(self.recipe))

    def _named_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {f"optimizer{at}.": item for at, item in enumerate([self.optimizer, *self.part_optimizers])}

    def begins_epoch(self, step: int) -> bool:
        """Whether the pass over the corpus that `step` belongs to begins with it."""
        size, batch = len(self.corpus), self.cell.batch_size
        return step == 0 or step * batch // size != (step - 1) * batch // size

    def start_epoch(self, step: int) -> None:
        """Lets a method that wants it look at the whole corpus before the first step of an epoch."""
        torch.manual_seed(derive(self.cell.seed, "epoch", step * self.cell.batch_size // len(self.corpus)))
        with self.fabric.autocast():
            self.method.start_epoch(Sweep(self.corpus, self.cell, self.fabric.device))  # type: ignore[operator]
        self.method.train()

    @property
    def sweeps(self) -> bool:
        return hasattr(self.method, "start_epoch")

    def enter(self, step: int) -> None:
        """Moves to `step`: a new optimiser where a stage begins, and the step's learning rate."""
        stage = max(index for index, first in enumerate(self.bounds[:-1]) if first <= step)
        if stage != self.stage:
            self.stage, self.optimizer = stage, self._fresh_optimizer()
        first, end = self.bounds[stage], self.bounds[stage + 1]
        rate = learning_rate(self.recipe, self.recipe.stages[stage], (step - first) / max(1, end - first))
        _set_rate(self.optimizer, rate)
        for part, optimizer in zip(self.recipe.parts, self.part_optimizers, strict=True):
            _set_rate(optimizer, learning_rate(part, part.stage, step / self.cell.steps))
        self.step = step
        if self.sweeps and self.begins_epoch(step):
            self.start_epoch(step)

    def save(self, folder: Path, step: int) -> None:
        if parallel.rank() > 0:
            return
        tensors, plain = dict[str, Tensor](), list[dict[str, Any]]()
        for prefix, optimizer in self._named_optimizers().items():
            packed, settings = pack_optimizer(optimizer, prefix)
            tensors |= packed
            plain.append(settings)
        tensors = contiguous(self.method.state_dict(), "method.") | contiguous(tensors)
        spoilt = _not_finite(tensors)
        if spoilt:
            raise CellError("failed", f"{spoilt} is not finite after step {step} of {self.cell.steps}; {_kept(folder)}")
        meta = {"key": self.cell.key, "source": self.source, "step": step, "stage": self.stage, "optimizers": plain}
        store.save_tensors(folder / CHECKPOINT, tensors, meta, keep_previous=True)

    def resume(self, folder: Path) -> int:
        """Steps that were already made, 0 for a fresh start."""
        made: int = self.fabric.broadcast(self._load(folder) if parallel.rank() == 0 else 0)
        if made and parallel.rank() > 0:
            self._load(folder)
        return made

    def _load(self, folder: Path) -> int:
        found = store.load_checkpoint(folder / CHECKPOINT)
        if found is None or found[1]["key"] != self.cell.key:
            return 0
        if found[1].get("source") != self.source or "optimizers" not in found[1]:
            log.warning(
                "the checkpoint in %s was made by another source of %s; it starts again", folder, self.cell.method
            )
            return 0
        tensors, meta = found
        self.method.load_state_dict({name[7:]: value for name, value in tensors.items() if name.startswith("method.")})
        self.stage = int(meta["stage"])
        self.optimizer = self._fresh_optimizer()
        for (prefix, optimizer), plain in zip(self._named_optimizers().items(), meta["optimizers"], strict=True):
            unpack_optimizer(optimizer, tensors, plain, prefix)
        return int(meta["step"])

    def train_step(self) -> dict[str, float]:
        torch.manual_seed(derive(self.cell.seed, "step", self.step))
        device = self.fabric.device
        batch = make_batch(self.corpus, self.cell, self.declared, self.step, self.stage, device, self.multiple)
        found = []
        for turn in self.turns:
            with turn.alone(self.method):
                found.append(self._take(turn, dataclasses.replace(batch, turn=turn.number)))
        parts = losses_of(found, self.turns)
        values = parallel.average(torch.stack([value.detach().double() for value in parts.values()]))
        return dict(zip(parts, values.tolist(), strict=True))

    def _take(self, turn: Turn, batch: views.Batch) -> dict[str, Tensor]:
        """One turn: a forward and a backward pass, and a step of its optimisers."""
        with self.fabric.autocast():
            parts: dict[str, Tensor] = self.network(batch)
        if turn.loss not in parts:
            when = f" in turn {turn.number}" if len(self.turns) > 1 else ""
            raise BenchError(
                f"training_step of {self.cell.method} must return a dict with '{turn.loss}'{when}; "
                f"it returned {', '.join(parts) or 'nothing'}"
            )
        every = [self.optimizer, *self.part_optimizers]
        optimizers = [every[at] for at in turn.optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(parts[turn.loss])
        for optimizer in optimizers:
            optimizer.step()
        return {name: value.detach() for name, value in parts.items()}


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class _Step(nn.Module):
    """A method's step as a forward pass, which is what gradients are averaged around."""

    def __init__(self, method: nn.Module, losses: Sequence[str]) -> None:
        super().__init__()
        self.method, self.losses = method, losses

    def forward(self, batch: views.Batch) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.method.training_step(batch)  # type: ignore[operator]
        kept = self.losses[batch.turn]
        return {name: value if name == kept else value.detach() for name, value in parts.items()}


def pretrain(
    cell: PretrainCell, spec: MethodSpec, registry: Registry, site: Site, folder: Path, report: Report
) -> dict[str, Any]:
    """Trains a cell, or goes on where it was stopped, and leaves `encoder.safetensors` in its folder.

    Returns {"steps_run", "steps", "seconds", "loss"}: steps made in this call, seconds of the loop. Raises CellError
    where the loss is not finite; the last good checkpoint stays.
    """
    if cell.weights:
        return _bring(cell, spec, folder, registry)
    corpus = data.open_corpus(cell, registry, site, preparing(report))
    if site.ranks == 1:
        return _train(_Run(cell, spec, corpus, set_up(site, cell.precision), registry), site, folder, report)
    settle(site)
    with Team(site, _assist, (cell, site, folder), folder / "log.txt", cell.precision) as fabric:
        return _train(_Run(cell, spec, corpus, fabric, registry), site, folder, report)


def _assist(fabric: Fabric, arguments: tuple[PretrainCell, Site, Path]) -> None:
    """What a rank above 0 does."""
    cell, site, folder = arguments
    settle(site)
    shelves = scan(site.plugins)
    corpus = data.open_corpus(cell, shelves, site)
    _train(_Run(cell, shelves.get("method", cell.method), corpus, fabric, shelves), site, folder, lambda facts: None)


def _train(run: _Run, site: Site, folder: Path, report: Report) -> dict[str, Any]:
    cell = run.cell
    run.method.train()
    start = run.resume(folder)
    began = saved = time.monotonic()
    losses: dict[str, float] = {}
    for step in range(start, cell.steps):
        if run.sweeps and step > start and run.begins_epoch(step) and time.monotonic() - saved >= SWEEP_SECONDS:
            run.save(folder, step)  # a pass over a large corpus takes long: what was made so far is kept first
            saved = time.monotonic()
        run.enter(step)
        losses = run.train_step()
        spoilt = next((turn.loss for turn in run.turns if not math.isfinite(losses[turn.loss])), None)
        if spoilt is not None:
            name = "the loss" if spoilt == "loss" else f"the loss {spoilt!r}"
            raise CellError(
                "failed", f"{name} became {losses[spoilt]} at step {step + 1} of {cell.steps}; {_kept(folder)}"
            )
        try:
            report({"phase": f"stage {run.stage + 1}", "step": step + 1, "steps": cell.steps, "losses": losses})
        except CellInterrupted:
            run.save(folder, step + 1)
            raise
        if time.monotonic() - saved > site.checkpoint_seconds and step + 1 < cell.steps:
            run.save(folder, step + 1)
            saved = time.monotonic()
    if parallel.rank() == 0:
        export(run.method, cell, folder)
    return {
        "steps": cell.steps,
        "steps_run": cell.steps - start,
        "seconds": time.monotonic() - began,
        "loss": losses.get(run.recipe.loss),
    }


def _bring(cell: PretrainCell, spec: MethodSpec, folder: Path, registry: Registry) -> dict[str, Any]:
    """Leaves the encoder that a method brings along instead of training it.

    Returns what `pretrain` does, and under "weights_match" what `nets.weights.load` says of it. CellError where the
    weights cannot be had, changed since the run was planned, or are not the whole of the encoder.
    """
    began, file = time.monotonic(), Path(cell.weights_file)
    method = build_method(cell, spec, None, registry)
    given = weights.read(file, cell.weights) if cell.weights_file else {}
    facts: dict[str, Any] = method.bring_weights(given)  # type: ignore[operator]
    export(method, cell, folder)
    if cell.weights_file:
        facts = {"file": file.name, **facts}
    return {"steps": 0, "steps_run": 0, "seconds": time.monotonic() - began, "loss": None, "weights_match": facts}


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor that holds a number that is none, or nothing."""
    return next((name for name, value in tensors.items() if not bool(torch.isfinite(value).all())), "")


def _kept(folder: Path) -> str:
    found = store.load_checkpoint(folder / CHECKPOINT)
    return f"the last good checkpoint (step {found[1]['step']}) is kept" if found else "no checkpoint was made before"


def handed_on(method: nn.Module) -> dict[str, nn.Module]:
    """What survives pretraining, by name: what the method's `export()` says, else the encoder of its `backbone`."""
    if not hasattr(method, "export"):
        return {"encoder": method.backbone.encoder}  # type: ignore[union-attr, dict-item]
    parts: dict[str, nn.Module] = method.export()  # type: ignore[operator]
    return parts


def export(method: nn.Module, cell: PretrainCell, folder: Path) -> None:
    """Writes what survives pretraining, of the encoder a probe too, for the hand-over."""
    parts = handed_on(method)
    tensors: dict[str, Tensor] = {}
    for name, module in parts.items():
        tensors |= contiguous(module.state_dict(), f"{name}.")
    spoilt = _not_finite(tensors)
    if spoilt:
        raise CellError("failed", f"{spoilt} is not finite after the last step; {_kept(folder)}")
    encoder = copy.deepcopy(parts["encoder"]).cpu().float()  # probed on the CPU at both ends of the hand-over
    meta = {"key": cell.key, "choices": cell.choices, "probe": nets.probe(encoder, cell.channels)}
    store.save_tensors(folder / ENCODER, tensors, meta)
