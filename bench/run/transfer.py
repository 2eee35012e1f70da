"""One encoder judged on one task: hand-over, the protocol's work, prediction of the test part and its scores.

The validation part (20 % of train) selects; the test part is looked at once, at the end, and only here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench import data, nets
from bench.data import KINDS, store
from bench.metrics import mean_score
from bench.parts.cases import Cases
from bench.parts.checkpoints import Report
from bench.parts.phases import Effort
from bench.registry import Registry, load
from bench.run.pretrain import preparing, set_up
from bench.spec import BenchError, CellError, MetricSpec, ProtocolSpec, Site, TaskSpec, TransferCell, derive
from bench.views import ready

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("bench")

AT_ONCE = 16  # test images that are predicted together


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


# ------------------------------------------------------------------------------------------------------------ transfer


def transfer(
    cell: TransferCell, registry: Registry, site: Site, folder: Path, weights: Path | None, report: Report
) -> dict[str, Any]:
    """Judges an encoder on a task; goes on where it was stopped.

    weights: what the pretraining exported; None for an encoder as initialised. Returns {"score" (of the headline),
    "scores" (metric -> value), "structures" (metric -> structure -> value, where there are several), "cases" (names,
    patients, and metric -> structure -> values, None where one is not defined), "n_images" (that count), "n_cases",
    "false_marks", "selection", "steps", "steps_run", "seconds"}. Raises CellError where the loss is not finite or the
    hand-over fails.
    """
    task: TaskSpec = registry.get("task", cell.task)
    protocol: ProtocolSpec = registry.get("protocol", cell.protocol)
    metrics = registry.metrics_of(task)
    fabric = set_up(site, cell.precision)
    torch.manual_seed(derive(cell.seed, "backbone", cell.pretrain.backbone, cell.pretrain.channels))
    name, channels = cell.pretrain.backbone, cell.pretrain.channels
    backbone = nets.Backbone(name, channels, registry.encoder(name))
    if weights is not None:
        load_encoder(backbone, weights)
    dataset = data.open_dataset(cell, registry, site, preparing(report))
    began = time.monotonic()
    effort = Effort(
        key=cell.key,
        task=cell.task,
        repetition=cell.seed,
        image_size=cell.image_size,
        batch_size=cell.batch_size,
        phase_steps=cell.phase_steps,
        phase_epochs=cell.phase_epochs,
        checks=cell.checks,
        folder=folder,
        checkpoint_seconds=site.checkpoint_seconds,
        fabric=fabric,
        report=report,
    )
    judge = load(protocol)(backbone, Cases(dataset, task, fabric.device), effort)
    prediction = _predicted(judge, dataset, protocol, fabric.device)
    scored = _scores(prediction, dataset, task, [(spec, load(spec)) for spec in metrics])
    return {**scored, "selection": protocol.selection, "seconds": time.monotonic() - began, **judge.facts}


def _predicted(judge: Any, dataset: data.Dataset, protocol: ProtocolSpec, device: torch.device) -> NDArray[Any]:
    """What the judge makes of the test images: (n, ...), on the CPU."""
    parts = list[Tensor]()
    for at in range(0, len(dataset.test), AT_ONCE):
        rows = list(dataset.test[at : at + AT_ONCE])
        pixels = torch.from_numpy(data.take(dataset.images, rows)).to(device).movedim(-1, 1).float().div_(255)
        part: Tensor = judge.predict(ready(pixels))
        if len(part) != len(rows):
            raise BenchError(f"the protocol {protocol.name} predicts {len(part)} cases where it is given {len(rows)}")
        parts.append(part.detach().cpu())
    return torch.cat(parts).numpy()


Metric = tuple[MetricSpec, Any]  # and its function


def _scores(
    prediction: NDArray[Any], dataset: data.Dataset, task: TaskSpec, metrics: Sequence[Metric]
) -> dict[str, Any]:
    """Every metric of the task, over all, of each structure and of each case; CellError where nothing can be scored.

    The truth alone decides which cases count, so that every row of a table is averaged over the same ones: a case that
    does not have a structure is left out of its mean whatever is predicted, and counted apart where a row marks it.
    """
    kind, rows = KINDS[task.truth], dataset.test
    names, spacing = kind.names(task), dataset.arrays["spacing"][list(rows)]
    present = [kind.present(dataset.arrays, rows, at) for at in range(len(names))]
    found: dict[str, dict[str, float]] = {}
    each: dict[str, dict[str, list[float]]] = {}
    for spec, function in metrics:
        for at, structure in enumerate(names):
            values = function(*kind.compared(prediction, dataset.arrays, rows, at), spacing)
            if spec.pooled:
                found.setdefault(spec.name, {})[structure] = float(values)
                continue
            kept = [float(value) if there else math.nan for value, there in zip(values, present[at], strict=True)]
            each.setdefault(spec.name, {})[structure] = kept
            found.setdefault(spec.name, {})[structure] = mean_score(kept)
    scores = {name: mean_score(values.values()) for name, values in found.items()}
    headline = task.headline
    if math.isnan(scores[headline]):
        raise CellError("failed", f"the metric {headline} is not defined in any test case: there is nothing to score")
    return {
        "score": scores[headline],
        "scores": scores,
        "structures": {name: values for name, values in found.items() if list(values) != [""]},
        "cases": {
            "names": [dataset.names[row] for row in rows],
            "patients": [dataset.patients[row] for row in rows],
            "scores": each,
        },
        "n_images": sum(map(any, zip(*present, strict=True))),
        "n_cases": len(rows),
        "false_marks": _false_marks([kind.marked(prediction, at) for at in range(len(names))], present),
    }


def _false_marks(marked: Sequence[NDArray[Any]], present: Sequence[NDArray[Any]]) -> float | None:
    """The share of what is not there that is marked nevertheless; None where every structure is in every case."""
    absent = [bool(mark) for row, there in zip(marked, present, strict=True) for mark in row[~there]]
    return sum(absent) / len(absent) if absent else None
