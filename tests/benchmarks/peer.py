"""SimCLR: seconds per step of a plain lightly + pytorch-lightning script over ours.

    python tests/benchmarks/peer.py [--steps 12] [--rounds 3]

Same backbone, batch, image size, augmentation settings, optimiser and loss; same CPU threads. The peer reads PNG files
through lightly's transform and a DataLoader with one worker per core, as its tutorials do. Both alternate in one run.
One JSON line; a ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor

from bench import data, nets, registry
from bench.run import pretrain
from bench.run.grid import Request, expand
from bench.spec import PretrainCell, Recipe, Site

METHOD = "simclr"


class Peer(pl.LightningModule):
    """What lightly's tutorial writes, on our backbone."""

    def __init__(self, backbone: nets.Backbone, recipe: Recipe) -> None:
        super().__init__()
        self.backbone, self.recipe = backbone, recipe
        self.projector = SimCLRProjectionHead(backbone.width, backbone.width, 128)
        self.criterion = NTXentLoss(temperature=0.5)
        self.ends: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        (view0, view1), _, _ = batch
        loss: Tensor = self.criterion(
            self.projector(self.backbone.pooled(view0)), self.projector(self.backbone.pooled(view1))
        )
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return pretrain.build_optimizer(self.recipe, list(self.parameters()))


def peer_seconds(folder: Path, cell: PretrainCell, recipe: Recipe, steps: int) -> float:
    """Median seconds between the ends of two steps, the first two left out."""
    size = pretrain.view_size(cell.image_size)
    transform = SimCLRTransform(input_size=size, cj_strength=1.0, min_scale=0.08)
    loader = torch.utils.data.DataLoader(
        LightlyDataset(str(folder), transform=transform),
        batch_size=cell.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
    )
    model = Peer(nets.Backbone(cell.backbone, cell.channels), recipe)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, loader)
    return statistics.median(np.diff(model.ends[2:]).tolist())


def our_seconds(run: pretrain._Run, steps: int) -> float:
    """Median seconds of a step, the first two left out."""
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        run.enter(step)
        run.train_step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Both sides at the `quick` budget."""
    shelves, threads = registry.scan(), os.cpu_count() or 1
    task = next(iter(shelves.tasks))
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder) / "runs", Path(folder) / "results", None, threads=threads)
        request = Request(methods=METHOD, tasks=task, runs=site.runs, results=site.results)
        cell: PretrainCell = next(item for item in expand(request, shelves).pretrainings if item.method == METHOD)
        corpus = data.open_corpus(cell, shelves, site)
        files = Path(folder) / "files"
        files.mkdir()
        for index, image in enumerate(corpus.images):
            cv2.imwrite(str(files / f"{index:04}.png"), image[..., ::-1])
        run = pretrain._Run(cell, shelves.get("method", METHOD), corpus, pretrain.set_up(site))
        run.method.train()
        ours, peers = [], []
        for _ in range(rounds):
            ours.append(our_seconds(run, steps))
            peers.append(peer_seconds(files, cell, run.recipe, steps))
    return {
        "benchmark": "peer",
        "method": METHOD,
        "batch_size": cell.batch_size,
        "image_size": cell.image_size,
        "threads": threads,
        "ours_seconds": round(statistics.median(ours), 5),
        "peer_seconds": round(statistics.median(peers), 5),
        "ratio": round(statistics.median(peers) / statistics.median(ours), 4),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(json.dumps(measure(chosen.steps, chosen.rounds)))
