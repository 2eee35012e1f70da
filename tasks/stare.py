"""STARE: retinal vessels on digitised film slides, half of them of diseased eyes.

Source: Hoover et al. 2000; observer A. Hoover (ah). Split: first and last 10 of the sorted names (Chen et al.). Files
may stay compressed (.ppm.gz).
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, list_samples
from bench.registry import dataset, task

TRAIN, TEST = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139), (162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
CAMERA = {
    "fov": 38.0, "height": 0.9, "centre": (0.3, 0.9), "red": (1.1, 1.25), "green": (1.2, 1.4), "blue": (1.1, 1.6),
    "saturation": (0.75, 1.0), "contrast": (0.65, 0.9), "haze": (0.0, 0.3), "blur": 0.004, "noise": 0.018,
    "dust": 2.0, "drusen": (0.0, 40.0), "exudates": (0.0, 1.5), "haemorrhages": (0.0, 8.0), "cotton_wool": (0.0, 2.0),
}  # fmt: skip


@dataset(
    "stare",
    title="STARE",
    channels=3,
    licence="publicly available, no licence stated",
    citation="Hoover et al., IEEE Trans. Med. Imaging 19(3):203-210, 2000",
    source="https://cecas.clemson.edu/~ahoover/stare",
    revision="stare-images.tar, labels-ah.tar",
    folders=("stare", "STARE"),
    layout="stare-images/im0001.ppm and labels-ah/im0001.ah.ppm (or .ppm.gz), 20 of each",
    train=10,
    test=10,
    crop="fov",
    augment="fundus",
    corpus="kaggle_dr",
    stand_in="idrid_grading",
    phantom={"modality": "fundus", "camera": CAMERA},
)
@task("stare", dataset="stare", groups=("fundus_all",), section="Retinal vessel", phantom={"target": "vessels"})
def load(root: Path, split: str) -> list[Sample]:
    """stare-images/im0001.ppm with labels-ah/im0001.ah.ppm, or both with .gz."""
    eyes = [f"im{number:04}" for number in {"train": TRAIN, "test": TEST}[split]]
    images, labels = "stare-images/*.ppm", "labels-ah/*.ah.ppm"
    return list_samples(root, eyes, (images, f"{images}.gz"), (labels, f"{labels}.gz"))
