"""SCR: heart, lung fields and clavicles in the 247 chest films of JSRT, 154 of them with a lung nodule.

Source: van Ginneken et al. 2006, first observer (1024 px), on the films of Shiraishi et al. 2000 (2048 px, 12 bit). The
lung fields leave out the heart, the mediastinum and what lies below the diaphragm; left and right are united. Split:
fold 1 train, fold 2 test, in the order of Chen et al., whose first 20 % are the validation part.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import Mask, Sample, first_of
from bench.registry import dataset, task

LATE = (37, 75, 111)  # odd films with a nodule that the list of Chen et al. has only after the 145th
CAMERA = {
    "field": (34.0, 37.0), "inspiration": (0.0, 1.2), "breasts": 0.4, "nodules": 0.6, "scatter": (0.1, 0.2),
    "contrast": (0.9, 1.1), "exposure": (0.9, 1.1), "blur": 0.0016, "noise": 0.014, "uneven": (0.02, 0.08),
    "marker": 0.8,
}  # fmt: skip


@dataset(
    "scr",
    title="SCR",
    channels=1,
    licence="research and education only, no redistribution, no commercial use",
    citation=(
        "van Ginneken et al., Med. Image Anal. 10(1):19-40, 2006; "
        "Shiraishi et al., Am. J. Roentgenol. 174(1):71-74, 2000"
    ),
    source="https://zenodo.org/records/7056076 (masks) and http://db.jsrt.or.jp/eng.php (films)",
    revision="SCR, first observer",
    folders=("scr", "SCR", "JSRT", "jsrt"),
    layout="All247images/JPCLN001.IMG (or .png; also in a folder JSRT beside this one), scratch/fold1/masks, fold2",
    train=124,
    test=123,
    augment="chest",
    section="Anatomical structures",
    corpus="chestxray8",
    stand_in="hannover",
    phantom={"modality": "chest", "dataset": "scr", "camera": CAMERA},
)
def films(root: Path, split: str, *structures: str) -> list[Sample]:
    """All247images/JPCLN001.IMG with scratch/fold1/masks/STRUCTURE/JPCLN001.gif of each; fold2 is the test."""
    fold = {"train": "fold1", "test": "fold2"}[split]
    truths = [root / outer / fold / "masks" for outer in ("scratch", ".")]
    places = [
        folder / inner
        for folder in (root, root.parent / "JSRT", root.parent / "jsrt")
        for inner in ("All247images", "All247images/All247images", "images", "Images", ".")
    ]
    return [
        Sample(
            name,
            first_of(*(place / f"{name}{end}" for place in places for end in (".IMG", ".img", ".png", ".PNG"))),
            Mask(tuple(first_of(*(truth / item / f"{name}.gif" for truth in truths)) for item in structures))
            if structures
            else None,
            name,
        )
        for name in _names(split)
    ]


@task(
    "scr_heart",
    dataset="scr",
    title="Heart",
    groups=("cxr_all",),
    layout=(
        "All247images/JPCLN001.IMG (or .png; also in a folder JSRT beside this one) and "
        "scratch/fold1/masks/heart/JPCLN001.gif, fold2 likewise"
    ),
    phantom={"target": "heart"},
)
def load_heart(root: Path, split: str) -> list[Sample]:
    return films(root, split, "heart")


@task(
    "scr_lung",
    dataset="scr",
    title="Lung",
    groups=("cxr_all",),
    layout=(
        "All247images/JPCLN001.IMG (or .png; also in a folder JSRT beside this one) and "
        "scratch/fold1/masks/left lung/JPCLN001.gif, right lung and fold2 likewise"
    ),
    phantom={"target": "lungs"},
)
def load_lung(root: Path, split: str) -> list[Sample]:
    return films(root, split, "left lung", "right lung")


@task(
    "scr_clavicle",
    dataset="scr",
    title="Clavicle",
    groups=("cxr_all",),
    layout=(
        "All247images/JPCLN001.IMG (or .png; also in a folder JSRT beside this one) and "
        "scratch/fold1/masks/left clavicle/JPCLN001.gif, right clavicle and fold2 likewise"
    ),
    phantom={"target": "clavicles"},
)
def load_clavicle(root: Path, split: str) -> list[Sample]:
    return films(root, split, "left clavicle", "right clavicle")


def _names(split: str) -> list[str]:
    """Odd films train, even ones test, both in the order of the published list."""
    shift = {"train": 0, "test": 1}[split]
    nodules = [number for number in range(1, 147, 2) if number not in LATE]
    return [
        *(f"JPCLN{number + shift:03}" for number in (*nodules, *LATE, 147)),
        f"JPCNN{29 + shift:03}",
        *(f"JPCLN{number + shift:03}" for number in (149, 151, 153)),
        *(f"JPCNN{number:03}" for number in range(1 + shift, 94, 2) if number != 29 + shift),
    ]
