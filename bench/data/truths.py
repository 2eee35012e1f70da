"""The kinds of truth: how each is prepared, carried along with its image, and set against a prediction.

An image is cut to a box and resized; a `Frame` says so and undoes it. Masks are prepared on the grid of the network
and compared there; places stay in pixels of the image as stored and are compared there, in mm where a pixel has a size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.data.decode import read_mask
from bench.data.phantoms import Phantom
from bench.spec import BenchError, TaskSpec
from bench.spec.samples import Grade, Mask, Points, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Pixels = NDArray[np.uint8]

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in px."""

PAPER_SIDE = 512  # px; Chen et al. work at this size
LABELLED_SHARE = 0.4  # of a small pixel's area that makes it a labelled one: keeps thin targets' total area best
FAINT = 16  # of 255: brightest values below it are numbers of labels, not shares of a soft map


# ---------------------------------------------------------------------------------------------------------------- frame


@dataclass(frozen=True)
class Frame:
    """What was done to an image: cut to `box`, if any, and resized to `size` along every axis."""

    shape: tuple[int, ...]  # px, as stored
    box: Box | None
    size: int

    @property
    def full(self) -> int:
        """At which side an image is resized before it is averaged down: the paper's, or its own where that is less."""
        height, width = (self.box[2] - self.box[0], self.box[3] - self.box[1]) if self.box is not None else self.shape
        return max(self.size, min(PAPER_SIDE, height, width))

    @property
    def back(self) -> list[tuple[float, float]]:
        """For every axis (scale, offset): place as stored = scale * place in the prepared image + offset.

        Pixel i covers i - 0.5 to i + 0.5, as OpenCV resizes.
        """
        first = self.box[:2] if self.box is not None else (0,) * len(self.shape)
        sides = [end - start for start, end in zip(first, self.box[2:], strict=True)] if self.box else self.shape
        scales = [side / self.size for side in sides]
        return [(scale, start + (scale - 1) / 2) for scale, start in zip(scales, first, strict=True)]


def fit(pixels: Pixels, box: Box | None, size: int) -> Pixels:
    """The box of an image (H, W[, C]), or all of it, as size x size: bilinear, aspect not kept (as released)."""
    import cv2

    if box is not None:
        pixels = pixels[box[0] : box[2], box[1] : box[3]]
    resized = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size, size, *pixels.shape[2:])  # type: ignore[no-any-return]


def shrink(pixels: Pixels, size: int) -> Pixels:
    """A square image (S, S[, C]) at a smaller size, every new pixel the mean of the area it covers."""
    import cv2

    if pixels.shape[0] == size:
        return pixels
    resized = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    return resized.reshape(size, size, *pixels.shape[2:])  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------------------- kinds


