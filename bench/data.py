"""Corpora and datasets: what is there, its fingerprint, and the prepared images as memory-mapped arrays.

A dataset enters a key by its fingerprint: the digest of a manifest of contents, so moving files changes nothing and
altering one changes the key. Images are decoded, cropped and resized once into `runs/cache/`; later epochs touch only
the map. Nothing here imports torch, and nothing heavy is imported before images are read.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import phantoms, store
from bench.registry import Registry, load
from bench.spec import BenchError, CorpusSpec, PretrainCell, Site, TaskSpec, TransferCell, derive, digest, file_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

log = logging.getLogger("bench")

PREPARATION = 1  # raised when decoding, cropping or resizing changes; part of every fingerprint
VALIDATION_SHARE = 0.2
WHOLE_BYTES, BLOCK_BYTES, SAMPLED_BLOCKS = 1 << 28, 1 << 16, 256  # of a prepared array, when it is verified
WAIT_SECONDS = 0.1  # between two looks at a cache that another process is making
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm")
FOLDER = "folder:"
NAMED = 3  # missing files that a message names before it only counts


class MissingData(BenchError):
    """A dataset or corpus is not under the data root, or not whole."""


@dataclass(frozen=True)
class Sample:
    """One labelled image on disk; several masks are united."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    patient: str = ""


@dataclass(frozen=True)
class CorpusRef:
    """A corpus as cells know it; `channels` 0: whatever the task has."""

    name: str
    fingerprint: str
    phantom: bool
    channels: int


@dataclass(frozen=True)
class DatasetRef:
    """A task's dataset as cells know it."""

    fingerprint: str
    phantom: bool


# ------------------------------------------------------------------------------------------------------- fingerprints


class Digests:
    """SHA-256 of files, remembered by path, size and modification time in one small JSON beside the cache."""

    def __init__(self, cache: Path) -> None:
        self._file = cache / "digests.json"
        found = store.read_json(self._file)
        self._known: dict[str, Any] = found if found is not None else {}
        self._new = False

    def of(self, path: Path) -> str:
        try:
            state = path.stat()
            known = self._known.get(str(path))
            if isinstance(known, list) and known[:2] == [state.st_size, state.st_mtime_ns]:
                return str(known[2])
            value = file_digest(path)
        except OSError as error:
            raise MissingData(f"{path} cannot be read ({error.strerror}): check the file or take it out") from None
        self._known[str(path)] = [state.st_size, state.st_mtime_ns, value]
        self._new = True
        return value

    def save(self) -> None:
        if self._new:
            store.write_json(self._file, self._known)


def _phantom_fingerprint(declaration: Mapping[str, Any], *about: object) -> str:
    modality = declaration.get("modality")
    if modality not in phantoms.VERSIONS:
        raise BenchError(f"there is no phantom of modality {modality!r}; there are: {', '.join(phantoms.VERSIONS)}")
    version = phantoms.VERSIONS[modality]
    return digest(["phantom", version, json.loads(json.dumps(dict(declaration))), *about])


def first_of(*paths: Path) -> Path:
    """The first of several spellings of one file that is there, else the first."""
    return next((path for path in paths if path.is_file()), paths[0])


def folder_of(root: Path, *nested: str) -> Path:
    """`root`, or the folder inside it that unpacking an archive left there: each of `nested` in turn, where it is."""
    for name in nested:
        if (root / name).is_dir():
            root = root / name
    return root


def _absent(spec: TaskSpec | CorpusSpec, what: str, where: Path) -> MissingData:
    """One sentence: what is missing, where it comes from, under which licence, what the folder should look like."""
    other = f"; or give another corpus with --corpus {FOLDER}PATH" if isinstance(spec, CorpusSpec) else ""
    return MissingData(
        f"{spec.name}: {what}; get it from {spec.source} ({spec.licence}) and unpack it as {where}: "
        f"{spec.layout}{other}"
    )


def _root(spec: TaskSpec | CorpusSpec, data_root: Path) -> Path:
    if not data_root.is_dir():
        raise MissingData(f"the data root {data_root} is no folder: give --data the folder where the datasets lie")
    for name in spec.folders:
        if (data_root / name).is_dir():
            return data_root / name
    raise _absent(spec, f"none of {', '.join(spec.folders)} is under {data_root}", data_root / spec.folders[0])


