"""Image and label files of every kind, whole and broken."""

from __future__ import annotations

import dataclasses
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from bench.data import Mask, RunLength, Sample, fit, prepare_image, prepare_sample, read_image, read_mask
from bench.data.decode import jsrt_pixels
from bench.data.prepare import shrink
from bench.registry import Registry
from bench.spec import BenchError, TaskSpec
from tests.conftest import GOLDEN, textured_images

SIDE = 60
COLOUR = textured_images(1, SIDE, 3)[0]
GREY = textured_images(1, SIDE, 1, seed=2)[0][..., 0]


def pillow_bytes(pixels: NDArray[Any], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def palette_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(COLOUR).quantize(256).save(stream, "PNG")
    return stream.getvalue()


# -------------------------------------------------------------------------------------------------------------- images

KINDS: dict[str, tuple[str, bytes, float]] = {  # name -> suffix, content, largest mean error in grey levels
    "png": (".png", pillow_bytes(COLOUR, "PNG"), 0),
    "palette png": (".png", palette_png(), 12),
    "jpeg": (".jpg", pillow_bytes(COLOUR, "JPEG", quality=95), 4),
    "upper case": (".JPEG", pillow_bytes(COLOUR, "JPEG", quality=95), 4),
    "bmp": (".bmp", pillow_bytes(COLOUR, "BMP"), 0),
    "tiff": (".tif", pillow_bytes(COLOUR, "TIFF"), 0),
    "packed tiff": (".tiff", pillow_bytes(COLOUR, "TIFF", compression="tiff_lzw"), 0),
    "ppm": (".ppm", pillow_bytes(COLOUR, "PPM"), 0),
    "ppm.gz": (".ppm.gz", gzip.compress(pillow_bytes(COLOUR, "PPM")), 0),
    "gif": (".gif", pillow_bytes(COLOUR, "GIF"), 12),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_with_its_colours(kind: str, tmp_path: Path) -> None:
    suffix, content, tolerance = KINDS[kind]
    path = tmp_path / f"bild ä{suffix}"
    path.write_bytes(content)
    found = read_image(path, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - COLOUR).mean() <= tolerance
    assert read_image(path, 1).shape == (SIDE, SIDE, 1)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_off_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    suffix, content, _ = KINDS[kind]
    path = tmp_path / f"cut off{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    for read in (lambda: read_image(path, 3), lambda: read_mask(path)):
        with pytest.raises(BenchError, match=r"cut off.* or take it out$") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_jpeg_whose_tail_is_blank_is_refused(tmp_path: Path) -> None:
    """As downloads look that were stopped after the space was set aside."""
    content = KINDS["jpeg"][1]
    path = tmp_path / "x.jpg"
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(BenchError, match=r"x\.jpg .* take it out"):
        read_image(path, 3)


def test_a_jpeg_is_not_taken_for_whole_because_its_thumbnail_is(tmp_path: Path) -> None:
    content = KINDS["jpeg"][1]
    thumbnail = b"\xff\xe1\x00\x08Exif\xff\xd9"
    (tmp_path / "x.jpg").write_bytes(content[:2] + thumbnail + content[2:])
    assert read_image(tmp_path / "x.jpg", 3).shape == (SIDE, SIDE, 3)
    (tmp_path / "x.jpg").write_bytes(content[:2] + thumbnail + content[2:-100])
    with pytest.raises(BenchError, match=r"x\.jpg is cut off"):
        read_image(tmp_path / "x.jpg", 3)


def test_a_jpeg_with_something_behind_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(KINDS["jpeg"][1] + b"camera maker's notes")
    assert np.abs(read_image(tmp_path / "x.jpg", 3).astype(int) - COLOUR).mean() < 4


@pytest.mark.parametrize("content", [b"no image at all", b"\x89PNG but no more"])
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(BenchError, match=r"x\.png is no readable image .* take it out"):
        read_image(tmp_path / "x.png", 3)


def test_a_folder_where_a_file_is_expected_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(BenchError, match=r"x\.png cannot be read"):
        read_image(tmp_path / "x.png", 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("highest", "shift"), [(255, 0), (256, 4), (4095, 4), (4096, 8), (65535, 8)])
def test_deep_images_keep_their_upper_eight_bits(suffix: str, highest: int, shift: int, tmp_path: Path) -> None:
    values = np.linspace(0, highest, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(cv2.imencode(suffix, values)[1].tobytes())
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], values >> shift)
    np.testing.assert_array_equal(read_image(path, 3), np.repeat((values >> shift)[..., None], 3, axis=2))


def test_float_images_between_0_and_1_are_read_and_others_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif", 1)[..., 0], GREY)
    Image.fromarray(GREY.astype(np.float32) - 1000).save(tmp_path / "x.tif")
    with pytest.raises(BenchError, match=r"x\.tif has values from -9.*8 or 16 bits"):
        read_image(tmp_path / "x.tif", 1)


def test_orientation_tags_turn_neither_image_nor_mask(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6  # turn by 90 degrees
    image = np.zeros((20, 40), np.uint8)
    image[:10, :10] = 255
    for name in ("image.jpg", "mask.jpg"):
        Image.fromarray(image).save(tmp_path / name, exif=tag, quality=100)
    assert read_image(tmp_path / "image.jpg", 3).shape == (20, 40, 3)
    mask = read_mask(tmp_path / "mask.jpg")
    assert mask.shape == (20, 40)
    assert mask[:8, :8].min() > 250


# --------------------------------------------------------------------------------------------------------- radiographs


def test_jsrt_films_are_decoded_as_the_released_code_does() -> None:
    golden = np.load(GOLDEN / "jsrt_decode.npz")
    pixels = jsrt_pixels(golden["raw"])
    np.testing.assert_array_equal(pixels, golden["png8"])
    np.testing.assert_array_equal(fit(pixels, None, 16), golden["resized16"])


def test_a_jsrt_file_is_big_endian_and_of_one_length(tmp_path: Path) -> None:
    values = (np.arange(2048 * 2048).reshape(2048, 2048) // 1024).astype(">i2")
    path = tmp_path / "JPCLN001.IMG"
    path.write_bytes(values.tobytes())
    film = read_image(path, 1)
    assert film.shape == (2048, 2048, 1)
    assert (film[0, 0, 0], film[-1, -1, 0]) == (255, 0)  # densities are inverted
    path.write_bytes(values.tobytes()[:-2])
    with pytest.raises(BenchError, match=r"JPCLN001\.IMG has 8388606 bytes, not the 8388608"):
        read_image(path, 1)
    path.write_bytes(values.astype("<i2").tobytes())
    with pytest.raises(BenchError, match=r"JPCLN001\.IMG has values beyond 12 bits"):
        read_image(path, 1)


def write_dicom(path: Path, pixels: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = 8 * pixels.dtype.itemsize
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel = *pixels.shape[:2], 1
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    file.PhotometricInterpretation = "MONOCHROME2"
    file.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    if syntax == RLELossless:
        file.compress(RLELossless)
    elif syntax != ExplicitVRLittleEndian:
        file.PixelData = pydicom.encaps.encapsulate([pillow_bytes(pixels, "JPEG", quality=95)])
        file.file_meta.TransferSyntaxUID = syntax
    file.save_as(path, enforce_file_format=True)


WORDS = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + 100).astype(np.uint16)
RISING = ((WORDS - 100.0) * (255 / (SIDE * SIDE - 1))).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "tags", "expected"),
    [
        pytest.param(GREY, {}, GREY, id="8 bits stay"),
        pytest.param(GREY, {"PhotometricInterpretation": "MONOCHROME1"}, 255 - GREY, id="inverted"),
        pytest.param(WORDS, {"BitsStored": 12, "HighBit": 11}, RISING, id="12 bits are stretched"),
        pytest.param(WORDS, {"WindowCenter": 500, "WindowWidth": 10}, RISING, id="windows are ignored"),
        pytest.param(WORDS, {"RescaleSlope": 2, "RescaleIntercept": -1024}, RISING, id="rescaled"),
        pytest.param(WORDS, {"RescaleSlope": -1, "RescaleIntercept": 0}, "falling", id="falling slope"),
        pytest.param(WORDS, {"PhotometricInterpretation": "MONOCHROME1"}, "falling", id="inverted words"),
        pytest.param(WORDS.astype(np.int16) - 2000, {}, RISING, id="signed"),
        pytest.param(np.full_like(WORDS, 7), {}, np.zeros_like(GREY), id="constant"),
    ],
)
def test_dicom_becomes_eight_bits(pixels: Any, tags: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    write_dicom(tmp_path / "x.dcm", pixels, **tags)
    found = read_image(tmp_path / "x.dcm", 1)[..., 0]
    if isinstance(expected, str):
        expected = ((float(WORDS.max()) - WORDS) * (255 / (SIDE * SIDE - 1))).astype(np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert read_image(tmp_path / "x.dcm", 3).shape == (SIDE, SIDE, 3)


def test_padding_does_not_take_part_in_the_stretch(tmp_path: Path) -> None:
    pixels = WORDS.copy()
    pixels[0, :5] = 60000
    write_dicom(tmp_path / "x.dcm", pixels, PixelPaddingValue=60000)
    found = read_image(tmp_path / "x.dcm", 1)[..., 0]
    assert found[0, :5].tolist() == [0] * 5
    assert np.abs(found[1:].astype(int) - RISING[1:]).max() <= 1


def test_a_palette_of_dicom_gives_its_colours(tmp_path: Path) -> None:
    ramp, names = np.arange(256, dtype=np.uint16) * 257, ("Red", "Green", "Blue")
    tags = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in names}
    tables = {"Red": ramp[::-1], "Green": ramp, "Blue": ramp * 0}
    content = {f"{name}PaletteColorLookupTableData": table.tobytes() for name, table in tables.items()}
    write_dicom(tmp_path / "x.dcm", GREY, PhotometricInterpretation="PALETTE COLOR", **tags, **content)
    expected = np.stack([255 - GREY, GREY, 0 * GREY], axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / "x.dcm", 3), expected)
    write_dicom(tmp_path / "x.dcm", GREY, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(BenchError, match=r"x\.dcm is no readable DICOM image .*take it out"):
        read_image(tmp_path / "x.dcm", 3)


@pytest.mark.parametrize(("syntax", "tolerance"), [(RLELossless, 0), (JPEGBaseline8Bit, 8)])
def test_compressed_dicom_is_read(syntax: UID, tolerance: int, tmp_path: Path) -> None:
    write_dicom(tmp_path / "x.dcm", GREY, syntax)
    assert np.abs(read_image(tmp_path / "x.dcm", 1)[..., 0].astype(int) - GREY).max() <= tolerance


def broken_dicom(path: Path, how: str) -> None:
    if how == "no plug-in":
        write_dicom(path, GREY, JPEGLSLossless)
        return
    write_dicom(path, GREY, **({"NumberOfFrames": 2, "PixelData": GREY.tobytes() * 2} if how == "frames" else {}))
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-500])
    if how == "no image":
        file = pydicom.dcmread(path)
        del file.PixelData
        file.save_as(path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no plug-in", r"x\.dcm is compressed as JPEG-LS Lossless.*install pylibjpeg"),
        ("frames", r"x\.dcm holds 2 frames"),
        ("cut off", r"x\.dcm is no readable DICOM image .*take it out"),
        ("no image", r"x\.dcm holds no image: take it out"),
    ],
)
def test_a_broken_dicom_is_named(how: str, message: str, tmp_path: Path) -> None:
    broken_dicom(tmp_path / "x.dcm", how)
    with pytest.raises(BenchError, match=message) as caught:
        read_image(tmp_path / "x.dcm", 1)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- masks

