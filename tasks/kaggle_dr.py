"""Kaggle DR: photographs of a diabetic screening programme, many cameras and qualities; graded, but not outlined.

Source: the training images of Kaggle's Diabetic Retinopathy Detection, given by EyePACS (Cuadros and Bresnick 2009).
`kaggle_dr_good` is the part of good quality that Chen et al. chose (`splits/kaggle_dr_good.txt`). The grades (none,
mild, moderate, severe, proliferative) serve methods that pretrain with labels; every other one leaves them alone.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import CorpusImage, MissingData, folder_of, read_grades, read_words
from bench.registry import corpus, dataset

GOOD = Path(__file__).with_name("splits") / "kaggle_dr_good.txt"
EYES = {"l": ("left",), "r": ("right",), "b": ("left", "right")}

CLINIC = {
    "fov": (42.0, 50.0), "centre": (0.2, 0.7), "red": (0.9, 1.15), "green": (0.85, 1.1), "blue": (0.5, 1.1),
    "exposure": (0.75, 1.1), "uneven": (0.05, 0.3), "vignette": (0.15, 0.45),
    "exudates": (0.0, 2.0), "haemorrhages": (0.0, 4.0), "microaneurysms": (0.0, 8.0),
}  # fmt: skip
MOBILE = {
    "fov": (45.0, 56.0), "height": (0.7, 0.9), "centre": (0.0, 0.6), "jitter": 2.5, "notch": 1.0,
    "red": (0.95, 1.2), "green": (0.7, 1.1), "blue": (0.3, 1.0), "blur": (0.001, 0.003),
    "exudates": (0.0, 5.0), "haemorrhages": (0.0, 8.0), "microaneurysms": (0.0, 20.0), "cotton_wool": (0.0, 1.0),
}  # fmt: skip
DISC = {
    "fov": (28.0, 36.0), "centre": (0.6, 1.0), "red": (0.85, 1.2), "green": (0.7, 1.0), "blue": (0.4, 1.0),
    "exposure": (0.75, 1.05), "uneven": (0.05, 0.35),
    "central_reflex": (0.4, 1.2), "nerve_fibre": (0.2, 1.2), "cup": (0.25, 0.75),
}  # fmt: skip
POOR = {
    "fov": (35.0, 46.0), "height": (0.85, 1.0), "centre": (0.2, 0.9),
    "red": (1.0, 1.25), "green": (1.0, 1.4), "blue": (0.8, 1.6), "saturation": (0.75, 1.0), "contrast": (0.65, 1.0),
    "haze": (0.0, 0.4), "blur": (0.002, 0.006), "noise": (0.01, 0.03), "dust": (0.0, 4.0),
    "drusen": (0.0, 30.0), "haemorrhages": (0.0, 4.0),
}  # fmt: skip


@dataset(
    "kaggle_dr",
    title="Kaggle DR (EyePACS)",
    channels=3,
    licence="competition rules: research use with citation, no redistribution",
    citation="Cuadros and Bresnick, J. Diabetes Sci. Technol. 3(3):509-516, 2009",
    source="https://www.kaggle.com/c/diabetic-retinopathy-detection",
    folders=("kaggle_dr", "diabetic-retinopathy-detection", "EyePACS", "kaggle_training_512"),
    layout=(
        "train/10_left.jpeg, train/10_right.jpeg and so on, or the photographs in the folder itself, and "
        "trainLabels.csv where grades are wanted"
    ),
    crop="fov",
    classes=("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    phantom={"modality": "fundus", "grades": True, "pairs": True},  # an angiogram of every eye; the data have none
)
@corpus("kaggle_dr", dataset="kaggle_dr", phantom={"images": 600, "cameras": [CLINIC, MOBILE, DISC, POOR]})
def load(root: Path) -> list[CorpusImage]:
    """train/10_left.jpeg, ... with its grade in trainLabels.csv; the photographs may also lie in the folder itself."""
    return _graded(root, sorted(_photographs(root)))


@corpus(
    "kaggle_dr_good",
    dataset="kaggle_dr",
    title="Kaggle DR, good quality",
    folders=("kaggle_dr_good", "kaggle_dr", "diabetic-retinopathy-detection", "EyePACS", "kaggle_training_512"),
    layout=(
        "train/10_left.jpeg, train/13_left.jpeg and so on, or the photographs in the folder itself, and trainLabels.csv"
        " where grades are wanted"
    ),
    phantom={"images": 300, "cameras": [CLINIC, MOBILE, DISC]},
)
def load_good(root: Path) -> list[CorpusImage]:
    """The listed photographs, as `load` finds them; MissingData where one is not there."""
    there = _photographs(root)
    listed = [f"{word[:-1]}_{eye}" for word in read_words(GOOD) for eye in EYES[word[-1]]]
    lost = [name for name in listed if name not in there]
    if lost:
        raise MissingData(
            f"kaggle_dr_good: {len(lost)} of its {len(listed)} photographs are not in {root} "
            f"({', '.join(lost[:3])}...): add them, or pretrain on kaggle_dr"
        )
    return _graded(root, sorted(listed))


def _photographs(root: Path) -> dict[str, Path]:
    """Name without its ending -> file."""
    files = folder_of(root, "train").glob("[0-9]*_*")
    return {path.stem: path for path in files if path.suffix.lower() in (".jpeg", ".jpg", ".png")}


def _graded(root: Path, names: list[str]) -> list[CorpusImage]:
    """Photographs with their grades, or all without where there is no table; an ungraded one keeps None."""
    there, table = _photographs(root), root / "trainLabels.csv"
    grades = read_grades(table, "image", "level", classes=5) if table.is_file() else {}
    return [CorpusImage(there[name], grades.get(name), patient=name.split("_")[0]) for name in names]