def samples(spec: TaskSpec, data_root: Path) -> dict[str, list[Sample]]:
    """Official train and test lists of a dataset, in the order of its split; MissingData where it is not whole."""
    root, read = _root(spec, data_root), load(spec)
    parts: dict[str, list[Sample]] = {split: read(root, split) for split in ("train", "test")}
    files = [path for part in parts.values() for sample in part for path in (sample.image, *sample.masks)]
    missing = [str(path.relative_to(root)) for path in files if not path.is_file()]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        what = f"{len(missing)} of {len(files)} files are missing ({', '.join(missing[:NAMED])}{more})"
        raise _absent(spec, what, root)
    return parts


def corpus_files(name: str, spec: CorpusSpec | None, data_root: Path | None) -> list[Path]:
    """Images of a corpus, sorted; MissingData where there are none."""
    if name.startswith(FOLDER):
        root = Path(name.removeprefix(FOLDER)).expanduser()
        if not root.is_dir():
            raise MissingData(f"{root} is no folder: --corpus {FOLDER}PATH takes a folder of images")
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not files:
            raise MissingData(f"{root} holds no image ({', '.join(IMAGE_SUFFIXES)}): give another folder to --corpus")
        return files
    assert spec is not None
    assert data_root is not None
    root = _root(spec, data_root)
    files = list(load(spec)(root))
    if not files:
        raise _absent(spec, "no image is there", root)
    return files


def corpus_ref(name: str, registry: Registry, data_root: Path | None, cache: Path) -> CorpusRef:
    """A corpus by name or as `folder:PATH`: the phantom without a data root, else what lies there."""
    spec: CorpusSpec | None = None if name.startswith(FOLDER) else registry.get("corpus", name)
    if spec is not None and data_root is None:
        if not spec.phantom:
            raise MissingData(f"corpus {name} has no phantom: give the folder of the datasets with --data")
        return CorpusRef(name, _phantom_fingerprint(spec.phantom, "corpus", name, spec.version), True, spec.channels)
    digests = Digests(cache)
    files = corpus_files(name, spec, data_root)
    content = sorted(digests.of(path) for path in files)
    digests.save()
    crop, version, channels = (spec.crop, spec.version, spec.channels) if spec else ("none", 1, 0)
    return CorpusRef(name, digest(["corpus", PREPARATION, crop, version, content]), False, channels)


def dataset_ref(spec: TaskSpec, data_root: Path | None, cache: Path) -> DatasetRef:
    """A task's dataset: the phantom without a data root, else what lies there."""
    if data_root is None:
        if not spec.phantom:
            raise MissingData(f"task {spec.name} has no phantom: give the folder of the datasets with --data")
        return DatasetRef(_phantom_fingerprint(spec.phantom, spec.train, spec.test), True)
    digests = Digests(cache)
    manifest = {
        split: [[sample.name, digests.of(sample.image), [digests.of(mask) for mask in sample.masks]] for sample in part]
        for split, part in samples(spec, data_root).items()
    }
    digests.save()
    return DatasetRef(digest(["dataset", PREPARATION, manifest]), False)


# ------------------------------------------------------------------------------------------------------------ decoding


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BenchError(f"{path} cannot be read ({error}): download it again or take it out") from None


def read_image(path: Path, channels: int) -> Pixels:
    """An 8-bit image as (H, W, channels), colours in RGB order; BenchError naming a file that cannot be read."""
    import cv2
    import numpy as np

    content = _content(path)
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    if pixels is None:
        pixels = _read_with_pillow(path, content, channels)
    elif channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels), dtype=np.uint8)


def _read_with_pillow(path: Path, content: bytes, channels: int) -> Pixels:
    """GIF and palette TIFF, which OpenCV leaves alone."""
    import io

    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is no readable image ({error}): download it again or take it out") from None


def read_mask(path: Path) -> Pixels:
    """A label as (H, W), full scale 255: 0/1 masks are stretched, colours count by their brightest channel."""
    import io

    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(_content(path))) as image:
            plain = image.mode in ("P", "1", "L")
            pixels = np.asarray(image) if plain else np.asarray(image.convert("RGB")).max(axis=2)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is no readable mask ({error}): download it again or take it out") from None
    pixels = pixels.astype(np.uint8)
    return pixels * 255 if pixels.max(initial=0) == 1 else pixels


def fov_box(image: Pixels) -> tuple[int, int, int, int] | None:
    """Bounding box (top, left, bottom, right) of the field of view with a margin of 16 px, or None.

    The largest 8-connected component of pixels with any channel above 20; None where it is missing or covers less than
    a quarter of the image (Chen et al., released preprocessing).
    """
    import cv2
    import numpy as np

    bright = (image > 20).any(axis=2).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    if count < 2:
        return None
    left, top, width, height, area = stats[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))]
    if area < bright.size / 4:
        return None
    bottom, right = min(top + height + 16, image.shape[0]), min(left + width + 16, image.shape[1])
    return max(int(top) - 16, 0), max(int(left) - 16, 0), int(bottom), int(right)


