"""IDRiD, disease grading: 516 photographs of diabetic eyes, centred near the macula, graded but not outlined.

Source: Porwal et al. 2018, part B. Part A (tasks `idrid_od` and `idrid_he`) outlines some of the same photographs.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import CorpusImage, folder_of, read_grades
from bench.registry import corpus

CAMERA = {
    "fov": 50.0, "height": 0.83, "centre": (0.05, 0.5), "jitter": 3.0, "notch": 1.0, "red": (0.95, 1.15),
    "green": (0.88, 1.06), "blue": (0.25, 0.7), "exposure": (0.85, 1.05), "haze": (0.0, 0.2), "blur": 0.0025,
}  # fmt: skip
MILD = {**CAMERA, "exudates": (0.0, 3.0), "haemorrhages": (0.0, 3.0), "microaneurysms": (1.0, 12.0)}
SEVERE = {
    **CAMERA,
    "exudates": (1.0, 9.0), "haemorrhages": (2.0, 14.0), "microaneurysms": (5.0, 30.0), "cotton_wool": (0.0, 2.0),
}  # fmt: skip


@corpus(
    "idrid_grading",
    dataset="idrid",
    title="IDRiD, disease grading",
    folders=("idrid_grading", "IDRiD_grading", "IDRiD_grading_unlabeled_512", "B. Disease Grading", "IDRiD", "idrid"),
    layout=(
        "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_001.jpg with 2. Groundtruths/a. IDRiD_Disease "
        "Grading_Training Labels.csv, b. Testing Set likewise; or only the photographs, in the folder itself"
    ),
    classes=("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    phantom={"grades": True, "images": 516, "cameras": [CAMERA, MILD, SEVERE]},
)
def load(root: Path) -> list[CorpusImage]:
    """1. Original Images/PART/IDRiD_001.jpg with its grade where the tables are; else the photographs of the folder."""
    base = folder_of(root, "B.%20Disease%20Grading", "B. Disease Grading", "B. Disease Grading")
    found = []
    for folder, part in (("a. Training Set", "Training"), ("b. Testing Set", "Testing")):
        table = base / "2. Groundtruths" / f"{folder[:2]} IDRiD_Disease Grading_{part} Labels.csv"
        grades = read_grades(table, "Image name", "Retinopathy grade", classes=5) if table.is_file() else {}
        images = (base / "1. Original Images" / folder).glob("IDRiD_*.jpg")
        found += [CorpusImage(path, grades.get(path.stem)) for path in sorted(images)]
    return found or [CorpusImage(path) for path in sorted(base.glob("*.jpg")) if not path.name.startswith(".")]
