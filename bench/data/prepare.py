"""Images cropped and resized with their truth, as networks see them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.decode import read_image
from bench.data.phantoms import Phantom
from bench.data.truths import KINDS, Box, Frame, fit, shrink, spacing_of
from bench.spec import TaskSpec
from bench.spec.samples import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

FOV_MARGIN = 16  # px
FOV_LEVEL = 20  # of 255


def fov_box(image: Pixels) -> Box | None:
    """Bounding box (top, left, bottom, right) of the field of view with a margin of 16 px, or None.

    The largest 8-connected component of pixels with any channel above 20; None where it is missing or covers less than
    a quarter of the image (Chen et al., released preprocessing).
    """
    import cv2
    import numpy as np

    bright = np.zeros(image.shape[:2], bool)
    for channel in range(image.shape[2]):  # several times faster than `any` over the last axis
        bright |= image[..., channel] > FOV_LEVEL
    count, _, stats, _ = cv2.connectedComponentsWithStats(bright.view(np.uint8), connectivity=8)
    if count < 2:
        return None
    left, top, width, height, area = stats[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))]
    if area < bright.size / 4:
        return None
    bottom, right = min(top + height + FOV_MARGIN, image.shape[0]), min(left + width + FOV_MARGIN, image.shape[1])
    return max(int(top) - FOV_MARGIN, 0), max(int(left) - FOV_MARGIN, 0), int(bottom), int(right)


def prepare_pixels(image: Pixels, frame: Frame) -> Pixels:
    """An image as size x size: at 512 px and above as the paper, below that its 512 px image averaged down.

    Bilinear resizing reads four pixels only: straight to 96 px it would drop or double thin vessels at random.
    """
    return shrink(fit(image, frame.box, frame.full), frame.size)


def framed(image: Pixels, crop: str, size: int) -> Frame:
    """How an image (H, W, C) is cut and resized."""
    box: Box | None = fov_box(image) if crop == "fov" else None
    return Frame(tuple(image.shape[:2]), box, size)


def prepare_image(path: Path, channels: int, crop: str, size: int) -> Pixels:
    """An unlabelled image, cropped and resized: (size, size, channels)."""
    image = read_image(path, channels)
    return prepare_pixels(image, framed(image, crop, size))


def item_shapes(spec: TaskSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> type and shape of what is prepared of one case: image, truth, the way back, and the size of a pixel."""
    images = {"images": ("uint8", ((size,) * spec.dims) + (spec.channels,))}
    return (
        images
        | KINDS[spec.truth].items(spec, size)
        | {
            "frames": ("float64", (spec.dims, 2)),
            "spacing": ("float64", (spec.dims,)),
        }
    )


def prepare_sample(sample: Sample, spec: TaskSpec, size: int) -> dict[str, Any]:
    """A labelled image with its truth, cut and resized alike: what `item_shapes` names."""
    import numpy as np

    image = read_image(sample.image, spec.channels)
    frame = framed(image, spec.crop, size)
    truth = KINDS[spec.truth].prepare(sample, spec, frame)
    spacing = np.array(spacing_of(sample, spec), float)
    return {"images": prepare_pixels(image, frame), **truth, "frames": np.array(frame.back, float), "spacing": spacing}


def prepare_phantom(phantom: Phantom, spec: TaskSpec, size: int) -> dict[str, Any]:
    """The same of a phantom, which is drawn as it is wanted and has pixels of no size."""
    import numpy as np

    frame = Frame((size,) * spec.dims, None, size)
    truth = KINDS[spec.truth].drawn(phantom, spec, size)
    spacing = np.full(spec.dims, np.nan)
    return {"images": phantom.image, **truth, "frames": np.array(frame.back, float), "spacing": spacing}
