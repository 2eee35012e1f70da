"""What the renderers share: settings drawn from ranges, coverage of polygons, smooth noise.

Shapes are drawn several times finer than asked for and averaged, so a mask is its shape's coverage of a pixel cut at
one half. Smooth fields live on a grid of fixed size, so the same seed looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.phantoms import CameraValue
from bench.spec import BenchError

Reals = NDArray[Any]  # float64
Pixels = NDArray[Any]  # float32
Bytes = NDArray[Any]  # uint8
Points = NDArray[Any]  # complex128: real part to the right, imaginary part down

SUBPIXEL_BITS = 4
BACKGROUND = 128  # side of the grid on which smooth fields are computed


@dataclass(frozen=True)
class Settings:
    """Base of a modality's camera: every field is a number with a default."""

    modality: ClassVar[str]

    @classmethod
    def draw(cls, settings: Mapping[str, CameraValue], rng: np.random.Generator) -> Self:
        """The camera of one image: ranges drawn, everything not set at its default."""
        known: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; settings are: {', '.join(known)}"
                raise BenchError(f"{cls.modality} phantoms have no camera setting {name!r}{hint}")
        shares = rng.random(len(known))
        values = {}
        for share, (name, default) in zip(shares, known.items(), strict=True):
            low, high = _bounds(name, settings.get(name, default))
            values[name] = low + float(share) * (high - low)
        return cls(**values)


def _bounds(name: str, value: CameraValue) -> tuple[float, float]:
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends) or ends[0] > ends[1]:
        raise BenchError(f"camera setting {name!r} is a number or (low, high), got {value!r}")
    return float(ends[0]), float(ends[1])


def fineness(size: int) -> int:
    """Supersampling factor: masks are the geometry's coverage of a pixel, cut at one half."""
    return 4 if size <= 256 else 2


def blank(size: int, channels: int) -> Bytes:
    side = size * fineness(size)
    return np.zeros((side, side, channels), dtype=np.uint8)


def canvas_corners(shares: Reals, size: int) -> NDArray[np.int32]:
    """(..., 2) shares of the image side -> fixed-point canvas coordinates."""
    side = size * fineness(size)
    corners: NDArray[np.int32] = np.rint((shares * side - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    return corners


def coverage(canvas: Bytes, size: int) -> Pixels:
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) * np.float32(1 / 255)


def fill(canvas: Bytes, corners: NDArray[np.int32], colour: tuple[int, ...]) -> None:
    cv2.fillPoly(canvas, [corners], colour, lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)


def ribbon(line: Points, half: Reals) -> Points:
    """(N,) centre line and half widths -> (2N,) outline."""
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    across = 1j * along / np.abs(along) * half
    return np.concatenate([line + across, (line - across)[::-1]])


def soften(layer: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of `sigma` pixels; below a quarter of a pixel there is nothing to do."""
    if sigma < 0.25:
        return layer
    return cv2.GaussianBlur(layer, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def clouds(rng: np.random.Generator, cells: int) -> Pixels:
    """(128, 128) smooth noise of unit variance at its `cells` x `cells` nodes."""
    nodes = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(nodes, (BACKGROUND, BACKGROUND), interpolation=cv2.INTER_CUBIC)


def to_size(layer: Pixels, size: int) -> Pixels:
    if layer.shape[0] == size:
        return layer
    return cv2.resize(layer, (size, size), interpolation=cv2.INTER_AREA if size < len(layer) else cv2.INTER_CUBIC)


def grain(rng: np.random.Generator, size: int, cells: int) -> Pixels:
    """(size, size) noise as coarse as a sensor of `cells` x `cells` sees it."""
    return to_size(rng.standard_normal((cells, cells), dtype=np.float32), size)
