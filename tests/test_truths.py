"""What is true of an image goes with it through one transform: points, masks and pixels never disagree."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from bench import data, registry, views
from bench.data.prepare import item_shapes, prepare_sample
from bench.data.truths import KINDS, Frame
from bench.metrics import dsc, radial_error_mm, radial_error_px
from bench.parts.cases import Cases
from bench.spec import BenchError, TaskSpec
from bench.spec.samples import Grade, Mask, Points, Sample

SHELVES = registry.scan()
TASK = next(spec for spec in SHELVES.tasks.values() if spec.channels == 3)
SHAPE = (150, 210)  # px, as stored; not square, so that an exchange of the axes shows
SPOTS = {"left": (60.0, 70.0), "right": (85.0, 140.0)}  # row, column
RADIUS, SIZE = 7, 64


def spec(truth: str, **changes: Any) -> TaskSpec:
    fields: dict[str, Any] = {"truth": truth, "structures": tuple(SPOTS), "crop": "fov", "label_threshold": 0.5}
    return replace(TASK, **(fields | changes))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A dim ellipse on black, with two bright spots in it."""
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    cv2.ellipse(pixels, (105, 75), (80, 55), 0, 0, 360, (60, 60, 60), -1)
    for (row, column), level in zip(SPOTS.values(), (160, 250), strict=True):
        cv2.circle(pixels, (round(column), round(row)), RADIUS, (level,) * 3, -1)
    cv2.imwrite(str(tmp_path / "image.png"), pixels)
    return tmp_path / "image.png"


def label_map(folder: Path) -> Path:
    pixels = np.zeros(SHAPE, np.uint8)
    for level, (row, column) in enumerate(SPOTS.values(), 3):
        cv2.circle(pixels, (round(column), round(row)), RADIUS, (level,), -1)
    cv2.imwrite(str(folder / "map.png"), pixels)
    return folder / "map.png"


def centre(marked: Any) -> list[float]:
    """Centroid (row, column) of what is marked in (H, W)."""
    return [float(places.mean()) for places in np.nonzero(np.asarray(marked))]


def opened(items: list[dict[str, Any]]) -> data.Dataset:
    arrays = {name: np.stack([item[name] for item in items]) for name in items[0]}
    count = len(items)
    return data.Dataset(arrays, ("x",) * count, ("",) * count, tuple(range(count)), (), ())


# ---------------------------------------------------------------------------------------------------------------- frame


@pytest.mark.parametrize("box", [None, (10, 20, 130, 200)])
@pytest.mark.parametrize("size", [32, 64, 100])
def test_a_frame_undoes_what_it_did(box: Any, size: int) -> None:
    """A spot's centroid in the resized image, led back, is where the spot was drawn."""
    pixels = np.zeros((*SHAPE, 1), np.uint8)
    cv2.circle(pixels, (140, 85), RADIUS, (255,), -1)
    frame = Frame(SHAPE, box, size)
    shown = data.prepare.prepare_pixels(pixels, frame)[..., 0].astype(float)
    rows, columns = np.indices(shown.shape)
    found = [float((places * shown).sum() / shown.sum()) for places in (rows, columns)]
    led_back = [scale * place + offset for place, (scale, offset) in zip(found, frame.back, strict=True)]
    assert led_back == pytest.approx([85, 140], abs=0.3)


# ------------------------------------------------------------------------------------------------------- one transform


def test_points_masks_and_pixels_are_cut_and_resized_alike(image: Path) -> None:
    points = Points(tuple(SPOTS), tuple(SPOTS.values()))
    pointed = prepare_sample(Sample("a", image, points), spec("points"), SIZE)
    masked = prepare_sample(Sample("a", image, Mask(label_map(image.parent), {"left": 3, "right": 4})),
                            spec("mask"), SIZE)  # fmt: skip
    assert np.array_equal(pointed["images"], masked["images"])
    back = pointed["frames"]
    for place, (low, high) in enumerate(((120, 200), (201, 255))):
        shown = (pointed["points"][place] - back[:, 1]) / back[:, 0]
        bright = (pointed["images"][..., 0] >= low) & (pointed["images"][..., 0] <= high)
        assert centre(masked["masks"] == place + 1) == pytest.approx(shown, abs=0.5)
        assert centre(cv2.erode(bright.astype(np.uint8), np.ones((2, 2)))) == pytest.approx(shown, abs=0.8)
    assert {name: (str(value.dtype), value.shape) for name, value in pointed.items()} == item_shapes(
        spec("points"), SIZE
    )


