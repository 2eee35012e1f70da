"""Which corpus images are also in a labelled dataset: as the same file, as the same pixels, or as the same picture at
another size or compression.

Fundus photographs and chest films all look alike, so pictures are compared twice, each time by the correlation of
small high-pass thumbnails whose contrast is levelled (local mean and spread removed, the edge of the field of view
masked): 32 x 32 of everything, to find candidates, then 64 x 64 of the candidates. Each thumbnail is made of the whole
picture and of its bright part, so that copies with the black border cut off are found too; the better of the two
counts. Stretching, as to 16:9, is undone by the square thumbnail. Mirrored and turned copies are not looked for.

Measured on 738 photographs and films (516 IDRiD grading at 512 x 340, 20 IDRiD segmentation at 4288 x 2848, 28
CHASE_DB1, 14 HRF, 160 chest films of 65 patients; 271,953 pairs): the 24 pairs that show one picture correlate by at
least 0.958 in the first comparison and 0.909 in the second, all others by at most 0.727 and 0.523. Copies of 251 of
those pictures at 128 px, stretched to 1280 x 720, cut to their bright part, at gamma 1.5 or saved by JPEG at quality 20
keep at least 0.888 and 0.780. The second threshold is the middle of its gap; the first only spares work.
Comparing 112,000 corpus images with 2,700 takes 18 s and 0.6 GB on two cores once they were decoded.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data
from bench.data import store
from bench.spec import BenchError, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Thumbnails = NDArray[np.int8]  # (N, 2, side * side): of the whole picture and of its bright part

VERSION = 1  # of what is remembered
SIDE, BLUR, CANDIDATE = 32, 1.5, 0.7  # px, sigma of the high-pass in px, least correlation
DETAIL_SIDE, DETAIL_BLUR, CONFIRMED = 64, 2.0, 0.7
READ_SIDE = 256  # px that a picture is read with at least, where it has them
BLOCK = 4096  # corpus images compared, or signatures made, at a time
SAVED = 16384  # new signatures after which the file is written
_JPEG = (".jpg", ".jpeg")

Tick = Callable[[str, int, int], None]  # what is done, how many of it, of how many


@dataclass(frozen=True)
class Hit:
    """A corpus image that is also a labelled one."""

    corpus: Path
    labelled: str  # name of the labelled sample
    part: str  # train, test
    how: str  # exact (the same file or pixels), perceptual


@dataclass(frozen=True)
class Audit:
    """What a comparison found, in the order of the corpus."""

    hits: tuple[Hit, ...]

    def images(self, *parts: str) -> list[Path]:
        """The corpus images that are in one of the parts, each once."""
        return list(dict.fromkeys(hit.corpus for hit in self.hits if hit.part in parts))


def silent(what: str, done: int, total: int) -> None:
    """Nobody wants to know how far the work is."""


def audit(
    corpus_files: Sequence[Path], parts: Mapping[str, Sequence[data.Sample]], cache: Path, tick: Tick = silent
) -> Audit:
    """Compares corpus images with every labelled image of `parts` (train, test).

    Signatures are remembered by file content in `cache/signatures.npy`, what was found in `cache/leaks/`: a second
    audit of the same content decodes nothing. `tick` hears how far a first one is. BenchError naming an image that
    cannot be read.
    """
    digests = data.Digests(cache)
    samples = [(part, sample) for part, listed in parts.items() for sample in listed]
    digests.read([*corpus_files, *(sample.image for _, sample in samples)])
    ours = {path: digests.of(path) for path in corpus_files}
    theirs = {sample.image: digests.of(sample.image) for _, sample in samples}
    digests.save()
    found = _remembered(_by_content(ours), _by_content(theirs), cache, tick)
    known: dict[str, list[tuple[str, data.Sample]]] = {}
    for part, sample in samples:
        known.setdefault(theirs[sample.image], []).append((part, sample))
    hits = [
        Hit(path, sample.name, part, how)
        for path, sha256 in ours.items()
        for other, how in found.get(sha256, ())
        for part, sample in known[other]
    ]
    return Audit(tuple(hits))


def _by_content(digests: Mapping[Path, str]) -> dict[str, Path]:
    return {sha256: path for path, sha256 in digests.items()}


Found = dict[str, list[tuple[str, str]]]  # digest of a corpus image -> (digest of a labelled one, how)


def _remembered(ours: Mapping[str, Path], theirs: Mapping[str, Path], cache: Path, tick: Tick) -> Found:
    """What a comparison of these contents found, made where it is not remembered."""
    file = cache / "leaks" / f"{digest(['leaks', VERSION, sorted(ours), sorted(theirs)])}.json"
    known = store.read_json(file)
    if known is None:
        known = {"pairs": _compare(ours, theirs, cache, tick)}
        store.write_json(file, known)
    found: Found = {}
    for mine, other, how in known["pairs"]:
        found.setdefault(mine, []).append((other, how))
    return found


def _compare(
    ours: Mapping[str, Path], theirs: Mapping[str, Path], cache: Path, tick: Tick
) -> list[tuple[str, str, str]]:
    """Every (digest, digest, how) of one picture on both sides."""
    mine, others = sorted(ours), sorted(theirs)
    pairs = [(sha256, sha256, "exact") for sha256 in mine if sha256 in theirs]
    candidates = _candidates(_signatures(ours, mine, cache, tick), _signatures(theirs, others, cache, tick))
    look = [(mine[row], others[column]) for row, column in candidates if mine[row] != others[column]]
    for left, right in _confirmed(look, ours, theirs):
        pairs.append((left, right, "exact" if _same_pixels(ours[left], theirs[right]) else "perceptual"))
    return sorted(pairs)


# ----------------------------------------------------------------------------------------------------------- thumbnails


def _read(path: Path) -> Pixels:
    """A picture in grey, (H, W); a JPEG at the smallest of its scales that has READ_SIDE pixels."""
    import cv2
    import numpy as np
    from PIL import Image

    if path.suffix.lower() not in _JPEG:
        return data.read_image(path, 1)[..., 0]
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            least = min(image.size)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is no readable image ({error}): download it again or take it out") from None
    scales = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
    flag = next((flag for scale, flag in scales.items() if least >= scale * READ_SIDE), cv2.IMREAD_GRAYSCALE)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return data.read_image(path, 1)[..., 0] if pixels is None else np.asarray(pixels, np.uint8)


def _bright_part(picture: Pixels) -> Pixels:
    """The rows and columns of a picture that are not black but for a twentieth; all of it where few are left."""
    import cv2
    import numpy as np

    side = 128
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    dark, light = np.percentile(small, (1, 99))
    bright = small - dark > 0.08 * (light - dark)
    rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.05) for axis in (1, 0))
    if min(len(rows), len(columns)) < side // 4:
        return picture
    height, width = picture.shape
    top, left = rows[0] * height // side, columns[0] * width // side
    bottom, right = -(-(rows[-1] + 1) * height // side), -(-(columns[-1] + 1) * width // side)
    return picture[top:bottom, left:right]


def _thumbnail(picture: Pixels, side: int, blur: float) -> NDArray[np.int8]:
    """High frequencies of a picture at an even contrast, without what borders on black: (side * side,)."""
    import cv2
    import numpy as np

    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    dark, light = np.percentile(small, (1, 99))
    small = (small - dark) * (255 / max(float(light - dark), 1.0))
    high = small - cv2.GaussianBlur(small, (0, 0), blur)
    spread = np.sqrt(cv2.GaussianBlur(high * high, (0, 0), 2 * blur)) + 4
    edge = 2 * round(0.06 * side) + 1
    inside = cv2.erode(
        (small > 15).astype(np.uint8), np.ones((edge, edge), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1
    ).astype(bool)
    if inside.mean() < 0.2:
        inside[:] = True
    levelled = np.where(inside, np.clip(high / spread, -2.5, 2.5), 0)
    levelled -= np.where(inside, levelled.sum() / inside.sum(), 0)
    return (levelled * 40).clip(-127, 127).round().astype(np.int8).ravel()


def _thumbnails(path: Path, side: int, blur: float) -> Thumbnails:
    import numpy as np

    picture = _read(path)
    return np.stack([_thumbnail(part, side, blur) for part in (picture, _bright_part(picture))])


def _unit(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Thumbnails of length 1, or 0 where a picture shows nothing."""
    import numpy as np

    vectors = thumbnails.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1)
    return vectors