SHAPE = np.zeros((20, 30), np.uint8)
SHAPE[5:15, 3:20] = 1


def palette(values: NDArray[np.uint8], colours: list[int]) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette(colours)
    return image


def coloured(colour: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(SHAPE[..., None] * np.array(colour, np.uint8))


MASKS: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    "0 and 1": ("x.png", lambda: Image.fromarray(SHAPE)),
    "0 and 255": ("x.png", lambda: Image.fromarray(SHAPE * 255)),
    "one bit": ("x.png", lambda: Image.fromarray(SHAPE > 0)),
    "16 bits": ("x.png", lambda: Image.fromarray(SHAPE.astype(np.uint16) * 65535)),
    "0 and 1 in 16 bits": ("x.tif", lambda: Image.fromarray(SHAPE.astype(np.uint16))),
    "float": ("x.tif", lambda: Image.fromarray(SHAPE.astype(np.float32))),
    "palette of 0 and 1": ("x.tif", lambda: palette(SHAPE, [0, 0, 0, 76, 0, 0])),
    "palette of colours": ("x.gif", lambda: palette(SHAPE * 7, [0, 0, 0] + [10, 20, 255] * 7)),
    "three channels": ("x.png", lambda: coloured((255, 255, 255))),
    "red": ("x.png", lambda: coloured((255, 0, 0))),
    "transparent ground": (
        "x.png",
        lambda: Image.fromarray(np.dstack([np.full_like(SHAPE, 255)] * 3 + [SHAPE * 255])),
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind_have_full_scale_255(kind: str, tmp_path: Path) -> None:
    name, make = MASKS[kind]
    make().save(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name), SHAPE * 255)


def test_an_empty_mask_stays_empty(tmp_path: Path) -> None:
    Image.fromarray(np.zeros_like(SHAPE)).save(tmp_path / "x.png")
    assert not read_mask(tmp_path / "x.png").any()


def test_a_mask_with_values_below_zero_is_refused(tmp_path: Path) -> None:
    Image.fromarray(SHAPE.astype(np.float32) - 1).save(tmp_path / "x.tif")
    with pytest.raises(BenchError, match=r"x\.tif has values below zero"):
        read_mask(tmp_path / "x.tif")


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08 no gzip", b"\x1f\x8b"])
def test_broken_packed_masks_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "im0001.ah.ppm.gz"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"im0001\.ah\.ppm\.gz .*take it out"):
        read_mask(path)


