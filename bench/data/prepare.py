"""Images and labels cropped and resized, as networks see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.decode import read_image, read_mask
from bench.spec import BenchError, TaskSpec
from bench.spec.samples import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in px."""

PAPER_SIDE = 512  # px; Chen et al. work at this size
LABELLED_SHARE = 0.4  # of a small pixel's area that makes it a labelled one: keeps thin targets' total area best
FAINT = 16  # of 255: brightest values below it are numbers of labels, not shares of a soft map
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


def _first_side(shape: tuple[int, ...], box: Box | None, size: int) -> int:
    """At which side an image is resized before it is averaged down: the paper's, or its own where that is smaller."""
    height, width = (box[2] - box[0], box[3] - box[1]) if box is not None else shape[:2]
    return max(size, min(PAPER_SIDE, height, width))


def prepare_pixels(image: Pixels, box: Box | None, size: int) -> Pixels:
    """An image as size x size: at 512 px and above as the paper, below that its 512 px image averaged down.

    Bilinear resizing reads four pixels only: straight to 96 px it would drop or double thin vessels at random.
    """
    return shrink(fit(image, box, _first_side(image.shape, box, size)), size)


def prepare_image(path: Path, channels: int, crop: str, size: int) -> Pixels:
    """An unlabelled image, cropped and resized: (size, size, channels)."""
    image = read_image(path, channels)
    return prepare_pixels(image, fov_box(image) if crop == "fov" else None, size)


def prepare_sample(sample: Sample, spec: TaskSpec, size: int) -> tuple[Pixels, Pixels]:
    """A labelled image and its binary mask, cropped alike: (size, size, C) and (size, size) of 0/1.

    The task's threshold acts at 512 px, where the paper sets it; a smaller pixel is labelled where 0.4 of its area is
    (at 96 px CHASE's and HRF's vessels keep 107 % and 91 % of their area; 138 % at 0.3, 63 % at 0.5 for HRF).
    A mask is as large as its image, or smaller by a whole number in both directions.
    """
    import numpy as np

    image = read_image(sample.image, spec.channels)
    box = fov_box(image) if spec.crop == "fov" else None
    full = _first_side(image.shape, box, size)
    target = np.zeros((full, full), bool)
    for path in sample.masks:
        try:
            mask = read_mask(path)
        except BenchError as error:
            raise error if isinstance(path, Path) else BenchError(f"{sample.name}: {error}") from None
        factor = mask_factor(mask.shape, image.shape)
        if not factor:
            raise BenchError(
                f"{path if isinstance(path, Path) else sample.name} is {mask.shape[1]}x{mask.shape[0]} but its image "
                f"{image.shape[1]}x{image.shape[0]}: check the pair"
            )
        top = int(mask.max())
        if is_faint(top, spec):
            raise BenchError(faint(path if isinstance(path, Path) else sample.name, top))
        target |= fit(mask, _shrunk(box, factor), full) > spec.label_threshold * 255
    labelled = target.astype(np.uint8)
    if size < full:
        labelled = (shrink(labelled * 255, size) > LABELLED_SHARE * 255).astype(np.uint8)
    return prepare_pixels(image, box, size), labelled


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