class TruthKind(Protocol):
    """What the harness must know of a kind of truth; arrays are numpy's, prepared ones (N, ...) over cases."""

    def items(self, spec: TaskSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> type and shape of what is prepared of one case."""

    def prepare(self, sample: Sample, spec: TaskSpec, frame: Frame) -> dict[str, Array]:
        """What `items` names, of one sample; BenchError where its truth is of another kind or cannot be read."""

    def drawn(self, phantom: Phantom, spec: TaskSpec, size: int) -> dict[str, Array]:
        """The same of a phantom."""

    def untaught(self, arrays: Mapping[str, Array], rows: Sequence[int], spec: TaskSpec) -> str:
        """Why nothing can be learnt from these cases; empty where something can."""

    def compared(self, prediction: Array, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Any:
        """(prediction, truth) of the structure number `at`, as a metric wants them."""

    def present(self, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Array:
        """Which of these cases (n,) have the structure number `at`: the truth alone says which cases count."""

    def marked(self, prediction: Array, at: int) -> Array:
        """Of which cases (n,) a prediction says that they have it."""

    def names(self, spec: TaskSpec) -> tuple[str, ...]:
        """The structures that have a score of their own."""

    def marks(self, item: Mapping[str, Array], size: int) -> Array:
        """What a picture (size, ...) of one prepared case shows of its truth: (size, ...) of 0 and 1."""


def _wrong(sample: Sample, spec: TaskSpec, wanted: str) -> BenchError:
    found = type(sample.truth).__name__ if sample.truth is not None else "nothing"
    return BenchError(f"{spec.name} asks for {wanted}, but {sample.name} comes with {found}: correct its load()")


class _MaskKind:
    """`masks` (N, *S): 0 where nothing is marked, else one more than the place of the structure."""

    def items(self, spec: TaskSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"masks": ("uint8", (size,) * spec.dims)}

    def prepare(self, sample: Sample, spec: TaskSpec, frame: Frame) -> dict[str, Array]:
        """The task's threshold acts at 512 px, where the paper sets it; a smaller pixel is labelled where 0.4 of it is.

        At 96 px CHASE's and HRF's vessels keep 107 % and 91 % of their area so (138 % at 0.3, 63 % at 0.5 for HRF). A
        mask is as large as its image, or smaller by a whole number in both directions.
        """
        import numpy as np

        if not isinstance(sample.truth, Mask):
            raise _wrong(sample, spec, "a Mask")
        levels = [sample.truth.levels.get(name) for name in spec.structures] if sample.truth.levels else [None]
        if None in levels[1:] or (sample.truth.levels and levels[0] is None):
            raise BenchError(f"the map of {sample.name} names not all of {', '.join(spec.structures)}")
        labelled = np.zeros((frame.size,) * 2, np.uint8)
        for place, level in enumerate(levels, 1):
            labelled[self._marked(sample, spec, frame, level)] = place
        return {"masks": labelled}

    def _marked(self, sample: Sample, spec: TaskSpec, frame: Frame, level: int | None) -> Array:
        """Which pixels (size, size) a structure has: those of one level, or those above the threshold."""
        import numpy as np

        target = np.zeros((frame.full,) * 2, bool)
        for path in sample.masks:
            try:
                mask = read_mask(path)
            except BenchError as error:
                raise error if isinstance(path, Path) else BenchError(f"{sample.name}: {error}") from None
            factor = mask_factor(mask.shape, frame.shape)
            if not factor:
                raise BenchError(
                    f"{path if isinstance(path, Path) else sample.name} is {mask.shape[1]}x{mask.shape[0]} but its "
                    f"image {frame.shape[1]}x{frame.shape[0]}: check the pair"
                )
            if level is not None:
                mask, threshold = np.where(mask == level, np.uint8(255), np.uint8(0)), 0.5
            else:
                threshold, top = spec.label_threshold, int(mask.max())
                if is_faint(top, spec):
                    raise BenchError(faint(path if isinstance(path, Path) else sample.name, top))
            target |= fit(mask, _shrunk(frame.box, factor), frame.full) > threshold * 255
        if frame.size == frame.full:
            return target
        return shrink(target.astype(np.uint8) * 255, frame.size) > LABELLED_SHARE * 255

    def drawn(self, phantom: Phantom, spec: TaskSpec, size: int) -> dict[str, Array]:
        import numpy as np

        targets = spec.phantom["target"]
        listed = (targets,) if isinstance(targets, str) else targets
        labelled = np.zeros((size,) * spec.dims, np.uint8)
        for place, target in enumerate(listed, 1):
            labelled[phantom.masks[target] > 0] = place
        return {"masks": labelled}

    def untaught(self, arrays: Mapping[str, Array], rows: Sequence[int], spec: TaskSpec) -> str:
        if any(arrays["masks"][row].any() for row in rows):
            return ""
        return f"every training mask of {spec.name} is empty: check the labels and --image-size"

    def compared(self, prediction: Array, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Any:
        """Booleans (n, *S) on the prepared grid."""
        return prediction == at + 1, arrays["masks"][list(rows)] == at + 1

    def present(self, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Array:
        import numpy as np

        return np.array([bool((arrays["masks"][row] == at + 1).any()) for row in rows], bool)

    def marked(self, prediction: Array, at: int) -> Array:
        found: Array = (prediction == at + 1).reshape(len(prediction), -1).any(axis=1)
        return found

    def names(self, spec: TaskSpec) -> tuple[str, ...]:
        return spec.structures or ("",)

    def marks(self, item: Mapping[str, Array], size: int) -> Array:
        return (item["masks"] > 0).astype("uint8")


class _PointsKind:
    """`points` (N, P, D), px of the image as stored, in the order of the axes; NaN where a point is not there."""

    def items(self, spec: TaskSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"points": ("float64", (len(spec.structures), spec.dims))}

    def prepare(self, sample: Sample, spec: TaskSpec, frame: Frame) -> dict[str, Array]:
        import numpy as np

        if not isinstance(sample.truth, Points):
            raise _wrong(sample, spec, "Points")
        found = dict(zip(sample.truth.names, sample.truth.places, strict=True))
        if set(found) != set(spec.structures) or len(found) != len(sample.truth.names):
            odd = sorted(set(found) ^ set(spec.structures)) or ["one of them twice"]
            raise BenchError(f"{sample.name} does not have the points of {spec.name}: {odd[0]}")
        for name, place in found.items():
            if all(map(math.isnan, place)):
                continue
            if any(not -0.5 <= value <= side - 0.5 for value, side in zip(place, frame.shape, strict=True)):
                raise BenchError(f"the point {name} of {sample.name} lies outside its image: check the order of axes")
        return {"points": np.array([found[name] for name in spec.structures], float)}

    def drawn(self, phantom: Phantom, spec: TaskSpec, size: int) -> dict[str, Array]:
        import numpy as np

        shares = [phantom.facts[name][::-1] for name in spec.structures]  # (x, y) as shares of the side
        return {"points": np.array(shares, float) * size - 0.5}

    def untaught(self, arrays: Mapping[str, Array], rows: Sequence[int], spec: TaskSpec) -> str:
        import numpy as np

        known = [not np.isnan(arrays["points"][row]).all() for row in rows]
        return "" if any(known) else f"no training image of {spec.name} has points"

    def compared(self, prediction: Array, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Any:
        """Places (n, D) in the image as stored."""
        back = arrays["frames"][list(rows)]  # (n, D, 2)
        return prediction[:, at] * back[..., 0] + back[..., 1], arrays["points"][list(rows), at]

    def present(self, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Array:
        import numpy as np

        return np.asarray(~np.isnan(arrays["points"][list(rows), at]).any(axis=-1))

    def marked(self, prediction: Array, at: int) -> Array:
        """Of none: a place is looked for wherever it is, so that finding one says nothing."""
        import numpy as np

        return np.zeros(len(prediction), bool)

    def names(self, spec: TaskSpec) -> tuple[str, ...]:
        return spec.structures

    def marks(self, item: Mapping[str, Array], size: int) -> Array:
        """A cross at every point."""
        import numpy as np

        back = item["frames"]
        shown = np.zeros((size,) * back.shape[0], np.uint8)
        for place in np.round((item["points"] - back[:, 1]) / back[:, 0]):
            for axis in range(len(place)):
                reach = [slice(int(at), int(at) + 1) for at in place]
                reach[axis] = slice(max(0, int(place[axis]) - size // 60), int(place[axis]) + size // 60 + 1)
                shown[tuple(reach)] = 1
        return shown


class _GradeKind:
    """`grades` (N,): the place of each image's class among the structures of the task."""

    def items(self, spec: TaskSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"grades": ("int64", ())}

    def prepare(self, sample: Sample, spec: TaskSpec, frame: Frame) -> dict[str, Array]:
        import numpy as np

        if not isinstance(sample.truth, Grade):
            raise _wrong(sample, spec, "a Grade")
        if not 0 <= sample.truth.value < len(spec.structures):
            raise BenchError(
                f"{sample.name} has the grade {sample.truth.value}, but {spec.name} knows {spec.structures}"
            )
        return {"grades": np.array(sample.truth.value, np.int64)}

    def drawn(self, phantom: Phantom, spec: TaskSpec, size: int) -> dict[str, Array]:
        import numpy as np

        if phantom.grade is None:
            raise BenchError(f"the phantom of {spec.name} has no grade")
        return {"grades": np.array(min(phantom.grade, len(spec.structures) - 1), np.int64)}

    def untaught(self, arrays: Mapping[str, Array], rows: Sequence[int], spec: TaskSpec) -> str:
        if len({int(arrays["grades"][row]) for row in rows}) > 1:
            return ""
        return f"all training images of {spec.name} have one grade: use more labels"

    def compared(self, prediction: Array, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Any:
        """Probabilities (n, K) of the grades, and grades (n,)."""
        return prediction, arrays["grades"][list(rows)]

    def present(self, arrays: Mapping[str, Array], rows: Sequence[int], at: int) -> Array:
        import numpy as np

        return np.ones(len(rows), bool)

    def marked(self, prediction: Array, at: int) -> Array:
        import numpy as np

        return np.ones(len(prediction), bool)

    def names(self, spec: TaskSpec) -> tuple[str, ...]:
        return ("",)

    def marks(self, item: Mapping[str, Array], size: int) -> Array:
        import numpy as np

        return np.zeros(item["images"].shape[:-1], np.uint8)


KINDS: dict[str, TruthKind] = {"mask": _MaskKind(), "points": _PointsKind(), "grade": _GradeKind()}


# ------------------------------------------------------------------------------------------------------- masks in words


def is_faint(top: int, spec: TaskSpec) -> bool:
    """Whether a mask with this brightest value, of 255, marks something and yet nothing that would count."""
    return 0 < top < FAINT and top <= spec.label_threshold * 255


def faint(mask: Path | str, top: int) -> str:
    """A sentence on a mask that `is_faint`."""
    return f"{mask} marks with values up to {top} of 255, too dark to count: save it as a mask of 0 and 255"


def mask_factor(mask: Sequence[int], image: Sequence[int]) -> int:
    """How many times larger an image (H, W, ...) is than its mask (H, W); 0 where the two do not belong together."""
    factor = max(1, image[0] // mask[0])  # SCR outlines films of 2048 px at 1024
    return factor if (mask[0] * factor, mask[1] * factor) == tuple(image[:2]) else 0


def _shrunk(box: Box | None, factor: int) -> Box | None:
    """A box of an image in the pixels of its mask, `factor` times as large."""
    if box is None:
        return None
    top, left, bottom, right = box
    return top // factor, left // factor, bottom // factor, right // factor


def spacing_of(sample: Sample, spec: TaskSpec) -> list[float]:
    """mm per pixel along every axis, NaN where it is not known; BenchError where it is no size."""
    if not sample.spacing:
        return [math.nan] * spec.dims
    if len(sample.spacing) != spec.dims or not all(0 < side < math.inf for side in sample.spacing):
        raise BenchError(f"the spacing {sample.spacing} of {sample.name} is not {spec.dims} sizes in mm")
    return list(sample.spacing)