def test_run_lengths_are_relative_and_run_down_the_columns() -> None:
    golden = np.load(GOLDEN / "siim_rle.npz")
    row = " ".join(map(str, golden["rle"]))
    mask = read_mask(RunLength((row,), int(golden["height"]), int(golden["width"])))
    np.testing.assert_array_equal(mask, golden["mask_used"])


def test_rows_of_run_lengths_are_united_and_minus_one_is_empty() -> None:
    mask = read_mask(RunLength(("0 2", "-1", "3 1", ""), height=2, width=3))  # 6 pixels: 0 1 | 2 3 | 4 5
    assert mask.tolist() == [[255, 0, 0], [255, 255, 0]]
    assert not read_mask(RunLength(("-1",), 4, 4)).any()


@pytest.mark.parametrize("row", ["0 5 3", "0 17", "-2 3", "10 7", "1 a"])
def test_run_lengths_that_do_not_fit_are_named(row: str, tmp_path: Path, spec: TaskSpec) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), COLOUR[:4, :4])
    sample = Sample("1.2.840.1", tmp_path / "image.png", Mask(RunLength((row,), 4, 4)))
    with pytest.raises(BenchError, match=r"1\.2\.840\.1: .*run lengths.*check the table"):
        prepare_sample(sample, spec, 32)


