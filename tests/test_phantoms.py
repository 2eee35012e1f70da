"""Fundus phantoms are eyes: deterministic, with exact masks, and anatomy where it belongs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import pytest

from bench.data import phantoms
from bench.data.phantoms import Phantom, render
from bench.data.phantoms.fundus import retinopathy
from bench.data.phantoms.fundus.eye import Blobs, Lesions
from bench.data.phantoms.fundus.paint import Frame
from bench.registry import scan
from bench.spec import BenchError

SEEDS = range(6)
MACULAR = {"fov": 46.0, "centre": 0.4, "exudates": (2.0, 8.0), "haemorrhages": 4.0, "cup": (0.3, 0.7)}
DISC = {"fov": 30.0, "centre": 0.95, "cup": (0.3, 0.75)}
SICK = {
    "exudates": 4.0,
    "haemorrhages": 10.0,
    "microaneurysms": 8.0,
    "cotton_wool": 2.0,
    "drusen": 3.0,
    "height": 0.8,
    "notch": 1.0,
    "haze": 0.2,
    "dust": 3.0,
}
FUNDUS = {name: spec.phantom for name, spec in scan().tasks.items() if spec.phantom.get("modality") == "fundus"}


@pytest.fixture(scope="module")
def eyes() -> list[Phantom]:
    return [render("fundus", seed, 128, MACULAR) for seed in SEEDS]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def pixel(point: list[float], size: int) -> tuple[int, int]:
    return int(point[1] * size), int(point[0] * size)


def test_importing_is_cheap() -> None:
    heavy = "{'numpy', 'cv2', 'torch'}"
    code = f"import sys; from bench.data import phantoms; print(phantoms.VERSIONS, {heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


def test_the_same_seed_is_the_same_image(eyes: list[Phantom]) -> None:
    for seed, eye in zip(SEEDS, eyes, strict=True):
        again = render("fundus", seed, 128, MACULAR)
        assert np.array_equal(again.image, eye.image)
        assert again.facts == eye.facts
        for name, mask in eye.masks.items():
            assert np.array_equal(again.masks[name], mask)


def test_another_seed_is_another_eye(eyes: list[Phantom]) -> None:
    for one, other in itertools.pairwise(eyes):
        assert overlap(one.masks["vessels"], other.masks["vessels"]) < 0.3
        assert np.abs(one.image.astype(int) - other.image).mean() > 5


def test_ranges_survive_json() -> None:
    settings = json.loads(json.dumps(MACULAR))
    assert np.array_equal(render("fundus", 3, 64, settings).image, render("fundus", 3, 64, MACULAR).image)


@pytest.mark.parametrize("size", [64, 128, 200])
def test_shapes_and_values(size: int) -> None:
    eye = render("fundus", 1, size, MACULAR)
    assert eye.image.shape == (size, size, 3)
    assert eye.image.dtype == np.uint8
    assert set(eye.masks) == {"vessels", "disc", "cup", "exudates", "fov"}
    for mask in eye.masks.values():
        assert mask.shape == (size, size)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
    json.dumps(eye.facts, allow_nan=False)


def test_parts_lie_inside_one_another(eyes: list[Phantom]) -> None:
    for eye in [*eyes, *(render("fundus", seed, 128, DISC) for seed in SEEDS)]:
        masks = eye.masks
        assert masks["cup"].sum() > 0
        assert not (masks["cup"] & ~masks["disc"] & 1).any()
        for name in ("vessels", "disc", "cup", "exudates"):
            assert not (masks[name] & ~masks["fov"] & 1).any(), name


def test_outside_the_field_is_dark_and_inside_is_red(eyes: list[Phantom]) -> None:
    for eye in eyes:
        field = eye.masks["fov"]
        rim = cv2.dilate(field, np.ones((5, 5), np.uint8))  # its blurred edge belongs to neither
        outside, inside = eye.image[rim == 0], eye.image[field == 1]
        assert outside.max() <= 20, "the field of view is found by a threshold of 20"
        red, green, blue = inside.mean(axis=0)
        assert red > green > blue


def test_disc_is_nasal_and_where_the_facts_say(eyes: list[Phantom]) -> None:
    sides = set()
    for eye in eyes:
        disc, fovea = eye.facts["disc"], eye.facts["fovea"]
        assert (disc[0] > fovea[0]) == (eye.facts["eye"] == "right")
        rows, columns = np.nonzero(eye.masks["disc"])
        assert np.hypot(rows.mean() / 128 - disc[1], columns.mean() / 128 - disc[0]) < 0.03
        sides.add(eye.facts["eye"])
    assert sides == {"left", "right"}


def test_no_vessel_near_the_fovea_but_some_on_the_disc(eyes: list[Phantom]) -> None:
    degrees = MACULAR["fov"] * 1.01 / 128  # type: ignore[operator]
    for eye in eyes:
        row, column = pixel(eye.facts["fovea"], 128)
        rows, columns = np.nonzero(eye.masks["vessels"])
        assert np.hypot(rows - row, columns - column).min() * degrees > 1.5
        assert (eye.masks["vessels"] & eye.masks["disc"]).sum() > 10


def test_vessels_run_in_one_tree_from_the_disc(eyes: list[Phantom]) -> None:
    for seed in SEEDS:
        masks = render("fundus", seed, 512, MACULAR).masks
        count, labels = cv2.connectedComponents(masks["vessels"] | masks["disc"], connectivity=8)
        sizes = np.bincount(labels.ravel(), minlength=count)[1:]
        assert sizes.max() / sizes.sum() > 0.8


def test_vessels_are_dark_the_disc_and_exudates_bright() -> None:
    for seed in SEEDS:
        eye = render("fundus", seed, 256, {**MACULAR, "exudates": 6.0, "uneven": 0.0, "haze": 0.0})
        green, masks = eye.image[..., 1].astype(float), eye.masks
        plain = masks["fov"] - (masks["vessels"] | masks["disc"] | masks["exudates"])
        retina = green[plain == 1].mean()
        assert green[masks["vessels"] > masks["disc"]].mean() < 0.92 * retina
        assert green[masks["disc"] == 1].mean() > 1.15 * retina
        assert green[masks["exudates"] == 1].mean() > 1.3 * retina
        bare = masks["vessels"] == 0
        assert green[bare & (masks["cup"] == 1)].mean() > green[bare & (masks["disc"] - masks["cup"] == 1)].mean()


@pytest.mark.parametrize(("target", "least"), [("vessels", 0.55), ("disc", 0.9), ("cup", 0.85), ("fov", 0.97)])
def test_every_size_shows_the_same_eye(target: str, least: float) -> None:
    for seed in SEEDS:
        small, large = (render("fundus", seed, size, DISC).masks[target] for size in (128, 384))
        assert overlap(small, (large.reshape(128, 3, 128, 3).mean(axis=(1, 3)) >= 0.5).astype(np.uint8)) > least


def test_the_same_eye_under_another_camera() -> None:
    for seed in SEEDS:
        plain, other = render("fundus", seed, 128, DISC), render("fundus", seed, 128, {**DISC, "red": 0.8, "haze": 0.3})
        assert np.array_equal(plain.masks["vessels"], other.masks["vessels"])
        assert plain.facts == other.facts
        assert np.abs(plain.image.astype(int) - other.image).mean() > 3


@pytest.mark.parametrize(
    ("setting", "low", "high"),
    [("cup", 0.3, 0.7), ("exudates", 0.0, 6.0), ("calibre", 1.0, 1.5), ("height", 1.0, 0.75), ("fov", 50.0, 30.0)],
)
def test_settings_do_what_they_say(setting: str, low: float, high: float) -> None:
    target = {"cup": "cup", "exudates": "exudates", "calibre": "vessels", "height": "fov", "fov": "disc"}[setting]
    for seed in SEEDS:
        less, more = (render("fundus", seed, 128, {"centre": 0.8, setting: value}) for value in (low, high))
        assert more.masks[target].sum() > 1.05 * less.masks[target].sum()


@pytest.mark.parametrize(
    ("camera", "seed", "light", "areas"),
    [
        (MACULAR, 0, (125.67, 58.68, 30.39, -1.34, -2.92), (1060, 144, 52, 61, 7096)),
        (MACULAR, 5, (125.90, 57.84, 30.07, -2.48, -4.12), (868, 142, 22, 23, 7096)),
        (DISC, 0, (126.83, 60.59, 31.94, -1.37, -2.97), (1060, 330, 141, 0, 7096)),
        (DISC, 5, (126.99, 59.62, 31.30, -2.34, -3.93), (954, 326, 55, 0, 7096)),
        (SICK, 0, (137.06, 73.25, 42.17, -1.15, -3.33), (1111, 184, 36, 83, 8007)),
        (SICK, 5, (136.20, 70.53, 40.37, -2.40, -4.55), (986, 187, 18, 23, 8007)),
    ],
)
def test_version_one_still_draws_the_same(camera: Any, seed: int, light: tuple[float, ...], areas: Any) -> None:
    """Colours, where the light lies and every mask's area, as version 1 drew them: another picture, another version."""
    eye = render("fundus", seed, 96, camera)
    grey, across = eye.image.mean(axis=2), np.linspace(-1, 1, 96)
    drawn = [*eye.image.mean(axis=(0, 1)), (grey * across).mean(), (grey * across[:, None]).mean()]
    assert phantoms.VERSIONS["fundus"] == 1
    assert drawn == pytest.approx(light, abs=0.02)
    assert [mask.sum() for mask in eye.masks.values()] == pytest.approx(areas, abs=2)


