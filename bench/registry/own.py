"""A user's own segmentation data as a task, declared in a short TOML file instead of Python.

    images = "images/*.png"            # `*` stands for part of a name; together the stars name the image
    masks = "masks/*_mask.png"         # or a list: each star stands for what it stood for in `images`
    test = ["case_7*", "case_8*"]      # names or patterns of names; or: test_fraction = 0.3

and, where the defaults do not fit, any of `DEFAULTS`. Images and masks lie beside the file, or below its `root`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.spec import BenchError, Origin, TaskSpec, digest, suggest
from bench.spec.samples import FOLDER, Mask, MissingData, Sample, is_file

DEFAULTS: dict[str, Any] = {
    "root": ".",  # where the patterns begin, from the TOML file
    "name": "",  # empty: the file's name
    "title": "",  # in tables; empty: the name
    "channels": 3,  # 3: colour, 1: grey
    "threshold": 0.3,  # share of a mask's full scale above which a pixel is labelled
    "crop": "none",  # "fov": cut a fundus photograph to its field of view
    "patients": "",  # pattern over names whose first group is the patient; empty: every image its own
    "corpus": "",  # what to pretrain on, a corpus or folder:PATH (from the TOML file); empty: give --corpus
    "augment": "fundus",  # how training images are varied
    "batch_size": 2,
    "licence": "your own data",
    "citation": "",
}
_TEST = ("test", "test_fraction")
KEYS = ("images", "masks", *_TEST, *DEFAULTS)
SCIENTIFIC = ("threshold", "crop", "patients", "augment", "channels")  # the files are in the fingerprint
CROPS, CHANNELS = ("none", "fov"), (1, 3)


def read_task(path: Path) -> TaskSpec:
    """The task that a TOML file declares; BenchError where it is incomplete or its files do not fit together."""
    values, sha256 = _values(path)
    listed = _split(path, values, _samples(path, values))
    name = values["name"]
    chosen = digest({key: values[key] for key in SCIENTIFIC})  # its version: another choice makes another task
    return TaskSpec(
        name=name,
        version=int(chosen[:8], 16),
        title=values["title"] or name,
        groups=(),
        section="",
        corpus=_corpus(path, values["corpus"]),
        channels=values["channels"],
        licence=values["licence"],
        citation=values["citation"],
        source=str(path),
        revision=sha256[:12],
        folders=(str(_root(path, values)),),
        layout=f"{values['images']} with {', '.join(values['masks'])}",
        train=len(listed["train"]),
        test=len(listed["test"]),
        crop=values["crop"],
        label_threshold=float(values["threshold"]),
        augment=values["augment"],
        batch_size=values["batch_size"],
        patients=values["patients"],
        origin=Origin(str(path), 1, "load", chosen),
    )


def loader(path: Path) -> Callable[[Path, str], list[Sample]]:
    """What a task's `load` is, for a TOML file."""

    def load(root: Path, split: str) -> list[Sample]:
        values, _ = _values(path)
        return _split(path, values, _samples(path, values))[split]

    return load


# ------------------------------------------------------------------------------------------------------------- reading


def _values(path: Path) -> tuple[dict[str, Any], str]:
    """Every key with its value or default, checked, and the file's SHA-256."""
    try:
        content = path.read_bytes()
        given = tomllib.loads(content.decode())
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is no TOML: {error}") from None
    for key in given:
        if key not in KEYS:
            near = suggest(key, KEYS) or f"; it may hold {', '.join(KEYS)}"
            raise BenchError(f"{path} has an unknown key {key!r}{near}")
    for key in ("images", "masks"):
        if key not in given:
            raise BenchError(f"{path} lacks {key}, a pattern such as {key} = '{key}/*.png'")
    if sum(key in given for key in _TEST) != 1:
        raise BenchError(f"{path} takes either test, a list of names, or test_fraction, such as 0.3")
    values = DEFAULTS | {"name": path.stem} | given
    if isinstance(values["masks"], str):
        values["masks"] = [values["masks"]]
    for key, value in values.items():
        _check(path, key, value)
    return values, hashlib.sha256(content).hexdigest()


def _check(path: Path, key: str, value: Any) -> None:
    """BenchError where a value has another type, or is none of those allowed."""
    kind = DEFAULTS.get(key, "")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in ("masks", "test"):
        wanted, good = "a list of texts", isinstance(value, list) and value and all(isinstance(v, str) for v in value)
    elif key in ("threshold", "test_fraction"):
        wanted, good = "a number above 0 and below 1", number and 0 < value < 1
    elif key == "channels":
        wanted, good = "1 or 3", number and value in CHANNELS
    elif key == "batch_size":
        wanted, good = "a whole number above 0", number and isinstance(value, int) and value > 0
    elif key == "crop":
        wanted, good = f"one of {', '.join(CROPS)}", value in CROPS
    elif key == "patients":
        wanted, good = "a pattern with one group in brackets", isinstance(value, str) and _groups(value) == bool(value)
    elif key == "name":
        wanted, good = "letters, digits, _ and -", isinstance(value, str) and bool(re.fullmatch(r"[\w-]+", value))
    else:
        wanted, good = "a text", isinstance(value, type(kind)) and (bool(value) or key in DEFAULTS)
    if not good:
        raise BenchError(f"{path} sets {key} to {value!r}, but it takes {wanted}")


