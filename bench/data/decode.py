"""Image and label files as arrays of 8 bits.

PNG, JPEG, BMP, PNM go through OpenCV; TIFF, GIF and whatever OpenCV leaves alone through Pillow; DICOM through pydicom;
JSRT's `.IMG` is read here. Any of them may be packed (`.gz`). A file that is cut off is refused: both libraries may
fill up what is missing of a JPEG without a word, so its end marker is looked for first.

How deeper images become 8 bits: values are kept where none exceeds 255, lose 4 bits where none exceeds 4095 (12 bits in
16) and lose 8 bits otherwise. Nothing is stretched by content, for the brightness of photographs means something. Two
kinds of radiograph have no fixed scale and are stretched from their lowest to their highest value instead, as Chen et
al. prepare JSRT: `.IMG` files and DICOM deeper than 8 bits (after rescale slope and intercept, padding aside, windows
ignored). Radiographs end with bone bright: `.IMG` and MONOCHROME1 are inverted.

EXIF orientation is ignored for images and masks alike: they agree as stored, which is how masks were drawn.
"""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.spec import BenchError
from bench.spec.samples import RunLength

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Values = NDArray[Any]

JSRT_SIDE = 2048  # px
JSRT_BYTES = JSRT_SIDE * JSRT_SIDE * 2
_PILLOW = (b"GIF8", b"II*\0", b"MM\0*")  # first bytes of what Pillow reads more strictly or at all
_PNG, _PNG_END = b"\x89PNG", b"IEND\xaeB`\x82"
_JPEG, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")  # Pillow's modes of more than 8 bits
_PLUGINS = "install pylibjpeg with pylibjpeg-libjpeg and pylibjpeg-openjpeg, or store the file uncompressed"


def _unreadable(path: Path, kind: str, why: object) -> BenchError:
    reason = str(why).partition(" file <")[0]  # Pillow names the buffer in memory
    return BenchError(f"{path} is no readable {kind} ({reason}): download it again or take it out")


def _content(path: Path) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BenchError(f"{path} cannot be read ({error}): download it again or take it out") from None
    if not content:
        raise BenchError(f"{path} is empty: download it again or take it out")
    if _is_cut_off_jpeg(content):
        raise BenchError(f"{path} is cut off: download it again or take it out")
    return content


# -------------------------------------------------------------------------------------------------------------- images


def read_image(path: Path, channels: int) -> Pixels:
    """An image as (H, W, channels), colours in RGB order; BenchError naming a file that cannot be read."""
    import numpy as np

    content = _content(path)
    if path.name.lower().removesuffix(".gz").endswith(".img"):
        pixels = _jsrt(path, content)
    elif content[128:132] == b"DICM":
        pixels = _dicom(path, content)
    else:
        values = None if _for_pillow(content) else _opencv_values(content, channels)
        pixels = _eight_bits(path, _pillow_values(path, content, channels) if values is None else values)
    return np.ascontiguousarray(_with_channels(pixels, channels))


def _for_pillow(content: bytes) -> bool:
    """Whether Pillow reads it, or says at least what is wrong with it."""
    cut_off = content.startswith(_PNG) and not content.rstrip(b"\0\r\n ").endswith(_PNG_END)
    return cut_off or content.startswith(_PILLOW)


def _is_cut_off_jpeg(content: bytes) -> bool:
    """Whether no end marker follows the image data of a JPEG; one inside its head belongs to a thumbnail."""
    at = len(_JPEG)
    while content.startswith(_JPEG) and at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == _JPEG_SCAN:
            return content.find(_JPEG_END, at) < 0
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return content.startswith(_JPEG)


@cache
def _quieten() -> None:
    """Turns off what Pillow and pydicom have to say of odd metadata; once, for filters are shared by all threads."""
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")


