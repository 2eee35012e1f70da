"""CHASE: retinal vessels in the photographs of 14 school children, both eyes, centred on the disc.

Source: CHASE_DB1, Fraz et al. 2012; first observer. Split: first 20 of the sorted names train, last 8 test (Chen et
al.), so no child is in both.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, folder_of, list_samples
from bench.registry import dataset, task

CAMERA = {
    "fov": 30.0, "centre": (0.82, 0.98), "red": (0.95, 1.2), "green": (0.72, 0.9), "blue": (0.35, 0.6),
    "saturation": 1.1, "exposure": (0.8, 1.1), "uneven": (0.15, 0.4), "vignette": (0.3, 0.6),
    "central_reflex": (0.8, 1.3), "nerve_fibre": (0.6, 1.3), "cup": (0.25, 0.5), "blur": 0.0022,
}  # fmt: skip


@dataset(
    "chase",
    title="CHASE",
    channels=3,
    licence="CC BY 4.0",
    citation="Fraz et al., IEEE Trans. Biomed. Eng. 59(9):2538-2548, 2012",
    source="https://researchdata.kingston.ac.uk/96",
    revision="CHASEDB1.zip, first observer",
    folders=("chase", "CHASEDB1", "CHASE_DB1", "CHASEDB", "CHASE"),
    layout="Image_01L.jpg and Image_01L_1stHO.png, 01L to 14R, in one folder",
    train=20,
    test=8,
    patients=r"Image_(\d\d)",
    crop="fov",
    augment="fundus",
    corpus="kaggle_dr",
    stand_in="idrid_grading",
    phantom={"modality": "fundus", "camera": CAMERA},
)
@task("chase", dataset="chase", groups=("fundus_all",), section="Retinal vessel", phantom={"target": "vessels"})
def load(root: Path, split: str) -> list[Sample]:
    """Image_01L.jpg, Image_01R.jpg, ... with the masks Image_01L_1stHO.png beside them."""
    children = {"train": range(1, 11), "test": range(11, 15)}[split]
    eyes = {f"{child:02}{side}": f"{child:02}" for child in children for side in "LR"}
    return list_samples(folder_of(root, "CHASEDB1"), eyes, "Image_*.jpg", "Image_*_1stHO.png")