def fit(pixels: Pixels, box: tuple[int, int, int, int] | None, size: int) -> Pixels:
    """The box of an image (H, W[, C]), or all of it, as size x size: bilinear, aspect not kept (as released)."""
    import cv2

    if box is not None:
        pixels = pixels[box[0] : box[2], box[1] : box[3]]
    resized = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size, size, *pixels.shape[2:])  # type: ignore[no-any-return]


def prepare_image(path: Path, channels: int, crop: str, size: int) -> Pixels:
    """An unlabelled image, cropped and resized: (size, size, channels)."""
    image = read_image(path, channels)
    return fit(image, fov_box(image) if crop == "fov" else None, size)


def prepare_sample(sample: Sample, spec: TaskSpec, size: int) -> tuple[Pixels, Pixels]:
    """A labelled image and its binary mask, cropped alike: (size, size, C) and (size, size) of 0/1."""
    import numpy as np

    image = read_image(sample.image, spec.channels)
    box = fov_box(image) if spec.crop == "fov" else None
    target = np.zeros((size, size), bool)
    for path in sample.masks:
        mask = read_mask(path)
        if mask.shape != image.shape[:2]:
            raise BenchError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} but its image {image.shape[1]}x{image.shape[0]}: "
                "check the pair"
            )
        target |= fit(mask, box, size) > spec.label_threshold * 255
    return fit(image, box, size), target.astype(np.uint8)


# --------------------------------------------------------------------------------------------------------------- cache


