"""Landmarks: disc and fovea of phantom photographs, looked up by the features of one template; nothing is trained.

One file holds a dataset, a task on it and a protocol: `bench run --methods scratch --tasks ./landmarks.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import nets
from bench.data import MissingData, Sample
from bench.parts.cases import Cases
from bench.parts.phases import Effort
from bench.registry import dataset, protocol, task


@dataset(
    "example_eyes",
    title="Example eyes",
    channels=3,
    licence="generated",
    citation="-",
    source="-",
    folders=("example_eyes",),
    layout="-",
    train=4,
    test=6,
    corpus="kaggle_dr",
    phantom={"modality": "fundus", "camera": {"fov": 50.0, "centre": (0.3, 0.6)}},
)
@task("example_points", dataset="example_eyes", title="Points", truth="points", structures=("disc", "fovea"),
      metrics=("mre_px",), protocols=("example_lookup",))  # fmt: skip
def photographs(root: Path, split: str) -> list[Sample]:
    raise MissingData("there are no such photographs: run without --data")


@protocol("example_lookup", title="the template's points looked up", truths=("points",), dims=(2,),
          selection="nothing is selected; the first training image is the template")  # fmt: skip
def fit(encoder: nets.Backbone, cases: Cases, effort: Effort) -> SimpleNamespace:
    encoder.to(cases.device).eval()

    @torch.no_grad()
    def maps(images: Tensor) -> Tensor:  # (n, C, H, W), unit vectors of all levels
        levels = [F.normalize(nets.resize(level.float(), images.shape[2:]), dim=1) for level in encoder(images)]
        return F.normalize(torch.cat(levels, dim=1), dim=1)

    image, points = cases.take(cases.train[:1])
    rows, columns = points[0].round().long().T
    template = maps(image)[0][:, rows, columns]  # (C, P)

    def predict(images: Tensor) -> Tensor:
        place = torch.einsum("nchw,cp->nphw", maps(images), template).flatten(2).argmax(2)  # (n, P)
        return torch.stack([place // images.shape[-1], place % images.shape[-1]], dim=-1).double()

    return SimpleNamespace(predict=predict, facts={"template": cases.train[0]})
