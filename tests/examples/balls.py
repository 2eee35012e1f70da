"""Balls in noise: volumes with a mask, a corpus of the same, and a small network of three dimensions; one file.

`bench run --methods scratch,simclr --tasks ./balls.py --backbone ./balls.py`: methods as they are, on volumes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import MissingData, Sample
from bench.data.phantoms import Phantom
from bench.nets import conv_block, kaiming_
from bench.registry import backbone, corpus, dataset, task


def noise_ball(seed: int, size: int, camera: object) -> Phantom:
    rng = np.random.default_rng(seed)
    radius, centre = rng.uniform(0.15, 0.3) * size, rng.uniform(0.35, 0.65, (3, 1, 1, 1)) * size
    inside = ((np.indices((size,) * 3) - centre) ** 2).sum(0) < radius**2
    image = rng.normal(90, 25, (size,) * 3) + 60 * inside
    return Phantom(image.clip(0, 255).astype(np.uint8)[..., None], {"ball": inside.astype(np.uint8)}, {})


@dataset("example_balls", title="Example balls", channels=1, dims=3, licence="generated", citation="-", source="-",
         folders=("example_balls",), layout="-", train=6, test=4, corpus="example_balls_corpus",
         phantom={"modality": "noise_ball", "camera": {}, "target": "ball"})  # fmt: skip
@task("example_ball", dataset="example_balls", title="Ball", crop="none", augment="none", batch_size=2)
def volumes(root: Path, split: str) -> list[Sample]:
    raise MissingData("there are no such volumes: run without --data")


@corpus("example_balls_corpus", dataset="example_balls", version=1, phantom={"images": 8, "cameras": ({},)})
def corpus_volumes(root: Path) -> list[Path]:
    raise MissingData("there are no such volumes: run without --data")


@backbone("example_cubes", dims=3, title="four levels of 3x3x3 convolutions")
class Cubes(nn.Module):
    channels, strides, dims = (8, 16, 32, 32), (1, 2, 4, 8), 3

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        widths = zip((in_channels, *self.channels[:-1]), self.channels, strict=True)
        self.stages = nn.ModuleList(kaiming_(conv_block(*pair, dims=3)) for pair in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = list[Tensor]()
        for stage in self.stages:
            features.append(stage(F.max_pool3d(features[-1], 2) if features else images))
        return features
