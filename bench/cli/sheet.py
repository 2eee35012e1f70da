"""Contact sheets: what a task or a corpus looks like as a run sees it, its masks drawn in, as one PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data
from bench.data.files import own_root
from bench.data.store import write_bytes
from bench.spec import BenchError, CorpusSpec, TaskSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

TILE = 200  # px
ACROSS, ROWS = 8, 4  # tiles
CAPTION, LABEL = 34, 18  # px
FINE = 3  # outlines are drawn this many times larger, then averaged down
OUTLINE, INK, PAPER = (80, 255, 160), (235, 235, 235), (18, 18, 18)  # RGB


@dataclass(frozen=True)
class Panel:
    """One image, and beside it the same with its masks, or its second modality."""

    images: list[Pixels]  # (S, S, C), of any S
    mask: Pixels | None  # (S, S) of 0/1: drawn into the last image
    label: str


def write(name: str, spec: TaskSpec | CorpusSpec | None, data_root: Path | None, path: Path) -> None:
    """Writes the contact sheet of a task or corpus to `path` (.png); the picture says *phantom* where it is one.

    spec: None for a corpus named by its place, `folder:PATH`.
    """
    import cv2
    import numpy as np

    if path.suffix.lower() != ".png":
        raise BenchError(f"a contact sheet is a PNG: give a name that ends in .png, not {path.name}")
    panels, total = (
        _task_panels(spec, data_root) if isinstance(spec, TaskSpec) else _corpus_panels(name, spec, data_root)
    )
    reach = _reach(panels)
    rows = [np.concatenate([_drawn(panel, reach) for panel in line], axis=1) for line in _lines(panels)]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER[0]) for row in rows]
    phantom = _is_phantom(spec, data_root)
    caption = f"{name}: {len(panels)} of {total}{' - PHANTOM: generated images, not data' if phantom else ''}"
    sheet = np.concatenate([_text(caption, width, CAPTION, 0.55), *rows])
    write_bytes(path, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())


def _is_phantom(spec: TaskSpec | CorpusSpec | None, data_root: Path | None) -> bool:
    return spec is not None and data_root is None and own_root(spec) is None


def _spread(total: int, count: int) -> list[int]:
    """At most `count` places, evenly spread over `total`."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


# --------------------------------------------------------------------------------------------------------------- panels


def _task_panels(spec: TaskSpec, data_root: Path | None) -> tuple[list[Panel], str]:
    """Images spread over a task's dataset, whole or in part, and how many there are."""
    count, size = ACROSS // 2 * ROWS, TILE * FINE
    if _is_phantom(spec, data_root):
        make, total = data.phantom_maker(spec, size), spec.train + spec.test
        made = [(index, make(index)) for index in _spread(total, count)]
        return [_panel(item, spec, size, f"phantom {index}") for index, item in made], f"{total:,} images"
    parts = data.samples(spec, data_root, allow_partial=True)
    listed = [(part, sample) for part, samples in parts.items() for sample in samples]
    panels = []
    for part, sample in (listed[index] for index in _spread(len(listed), count)):
        panels.append(_panel(data.prepare_sample(sample, spec, size), spec, size, f"{sample.name} ({part})"))
    whole = spec.train + spec.test
    return panels, f"{len(listed)} images" + (f"; incomplete: the dataset has {whole}" if len(listed) < whole else "")


def _panel(item: Mapping[str, Any], spec: TaskSpec, size: int, label: str) -> Panel:
    """A prepared case, and beside it the same with its truth; of a volume the middle slice."""
    image, marks = item["images"], data.KINDS[spec.truth].marks(item, size)
    while marks.ndim > 2:
        image, marks = image[len(image) // 2], marks[len(marks) // 2]
    return Panel([image, image], marks, label)


def _corpus_panels(name: str, spec: CorpusSpec | None, data_root: Path | None) -> tuple[list[Panel], str]:
    """Images spread over a corpus, with their grade and second modality where there are any, and how many there are."""
    count = ACROSS * ROWS
    if spec is not None and _is_phantom(spec, data_root):
        return _phantom_panels(spec, count), f"{spec.phantom['images']} images"
    found = data.corpus_images(name, spec, data_root)
    channels, crop, classes = (spec.channels, spec.crop, spec.classes) if spec is not None else (3, "none", ())
    panels = []
    for item in (found[index] for index in _spread(len(found), count if found[0].pair is None else count // 2)):
        paths = [item.path] if item.pair is None else [item.path, item.pair]
        grade = f" ({classes[item.label]})" if item.label is not None else ""
        images = [data.prepare_image(path, channels, crop, TILE) for path in paths]
        panels.append(Panel(images, None, f"{item.path.stem}{grade}"))
    return panels, f"{len(found):,} images"


def _phantom_panels(spec: CorpusSpec, count: int) -> list[Panel]:
    about, panels = spec.phantom, []
    for index in _spread(about["images"], count // 2 if about.get("pairs") else count):
        made = data.phantom_image(spec, index, TILE)
        pair = [made.pair] if about.get("pairs") and made.pair is not None else []
        grade = f" ({spec.classes[made.grade]})" if about.get("grades") and made.grade is not None else ""
        panels.append(Panel([made.image, *pair], None, f"phantom {index}{grade}"))
    return panels


def _lines(panels: list[Panel]) -> Iterator[list[Panel]]:
    """Panels in rows of ACROSS tiles."""
    step = ACROSS // len(panels[0].images)
    yield from (panels[first : first + step] for first in range(0, len(panels), step))


# -------------------------------------------------------------------------------------------------------------- drawing


def _drawn(panel: Panel, reach: int) -> Pixels:
    """The pictures of a panel side by side above its label: (TILE + LABEL, n * TILE, 3)."""
    import cv2
    import numpy as np

    pictures = [np.array(np.broadcast_to(image, (*image.shape[:2], 3))) for image in panel.images]
    if panel.mask is not None:
        pictures[-1][_ring(panel.mask, reach)] = OUTLINE
    tiles = [cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_AREA) for picture in pictures]
    row = np.concatenate([np.concatenate(tiles, axis=1), _text(panel.label, TILE * len(tiles), LABEL, 0.38)])
    row[:, -1] = PAPER
    return row


def _ring(mask: Pixels, reach: int) -> NDArray[np.bool_]:
    """The pixels around what a mask (S, S) marks, so that it stays visible itself."""
    import cv2
    import numpy as np

    return cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > mask


def _reach(panels: list[Panel]) -> int:
    """Width of the outlines in pixels of the masks; they are finer where they would be more than what they surround."""
    masks = [panel.mask for panel in panels if panel.mask is not None]
    wide = FINE // 2 + 1
    return wide if sum(int(_ring(mask, wide).sum()) for mask in masks) <= sum(int(mask.sum()) for mask in masks) else 1


def _text(text: str, width: int, height: int, scale: float) -> Pixels:
    """A strip (height, width, 3) with a line of text; OpenCV's letters are ASCII only."""
    import cv2
    import numpy as np

    strip = np.full((height, width, 3), PAPER[0], np.uint8)
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(strip, plain, (5, height * 2 // 3), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
    return strip
