"""Drishti-GS1: optic cup and optic disc in disc-centred photographs, normal and glaucomatous.

Source: Sivaswamy et al. 2014; soft maps of four graders, a pixel counts above 0.3 of full scale, that is with two of
them (Chen et al.). Split: their lists, whose first 20 % are the validation part.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, folder_of, list_samples
from bench.registry import dataset, task

TRAIN = (
    36, 2, 4, 8, 10, 12, 15, 16, 17, 18, 22, 24, 26, 31, 32, 33, 35, 37, 38, 40, 41, 42, 44, 45, 46,
    47, 49, 51, 57, 58, 60, 61, 62, 63, 64, 66, 68, 69, 75, 76, 80, 81, 84, 88, 89, 90, 92, 94, 98, 101,
)  # fmt: skip
TEST = (29, 72, *(number for number in range(1, 102) if number not in {29, 72, *TRAIN}))
CAMERA = {
    "fov": 30.0, "centre": (0.88, 1.0), "red": (0.85, 1.0), "green": (0.8, 0.95), "blue": (0.7, 1.0),
    "exposure": (0.75, 0.95), "uneven": (0.05, 0.2), "blur": 0.003, "noise": 0.01, "cup": (0.4, 0.78),
}  # fmt: skip


@dataset(
    "drishti",
    title="Drishti-GS1",
    channels=3,
    licence="free for research with citation, no open licence",
    citation="Sivaswamy et al., IEEE ISBI 2014:53-56",
    source="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",
    revision="Drishti-GS1, soft maps",
    folders=("drishti", "Drishti-GS1", "DRISHTI-GS1", "Drishti-GS", "DRISHTI-GS"),
    layout="Training/Images/drishtiGS_002.png and Training/GT/drishtiGS_002, Test/Images and Test/Test_GT likewise",
    train=50,
    test=51,
    crop="fov",
    label_threshold=0.3,
    augment="fundus",
    section="Optic disc and cup",
    corpus="kaggle_dr",
    stand_in="idrid_grading",
    phantom={"modality": "fundus", "dataset": "drishti", "camera": CAMERA},
)
def photographs(root: Path, split: str, *structures: str) -> list[Sample]:
    """Training/Images/drishtiGS_002.png with Training/GT/drishtiGS_002/SoftMap/..., Test/Test_GT likewise."""
    part, truth, numbers = {"train": ("Training", "GT", TRAIN), "test": ("Test", "Test_GT", TEST)}[split]
    base = folder_of(root, "Drishti-GS1_files", "Drishti-GS1_files") / part
    names = [f"drishtiGS_{number:03}" for number in numbers]
    masks = [f"{truth}/*/SoftMap/*_{structure}segSoftmap.png" for structure in structures]
    return list_samples(base, names, ("Images/*.png", "Images/GLAUCOMA/*.png", "Images/NORMAL/*.png"), *masks)


@task(
    "drishti_cup",
    dataset="drishti",
    title="GS(cup)",
    groups=("fundus_all",),
    layout=(
        "Training/Images/drishtiGS_002.png and "
        "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_cupsegSoftmap.png, Test/Images and Test/Test_GT likewise"
    ),
    phantom={"target": "cup"},
)
def load_cup(root: Path, split: str) -> list[Sample]:
    return photographs(root, split, "cup")


@task(
    "drishti_od",
    dataset="drishti",
    title="GS(OD)",
    groups=("fundus_all",),
    layout=(
        "Training/Images/drishtiGS_002.png and "
        "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png, Test/Images and Test/Test_GT likewise"
    ),
    phantom={"target": "disc"},
)
def load_disc(root: Path, split: str) -> list[Sample]:
    return photographs(root, split, "OD")
