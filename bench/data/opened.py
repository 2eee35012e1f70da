"""The corpus and the dataset of a cell as memory-mapped arrays, and which images are for what."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.cache import Plan, Progress, folder_name, prepared
from bench.data.digests import drawn
from bench.data.files import samples
from bench.data.maps import side_maps
from bench.data.phantoms import Phantom
from bench.data.prepare import item_shapes, prepare_image, prepare_phantom, prepare_sample
from bench.data.refs import corpus_content, corpus_spec, dataset_fingerprint
from bench.data.truths import KINDS
from bench.registry import Registry
from bench.spec import BenchError, CorpusSpec, PretrainCell, Site, TaskSpec, TransferCell, derive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

VALIDATION_SHARE = 0.2

log = logging.getLogger("bench")


def corpus_folder(cell: PretrainCell, site: Site) -> Path:
    """Where the corpus of a cell is prepared."""
    return folder_name(site, cell.corpus, cell.corpus_fingerprint, cell.image_size, cell.channels)


def dataset_folder(cell: TransferCell, registry: Registry, site: Site) -> Path:
    """Where the dataset of a cell is prepared."""
    spec: TaskSpec = registry.get("task", cell.task)
    chosen = (cell.dataset_fingerprint, spec.version, spec.crop, spec.label_threshold, cell.image_size, spec.channels)
    return folder_name(site, cell.task, *chosen, item_shapes(spec, cell.image_size), spec.structures)


def _changed(name: str) -> BenchError:
    return BenchError(f"the files of {name} changed since the run was planned: start the command again")


# -------------------------------------------------------------------------------------------------------------- corpus


@dataclass(frozen=True)
class Corpus:
    """Images to pretrain on, memory-mapped."""

    images: Pixels  # (N, size, size, C)
    labels: NDArray[np.int64] | None = None  # (N,) grades
    pairs: Pixels | None = None  # (N, size, size, C): the second modality
    classes: int = 0  # grades there are
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # side map -> (N, size, size) or with K last

    def __len__(self) -> int:
        return len(self.images)


def open_corpus(cell: PretrainCell, registry: Registry, site: Site, progress: Progress | None = None) -> Corpus:
    """The corpus of a cell with the side maps of its method, prepared where they are not yet."""
    spec = corpus_spec(cell.corpus, registry)

    def plan() -> Plan:
        if not cell.phantom:
            return _corpus_plan(cell, spec, site)
        assert spec is not None
        return _phantom_corpus_plan(spec, cell.image_size)

    arrays = prepared(corpus_folder(cell, site), plan, progress).arrays
    classes = len(spec.classes) if spec is not None and "labels" in arrays else 0
    maps = side_maps(arrays["images"], cell, registry, site, progress)
    return Corpus(arrays["images"], arrays.get("labels"), arrays.get("pairs"), classes, maps)


def _corpus_items(
    size: int, channels: int, graded: bool, paired: bool, dims: int = 2
) -> dict[str, tuple[str, tuple[int, ...]]]:
    items: dict[str, tuple[str, tuple[int, ...]]] = {"images": ("uint8", ((size,) * dims) + (channels,))}
    if graded:
        items["labels"] = ("int64", ())
    if paired:
        items["pairs"] = items["images"]
    return items


def _corpus_plan(cell: PretrainCell, spec: CorpusSpec | None, site: Site) -> Plan:
    listed, fingerprint = corpus_content(cell.corpus, spec, site.data, site.cache, cell.dropped)
    if fingerprint != cell.corpus_fingerprint:
        raise _changed(cell.corpus)
    crop, size = spec.crop if spec else "none", cell.image_size
    items = _corpus_items(size, cell.channels, listed[0].label is not None, listed[0].pair is not None)

    def make(index: int) -> dict[str, Any]:
        item = listed[index]
        made: dict[str, Any] = {"images": prepare_image(item.path, cell.channels, crop, size)}
        if item.label is not None:
            made["labels"] = _int64(item.label)
        if item.pair is not None:
            made["pairs"] = prepare_image(item.pair, cell.channels, crop, size)
        return made

    return Plan(len(listed), items, make)


def _phantom_corpus_plan(spec: CorpusSpec, size: int) -> Plan:
    about = spec.phantom
    graded, paired = bool(about.get("grades")), bool(about.get("pairs"))

    def make(index: int) -> dict[str, Any]:
        phantom = phantom_image(spec, index, size)
        made: dict[str, Any] = {"images": phantom.image}
        if graded:
            made["labels"] = _int64(phantom.grade)
        if paired:
            made["pairs"] = phantom.pair
        return made

    return Plan(about["images"], _corpus_items(size, spec.channels, graded, paired, spec.dims), make)


def _int64(value: int | None) -> np.int64:
    import numpy as np

    assert value is not None
    return np.int64(value)


def phantom_image(spec: CorpusSpec, index: int, size: int) -> Phantom:
    """One image of a phantom corpus: its cameras take turns."""
    cameras = spec.phantom["cameras"]
    return drawn(spec, index, size, cameras[index % len(cameras)], "corpus", spec.name)


# ------------------------------------------------------------------------------------------------------------- dataset


@dataclass(frozen=True)
class Dataset:
    """A task's cases as prepared arrays, and which of them are for what."""

    arrays: Mapping[str, NDArray[Any]]  # as `item_shapes` names them, each (N, ...)
    names: tuple[str, ...]
    patients: tuple[str, ...]  # "": not known
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def images(self) -> Pixels:
        """(N, *S, C)"""
        return self.arrays["images"]


