"""Phantoms: generated images with exact ground truth that stand in for datasets we may not ship.

A phantom is never data: whatever is made from one says *phantom*. Importing this package is cheap; a modality's
renderer (and with it numpy and OpenCV) is imported by the first `render`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.spec import BenchError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CameraValue = float | Sequence[float]
"""A fixed value, or `(low, high)`: drawn uniformly for every image."""

VERSIONS = {"chest": 1, "fundus": 1}
"""Renderer version by modality. Any change of a rendered pixel raises it: it is part of every phantom's fingerprint."""


@dataclass(frozen=True)
class Phantom:
    """One generated image and everything known about it."""

    image: NDArray[np.uint8]  # (S, S, C): RGB or grey
    masks: dict[str, NDArray[np.uint8]]  # target -> (S, S), values 0 and 1
    facts: dict[str, Any]  # JSON-ready scalars and points; points are (x, y) as shares of the image side
    grade: int | None = None  # how severe the disease is, where the modality grades one
    make_pair: Callable[[], NDArray[np.uint8]] | None = None  # draws the same view in a second modality

    @cached_property
    def pair(self) -> NDArray[np.uint8] | None:
        """(S, S, 3) the same view in a second modality, drawn when first asked for; None where there is none."""
        return self.make_pair() if self.make_pair else None


def render(modality: str, seed: int, size: int, camera: Mapping[str, CameraValue]) -> Phantom:
    """The phantom that (modality, seed, camera) names, drawn at `size` x `size` pixels; `size` only samples it.

    Raises BenchError for an unknown modality, a size below 32, a negative seed or a camera setting that does not exist.
    """
    if modality not in VERSIONS:
        raise BenchError(f"no phantom of modality {modality!r}; there are phantoms of: {', '.join(sorted(VERSIONS))}")
    if size < 32:
        raise BenchError(f"a phantom of {size} pixels shows nothing; ask for an image size of 32 or more")
    if seed < 0:
        raise BenchError(f"a phantom's seed is 0 or more, got {seed}")
    phantom: Phantom = import_module(f"bench.data.phantoms.{modality}").render(seed, size, camera)
    return phantom
