"""Contact sheets: what a task or a corpus looks like, its masks drawn in, as one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, phantoms
from bench.spec import BenchError, CorpusSpec, TaskSpec, derive
from bench.store import write_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

COLUMNS, ROWS = 6, 3
TILE = 192  # px
CAPTION = 34  # px
OUTLINE = (80, 255, 160)


def _tiles(spec: TaskSpec | CorpusSpec, data_root: Path | None, count: int) -> list[tuple[Pixels, Pixels | None]]:
    """The first images, spread over the dataset, with their masks where the spec is a task's."""
    if isinstance(spec, CorpusSpec):
        return [(image, None) for image in _corpus_tiles(spec, data_root, count)]
    if data_root is not None:
        parts = data.samples(spec, data_root)
        listed = [*parts["train"], *parts["test"]]
        return [data.prepare_sample(listed[index], spec, TILE) for index in _spread(len(listed), count)]
    make = data.phantom_maker(spec, TILE)
    made = [make(index) for index in _spread(spec.train + spec.test, count)]
    return [(tile["images"], tile["masks"]) for tile in made]


def _corpus_tiles(spec: CorpusSpec, data_root: Path | None, count: int) -> list[Pixels]:
    if data_root is not None:
        files = data.corpus_files(spec.name, spec, data_root)
        chosen = [files[index] for index in _spread(len(files), count)]
        return [data.prepare_image(path, spec.channels, spec.crop, TILE) for path in chosen]
    about: dict[str, Any] = dict(spec.phantom)
    cameras = about["cameras"]
    return [
        phantoms.render(
            about["modality"], derive(0, "corpus", spec.name, index), TILE, cameras[index % len(cameras)]
        ).image
        for index in range(min(count, about["images"]))
    ]


def _spread(total: int, count: int) -> list[int]:
    """At most `count` places, evenly spread over `total`."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


def write(spec: TaskSpec | CorpusSpec, data_root: Path | None, path: Path) -> None:
    """Writes the contact sheet of a task or corpus to `path` (.png); its caption says *phantom* where it is one."""
    import cv2
    import numpy as np

    if path.suffix.lower() != ".png":
        raise BenchError(f"a contact sheet is a PNG: give a name that ends in .png, not {path.name}")
    tiles = _tiles(spec, data_root, COLUMNS * ROWS)
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * TILE + CAPTION, COLUMNS * TILE, 3), 18, np.uint8)
    for place, (image, mask) in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        picture = np.broadcast_to(image, (TILE, TILE, 3)).copy()
        if mask is not None:
            outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, OUTLINE, 1, cv2.LINE_AA)
        top = CAPTION + row * TILE
        sheet[top : top + TILE, column * TILE : (column + 1) * TILE] = picture
    kind = "phantom, not data" if data_root is None else "data"
    caption = f"{spec.name}: {len(tiles)} images ({kind})"
    cv2.putText(sheet, caption, (10, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (235, 235, 235), 1, cv2.LINE_AA)
    write_bytes(path, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
