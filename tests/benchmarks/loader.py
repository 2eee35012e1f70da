"""Images per second into ready, augmented batches, ours against a DataLoader with torchvision's transforms.

    python tests/benchmarks/loader.py [--folder DIR] [--image-size 256] [--batch-size 32] [--rounds 12] [--cores N]

All draw SimCLR's two views from the same files (generated ones, or those of --folder) on as many cores. `peer` decodes
every time, `peer_cached` reads the arrays of our cache. Also the share of a training step (`rd`, tiny_vgg16) that goes
into getting its batch. One JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench import data, registry
from bench.data import phantoms
from bench.data.cache import cores as all_cores
from bench.run import pretrain
from bench.spec import PretrainCell, Site
from bench.views import Blur, Crop, Flip, Gray, Jitter, Views
from tests.conftest import pretrain_cell

OPS = (Crop((0.08, 1.0)), Flip(), Jitter(0.8, 0.8, 0.8, 0.2, p=0.8), Gray(0.2), Blur((0.1, 2.0), p=0.5))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCE_SIDE = 1024  # px of a generated photograph


def write_images(folder: Path, count: int) -> None:
    """Photographs of phantom eyes, as JPEG."""
    for index in range(count):
        pixels = phantoms.render("fundus", index, SOURCE_SIDE, {}).image
        Image.fromarray(pixels).save(folder / f"{index:04}.jpg", quality=92)


class Peer(Dataset[tuple[Tensor, Tensor]]):
    """Two views of an image, made by torchvision in a worker."""

    def __init__(self, load: Callable[[int], Any], count: int, side: int) -> None:
        blur = v2.GaussianBlur(max(3, int(0.1 * side) // 2 * 2 + 1), (0.1, 2.0))
        jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
        self.load, self.count = load, count
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(side, (0.08, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                jitter,
                v2.RandomGrayscale(0.2),
                v2.RandomApply([blur], p=0.5),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.load(index % self.count)
        return self.transform(image), self.transform(image)


def from_files(files: list[Path]) -> Callable[[int], Any]:
    return lambda index: Image.open(files[index]).convert("RGB")


def from_arrays(images: Any) -> Callable[[int], Any]:
    return lambda index: torch.from_numpy(np.array(images[index])).permute(2, 0, 1)


def peer_batches(
    load: Callable[[int], Any], count: int, side: int, batch_size: int, device: torch.device, cores: int
) -> Iterator[Any]:
    loader = DataLoader(
        Peer(load, count, side),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for one, other in loader:
            yield one.to(device, non_blocking=True), other.to(device, non_blocking=True)


def our_batches(corpus: data.Corpus, cell: PretrainCell, device: torch.device) -> Iterator[Any]:
    declared = Views(each=(OPS, OPS))
    for step in itertools.count():
        yield pretrain.make_batch(corpus, cell, declared, step, 0, device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(batches: Iterator[Any], batch_size: int, rounds: int, device: torch.device) -> float:
    """Images per second, after two batches to warm up."""
    for _ in range(2):
        next(batches)
    synchronise(device)
    began = time.perf_counter()
    for _ in range(rounds):
        next(batches)
    synchronise(device)
    return rounds * batch_size / (time.perf_counter() - began)


def waiting(
    cell: PretrainCell, corpus: data.Corpus, shelves: registry.Registry, site: Site, rounds: int
) -> dict[str, float]:
    """Shares of a step of `rd` that go into reading rows and into the whole batch with its views."""
    fabric = pretrain.set_up(site)
    run = pretrain._Run(cell, shelves.get("method", cell.method), corpus, fabric)
    run.method.train()
    run.enter(0)
    rows = data.draw(len(corpus), cell.batch_size, 0, 0)
    works: dict[str, Callable[[], Any]] = {
        "step": run.train_step,
        "rows": lambda: pretrain._pixels(corpus.images, rows, fabric.device),
        "batch": lambda: pretrain.make_batch(corpus, cell, run.declared, 0, 0, fabric.device),
    }
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            synchronise(fabric.device)
            began = time.perf_counter()
            work()
            synchronise(fabric.device)
            spent[name].append(time.perf_counter() - began)
    median = {name: statistics.median(times[1:]) for name, times in spent.items()}
    return {name: round(median[name] / median["step"], 4) for name in ("rows", "batch")}


def measure(folder: Path, image_size: int, batch_size: int, rounds: int, device: str, cores: int) -> dict[str, Any]:
    shelves = registry.scan()
    with tempfile.TemporaryDirectory() as runs:
        site = Site(Path(runs), Path(runs), None, device=device, threads=cores)
        ref = data.corpus_ref(f"folder:{folder}", shelves, None, site.cache)
        cell = pretrain_cell("rd", steps=1000, image_size=image_size, batch_size=batch_size)
        cell = PretrainCell(
            **{**vars(cell), "corpus": ref.name, "corpus_fingerprint": ref.fingerprint, "phantom": False}
        )
        began = time.perf_counter()
        corpus = data.open_corpus(cell, shelves, site)
        prepared = time.perf_counter() - began
        files, side, place = data.list_images(folder), pretrain.view_size(image_size), torch.device(device)
        torch.set_num_threads(cores)
        batches = {
            "ours": our_batches(corpus, cell, place),
            "peer": peer_batches(from_files(files), len(files), side, batch_size, place, cores),
            "peer_cached": peer_batches(from_arrays(corpus.images), len(files), side, batch_size, place, cores),
        }
        rates = {name: rate(found, batch_size, rounds, place) for name, found in batches.items()}
        shares = waiting(cell, corpus, shelves, site, max(3, rounds // 4))
    return {
        "benchmark": "loader",
        "files": len(files),
        "view_size": side,
        "batch_size": batch_size,
        "cores": cores,
        "device": device,
        "prepared_per_second": round(len(files) / prepared, 1),
        "images_per_second": {name: round(value, 1) for name, value in rates.items()},
        "ratio": round(rates["ours"] / rates["peer"], 2),
        "ratio_cached": round(rates["ours"] / rates["peer_cached"], 2),
        "share_of_step": shares,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--files", type=int, default=128, help="how many to generate without --folder")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, default=all_cores(), help="threads of ours, workers of the peer")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        source = chosen.folder or Path(made)
        if chosen.folder is None:
            write_images(source, chosen.files)
        found = measure(source, chosen.image_size, chosen.batch_size, chosen.rounds, chosen.device, chosen.cores)
    print(json.dumps(found), flush=True)
