"""Which files make a dataset or a corpus, and which of them are there. Nothing is decoded here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.data.kinds import Inventory
from bench.registry import load
from bench.spec import CorpusSpec, TaskSpec
from bench.spec.samples import FOLDER, CorpusImage, MissingData, NoImages, Sample, is_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm", ".dcm")
NAMED = 3  # missing files that a message names before it only counts
IMAGES_NAMED = 100  # images that lack a file, likewise
TEST_SHARE = 1 / 3  # of a partial dataset without its official test part
BY_NAME = "the last third of the sorted names is the test part"
BY_PATIENT = "the last third of the sorted names, whole patients, is the test part"
SPLITS = ("train", "test")


# --------------------------------------------------------------------------------------------------------------- places


def absent(spec: TaskSpec | CorpusSpec, what: str, where: Path, more: str = "") -> MissingData:
    """One sentence: what is missing, where it comes from, under which licence, what the folder should look like."""
    other = f"; or give another corpus with --corpus {FOLDER}PATH" if isinstance(spec, CorpusSpec) else more
    return MissingData(
        f"{spec.name}: {what}; get it from {spec.source} ({spec.licence}) and unpack it as {where}: "
        f"{spec.layout}{other}"
    )


def own_root(spec: TaskSpec | CorpusSpec) -> Path | None:
    """The folder of a dataset that does not lie under the data root but where its declaration says."""
    return next((Path(name) for name in spec.folders if Path(name).is_absolute()), None)


def find_root(spec: TaskSpec | CorpusSpec, data_root: Path | None) -> Path | None:
    """The folder of a dataset or corpus under the data root: by one of its names, upper and lower case alike."""
    own = own_root(spec)
    if own is not None:
        return own if own.is_dir() else None
    if data_root is None or not data_root.is_dir():
        return None
    for name in spec.folders:
        if (data_root / name).is_dir():
            return data_root / name
    try:
        entries = sorted(path for path in data_root.iterdir() if path.is_dir())
    except OSError as error:
        why = f"the data root {data_root} cannot be read ({error.strerror})"
        raise MissingData(f"{why}: check its permissions") from None
    wanted = {name.casefold() for name in spec.folders}
    return next((path for path in entries if path.name.casefold() in wanted), None)


def _root(spec: TaskSpec | CorpusSpec, data_root: Path | None) -> Path:
    root, own = find_root(spec, data_root), own_root(spec)
    if root is not None:
        return root
    if own is not None:
        raise MissingData(f"{spec.name}: there is no folder {own}: correct it in {spec.origin.file}")
    if data_root is None or not data_root.is_dir():
        raise MissingData(f"the data root {data_root} is no folder: give --data the folder where the datasets lie")
    raise absent(spec, f"none of {', '.join(spec.folders)} is under {data_root}", data_root / spec.folders[0])


def list_images(root: Path) -> list[Path]:
    """Every image below a folder, sorted; links are followed, once; hidden files and folders are left alone."""
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise MissingData(f"{error.filename} cannot be read ({error.strerror}): check its permissions or take it out")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if not is_file(path):
                raise MissingData(f"{path} is a broken link: repair it or take it out")
            yield path


# ------------------------------------------------------------------------------------------------------------ datasets


def inventory(spec: TaskSpec, data_root: Path | None) -> Inventory:
    """What of a task's dataset is under the data root."""
    root, expected = find_root(spec, data_root), spec.train + spec.test
    if root is None:
        return Inventory(spec, None, "missing", expected=expected)
    read = load(spec)
    try:
        listed: dict[str, list[Sample]] = {split: read(root, split) for split in SPLITS}
    except MissingData as error:
        return Inventory(spec, root, "missing", missing=(str(error),), expected=expected)
    files = list(dict.fromkeys(path for part in listed.values() for sample in part for path in sample.files))
    lost = dict.fromkeys(path for path in files if not is_file(path))
    parts = {split: [item for item in part if lost.keys().isdisjoint(item.files)] for split, part in listed.items()}
    present = sum(map(len, parts.values()))
    whole = {sample.name for part in parts.values() for sample in part}
    return Inventory(
        spec,
        root,
        state="missing" if not present else "partial" if lost else "found",
        parts=parts,
        missing=tuple(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in lost),
        incomplete=tuple(item.name for part in listed.values() for item in part if item.name not in whole),
        files=len(files),
        present=present,
        expected=sum(map(len, listed.values())),
        rule=_rule(parts) if present and not spec.folds else "",
    )


def _rule(parts: Mapping[str, Sequence[Sample]]) -> str:
    if all(parts.values()):
        return ""
    owners = [_owner(sample) for part in parts.values() for sample in part]
    return BY_PATIENT if len(set(owners)) < len(owners) else BY_NAME