@pytest.mark.parametrize("seed", range(6))
def test_points_and_masks_are_turned_with_the_pixels(image: Path, seed: int) -> None:
    """Under the variations of training, too: the centroid of a structure's mask is where its point goes."""
    ops = (views.Flip(0.5, 0.5), views.Rotate(180))
    points = Points(tuple(SPOTS), tuple(SPOTS.values()))
    found = {}
    for kind, truth in (("points", points), ("mask", Mask(label_map(image.parent), {"left": 3, "right": 4}))):
        item = prepare_sample(Sample("a", image, truth), spec(kind), 128)
        images, found[kind] = Cases(opened([item]), spec(kind), torch.device("cpu")).take([0], ops, seed)
    for place in range(len(SPOTS)):
        marked = found["mask"][0, 0] == place + 1
        assert centre(marked) == pytest.approx(found["points"][0, place].tolist(), abs=0.7)
    brightest = images[0, 0] > images[0, 0].quantile(0.9965)
    assert centre(cv2.erode(brightest.numpy().astype(np.uint8), np.ones((3, 3)))) == pytest.approx(
        found["points"][0, 1].tolist(), abs=1.5
    )


# ------------------------------------------------------------------------------------------------------------- scoring


def test_places_are_compared_in_the_image_as_stored_and_in_mm(image: Path) -> None:
    points = Points(tuple(SPOTS), tuple(SPOTS.values()))
    item = prepare_sample(Sample("a", image, points, spacing=(0.5, 2.0)), spec("points"), SIZE)
    arrays, kind = opened([item]).arrays, KINDS["points"]
    prepared = (arrays["points"] - arrays["frames"][:, None, :, 1]) / arrays["frames"][:, None, :, 0]
    for place in range(len(SPOTS)):
        assert radial_error_px(*kind.compared(prepared, arrays, [0], place)) == pytest.approx([0], abs=1e-9)
    moved = prepared + np.array([1.0, 0.0])  # one row of the network's grid
    rows = arrays["frames"][0, 0, 0]  # stored rows to one of them
    assert radial_error_px(*kind.compared(moved, arrays, [0], 1)) == pytest.approx([rows])
    assert radial_error_mm(*kind.compared(moved, arrays, [0], 1), arrays["spacing"]) == pytest.approx([0.5 * rows])
    moved = prepared + np.array([0.0, 1.0])
    columns = arrays["frames"][0, 1, 0]
    assert rows != pytest.approx(columns)
    assert radial_error_mm(*kind.compared(moved, arrays, [0], 1), arrays["spacing"]) == pytest.approx([2.0 * columns])


def test_a_point_that_is_not_there_does_not_count(image: Path) -> None:
    points = Points(tuple(SPOTS), (SPOTS["left"], (math.nan, math.nan)))
    item = prepare_sample(Sample("a", image, points), spec("points"), SIZE)
    arrays = opened([item]).arrays
    errors = [float(radial_error_px(*KINDS["points"].compared(arrays["points"], arrays, [0], at))[0]) for at in (0, 1)]
    assert math.isfinite(errors[0]) and math.isnan(errors[1])


def test_every_structure_of_a_map_is_compared_by_itself(image: Path) -> None:
    item = prepare_sample(Sample("a", image, Mask(label_map(image.parent), {"left": 3, "right": 4})),
                          spec("mask"), SIZE)  # fmt: skip
    arrays, kind = opened([item]).arrays, KINDS["mask"]
    only_left = np.where(arrays["masks"] == 1, 1, 0)
    assert kind.names(spec("mask")) == ("left", "right")
    assert [float(dsc(*kind.compared(only_left, arrays, [0], at))[0]) for at in (0, 1)] == [1, 0]


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("kind", "truth", "message"),
    [
        ("mask", Grade(1), "asks for a Mask, but a comes with Grade"),
        ("mask", None, "asks for a Mask, but a comes with nothing"),
        ("points", Grade(1), "but a comes with Grade"),
        ("grade", Points(("left",), ((1.0, 2.0),)), "but a comes with Points"),
        ("grade", Grade(2), "a has the grade 2"),
        ("points", Points(("left",), ((1.0, 2.0),)), "right"),
        ("points", Points(("left", "right"), ((1.0, 2.0), (149.0, 400.0))), "order of axes"),
        ("points", Points(("left", "right"), ((1.0, 2.0), (math.nan, 4.0))), "order of axes"),
        ("mask", "levels", "names not all of left, right"),
    ],
)
def test_truth_of_another_kind_is_one_sentence(image: Path, kind: str, truth: Any, message: str) -> None:
    if truth == "levels":
        truth = Mask(label_map(image.parent), {"left": 3})
    with pytest.raises(BenchError, match=message) as error:
        prepare_sample(Sample("a", image, truth), spec(kind), SIZE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spacing", [(1.0,), (0.0, 1.0), (1.0, math.nan), (1.0, -1.0), (1.0, 1.0, 1.0)])
def test_a_pixel_without_a_size_is_refused(image: Path, spacing: tuple[float, ...]) -> None:
    sample = Sample("a", image, Points(tuple(SPOTS), tuple(SPOTS.values())), spacing=spacing)
    with pytest.raises(BenchError, match="is not 2 sizes in mm"):
        prepare_sample(sample, spec("points"), SIZE)
