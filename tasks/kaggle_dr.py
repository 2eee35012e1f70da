"""Kaggle DR: unlabelled photographs of a diabetic screening programme, many cameras and qualities.

Source: the training images of Kaggle's Diabetic Retinopathy Detection, given by EyePACS (Cuadros and Bresnick 2009).
"""

from __future__ import annotations

from pathlib import Path

from bench.data import folder_of
from bench.registry import corpus


@corpus(
    "kaggle_dr",
    version=1,
    title="Kaggle DR (EyePACS)",
    channels=3,
    licence="competition rules: research use with citation, no redistribution",
    citation="Cuadros and Bresnick, J. Diabetes Sci. Technol. 3(3):509-516, 2009",
    source="https://www.kaggle.com/c/diabetic-retinopathy-detection",
    folders=("kaggle_dr", "diabetic-retinopathy-detection", "EyePACS", "kaggle_training_512"),
    layout="train/10_left.jpeg, train/10_right.jpeg and so on, or the photographs in the folder itself",
    crop="fov",
    phantom={
        "modality": "fundus",
        "images": 600,
        "cameras": [
            {
                "fov": (42.0, 50.0),
                "centre": (0.2, 0.7),
                "red": (0.9, 1.15),
                "green": (0.85, 1.1),
                "blue": (0.5, 1.1),
                "exposure": (0.75, 1.1),
                "uneven": (0.05, 0.3),
                "vignette": (0.15, 0.45),
                "exudates": (0.0, 2.0),
                "haemorrhages": (0.0, 4.0),
                "microaneurysms": (0.0, 8.0),
            },
            {
                "fov": (45.0, 56.0),
                "height": (0.7, 0.9),
                "centre": (0.0, 0.6),
                "jitter": 2.5,
                "notch": 1.0,
                "red": (0.95, 1.2),
                "green": (0.7, 1.1),
                "blue": (0.3, 1.0),
                "blur": (0.001, 0.003),
                "exudates": (0.0, 5.0),
                "haemorrhages": (0.0, 8.0),
                "microaneurysms": (0.0, 20.0),
                "cotton_wool": (0.0, 1.0),
            },
            {
                "fov": (28.0, 36.0),
                "centre": (0.6, 1.0),
                "red": (0.85, 1.2),
                "green": (0.7, 1.0),
                "blue": (0.4, 1.0),
                "exposure": (0.75, 1.05),
                "uneven": (0.05, 0.35),
                "central_reflex": (0.4, 1.2),
                "nerve_fibre": (0.2, 1.2),
                "cup": (0.25, 0.75),
            },
            {
                "fov": (35.0, 46.0),
                "height": (0.85, 1.0),
                "centre": (0.2, 0.9),
                "red": (1.0, 1.25),
                "green": (1.0, 1.4),
                "blue": (0.8, 1.6),
                "saturation": (0.75, 1.0),
                "contrast": (0.65, 1.0),
                "haze": (0.0, 0.4),
                "blur": (0.002, 0.006),
                "noise": (0.01, 0.03),
                "dust": (0.0, 4.0),
                "drusen": (0.0, 30.0),
                "haemorrhages": (0.0, 4.0),
            },
        ],
    },
)
def load(root: Path) -> list[Path]:
    """train/10_left.jpeg, train/10_right.jpeg, ...; the photographs may also lie in the folder itself."""
    folder = folder_of(root, "train")
    return sorted(path for path in folder.glob("*_*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