def samples(spec: TaskSpec, data_root: Path | None, allow_partial: bool = False) -> dict[str, list[Sample]]:
    """Train and test lists of a dataset, in the order of its official split; MissingData where it is not whole.

    With `allow_partial` the complete samples that are there; where one official part is absent, the last third of the
    sorted names becomes the test part, cut between patients.
    """
    _root(spec, data_root)
    return chosen_samples(inventory(spec, data_root), allow_partial)


def chosen_samples(found: Inventory, allow_partial: bool) -> dict[str, list[Sample]]:
    """What `samples` gives, from an inventory of a folder that is there."""
    assert found.root is not None
    if found.state == "found":
        return found.parts
    if not found.files and own_root(found.spec) is not None:
        raise MissingData(found.missing[0])
    if not found.files:
        raise absent(found.spec, found.missing[0], found.root)
    if found.state == "missing" or not allow_partial:
        raise _not_whole(found, found.root)
    return _divided(found) if found.rule else found.parts


def _not_whole(found: Inventory, root: Path) -> MissingData:
    lost, names = len(found.missing), ", ".join(found.missing[:NAMED])
    more = f" and {lost - NAMED} more" if lost > NAMED else ""
    what = f"{lost} of {found.files} files are missing ({names}{more})"
    if found.present and lost > NAMED:
        images, rest = found.incomplete[:IMAGES_NAMED], len(found.incomplete) - IMAGES_NAMED
        what += f", so these images are not complete: {', '.join(images)}" + (f" and {rest} more" if rest > 0 else "")
    runs = f"; --allow-partial runs on the {found.present} of {found.expected} images that are complete"
    return absent(found.spec, what, root, runs if found.present else "")


def _owner(sample: Sample) -> str:
    """Whose image it is: a patient, or nobody else's."""
    return sample.patient or f"#{sample.name}"


def _divided(found: Inventory) -> dict[str, list[Sample]]:
    """Training and test part of a dataset that came without one of them; no patient is in both."""
    listed = sorted((sample for part in found.parts.values() for sample in part), key=lambda sample: sample.name)
    images = Counter(map(_owner, listed))
    wanted, test = round(TEST_SHARE * len(listed)), dict[str, int]()
    for owner in reversed(images):
        if sum(test.values()) < wanted:
            test[owner] = images[owner]
    parts = {
        "train": [sample for sample in listed if _owner(sample) not in test],
        "test": [sample for sample in listed if _owner(sample) in test],
    }
    if not all(parts.values()):
        raise MissingData(
            f"{found.spec.name}: {len(listed)} images of {len(images)} patients cannot be split into training and "
            "test: add more of it"
        )
    return parts


# ------------------------------------------------------------------------------------------------------------- corpora


def corpus_images(name: str, spec: CorpusSpec | None, data_root: Path | None) -> list[CorpusImage]:
    """Images of a corpus with what is known of each; MissingData where there are none.

    Grades count only where every image has one: a table that grades some of them is refused.
    """
    if name.startswith(FOLDER):
        return [CorpusImage(path) for path in _folder_images(name)]
    assert spec is not None
    assert data_root is not None
    root = _root(spec, data_root)
    found = [item if isinstance(item, CorpusImage) else CorpusImage(item) for item in load(spec)(root)]
    if not found:
        raise NoImages(str(absent(spec, "no image is there", root)))
    for what, lacking in (
        ("grade", [item for item in found if item.label is None]),
        ("second image", [item for item in found if item.pair is None]),
    ):
        if lacking and len(lacking) < len(found):
            raise MissingData(
                f"{name}: {len(lacking)} of {len(found)} images have no {what} ({lacking[0].path.name}, ...): "
                "complete it or take them out"
            )
    return found


def _folder_images(name: str) -> list[Path]:
    root = Path(name.removeprefix(FOLDER)).expanduser()
    if not root.is_dir():
        raise MissingData(f"{root} is no folder: --corpus {FOLDER}PATH takes a folder of images")
    files = list_images(root)
    if not files:
        raise MissingData(f"{root} holds no image ({', '.join(IMAGE_SUFFIXES)}): give another folder to --corpus")
    return files


def holds_images(spec: CorpusSpec, data_root: Path) -> bool:
    """Whether a corpus is there: its folder may be that of a dataset from the same archive, without one of its images.

    Also where something else is wrong with it, which is said when it is opened.
    """
    try:
        return bool(corpus_images(spec.name, spec, data_root))
    except NoImages:
        return False
    except MissingData:
        return find_root(spec, data_root) is not None


def corpus_files(name: str, spec: CorpusSpec | None, data_root: Path | None) -> list[Path]:
    """The image files of a corpus; MissingData where there are none."""
    return [item.path for item in corpus_images(name, spec, data_root)]