def _array_digest(path: Path) -> str:
    """SHA-256 of an array's file; of a large one of its size and of blocks spread over it."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_digest(path)
    blocks = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for index in range(SAMPLED_BLOCKS):
            stream.seek(index * (size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1))
            blocks.update(stream.read(BLOCK_BYTES))
    return blocks.hexdigest()


def _open_arrays(folder: Path) -> dict[str, Pixels] | None:
    """Prepared arrays, or None where the folder does not hold what its manifest says."""
    import numpy as np

    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        arrays = {}
        for name, about in manifest["arrays"].items():
            path = folder / f"{name}.npy"
            if _array_digest(path) != about["sha256"]:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return arrays


def _fill(folder: Path, shapes: Mapping[str, tuple[int, ...]], make: Callable[[int], Mapping[str, Pixels]]) -> None:
    import numpy as np

    folder.mkdir(parents=True)
    maps = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        for name, shape in shapes.items()
    }
    count = next(iter(shapes.values()))[0]

    def work(index: int) -> None:
        for name, pixels in make(index).items():
            maps[name][index] = pixels

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for future in [pool.submit(work, index) for index in range(count)]:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for item in maps.values():
        item.flush()
    about = {name: {"shape": shape, "sha256": _array_digest(folder / f"{name}.npy")} for name, shape in shapes.items()}
    (folder / "manifest.json").write_text(json.dumps({"arrays": about}))


def prepared(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], make: Callable[[int], Mapping[str, Pixels]]
) -> dict[str, Pixels]:
    """Arrays from the cache, made first where they are not there; a damaged cache is set aside, named and made again.

    One process makes them, others wait for it; one that is killed leaves nothing that passes for the cache.
    """
    while (arrays := _whole(folder)) is None:
        held = store.claim(folder.parent / "claims" / folder.name)
        if held is None:
            time.sleep(WAIT_SECONDS)
            continue
        try:
            if not folder.exists():
                _make(folder, shapes, make)
        finally:
            held.release()
    return arrays


def _whole(folder: Path) -> dict[str, Pixels] | None:
    """The arrays of a cache, or None where there is none yet; a damaged one is set aside."""
    if not folder.exists():
        return None
    arrays = _open_arrays(folder)
    if arrays is None:
        aside = folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # another process did the same
            folder.rename(aside)
            log.warning("the cache %s was damaged; it was set aside as %s and is made again", folder, aside.name)
    return arrays


def _make(folder: Path, shapes: Mapping[str, tuple[int, ...]], make: Callable[[int], Mapping[str, Pixels]]) -> None:
    """Writes a cache aside and gives it its name when it is whole; for the holder of the claim."""
    temporary = folder.with_name(f"{folder.name}.making")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _fill(temporary, shapes, make)
        temporary.rename(folder)
    except BenchError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BenchError(
            f"{folder.parent} cannot be written ({error.strerror}): free some space or give another --runs"
        ) from None


# ---------------------------------------------------------------------------------------------------- corpus, dataset


def _folder_name(site: Site, name: str, *about: object) -> Path:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[-40:]
    return site.cache / f"{plain}-{digest(list(about))[:12]}"


def open_corpus(cell: PretrainCell, registry: Registry, site: Site) -> Pixels:
    """The corpus of a cell, prepared: (N, size, size, C) of uint8, memory-mapped."""
    size, channels, name = cell.image_size, cell.channels, cell.corpus
    spec: CorpusSpec | None = None if name.startswith(FOLDER) else registry.get("corpus", name)
    folder = _folder_name(site, name, cell.corpus_fingerprint, size, channels)
    if cell.phantom:
        assert spec is not None
        about, cameras = spec.phantom, spec.phantom["cameras"]

        def make(index: int) -> dict[str, Pixels]:
            seed = derive(0, "corpus", name, index)
            return {"images": phantoms.render(about["modality"], seed, size, cameras[index % len(cameras)]).image}

        return prepared(folder, {"images": (about["images"], size, size, channels)}, make)["images"]
    digests, crop = Digests(site.cache), spec.crop if spec else "none"
    files = sorted(corpus_files(name, spec, site.data), key=digests.of)  # as in the fingerprint, whatever their names
    shapes = {"images": (len(files), size, size, channels)}
    return prepared(folder, shapes, lambda index: {"images": prepare_image(files[index], channels, crop, size)})[
        "images"
    ]


@dataclass(frozen=True)
class Dataset:
    """A task's images and binary masks, and which of them are for what."""

    images: Pixels  # (N, size, size, C)
    masks: Pixels  # (N, size, size) of 0/1
    names: tuple[str, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_train(patients: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Training and validation indices of a task's train list, for a label fraction.

    The first `fraction` of the list is used (nested subsets), and the first 20 % of that is the validation part (Chen
    et al.: the first entries of the stored list), cut back to whole patients where patients are known.
    """
    used = max(2, round(fraction * len(patients)))
    if used > len(patients):
        raise BenchError(f"a train part of {len(patients)} images cannot be split into training and validation")
    count = max(1, int(VALIDATION_SHARE * used))
    known = [patient or f"#{index}" for index, patient in enumerate(patients)]
    while count > 1 and set(known[:count]) & set(known[count:used]):
        count -= 1
    while count < used - 1 and set(known[:count]) & set(known[count:used]):
        count += 1
    if set(known[:count]) & set(known[count:used]):
        raise BenchError(f"{used} images of one patient cannot be split into training and validation: use more labels")
    return list(range(count, used)), list(range(count))


def open_dataset(cell: TransferCell, registry: Registry, site: Site) -> Dataset:
    """The dataset of a cell, prepared and split."""
    spec: TaskSpec = registry.get("task", cell.task)
    size, channels = cell.image_size, spec.channels
    folder = _folder_name(site, cell.task, cell.dataset_fingerprint, spec.crop, spec.label_threshold, size, channels)
    if cell.phantom:
        count, patients = spec.train + spec.test, [""] * spec.train
        names = tuple(f"{spec.name}_phantom_{index:03d}" for index in range(count))
        make = phantom_maker(spec, size)
    else:
        parts = samples(spec, site.data or Path())
        listed = [*parts["train"], *parts["test"]]
        count, patients = len(listed), [sample.patient for sample in parts["train"]]
        names = tuple(sample.name for sample in listed)

        def make(index: int) -> dict[str, Pixels]:
            image, mask = prepare_sample(listed[index], spec, size)
            return {"images": image, "masks": mask}

    shapes: dict[str, tuple[int, ...]] = {"images": (count, size, size, channels), "masks": (count, size, size)}
    arrays = prepared(folder, shapes, make)
    train, validation = split_train(patients, cell.label_fraction)
    test = tuple(range(len(patients), count))
    if not any(arrays["masks"][index].any() for index in train):
        raise BenchError(f"every training mask of {cell.task} is empty: check the labels and --image-size")
    return Dataset(arrays["images"], arrays["masks"], names, tuple(train), tuple(validation), test)


def phantom_maker(spec: TaskSpec, size: int) -> Callable[[int], dict[str, Pixels]]:
    about = spec.phantom
    dataset = about.get("dataset", spec.name)

    def make(index: int) -> dict[str, Pixels]:
        phantom = phantoms.render(about["modality"], derive(0, "dataset", dataset, index), size, about["camera"])
        return {"images": phantom.image, "masks": phantom.masks[about["target"]]}

    return make


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
