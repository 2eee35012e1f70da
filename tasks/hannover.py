"""Hannover: both lungs in chest films of COVID-19 patients, and all films of that repository as a corpus.

Source: 243 films of Winther et al. 2020 (640 px wide; many taken in bed); the 77 lung masks are V7 Labs', drawn
half-automatically and reviewed. They run on behind the heart and may pass the edge of the body: no lung fields as SCR
defines them, so `hannover_lung` and `scr_lung` do not compare. Split: patients sorted by their identifier (random
letters), the first 28 train and the last 15 test, so no patient is in both.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Mask, Sample
from bench.registry import corpus, task

# One line per patient: identifier, then its films that have a mask (`data.csv` and the masks' names).
FILMS = """
042f06a9 53c9be49 b343e657
09ec853d 2168a917 a4318ac9 bd3ceeb6
0a359802 61bc50d1 87d50e40
0f2b9fbd 5f619d7e
14d9761b a38e1877
177330aa 4d98e1de 80b5f00f
189daebe 00870a9c 35b446ce 90070cbc
19677c11 c0f74558
23032572 2cd63b76
271ddf1a 19abe1f3 262a70ca
31fb078d bb0e626a
327d82ca 441c9cdd
3c87abb9 f64132c8
3e461592 3dedeb92 9d36404d bfefde5d
48bbd9e5 483f2ad8
50397f62 bd10d5e2
57f37ffa a2eba651
5aa14f40 f8335316
67b047c9 4fed5061
6a66932a 3b46de94
6ac9bfff a361d7b7 d9d6ca9a
6b53918c d6494b39 d680397c
741f3334 1880e301 3248cc61 3fd337c1 4fcafe41 ee2d1bf6
77a9d3bc 527321ee 887db78f
78075b29 333932bd
7a7f0216 e1446fe8
850bf237 08d780ae 24035bda c828e894
85901531 1663b242 4c0fcf57 a47dc73e cb706009 d7f2ee0f db96a050 e1a4f870
88b33741 2c35005f d009d61f
8d6990f2 c601f50d ec083e35
969dd2e0 1052b0fe 8da14fff ada8c494
9e37879b 1f8a4a54 21982772
a695ef27 86d19bba
b184707c f6d980a0
b25e0dbb b9673e89
b8da7bc7 1d435a4b
c62c878a 0a7faa2a 5782ae15 b39f5cf9
d039b079 436a6348 48c4542c 865336ed
ec0f429c c3829ecb
f31da5d4 5acb8ac5
f602d0dc a8ac1969
f722f605 82a78c13
ff488d3e 90986ce4
"""
PATIENTS = {line.split()[0]: line.split()[1:] for line in FILMS.strip().splitlines()}
TRAIN_PATIENTS = 28


@task(
    "hannover_lung",
    version=1,
    title="Lung (Hannover)",
    groups=("open",),
    section="Anatomical structures",
    corpus="hannover",
    channels=1,
    licence="films CC BY 3.0, masks CC BY 4.0",
    citation="Winther et al., figshare 12275009, 2020; V7 Labs, COVID-19 X-ray dataset, 2020",
    source=(
        "https://doi.org/10.6084/m9.figshare.12275009 (films) and "
        "https://github.com/v7labs/covid-19-xray-dataset (masks)"
    ),
    revision="243 films, 77 masks",
    folders=("hannover_lung", "hannover", "Hannover_COVID19_CXR", "covid-19-image-repository"),
    layout="png/00870a9c.png and lung_masks/00870a9c.png, the mask at the size of its film",
    train=53,
    test=24,
    label_threshold=0.5,
    augment="chest",
    known_leaks=("hannover",),
    phantom={
        "modality": "chest",
        "target": "lungs_full",
        "dataset": "hannover",
        "camera": {
            "field": (36.0, 42.0),
            "height": (0.8, 1.0),
            "portable": 0.6,
            "inspiration": (-1.5, 0.5),
            "breasts": 0.35,
            "opacities": (0.0, 4.0),
            "devices": (0.0, 4.0),
            "enhance": (0.2, 0.8),
            "scatter": (0.15, 0.35),
            "contrast": (0.85, 1.1),
            "exposure": (0.85, 1.15),
            "noise": (0.006, 0.014),
            "uneven": (0.02, 0.12),
            "collimation": 0.3,
            "marker": 0.7,
        },
    },
)
def load_lung(root: Path, split: str) -> list[Sample]:
    """png/00870a9c.png with lung_masks/00870a9c.png."""
    patients = {"train": list(PATIENTS)[:TRAIN_PATIENTS], "test": list(PATIENTS)[TRAIN_PATIENTS:]}[split]
    return [
        Sample(film, root / "png" / f"{film}.png", Mask(root / "lung_masks" / f"{film}.png"), patient)
        for patient in patients
        for film in PATIENTS[patient]
    ]


@corpus(
    "hannover",
    version=1,
    title="Hannover COVID-19 films",
    channels=1,
    licence="CC BY 3.0",
    citation="Winther et al., figshare 12275009, 2020",
    source="https://doi.org/10.6084/m9.figshare.12275009",
    folders=("hannover", "hannover_lung", "Hannover_COVID19_CXR", "covid-19-image-repository"),
    layout="png/00870a9c.png and so on",
    phantom={
        "modality": "chest",
        "images": 243,
        "cameras": [
            {
                "field": (36.0, 42.0),
                "height": (0.8, 1.0),
                "portable": 0.6,
                "inspiration": (-1.5, 0.5),
                "breasts": 0.35,
                "opacities": (0.0, 4.0),
                "devices": (0.0, 4.0),
                "enhance": (0.2, 0.8),
                "scatter": (0.15, 0.35),
                "contrast": (0.85, 1.1),
                "exposure": (0.85, 1.15),
                "noise": (0.006, 0.014),
                "uneven": (0.02, 0.12),
                "collimation": 0.3,
                "marker": 0.7,
            }
        ],
    },
)
def load_films(root: Path) -> list[Path]:
    """png/00870a9c.png and so on: every film, those with a lung mask too."""
    return sorted((root / "png").glob("[0-9a-f]*.png"))
