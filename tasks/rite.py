"""RITE: retinal vessels in the 40 DRIVE photographs of a diabetic screening.

Source: Hu et al. 2013 on the images of Staal et al. 2004. The test reference is DRIVE's second observer, the training
reference an edited first observer, so numbers on DRIVE's own test masks (task `drive`, the same photographs) do not
compare. Split: the dataset's own.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, folder_of, list_samples
from bench.registry import task


@task(
    "rite",
    dataset="drive",
    title="RITE",
    groups=("fundus_all",),
    citation="Hu et al., MICCAI 2013, LNCS 8150:436-443; Staal et al., IEEE Trans. Med. Imaging 23(4):501-509, 2004",
    source="https://medicine.uiowa.edu/eye/rite-dataset",
    revision="AV_groundTruth.zip, vessel",
    folders=("rite", "RITE", "AV_groundTruth"),
    layout="training/images/21_training.tif and training/vessel/21_training.png (21 to 40), test/ likewise (01 to 20)",
)
def load(root: Path, split: str) -> list[Sample]:
    """training/images/21_training.tif with training/vessel/21_training.png, and likewise test."""
    part, numbers = {"train": ("training", range(21, 41)), "test": ("test", range(1, 21))}[split]
    eyes = [f"{number:02}" for number in numbers]
    return list_samples(folder_of(root, "AV_groundTruth") / part, eyes, f"images/*_{part}.tif", f"vessel/*_{part}.png")