def open_dataset(cell: TransferCell, registry: Registry, site: Site, progress: Progress | None = None) -> Dataset:
    """The dataset of a cell, prepared where it is not yet, and split."""
    spec: TaskSpec = registry.get("task", cell.task)
    size = cell.image_size

    def plan() -> Plan:
        return _phantom_dataset_plan(spec, size) if cell.phantom else _dataset_plan(cell, spec, site)

    found = prepared(dataset_folder(cell, registry, site), plan, progress)
    arrays, names, patients = found.arrays, tuple(found.about["names"]), tuple(found.about["patients"])
    taught, test = _parts(patients, int(found.about["train"]), cell)
    places = split_train([patients[index] for index in taught], cell.label_fraction, cell.seed)
    train, validation = (tuple(taught[place] for place in part) for part in places)
    lacking = KINDS[spec.truth].untaught(arrays, train, spec)
    if lacking:
        raise BenchError(lacking)
    if not has_target(arrays, test, spec):
        raise BenchError(f"no test image of {spec.name} has a target: there is nothing to score; check its test part")
    if not has_target(arrays, validation, spec):
        log.warning("no validation image of %s has a target: what is selected by them rests on nothing", spec.name)
    return Dataset(arrays, names, patients, train, validation, test)


def has_target(arrays: Mapping[str, NDArray[Any]], rows: Sequence[int], spec: TaskSpec) -> bool:
    """Whether anything that the task asks for is in any of these cases."""
    kind = KINDS[spec.truth]
    return any(kind.present(arrays, rows, at).any() for at in range(len(kind.names(spec))))


def _parts(patients: Sequence[str], train: int, cell: TransferCell) -> tuple[list[int], tuple[int, ...]]:
    """What is taught from and what is tested on: the official parts, or all folds but one and that one.

    Patients, in the order in which they are listed, are dealt out to the folds one by one.
    """
    if not cell.folds:
        return list(range(train)), tuple(range(train, len(patients)))
    known = _known(patients)
    turn = {patient: at % cell.folds for at, patient in enumerate(dict.fromkeys(known))}
    if len(turn) < cell.folds:
        raise BenchError(f"{len(turn)} patients of {cell.task} cannot be dealt out to {cell.folds} folds")
    folds = [turn[patient] for patient in known]
    test = tuple(index for index, fold in enumerate(folds) if fold == cell.fold)
    return [index for index, fold in enumerate(folds) if fold != cell.fold], test


