"""Grades: is there retinopathy in a phantom photograph? By a linear classifier on pooled features, judged by its AUC.

One file holds a dataset, a task on it and a protocol: `bench run --methods scratch --tasks ./grades.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from bench import nets
from bench.data import MissingData, Sample
from bench.parts.cases import Cases
from bench.parts.phases import Effort
from bench.registry import dataset, protocol, task


@dataset(
    "example_screening",
    title="Example screening",
    channels=3,
    licence="generated",
    citation="-",
    source="-",
    folders=("example_screening",),
    layout="-",
    train=24,
    test=16,
    corpus="kaggle_dr",
    phantom={"modality": "fundus", "camera": {"fov": 45.0, "centre": 0.5, "haemorrhages": (0.0, 2.0)}},
)
@task("example_grade", dataset="example_screening", title="Retinopathy", truth="grade", structures=("none", "some"),
      metrics=("auc", "kappa"), protocols=("example_classifier",))  # fmt: skip
def photographs(root: Path, split: str) -> list[Sample]:
    raise MissingData("there are no such photographs: run without --data")


@protocol("example_classifier", title="logistic regression on pooled features", truths=("grade",),
          selection="nothing is selected; validation images are not used")  # fmt: skip
def fit(encoder: nets.Backbone, cases: Cases, effort: Effort) -> SimpleNamespace:
    encoder.to(cases.device).eval()

    @torch.no_grad()
    def pooled(images: Tensor) -> Tensor:  # (n, width)
        return encoder.pooled(images).double().cpu()

    taken = [cases.take([index]) for index in cases.train]
    features = torch.cat([pooled(images) for images, _ in taken])
    grades = torch.cat([truth for _, truth in taken]).cpu()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(features.numpy(), grades.numpy())
    return SimpleNamespace(
        predict=lambda images: torch.from_numpy(classifier.predict_proba(pooled(images).numpy())), facts={}
    )