@cache
def _opencv() -> Any:
    """OpenCV, its own messages off: what it cannot read is named here."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def _opencv_values(content: bytes, channels: int) -> Values | None:
    """(H, W) or (H, W, 3) of the file's own depth, or None where OpenCV cannot read it."""
    import numpy as np

    cv2 = _opencv()
    kind = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    flags = kind | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        values = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    return values if values is None or channels != 3 else cv2.cvtColor(values, cv2.COLOR_BGR2RGB)


def _pillow_values(path: Path, content: bytes, channels: int) -> Values:
    """(H, W) or (H, W, 3) of the file's own depth."""
    import numpy as np
    from PIL import Image

    _quieten()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            deep = image.mode in _DEEP
            return np.asarray(image if deep else image.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, "image", error) from None


def _eight_bits(path: Path, values: Values) -> Pixels:
    import numpy as np

    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return (values * 255 + 0.5).astype(np.uint8)
    if values.dtype.kind not in "iu" or low < 0 or high > 0xFFFF:
        raise BenchError(f"{path} has values from {low:g} to {high:g}: save it with 8 or 16 bits")
    shift = 0 if high < 1 << 8 else 4 if high < 1 << 12 else 8
    return (values.astype(np.uint16) >> shift).astype(np.uint8)


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    """(H, W[, 3]) -> (H, W, channels); one channel from three is ITU-R 601 luma, three from one are copies."""
    import numpy as np

    if pixels.ndim == 3 and channels == 1:
        pixels = _opencv().cvtColor(np.ascontiguousarray(pixels), _opencv().COLOR_RGB2GRAY)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], channels, axis=2)
    return pixels


# --------------------------------------------------------------------------------------------------------- radiographs


def stretched(values: Values) -> Pixels:
    """The lowest value as 0, the highest as 255, fractions dropped; all 0 where they are the same."""
    import numpy as np

    shifted = values.astype(np.float64) - float(values.min())
    return (shifted * (255 / max(float(shifted.max()), 1e-9))).astype(np.uint8)


def jsrt_pixels(values: Values) -> Pixels:
    """JSRT's 12-bit densities (H, W), bone dark, as 8 bits with bone bright (Chen et al., released preprocessing)."""
    import numpy as np

    return stretched(-values.astype(np.int32))


def _jsrt(path: Path, content: bytes) -> Pixels:
    """JSRT's headerless file: 2048 x 2048 big-endian words of 12 bits."""
    import numpy as np

    if len(content) != JSRT_BYTES:
        raise BenchError(
            f"{path} has {len(content)} bytes, not the {JSRT_BYTES} of {JSRT_SIDE}x{JSRT_SIDE} words: download it again"
        )
    values = np.frombuffer(content, ">i2").reshape(JSRT_SIDE, JSRT_SIDE)
    if values.min() < 0 or values.max() >= 1 << 12:
        raise BenchError(f"{path} has values beyond 12 bits: it is no big-endian JSRT image; download it again")
    return jsrt_pixels(values)


def _dicom(path: Path, content: bytes) -> Pixels:
    """A single DICOM image: (H, W) or (H, W, 3)."""
    import numpy as np
    import pydicom

    _quieten()
    try:
        found = pydicom.dcmread(io.BytesIO(content))
    except Exception as error:  # pydicom raises whatever its parser stumbles over
        raise _unreadable(path, "DICOM file", error) from None
    frames = int(found.get("NumberOfFrames") or 1)
    if frames > 1:
        raise BenchError(f"{path} holds {frames} frames: give images of one frame")
    if "PixelData" not in found:
        raise BenchError(f"{path} holds no image: take it out")
    try:
        values = found.pixel_array
    except Exception as error:  # as above, and what its decoders raise
        syntax = getattr(found.file_meta, "TransferSyntaxUID", None)
        if syntax is not None and syntax.is_compressed and not _decodable(syntax):
            raise BenchError(f"{path} is compressed as {syntax.name}, which nothing here reads: {_PLUGINS}") from None
        raise _unreadable(path, "DICOM image", " ".join(str(error).split())) from None
    if found.get("PhotometricInterpretation") == "PALETTE COLOR":
        values = _palette_colours(path, found, values)
    if values.ndim == 3:
        return _eight_bits(path, values)
    inverted = found.get("PhotometricInterpretation") == "MONOCHROME1"
    if values.dtype == np.uint8 and int(found.get("BitsStored", 8)) == 8:
        return 255 - values if inverted else values
    rescaled = values * float(found.get("RescaleSlope") or 1) + float(found.get("RescaleIntercept") or 0)
    padding = found.get("PixelPaddingValue")
    if padding is not None and (values != padding).any():
        rescaled = np.where(values == padding, rescaled[values != padding].min(), rescaled)
    return stretched(-rescaled if inverted else rescaled)