def disease(**counts: int) -> Lesions:
    """So many lesions of each kind, in the middle of the view."""
    kinds = ("exudates", "haemorrhages", "microaneurysms", "drusen", "cotton_wool")
    return Lesions(
        *(Blobs(np.zeros(counts.get(kind, 0), complex), *np.ones((2, counts.get(kind, 0)))) for kind in kinds)
    )


@pytest.mark.parametrize(
    ("lesions", "grade"),
    [
        ({}, 0),
        ({"drusen": 30}, 0),
        ({"microaneurysms": 1}, 1),
        ({"microaneurysms": 5}, 1),
        ({"microaneurysms": 6}, 2),
        ({"haemorrhages": 1}, 2),
        ({"exudates": 1}, 2),
        ({"cotton_wool": 1}, 2),
        ({"haemorrhages": 3, "cotton_wool": 1}, 3),
        ({"haemorrhages": 9}, 3),
        ({"haemorrhages": 10}, 4),
        ({"haemorrhages": 4, "cotton_wool": 2}, 4),
    ],
)
def test_grade_follows_the_lesions(lesions: dict[str, int], grade: int) -> None:
    frame = Frame(centre=0j, radius=20.0, height=1.0, turn=1 + 0j, mirror=1.0, size=64)
    assert retinopathy(disease(**lesions), frame) == grade
    for kind in ("exudates", "haemorrhages", "microaneurysms", "drusen", "cotton_wool"):
        assert retinopathy(disease(**{**lesions, kind: lesions.get(kind, 0) + 1}), frame) >= grade
    assert retinopathy(disease(**lesions), replace(frame, centre=30 + 0j)) == 0, "what is out of view does not count"