# --------------------------------------------------------------------------------------------------- crop and resizing


@pytest.fixture
def spec(shelves: Registry) -> TaskSpec:
    """A colour task without a crop."""
    return dataclasses.replace(next(iter(shelves.tasks.values())), crop="none", channels=3, label_threshold=0.3)


def test_small_sizes_are_averages_of_the_papers_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1024, 1200, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), noise[..., ::-1])
    at_512 = prepare_image(tmp_path / "x.png", 3, "none", 512)
    np.testing.assert_array_equal(at_512, fit(noise, None, 512))  # the paper's size is the paper's
    small = prepare_image(tmp_path / "x.png", 3, "none", 64)
    blocks = at_512.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 1
    assert small.std() < 0.3 * fit(noise, None, 64).std()  # straight resizing would alias


def test_a_small_image_is_not_blown_up_first(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), COLOUR[..., ::-1])
    np.testing.assert_array_equal(prepare_image(tmp_path / "x.png", 3, "none", SIDE), COLOUR)


@pytest.mark.parametrize("size", [64, 96, 128, 512])
def test_thin_targets_keep_their_area(size: int, tmp_path: Path, spec: TaskSpec) -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(25):
        (x0, y0), (x1, y1) = rng.integers(0, 1024, (2, 2)).tolist()
        cv2.line(mask, (x0, y0), (x1, y1), 255, 8)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((1024, 1024, 3), np.uint8))
    sample = Sample("x", tmp_path / "image.png", Mask(tmp_path / "mask.png"))
    target = prepare_sample(sample, spec, size)["masks"]
    assert 0.7 < target.mean() / (mask > 0).mean() < 1.35  # 0.5 px wide at 64 px
    assert set(np.unique(target)) == {0, 1}


