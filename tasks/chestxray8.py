"""ChestX-ray8: 112,120 frontal chest films of 30,805 patients, used without their labels.

Source: Wang et al. 2017, NIH Clinical Center. SIIM-ACR's films are a part of it, the task `siim_pneumothorax` says so.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import CorpusImage
from bench.registry import corpus, dataset

STANDING = {
    "field": (34.0, 38.0), "inspiration": (0.0, 1.0), "breasts": 0.45, "nodules": (0.0, 0.6), "scatter": (0.1, 0.2),
    "contrast": (0.9, 1.15), "enhance": (0.0, 0.5), "marker": 0.8,
}  # fmt: skip
IN_BED = {
    "field": (35.0, 42.0), "portable": 1.0, "inspiration": (-2.0, 0.0), "opacities": (0.0, 3.0), "devices": (1.0, 5.0),
    "pneumothorax": 0.15, "scatter": (0.2, 0.35), "contrast": (0.8, 1.05), "enhance": (0.0, 0.8),
    "noise": (0.01, 0.02), "uneven": (0.05, 0.15), "collimation": 0.3,
}  # fmt: skip
DISEASED = {
    "field": (30.0, 36.0), "heart": (0.9, 1.25), "build": (0.8, 1.4), "opacities": (0.0, 1.5), "nodules": (0.0, 2.0),
    "pneumothorax": 0.05, "exposure": (0.85, 1.15), "contrast": (0.9, 1.2), "bones": (0.8, 1.2),
    "markings": (0.8, 1.3), "noise": (0.008, 0.016), "collimation": 0.1,
}  # fmt: skip


@dataset(
    "chestxray8",
    title="ChestX-ray8 (NIH)",
    channels=1,
    licence="no restriction; attribution, link and citation asked for",
    citation="Wang et al., CVPR 2017:2097-2106",
    source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    folders=("chestxray8", "ChestX-ray8", "ChestXray8", "ChestX-ray14", "ChestXray-NIHCC", "NIH"),
    layout="images_001/images/00000001_000.png to images_012/images, or all films in images/ or in the folder itself",
    phantom={"modality": "chest"},
)
@corpus("chestxray8", dataset="chestxray8", phantom={"images": 600, "cameras": [STANDING, IN_BED, DISEASED]})
def load(root: Path) -> list[CorpusImage]:
    """images_001/images/00000001_000.png and so on; the first number of a name is the patient."""
    film = "[0-9]*_[0-9]*.png"
    places = (film, f"images/{film}", f"images_*/{film}", f"images_*/images/{film}")
    files = {path.name: path for place in places for path in root.glob(place)}  # a film unpacked twice counts once
    return [CorpusImage(files[name], patient=name.split("_")[0]) for name in sorted(files)]
