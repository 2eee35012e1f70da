"""DRIVE: retinal vessels in the 40 photographs of a diabetic screening, judged by the dataset's own first observer.

Source: Staal et al. 2004. Split: the dataset's own. The photographs are those of RITE, whose test reference is DRIVE's
second observer, so the two columns do not compare and are no two datasets. The organisers' current archive comes
without `test/1st_manual`; what has no reference cannot be scored.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, folder_of, list_samples
from bench.registry import dataset, task

CAMERA = {
    "fov": 45.0, "centre": (0.3, 0.6), "red": (0.95, 1.1), "green": (1.0, 1.15), "blue": (0.9, 1.3),
    "blur": 0.0035, "noise": 0.016, "vignette": (0.2, 0.35), "drusen": (0.0, 6.0),
    "exudates": (0.0, 0.5), "microaneurysms": (0.0, 6.0), "haemorrhages": (0.0, 1.0),
}  # fmt: skip


@dataset(
    "drive",
    title="DRIVE",
    channels=3,
    licence="research use, on request, no redistribution",
    citation="Staal et al., IEEE Trans. Med. Imaging 23(4):501-509, 2004",
    source="https://drive.grand-challenge.org",
    revision="datasets.zip with test/1st_manual, first observer",
    folders=("drive", "DRIVE"),
    layout=(
        "training/images/21_training.tif and training/1st_manual/21_manual1.gif (21 to 40), test/images/01_test.tif "
        "and test/1st_manual/01_manual1.gif (01 to 20)"
    ),
    train=20,
    test=20,
    crop="fov",
    augment="fundus",
    section="Retinal vessel",
    corpus="kaggle_dr",
    stand_in="idrid_grading",
    phantom={"modality": "fundus", "target": "vessels", "camera": CAMERA},
)
@task("drive", dataset="drive", groups=("open",), phantom={"dataset": "rite"})  # the same phantom eyes
def load(root: Path, split: str) -> list[Sample]:
    """training/images/21_training.tif with training/1st_manual/21_manual1.gif, and likewise test."""
    part, numbers = {"train": ("training", range(21, 41)), "test": ("test", range(1, 21))}[split]
    eyes = [f"{number:02}" for number in numbers]
    base = folder_of(root, "DRIVE") / part
    return list_samples(base, eyes, f"images/*_{part}.tif", "1st_manual/*_manual1.gif")
