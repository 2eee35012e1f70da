"""STARE: retinal vessels on digitised film slides, half of them of diseased eyes.

Source: Hoover et al. 2000; observer A. Hoover (ah). Split: first and last 10 of the sorted names (Chen et al.). Files
may stay compressed (.ppm.gz).
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Mask, Sample, first_of
from bench.registry import dataset, task

TRAIN = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139)
TEST = (162, 163, 235, 236, 239, 240, 255, 291, 319, 324)

CAMERA = {
    "fov": 38.0, "height": 0.9, "centre": (0.3, 0.9), "red": (1.1, 1.25), "green": (1.2, 1.4),
    "blue": (1.1, 1.6), "saturation": (0.75, 1.0), "contrast": (0.65, 0.9), "haze": (0.0, 0.3), "blur": 0.004,
    "noise": 0.018, "dust": 2.0, "drusen": (0.0, 40.0), "exudates": (0.0, 1.5), "haemorrhages": (0.0, 8.0),
    "cotton_wool": (0.0, 2.0),
}  # fmt: skip


@dataset(
    "stare", title="STARE", crop="fov", augment="fundus", label_threshold=0.3, channels=3,
    licence="publicly available, no licence stated",
    citation="Hoover et al., IEEE Trans. Med. Imaging 19(3):203-210, 2000",
    source="https://cecas.clemson.edu/~ahoover/stare", revision="stare-images.tar, labels-ah.tar",
    folders=("stare", "STARE"),
    layout="stare-images/im0001.ppm and labels-ah/im0001.ah.ppm (or .ppm.gz), 20 of each",
    train=10, test=10, corpus="kaggle_dr", stand_in="idrid_grading",
    phantom={"modality": "fundus", "target": "vessels", "camera": CAMERA},
)  # fmt: skip
@task("stare", dataset="stare", title="STARE", groups=("fundus_all",), section="Retinal vessel")
def load(root: Path, split: str) -> list[Sample]:
    """stare-images/im0001.ppm with labels-ah/im0001.ah.ppm, or both with .gz."""
    slides = [f"im{number:04}" for number in {"train": TRAIN, "test": TEST}[split]]
    images = [_plain_or_packed(root / "stare-images" / f"{slide}.ppm") for slide in slides]
    masks = [Mask(_plain_or_packed(root / "labels-ah" / f"{slide}.ah.ppm")) for slide in slides]
    return list(map(Sample, slides, images, masks, slides))


def _plain_or_packed(path: Path) -> Path:
    return first_of(path, path.with_name(f"{path.name}.gz"))
