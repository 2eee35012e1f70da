"""SIIM-ACR: the pneumothorax in the 2,669 chest films of the competition that show one.

Source: Kaggle's SIIM-ACR Pneumothorax Segmentation (2019), training part of the second stage; the films come from NIH
ChestX-ray8, so an encoder pretrained on that corpus has seen the test films without their labels. Several run-length
rows of a film are united; films without a pneumothorax are left out (Chen et al.). Split: the first half of their list
trains, in its order (`splits/siim_pneumothorax.txt`).
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Mask, MissingData, RunLength, Sample, first_of, folder_of, read_table, read_words
from bench.registry import dataset, task

ORDER = Path(__file__).with_name("splits") / "siim_pneumothorax.txt"
TRAIN = 1334
SIDE = 1024  # px, of every film
CAMERA = {
    "field": (34.0, 40.0), "portable": 0.35, "pneumothorax": 1.0, "breasts": 0.3, "opacities": (0.0, 1.0),
    "devices": (0.0, 3.0), "enhance": (0.0, 0.6), "scatter": (0.1, 0.3), "contrast": (0.85, 1.15),
    "exposure": (0.85, 1.15), "noise": (0.008, 0.016), "uneven": (0.02, 0.1), "collimation": 0.15, "marker": 0.8,
}  # fmt: skip


@dataset(
    "siim",
    title="SIIM-ACR",
    channels=1,
    licence="competition rules: research use, no redistribution",
    citation="Zawacki et al., SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019",
    source="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    revision="second stage, training part, films with a pneumothorax",
    folders=("siim_pneumothorax", "siim", "SIIM", "SIIM-ACR", "siim-acr-pneumothorax-segmentation"),
    layout="dicom-images-train/STUDY/SERIES/IMAGE.dcm and train-rle.csv (or stage_2_train.csv)",
    train=1334,
    test=1335,
    augment="chest",
    corpus="chestxray8",
    stand_in="hannover",
    phantom={"modality": "chest", "camera": CAMERA},
)
@task(
    "siim_pneumothorax",
    dataset="siim",
    title="Pne",
    groups=("cxr_all",),
    section="Lesions",
    batch_size=8,
    known_leaks=("chestxray8",),
    phantom={"target": "pneumothorax"},
)
def load(root: Path, split: str) -> list[Sample]:
    """dicom-images-train/STUDY/SERIES/IMAGE.dcm with the rows of IMAGE in the table; MissingData as `_listed`."""
    base = folder_of(root, "siim")
    films = base / "dicom-images-train"
    there = {path.stem: path for path in films.glob("**/*.dcm")}
    rows = _listed(first_of(base / "train-rle.csv", base / "stage_2_train.csv"))
    return [
        Sample(name, there.get(name, films / f"{name}.dcm"), Mask(RunLength(tuple(rows[name]), SIDE, SIDE)))
        for name in {"train": list(rows)[:TRAIN], "test": list(rows)[TRAIN:]}[split]
    ]


def _listed(table: Path) -> dict[str, list[str]]:
    """Film -> its run-length rows, in the published order; a film's number is the third part of its name from the end.

    MissingData where the table is not there or lacks a film of the list: the first stage's table has fewer.
    """
    rows: dict[str, list[str]] = {}
    for line in read_table(table, "ImageId", "EncodedPixels"):
        if line["EncodedPixels"] != "-1":
            rows.setdefault(line["ImageId"], []).append(line["EncodedPixels"])
    films = {name.split(".")[-3]: name for name in rows if name.count(".") > 2}
    numbers = read_words(ORDER)
    lost = [number for number in numbers if number not in films]
    if lost:
        raise MissingData(
            f"train-rle.csv lacks {len(lost)} of the {len(numbers)} films with a pneumothorax (numbers "
            f"{', '.join(lost[:3])}...): take the table of the competition's second stage"
        )
    return {films[number]: rows[films[number]] for number in numbers}