def _dataset_plan(cell: TransferCell, spec: TaskSpec, site: Site) -> Plan:
    parts = samples(spec, site.data, cell.allow_partial)
    if dataset_fingerprint(parts, site.cache) != cell.dataset_fingerprint:
        raise _changed(cell.task)
    listed = [*parts["train"], *parts["test"]]

    def make(index: int) -> dict[str, Any]:
        return prepare_sample(listed[index], spec, cell.image_size)

    about = {
        "names": [sample.name for sample in listed],
        "patients": [sample.patient for sample in listed],
        "train": len(parts["train"]),
    }
    return Plan(len(listed), item_shapes(spec, cell.image_size), make, about)


def _phantom_dataset_plan(spec: TaskSpec, size: int) -> Plan:
    count = spec.train + spec.test
    names = [f"{spec.name}_phantom_{index:03d}" for index in range(count)]
    about = {"names": names, "patients": [""] * count, "train": spec.train}
    return Plan(count, item_shapes(spec, size), phantom_maker(spec, size), about)


def phantom_maker(spec: TaskSpec, size: int) -> Callable[[int], dict[str, Any]]:
    """Makes the cases of a task's phantom dataset by their number."""
    about = spec.phantom
    dataset = about.get("dataset", spec.name)

    def make(index: int) -> dict[str, Any]:
        return prepare_phantom(drawn(spec, index, size, about["camera"], "dataset", dataset), spec, size)

    return make


def _known(patients: Sequence[str]) -> list[str]:
    """Patients, an unknown one being everybody on his own."""
    return [patient or f"#{index}" for index, patient in enumerate(patients)]


def _label_order(patients: Sequence[str], fraction: float, seed: int) -> list[int]:
    """In which order labels are used up: the dataset's own, or for part of them a new one for each seed above 0."""
    order = list(range(len(patients)))
    if fraction == 1 or seed == 0:
        return order
    known = _known(patients)
    place = {patient: derive(seed, "labels", at) for at, patient in enumerate(dict.fromkeys(known))}
    return sorted(order, key=lambda index: (place[known[index]], index))


def split_train(patients: Sequence[str], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Training and validation indices of a task's train list, for a label fraction.

    The labels used are the first `fraction` of the list (Chen et al.), so that a smaller fraction is part of every
    larger one, and the first 20 % of them are the validation part, cut back to whole patients where patients are known.
    Seed 0 takes the list as it is; other seeds take it in an order of their own, patient by patient, so that a mean
    over seeds is one over choices of labels too. All labels are always used as listed.
    """
    used = round(fraction * len(patients)) if fraction < 1 else max(2, len(patients))
    if used < 2:
        raise BenchError(
            f"{100 * fraction:g} % of {len(patients)} training images are fewer than two, one to train with and one to "
            f"validate; the least label fraction here is {math.ceil(150 / len(patients)) / 100:g}"
        )
    if used > len(patients):
        raise BenchError(f"a train part of {len(patients)} images cannot be split into training and validation")
    order = _label_order(patients, fraction, seed)[:used]
    count = max(1, int(VALIDATION_SHARE * used))
    known = [_known(patients)[index] for index in order]
    while count > 1 and set(known[:count]) & set(known[count:]):
        count -= 1
    while count < used - 1 and set(known[:count]) & set(known[count:]):
        count += 1
    if set(known[:count]) & set(known[count:]):
        raise BenchError(f"{used} images of one patient cannot be split into training and validation: use more labels")
    return order[count:], order[:count]


# ------------------------------------------------------------------------------------------------------------- sampling


def draw(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The images of one step: a new order every epoch, and nothing to remember but the step."""
    first = step * batch_size
    return [_order(count, seed, position // count)[position % count] for position in range(first, first + batch_size)]


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(count: int, seed: int, epoch: int) -> list[int]:
    import numpy as np

    key = (count, seed, epoch)
    if key not in _orders:
        for old in list(_orders)[:-3]:
            del _orders[old]
        _orders[key] = np.random.default_rng(derive(seed, "epoch", epoch)).permutation(count).tolist()
    return _orders[key]