def _groups(pattern: str) -> int:
    """How many groups a regular expression has; -1 where it is none."""
    try:
        return re.compile(pattern).groups
    except re.error:
        return -1


def _root(path: Path, values: Mapping[str, Any]) -> Path:
    return (path.parent / Path(values["root"]).expanduser()).resolve()


def _corpus(path: Path, corpus: str) -> str:
    if not corpus.startswith(FOLDER):
        return corpus
    return f"{FOLDER}{(path.parent / Path(corpus.removeprefix(FOLDER)).expanduser()).resolve()}"


# ------------------------------------------------------------------------------------------------------------- listing


def _samples(path: Path, values: Mapping[str, Any]) -> list[Sample]:
    """Every image with its masks, sorted by name."""
    root, pattern = _root(path, values), values["images"]
    images = _matches(path, root, pattern)
    if not images:
        raise MissingData(f"{path}: no image fits {pattern} under {root}; correct images or root")
    found, wanted = [], set[Path]()
    for stars, image in images:
        masks = tuple(root / _filled(path, mask, pattern, stars) for mask in values["masks"])
        lost = next((mask for mask in masks if not is_file(mask)), None)
        if lost is not None:
            raise MissingData(f"{path}: the image {image} has no mask {lost}; add it or take the image out")
        if image in masks:
            raise BenchError(f"{path}: {image} would be its own mask; correct masks")
        wanted.update(masks)
        name = "_".join(stars) if stars else image.stem
        found.append(Sample(name, image, Mask(masks), _patient(path, values["patients"], name)))
    for mask in values["masks"]:
        spare = next((file for _, file in _matches(path, root, mask) if file not in wanted), None)
        if spare is not None and not any(spare == image for _, image in images):
            raise MissingData(f"{path}: the mask {spare} has no image; add it or take the mask out")
    names = [sample.name for sample in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BenchError(f"{path}: two images are called {twice!r}; give {pattern!r} fewer stars or rename one")
    return sorted(found, key=lambda sample: sample.name)


def _matches(path: Path, root: Path, pattern: str) -> list[tuple[tuple[str, ...], Path]]:
    """What the stars of a pattern stand for, and the file, for every file that fits; hidden files fit none."""
    if "**" in pattern or pattern.startswith("/"):
        raise BenchError(f"{path}: the pattern {pattern!r} must be relative and may hold single stars only")
    fits = re.compile("([^/]*)".join(map(re.escape, pattern.split("*"))))
    found = []
    for file in sorted(root.glob(pattern)):
        match = fits.fullmatch(file.relative_to(root).as_posix())
        if match and is_file(file) and not file.name.startswith("."):
            found.append((match.groups(), file))
    return found


def _filled(path: Path, pattern: str, images: str, stars: Sequence[str]) -> str:
    """A mask's pattern with the stars of its image."""
    if pattern.count("*") != len(stars):
        raise BenchError(f"{path}: {pattern!r} must hold as many stars as {images!r}, for they stand for the same")
    parts = pattern.split("*")
    return parts[0] + "".join(star + part for star, part in zip(stars, parts[1:], strict=True))


def _patient(path: Path, pattern: str, name: str) -> str:
    if not pattern:
        return ""
    match = re.search(pattern, name)
    if match is None or not match.group(1):
        raise BenchError(f"{path}: patients = {pattern!r} finds no patient in the name {name!r}")
    return match.group(1)


# --------------------------------------------------------------------------------------------------------------- split


def _split(path: Path, values: Mapping[str, Any], listed: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Training and test part; no patient is in both."""
    if "test" in values:
        chosen = set[str]()
        for pattern in values["test"]:
            hits = {sample.name for sample in listed if fnmatch.fnmatchcase(sample.name, pattern)}
            if not hits:
                near = f"names are like {listed[0].name!r}"
                raise BenchError(f"{path}: test names {pattern!r}, which no image fits; {near}")
            chosen |= hits
    else:
        chosen = _last(listed, values["test_fraction"])
    parts = {
        "train": [sample for sample in listed if sample.name not in chosen],
        "test": [sample for sample in listed if sample.name in chosen],
    }
    if len(parts["train"]) < 2 or not parts["test"]:
        counts = f"{len(parts['train'])} training and {len(parts['test'])} test images"
        raise BenchError(f"{path} leaves {counts}: at least 2 and 1 are needed; correct test or add images")
    both = {sample.patient for sample in parts["train"]} & {sample.patient for sample in parts["test"]} - {""}
    if both:
        raise BenchError(f"{path}: the patient {min(both)!r} is in the training and the test part; correct test")
    return parts


def _last(listed: Sequence[Sample], fraction: float) -> set[str]:
    """Names of the last `fraction` of the images, whole patients."""
    chosen = set[str]()
    for sample in reversed(listed):
        if sample.name not in chosen and len(chosen) < round(fraction * len(listed)):
            own = [other.name for other in listed if sample.patient and other.patient == sample.patient]
            chosen.update(own or [sample.name])
    return chosen