def test_shrinking_to_the_same_size_changes_nothing() -> None:
    np.testing.assert_array_equal(shrink(COLOUR, SIDE), COLOUR)


def test_masks_of_another_size_are_refused(tmp_path: Path, spec: TaskSpec) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), textured_images(1, 40, 3)[0])
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((20, 40), np.uint8))
    sample = Sample("x", tmp_path / "image.png", Mask(tmp_path / "mask.png"))
    with pytest.raises(BenchError, match=r"mask\.png is 40x20 but its image 40x40"):
        prepare_sample(sample, spec, 32)
    runs = Sample("x", tmp_path / "image.png", Mask(RunLength(("-1",), 30, 40)))
    with pytest.raises(BenchError, match=r"x is 40x30 but its image 40x40"):
        prepare_sample(runs, spec, 32)


def test_several_masks_are_united(tmp_path: Path, spec: TaskSpec) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), textured_images(1, 40, 3)[0])
    for name, rows in (("left", slice(0, 10)), ("right", slice(30, 40))):
        mask = np.zeros((40, 40), np.uint8)
        mask[rows] = 1
        cv2.imwrite(str(tmp_path / f"{name}.png"), mask)
    sample = Sample("x", tmp_path / "image.png", Mask((tmp_path / "left.png", tmp_path / "right.png")))
    assert prepare_sample(sample, spec, 40)["masks"].mean() == 0.5


def test_numbers_of_labels_that_would_count_as_nothing_are_refused(tmp_path: Path, spec: TaskSpec) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:20, :20] = 2
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "image.png"), textured_images(1, 40, 3)[0])
    sample = Sample("x", tmp_path / "image.png", Mask(tmp_path / "mask.png"))
    with pytest.raises(BenchError, match=r"mask\.png marks with values up to 2 of 255.*save it as a mask of 0 and 255"):
        prepare_sample(sample, spec, 40)
    low = dataclasses.replace(spec, label_threshold=0.004)
    assert prepare_sample(sample, low, 40)["masks"].mean() == 0.25


@pytest.mark.parametrize(("values", "share"), [((0, 1), 0.25), ((0, 255), 0.25), ((0, 100), 0.25), ((0, 60), 0.0)])
def test_label_values_and_threshold(tmp_path: Path, spec: TaskSpec, values: tuple[int, int], share: float) -> None:
    mask = np.full((40, 40), values[0], np.uint8)
    mask[:20, :20] = values[1]
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "image.png"), textured_images(1, 40, 3)[0])
    target = prepare_sample(Sample("x", tmp_path / "image.png", Mask(tmp_path / "mask.png")), spec, 40)["masks"]
    assert target.mean() == share
