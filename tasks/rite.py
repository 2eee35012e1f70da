"""RITE: retinal vessels in the 40 DRIVE photographs of a diabetic screening.

Source: Hu et al. 2013 on the images of Staal et al. 2004. The test reference is DRIVE's second observer, the training
reference an edited first observer, so numbers on DRIVE's own test masks (task `drive`, the same photographs) do not
compare. Split: the dataset's own.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Mask, Sample, folder_of
from bench.registry import dataset, task

CAMERA = {
    "fov": 45.0, "centre": (0.3, 0.6), "red": (0.95, 1.1), "green": (1.0, 1.15), "blue": (0.9, 1.3),
    "blur": 0.0035, "noise": 0.016, "vignette": (0.2, 0.35), "exudates": (0.0, 0.5),
    "microaneurysms": (0.0, 6.0), "haemorrhages": (0.0, 1.0), "drusen": (0.0, 6.0),
}  # fmt: skip


@dataset(
    "rite", title="RITE", crop="fov", augment="fundus", label_threshold=0.3, channels=3,
    licence="research use, on request, no redistribution",
    citation=("Hu et al., MICCAI 2013, LNCS 8150:436-443; Staal et al., IEEE Trans. Med. Imaging "
              "23(4):501-509, 2004"),
    source="https://medicine.uiowa.edu/eye/rite-dataset", revision="AV_groundTruth.zip, vessel",
    folders=("rite", "RITE", "AV_groundTruth"),
    layout=("training/images/21_training.tif and training/vessel/21_training.png (21 to 40), test/ "
            "likewise (01 to 20)"),
    train=20, test=20, corpus="kaggle_dr", stand_in="idrid_grading",
    phantom={"modality": "fundus", "target": "vessels", "camera": CAMERA},
)  # fmt: skip
@task("rite", dataset="rite", title="RITE", groups=("fundus_all",), section="Retinal vessel")
def load(root: Path, split: str) -> list[Sample]:
    """training/images/21_training.tif with training/vessel/21_training.png, and likewise test."""
    base = folder_of(root, "AV_groundTruth")
    folder, kind, numbers = {
        "train": (base / "training", "training", range(21, 41)),
        "test": (base / "test", "test", range(1, 21)),
    }[split]
    names = [f"{number:02}_{kind}" for number in numbers]
    images, masks = folder / "images", folder / "vessel"
    return [Sample(name, images / f"{name}.tif", Mask(masks / f"{name}.png"), name[:2]) for name in names]