def test_phantoms_carry_their_grade() -> None:
    healthy = [render("fundus", seed, 32, {}).grade for seed in range(20)]
    mixed = [render("fundus", seed, 32, {"haemorrhages": (0.0, 14.0), "microaneurysms": 4.0}) for seed in range(60)]
    assert set(healthy) == {0}
    assert {eye.grade for eye in mixed} >= {2, 3, 4}
    assert all(eye.grade == eye.facts["grade"] for eye in mixed)
    assert render("fundus", 3, 32, SICK).grade == render("fundus", 3, 200, SICK).grade


def test_an_angiogram_shows_the_same_eye_in_dye() -> None:
    for seed in SEEDS:
        eye = render("fundus", seed, 256, {"fov": 46.0, "centre": 0.4})
        pair, masks = eye.pair, eye.masks
        assert pair is not None and pair is eye.pair, "drawn once"
        assert pair.shape == eye.image.shape
        assert pair.dtype == np.uint8
        assert np.array_equal(pair[..., 0], pair[..., 1]) and np.array_equal(pair[..., 0], pair[..., 2])
        grey = pair[..., 0].astype(float)
        retina = grey[(masks["fov"] > masks["vessels"]) & (masks["disc"] == 0)].mean()
        assert grey[masks["vessels"] == 1].mean() > 1.5 * retina
        assert grey[(masks["disc"] > masks["cup"]) & (masks["vessels"] == 0)].mean() > 1.15 * retina
        assert grey[cv2.dilate(masks["fov"], np.ones((5, 5), np.uint8)) == 0].max() == 0
        row, column = pixel(eye.facts["fovea"], 256)
        assert grey[row - 3 : row + 4, column - 3 : column + 4].mean() < 0.6 * retina


