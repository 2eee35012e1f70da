"""What the files of `tasks/` list their samples with: names and patterns, split lists, tables. Nothing is decoded."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.spec.samples import Mask, MissingData, Sample, is_file

Spellings = str | tuple[str, ...]
"""A file below the folder of a dataset, `*` for what tells its image from the others, in one or several spellings."""

# -------------------------------------------------------------------------------------------------------------- places


def first_of(*paths: Path) -> Path:
    """The first of several spellings of one file that is there, else the first."""
    return next((path for path in paths if is_file(path)), paths[0])


def folder_of(root: Path, *nested: str) -> Path:
    """`root`, or the folder inside it that unpacking an archive left there: each of `nested` in turn, where it is."""
    for name in nested:
        if (root / name).is_dir():
            root = root / name
    return root


def list_samples(
    root: Path, images: Iterable[str] | Mapping[str, str], image: Spellings, *masks: Spellings
) -> list[Sample]:
    """A sample of every one of `images`, in their order; its truth is what all `masks` mark, None where there are none.

    images: what stands for `*` in the spellings, each an image of another patient; or that -> its patient. The first
    spelling that is there counts. A sample's name is that of its image in its first spelling, up to the first dot.
    """
    patients = images if isinstance(images, Mapping) else {one: one for one in images}
    return [
        Sample(
            _spelt(root, image, one)[0].name.partition(".")[0],
            first_of(*_spelt(root, image, one)),
            Mask(tuple(first_of(*_spelt(root, mask, one)) for mask in masks)) if masks else None,
            patient,
        )
        for one, patient in patients.items()
    ]


def _spelt(root: Path, spellings: Spellings, one: str) -> list[Path]:
    return [root / text.replace("*", one) for text in ((spellings,) if isinstance(spellings, str) else spellings)]


def read_lines(path: Path) -> list[str]:
    """The lines of a list that comes with a file of tasks, without those that begin with #."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def read_words(path: Path) -> list[str]:
    """The words of such a list, however many are in a line."""
    return " ".join(read_lines(path)).split()


# -------------------------------------------------------------------------------------------------------------- tables


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file by column, blanks around names and values taken off; a byte order mark does no harm.

    Raises MissingData where the file is absent, is no text, lacks one of `columns` or has a row of another length.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise MissingData(f"{path} is no UTF-8 text: save it as CSV in UTF-8") from None
    except OSError as error:
        raise MissingData(f"{path} cannot be read ({error.strerror}): put the file there") from None
    lines = csv.reader(text.splitlines(), skipinitialspace=True)
    names = [name.strip() for name in next(lines, [])]
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise MissingData(f"{path} has no column {lacking[0]!r}, only {', '.join(names) or 'nothing'}: check the file")
    rows = []
    for values in lines:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(names):
            raise MissingData(
                f"{path}, line {lines.line_num}, has {len(values)} values for {len(names)} columns: check the file"
            )
        rows.append({name: value.strip() for name, value in zip(names, values, strict=True)})
    return rows


def read_grades(path: Path, name: str, grade: str, classes: int) -> dict[str, int]:
    """Image name -> grade, 0 to classes - 1, from two columns of a CSV file; MissingData where a grade is none."""
    grades = {}
    for row in read_table(path, name, grade):
        if row[grade] not in map(str, range(classes)):
            raise MissingData(f"{path} gives {row[name]} the grade {row[grade]!r}, not 0 to {classes - 1}: correct it")
        grades[row[name]] = int(row[grade])
    return grades
