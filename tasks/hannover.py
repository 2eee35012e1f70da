"""Hannover: both lungs in chest films of COVID-19 patients, and all films of that repository as a corpus.

Source: 243 films of Winther et al. 2020 (640 px wide; many taken in bed); the 77 lung masks are V7 Labs', drawn
half-automatically and reviewed. They run on behind the heart and may pass the edge of the body: no lung fields as SCR
defines them, so `hannover_lung` and `scr_lung` do not compare. Split: patients sorted by their identifier (random
letters), the first 28 train and the last 15 test, so no patient is in both (`splits/hannover_lung.txt`).
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Sample, list_samples, read_lines
from bench.registry import corpus, dataset, task

LISTED = Path(__file__).with_name("splits") / "hannover_lung.txt"
PATIENTS = {patient: films for patient, *films in map(str.split, read_lines(LISTED))}
CAMERA = {
    "field": (36.0, 42.0), "height": (0.8, 1.0), "portable": 0.6, "inspiration": (-1.5, 0.5), "breasts": 0.35,
    "opacities": (0.0, 4.0), "devices": (0.0, 4.0), "enhance": (0.2, 0.8), "scatter": (0.15, 0.35),
    "contrast": (0.85, 1.1), "exposure": (0.85, 1.15), "noise": (0.006, 0.014), "uneven": (0.02, 0.12),
    "collimation": 0.3, "marker": 0.7,
}  # fmt: skip


@dataset(
    "hannover",
    title="Hannover COVID-19 films",
    channels=1,
    licence="CC BY 3.0",
    citation="Winther et al., figshare 12275009, 2020",
    source="https://doi.org/10.6084/m9.figshare.12275009",
    revision="243 films, 77 masks",
    folders=("hannover", "hannover_lung", "Hannover_COVID19_CXR", "covid-19-image-repository"),
    layout="png/00870a9c.png and so on",
    train=53,
    test=24,
    label_threshold=0.5,
    augment="chest",
    groups=("open",),
    section="Anatomical structures",
    corpus="hannover",
    phantom={"modality": "chest"},
)
@corpus("hannover", dataset="hannover", phantom={"images": 243, "cameras": [CAMERA]})
def load_films(root: Path) -> list[Path]:
    """png/00870a9c.png and so on: every film, those with a lung mask too."""
    return sorted((root / "png").glob("[0-9a-f]*.png"))


@task(
    "hannover_lung",
    dataset="hannover",
    title="Lung (Hannover)",
    licence="films CC BY 3.0, masks CC BY 4.0",
    citation="Winther et al., figshare 12275009, 2020; V7 Labs, COVID-19 X-ray dataset, 2020",
    source=(
        "https://doi.org/10.6084/m9.figshare.12275009 (films) and "
        "https://github.com/v7labs/covid-19-xray-dataset (masks)"
    ),
    folders=("hannover_lung", "hannover", "Hannover_COVID19_CXR", "covid-19-image-repository"),
    layout="png/00870a9c.png and lung_masks/00870a9c.png, the mask at the size of its film",
    known_leaks=("hannover",),
    phantom={"target": "lungs_full", "dataset": "hannover", "camera": CAMERA},
)
def load_lung(root: Path, split: str) -> list[Sample]:
    """png/00870a9c.png with lung_masks/00870a9c.png."""
    patients = {"train": list(PATIENTS)[:28], "test": list(PATIENTS)[28:]}[split]
    films = {film: patient for patient in patients for film in PATIENTS[patient]}
    return list_samples(root, films, "png/*.png", "lung_masks/*.png")
