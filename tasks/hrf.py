"""HRF: retinal vessels in sharp photographs of 15 healthy, 15 diabetic and 15 glaucomatous eyes.

Source: Budai et al. 2013. Split: 25 train and 20 test of the sorted names (Chen et al.), 07_g first. A label pixel
counts above 1 % of full scale after resizing, as in their code, so vessels are thicker than elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, list_samples
from bench.registry import dataset, task

CAMERA = {
    "fov": 54.0, "height": 0.72, "centre": (0.2, 0.5), "notch": 1.0,
    "red": (1.02, 1.2), "green": (0.62, 0.82), "blue": (0.7, 1.0),
    "uneven": (0.05, 0.15), "vignette": (0.15, 0.3), "blur": 0.0012, "noise": 0.006,
    "nerve_fibre": (0.0, 0.4), "texture": (0.6, 1.4), "cup": (0.3, 0.75),
    "exudates": (0.0, 1.5), "haemorrhages": (0.0, 4.0), "microaneurysms": (0.0, 8.0),
}  # fmt: skip


@dataset(
    "hrf",
    title="HRF",
    channels=3,
    licence="CC BY 4.0",
    citation="Budai et al., Int. J. Biomed. Imaging 2013:154860, 2013",
    source="https://www5.cs.fau.de/research/data/fundus-images",
    revision="all.zip, manual1",
    folders=("hrf", "HRF"),
    layout="images/01_h.jpg and manual1/01_h.tif, 01 to 15 of h, dr and g",
    train=25,
    test=20,
    crop="fov",
    label_threshold=0.01,
    augment="fundus",
    corpus="kaggle_dr",
    stand_in="idrid_grading",
    phantom={"modality": "fundus", "camera": CAMERA},
)
@task("hrf", dataset="hrf", groups=("fundus_all",), section="Retinal vessel", phantom={"target": "vessels"})
def load(root: Path, split: str) -> list[Sample]:
    """images/01_h.jpg (01_dr.JPG) with manual1/01_h.tif."""
    eyes = [f"{number:02}_{kind}" for number in range(1, 16) for kind in ("dr", "g", "h")]
    part = {"train": ["07_g", *(eye for eye in eyes[:25] if eye != "07_g")], "test": eyes[25:]}[split]
    return list_samples(root, part, ("images/*.jpg", "images/*.JPG"), "manual1/*.tif")
