"""Drishti-GS1: optic cup and optic disc in disc-centred photographs, normal and glaucomatous.

Source: Sivaswamy et al. 2014; soft maps of four graders, a pixel counts above 0.3 of full scale, that is with two of
them (Chen et al.). Split: their lists, whose first 20 % are the validation part.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Mask, Sample, first_of, folder_of
from bench.registry import dataset, task

# fmt: off
TRAIN = (
    36, 2, 4, 8, 10, 12, 15, 16, 17, 18, 22, 24, 26, 31, 32, 33, 35, 37, 38, 40, 41, 42, 44, 45, 46,
    47, 49, 51, 57, 58, 60, 61, 62, 63, 64, 66, 68, 69, 75, 76, 80, 81, 84, 88, 89, 90, 92, 94, 98, 101,
)
# fmt: on
TEST = (29, 72, *(number for number in range(1, 102) if number not in {29, 72, *TRAIN}))

CAMERA = {
    "fov": 30.0, "centre": (0.88, 1.0), "red": (0.85, 1.0), "green": (0.8, 0.95), "blue": (0.7, 1.0),
    "exposure": (0.75, 0.95), "uneven": (0.05, 0.2), "blur": 0.003, "noise": 0.01, "cup": (0.4, 0.78),
}  # fmt: skip


@dataset(
    "drishti", title="Drishti-GS1", crop="fov", augment="fundus", label_threshold=0.3, channels=3,
    licence="free for research with citation, no open licence",
    citation="Sivaswamy et al., IEEE ISBI 2014:53-56",
    source="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",
    revision="Drishti-GS1, soft maps",
    folders=("drishti", "Drishti-GS1", "DRISHTI-GS1", "Drishti-GS", "DRISHTI-GS"),
    layout=("Training/Images/drishtiGS_002.png and soft maps in Training/GT, Test/Images and Test/Test_GT "
            "likewise"),
    train=50, test=51, corpus="kaggle_dr", stand_in="idrid_grading",
    phantom={"modality": "fundus", "dataset": "drishti", "camera": CAMERA},
)  # fmt: skip
@task(
    "drishti_cup", dataset="drishti", title="GS(cup)", groups=("fundus_all",), section="Optic disc and cup",
    layout=("Training/Images/drishtiGS_002.png and "
            "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_cupsegSoftmap.png, Test/Images and "
            "Test/Test_GT likewise"),
    phantom={"target": "cup"},
)  # fmt: skip
def load_cup(root: Path, split: str) -> list[Sample]:
    return _samples(root, split, "cup")


@task(
    "drishti_od", dataset="drishti", title="GS(OD)", groups=("fundus_all",), section="Optic disc and cup",
    layout=("Training/Images/drishtiGS_002.png and "
            "Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png, Test/Images and "
            "Test/Test_GT likewise"),
    phantom={"target": "disc"},
)  # fmt: skip
def load_disc(root: Path, split: str) -> list[Sample]:
    return _samples(root, split, "OD")


def _samples(root: Path, split: str, target: str) -> list[Sample]:
    """Training/Images/drishtiGS_002.png with Training/GT/drishtiGS_002/SoftMap/..., Test/Test_GT likewise."""
    base = folder_of(root, "Drishti-GS1_files", "Drishti-GS1_files")
    folder, truth, numbers = {
        "train": (base / "Training", base / "Training" / "GT", TRAIN),
        "test": (base / "Test", base / "Test" / "Test_GT", TEST),
    }[split]
    names = [f"drishtiGS_{number:03}" for number in numbers]
    return [
        Sample(
            name,
            first_of(*(folder / "Images" / kind / f"{name}.png" for kind in (".", "GLAUCOMA", "NORMAL"))),
            Mask(truth / name / "SoftMap" / f"{name}_{target}segSoftmap.png"),
            name,
        )
        for name in names
    ]