def _palette_colours(path: Path, found: Any, values: Values) -> Values:
    """Places in a DICOM's palette (H, W) as the colours they stand for: (H, W, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    try:
        return apply_color_lut(values, found)
    except Exception as error:  # pydicom raises whatever a palette lacks
        raise _unreadable(path, "DICOM image", " ".join(str(error).split())) from None


def _decodable(syntax: Any) -> bool:
    from pydicom.pixels.decoders import base

    try:
        return bool(base.get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


# --------------------------------------------------------------------------------------------------------------- masks


def read_mask(mask: Path | RunLength) -> Pixels:
    """A label as (H, W), full scale 255.

    Masks of 0 and 1, palette indices or values, are stretched, deeper ones to their highest value; colours count by
    their brightest channel, where they are not transparent.
    """
    import numpy as np

    if isinstance(mask, RunLength):
        return decode_runs(mask)
    values = _mask_values(mask)
    top = values.max(initial=0)
    if values.dtype == np.uint8:
        return values * np.uint8(255) if top == 1 else values
    if values.min(initial=0) < 0 or not np.isfinite(values).all():
        raise BenchError(f"{mask} has values below zero: save it as a mask of 0 and 255")
    return (values.astype(np.float64) * (255 / max(float(top), 1e-9))).astype(np.uint8)


def _mask_values(path: Path) -> Values:
    import numpy as np
    from PIL import Image

    content = _content(path)
    _quieten()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode in ("1", "L"):
                return np.asarray(image).astype(np.uint8)
            if image.mode in _DEEP:
                return np.asarray(image)
            if image.mode == "P" and image.getextrema()[1] <= 1:  # type: ignore[operator]
                return np.asarray(image) ^ np.uint8(_starts_bright(image.getpalette("RGB") or []))
            pixels = np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, "mask", error) from None
    return np.where(pixels[..., 3] > 0, pixels[..., :3].max(axis=2), np.uint8(0))


def _starts_bright(palette: list[int]) -> bool:
    """Whether the first colour is brighter than the second: then index 0 is the structure."""
    return max(palette[:3], default=0) > max(palette[3:6], default=255)


def decode_runs(mask: RunLength) -> Pixels:
    """Run lengths as a mask (height, width) of 0 and 255."""
    import numpy as np

    flat = np.zeros(mask.height * mask.width, np.uint8)
    for row in mask.rows:
        try:
            numbers = [int(part) for part in row.split()]
        except ValueError:
            raise BenchError(f"run lengths are whole numbers, not {row[:40]!r}: check the table") from None
        if numbers in ([], [-1]):
            continue
        at = 0
        for gap, run in zip(numbers[::2], numbers[1::2], strict=False):
            flat[at + gap : at + gap + run] = 255
            at += gap + run
        if len(numbers) % 2 or min(numbers) < 0 or at > len(flat):
            raise BenchError(
                f"the run lengths {row[:40]!r} do not fit {mask.width}x{mask.height} pixels: check the table"
            )
    return flat.reshape(mask.width, mask.height).T
