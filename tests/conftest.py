"""Fixtures shared by the tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import registry
from bench.data import Corpus
from bench.spec import PretrainCell, Site, TransferCell

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shelves() -> registry.Registry:
    """The registry as it is installed."""
    return registry.scan()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "runs", tmp_path / "results", data=None)


def pretrain_cell(
    method: str = "scratch",
    *,
    steps: int = 4,
    image_size: int = 32,
    batch_size: int = 4,
    channels: int = 3,
    backbone: str = "tiny_vgg16",
    seed: int = 0,
    corpus: str = "kaggle_dr",
    **hparams: bool | int | float | str,
) -> PretrainCell:
    """A small pretraining of a registered method."""
    spec = registry.scan().get("method", method)
    return PretrainCell(
        method=method,
        version=spec.version,
        hparams=tuple((spec.defaults | hparams).items()),
        label=method,
        corpus=corpus if spec.trains else "",
        corpus_fingerprint="0" * 64 if spec.trains else "",
        phantom=True,
        backbone=backbone,
        channels=channels,
        budget="test",
        steps=steps if spec.trains else 0,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
    )


def transfer_cell(pretrain: PretrainCell, task: str, *, protocol: str = "finetune", **changes: object) -> TransferCell:
    """A small transfer to a registered task."""
    spec = registry.scan().get("task", task)
    fields: dict[str, object] = {
        "pretrain": pretrain,
        "task": task,
        "task_version": spec.version,
        "dataset_fingerprint": "1" * 64,
        "phantom": True,
        "protocol": protocol,
        "label_fraction": 1.0,
        "fold": 0,
        "image_size": pretrain.image_size,
        "phase_steps": 3,
        "phase_epochs": 1,
        "checks": 1,
        "batch_size": spec.batch_size,
        "budget": "test",
        "seed": pretrain.seed,
    }
    return TransferCell(**(fields | changes))  # type: ignore[arg-type]


def textured_images(count: int, size: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random images (N, S, S, C): different from one another, with something to recognise."""
    import cv2

    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = rng.random((4, 4, channels)).astype(np.float32)
        fine = rng.random((16, 16, channels)).astype(np.float32)
        smooth = 0.7 * cv2.resize(coarse, (size, size)) + 0.3 * cv2.resize(fine, (size, size))
        images.append(smooth.reshape(size, size, channels))
    return (np.stack(images) * 255).astype(np.uint8)


def write_images(folder: Path, count: int, size: int) -> None:
    """A new folder with so many of these images, as PNG."""
    import cv2

    folder.mkdir(parents=True)
    for number, image in enumerate(textured_images(count, size, 3)):
        cv2.imwrite(str(folder / f"{number:02}.png"), image)


def textured_corpus(count: int, size: int, channels: int, seed: int = 0) -> Corpus:
    """A corpus of such images with grades 0, 1, 2, 0, ... and inverted images as second modality."""
    images = textured_images(count, size, channels, seed)
    return Corpus(images, np.arange(count) % 3, 255 - images, classes=3)
