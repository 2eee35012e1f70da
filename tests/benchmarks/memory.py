"""Resident memory while a large corpus is listed, digested, prepared and read: bounded, whatever its size.

    python tests/benchmarks/memory.py [--files 20000] [--side 128] [--epochs 2] [--folder DIR]

Generates that many PNG files, prepares them as a corpus and draws batches of views through whole epochs. A thread
watches /proc/self/status: `peak_anonymous` is what the process holds itself, `peak_file` pages of mapped files, which
the system may take back at any time (the arrays, and the libraries' code). One JSON line, in MiB and seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from bench import data, registry
from bench.data.cache import in_threads
from bench.run import pretrain
from bench.spec import PretrainCell, Site
from bench.views import Crop, Flip, Views
from tests.conftest import pretrain_cell

BATCH = 64
MIB = 1 << 20


def write_images(folder: Path, count: int, side: int) -> None:
    """Files that differ from one another: smooth noise."""

    def write(index: int) -> None:
        coarse = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:06}.png"), cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))

    for _ in in_threads(write, count):
        pass


class Watch:
    """The highest memory seen, by kind, in MiB."""

    def __init__(self) -> None:
        self.peak = {"RssAnon": 0.0, "RssFile": 0.0, "VmRSS": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], int(value.split()[0]) / 1024)

    def end(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        return self.peak


def measure(folder: Path, side: int, epochs: int) -> dict[str, Any]:
    watch, seconds, began = Watch(), dict[str, float](), time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name], began = round(time.perf_counter() - began, 1), time.perf_counter()

    shelves = registry.scan()
    with tempfile.TemporaryDirectory() as runs:
        site = Site(Path(runs), Path(runs), None)
        ref = data.corpus_ref(f"folder:{folder}", shelves, None, site.cache)
        lap("listed and digested")
        cell = pretrain_cell("rd", steps=1 << 20, image_size=side, batch_size=BATCH)
        cell = PretrainCell(
            **vars(cell) | {"corpus": ref.name, "corpus_fingerprint": ref.fingerprint, "phantom": False}
        )
        corpus = data.open_corpus(cell, shelves, site)
        lap("prepared")
        declared, size = Views(each=((Crop((0.2, 1.0)), Flip()),) * 2), len(corpus)
        for step in range(epochs * size // BATCH):
            pretrain.make_batch(corpus, cell, declared, step, 0, torch.device("cpu"))
        lap("read")
        array = sum(path.stat().st_size for path in site.cache.rglob("*.npy")) / MIB
    peak = watch.end()
    return {
        "benchmark": "memory",
        "files": size,
        "side": side,
        "epochs": epochs,
        "array_mib": round(array),
        "peak_rss": round(peak["VmRSS"]),
        "peak_anonymous": round(peak["RssAnon"]),
        "peak_file": round(peak["RssFile"]),
        "peak_rss_of_kernel": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="files of your own instead of generated ones")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        if chosen.folder is None:
            write_images(Path(made), chosen.files, chosen.side)
        print(json.dumps(measure(chosen.folder or Path(made), chosen.side, chosen.epochs)), flush=True)