# ----------------------------------------------------------------------------------------------------------- signatures


def _signatures(files: Mapping[str, Path], wanted: Sequence[str], cache: Path, tick: Tick) -> Thumbnails:
    """The 32 x 32 thumbnails of files, in the order of `wanted`; those that are not remembered are made."""
    import numpy as np

    memory = _Memory(cache / "signatures.npy")
    lost = [sha256 for sha256 in wanted if sha256 not in memory.place]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(lost), SAVED):
            part = lost[first : first + SAVED]
            made = []
            for thumbnails in pool.map(lambda sha256: _thumbnails(files[sha256], SIDE, BLUR), part):
                made.append(thumbnails)
                tick("looking for leaks", first + len(made), len(lost))
            memory.add(part, np.stack(made))
    return memory.of(wanted)


class _Memory:
    """Thumbnails by SHA-256 of their file, in one file of fixed rows; a damaged file counts as empty."""

    def __init__(self, file: Path) -> None:
        import numpy as np

        self._file = file
        self._kind = np.dtype([("version", "u2"), ("sha256", "u1", 32), ("thumbnails", "i1", (2, SIDE * SIDE))])
        self._rows: NDArray[Any] = np.empty(0, self._kind)
        try:
            rows = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            rows = self._rows
        if rows.dtype == self._kind and (rows["version"] == VERSION).all():
            self._rows = rows
        self.place = {sha256.tobytes().hex(): row for row, sha256 in enumerate(self._rows["sha256"])}

    def add(self, names: Sequence[str], thumbnails: Thumbnails) -> None:
        """Remembers thumbnails (N, 2, SIDE * SIDE), on disk too."""
        import numpy as np

        new = np.empty(len(names), self._kind)
        new["version"], new["thumbnails"] = VERSION, thumbnails
        new["sha256"] = np.frombuffer(bytes.fromhex("".join(names)), np.uint8).reshape(-1, 32)
        self.place |= {name: len(self._rows) + at for at, name in enumerate(names)}
        self._rows = np.concatenate([self._rows, new])
        content = io.BytesIO()
        np.save(content, self._rows, allow_pickle=False)
        store.write_bytes(self._file, content.getvalue())

    def of(self, names: Sequence[str]) -> Thumbnails:
        found: Thumbnails = self._rows["thumbnails"][[self.place[name] for name in names]]
        return found