def test_lesions_in_dye() -> None:
    """A microaneurysm fills with dye, blood hides it."""
    for seed in SEEDS:
        bare, dots, blood = (
            render("fundus", seed, 256, {"noise": 0.0, **lesions})
            for lesions in ({}, {"microaneurysms": 60.0}, {"haemorrhages": 60.0})
        )
        plain = (bare.masks["fov"] == 1) & (bare.masks["vessels"] == 0) & (bare.masks["disc"] == 0)
        low, high = np.percentile(bare.pair[plain][:, 0], [2, 99])  # type: ignore[index]
        assert (dots.pair[plain][:, 0] > high + 20).mean() > (bare.pair[plain][:, 0] > high + 20).mean() + 0.002  # type: ignore[index]
        assert (blood.pair[plain][:, 0] < low - 5).mean() > (bare.pair[plain][:, 0] < low - 5).mean() + 0.002  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(FUNDUS))
def test_declared_phantoms_hold_their_target(name: str) -> None:
    about: Any = FUNDUS[name]
    shares = np.array(
        [render("fundus", seed, 128, about["camera"]).masks[about["target"]].mean() for seed in range(30)]
    )
    low, high = {"vessels": (0.05, 0.16), "disc": (0.008, 0.06), "cup": (0.003, 0.04), "exudates": (0.0, 0.05)}[
        about["target"]
    ]
    assert shares.min() >= low
    assert shares.max() <= high
    assert (shares > 0).mean() > 0.9
    assert about["target"] != "vessels" or 0.06 <= shares.mean() <= 0.14
    assert about["target"] != "exudates" or 0.002 <= shares.mean() <= 0.04


def test_datasets_look_different() -> None:
    """Each camera's own colour stands out from the others' over the same eyes."""
    colours = {}
    for name, about in FUNDUS.items():
        images = [render("fundus", seed, 64, about["camera"]).image.reshape(-1, 3).mean(axis=0) for seed in range(12)]
        colours[about.get("dataset", name)] = np.mean(images, axis=0)
    names = sorted(colours)
    gaps = [np.abs(colours[a] - colours[b]).max() for i, a in enumerate(names) for b in names[:i]]
    assert len(names) >= 6
    assert min(gaps) > 4


@pytest.mark.parametrize(
    ("modality", "seed", "size", "camera", "message"),
    [
        ("fundas", 0, 64, {}, "there are phantoms of: chest, fundus"),
        ("fundus", 0, 16, {}, "32 or more"),
        ("fundus", -1, 64, {}, "0 or more"),
        ("fundus", 0, 64, {"exudate": 1.0}, "did you mean 'exudates'"),
        ("fundus", 0, 64, {"fov": (50.0, 40.0)}, "number or (low, high)"),
        ("fundus", 0, 64, {"fov": "wide"}, "number or (low, high)"),
        ("fundus", 0, 64, {"fov": (30.0,)}, "number or (low, high)"),
    ],
)
def test_bad_requests_say_what_to_do(modality: str, seed: int, size: int, camera: Any, message: str) -> None:
    with pytest.raises(BenchError) as caught:
        render(modality, seed, size, camera)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_versions_name_the_renderers() -> None:
    for modality, version in phantoms.VERSIONS.items():
        assert import_module(f"bench.data.phantoms.{modality}").VERSION == version >= 1