# ----------------------------------------------------------------------------------------------------------- comparison


def _candidates(ours: Thumbnails, theirs: Thumbnails) -> list[tuple[int, int]]:
    """Rows of both sides whose thumbnails correlate by CANDIDATE or more."""
    import numpy as np

    if not len(theirs):
        return []
    right = _unit(theirs)
    found = []
    for first in range(0, len(ours), BLOCK):
        left = _unit(ours[first : first + BLOCK])
        likeness = np.maximum(left[:, 0] @ right[:, 0].T, left[:, 1] @ right[:, 1].T)  # (BLOCK, M)
        found += [(first + int(row), int(column)) for row, column in np.argwhere(likeness >= CANDIDATE)]
    return found


def _confirmed(
    pairs: Sequence[tuple[str, str]], ours: Mapping[str, Path], theirs: Mapping[str, Path]
) -> Iterable[tuple[str, str]]:
    """The pairs whose 64 x 64 thumbnails correlate too."""
    paths = {left: ours[left] for left, _ in pairs} | {right: theirs[right] for _, right in pairs}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda path: _thumbnails(path, DETAIL_SIDE, DETAIL_BLUR), paths.values())
        detail = dict(zip(paths, made, strict=True))
    for left, right in pairs:
        if (_unit(detail[left]) * _unit(detail[right])).sum(axis=-1).max() >= CONFIRMED:
            yield left, right


def _same_pixels(left: Path, right: Path) -> bool:
    import numpy as np

    return np.array_equal(data.read_image(left, 3), data.read_image(right, 3))
