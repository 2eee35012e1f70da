"""Chest phantoms are chests: deterministic, with exact masks, and anatomy where it belongs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import cv2
import numpy as np
import pytest

from bench.data.phantoms import Phantom, render
from bench.registry import scan
from bench.spec import BenchError

SEEDS = range(12)
WARD = {"portable": 1.0, "devices": 2.0, "opacities": 1.0, "collimation": 0.5}
AIR = {"pneumothorax": 1.0}
TARGETS = {"heart", "lungs", "lungs_full", "clavicles", "pneumothorax"}
CHEST = {name: spec.phantom for name, spec in scan().tasks.items() if spec.phantom.get("modality") == "chest"}
SHARES = {
    "heart": (0.04, 0.16),
    "lungs": (0.15, 0.42),
    "lungs_full": (0.18, 0.52),
    "clavicles": (0.008, 0.035),
    "pneumothorax": (0.002, 0.2),
}
"""Lowest and highest share of a film that a target fills, whatever the field."""


@pytest.fixture(scope="module")
def chests() -> list[Phantom]:
    return [render("chest", seed, 128, AIR) for seed in SEEDS]


@pytest.fixture(scope="module")
def large() -> list[Phantom]:
    """The same patients, three times as large."""
    return [render("chest", seed, 384, AIR) for seed in SEEDS]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Mean row and column as shares of the image side."""
    rows, columns = np.nonzero(mask)
    return float(rows.mean() / len(mask)), float(columns.mean() / len(mask))


@pytest.mark.parametrize("size", [32, 96, 200])
@pytest.mark.parametrize("camera", [{}, AIR, WARD])
def test_shapes_and_values(size: int, camera: Any) -> None:
    chest = render("chest", 1, size, camera)
    assert chest.image.shape == (size, size, 1)
    assert chest.image.dtype == np.uint8
    assert set(chest.masks) == TARGETS
    for name, mask in chest.masks.items():
        assert mask.shape == (size, size)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert mask.any() == (name != "pneumothorax" or camera is AIR)
    assert chest.grade is None and chest.pair is None
    json.dumps(chest.facts, allow_nan=False)


def test_the_same_seed_is_the_same_film(chests: list[Phantom]) -> None:
    for seed, chest in zip(SEEDS, chests, strict=True):
        again = render("chest", seed, 128, json.loads(json.dumps(AIR)))
        assert np.array_equal(again.image, chest.image)
        assert again.facts == chest.facts
        for name, mask in chest.masks.items():
            assert np.array_equal(again.masks[name], mask)


def test_another_seed_is_another_patient(chests: list[Phantom]) -> None:
    pairs = list(itertools.pairwise(chests))
    assert np.mean([overlap(one.masks["lungs"], other.masks["lungs"]) for one, other in pairs]) < 0.85
    assert np.mean([overlap(one.masks["clavicles"], other.masks["clavicles"]) for one, other in pairs]) < 0.5
    for one, other in pairs:
        assert np.abs(one.image.astype(int) - other.image).mean() > 5


@pytest.mark.parametrize(
    ("target", "least"),
    [("heart", 0.97), ("lungs", 0.97), ("lungs_full", 0.97), ("clavicles", 0.9), ("pneumothorax", 0.85)],
)
def test_every_size_shows_the_same_chest(
    chests: list[Phantom], large: list[Phantom], target: str, least: float
) -> None:
    for small, chest in zip(chests, large, strict=True):
        shrunk = chest.masks[target].reshape(128, 3, 128, 3).mean(axis=(1, 3)) >= 0.5
        assert overlap(small.masks[target], shrunk.astype(np.uint8)) > least


def test_every_size_shows_the_same_film(chests: list[Phantom], large: list[Phantom]) -> None:
    for small, chest in zip(chests, large, strict=True):
        shrunk = cv2.resize(chest.image[..., 0], (128, 128), interpolation=cv2.INTER_AREA)
        assert np.abs(small.image[..., 0].astype(float) - shrunk).mean() < 3.0


def test_the_same_patient_under_another_camera(chests: list[Phantom]) -> None:
    for seed, chest in zip(SEEDS, chests, strict=True):
        other = render("chest", seed, 128, {**AIR, "contrast": 1.4, "noise": 0.03, "devices": 2.0, "nodules": 2.0})
        for name, mask in chest.masks.items():
            assert np.array_equal(mask, other.masks[name]), name
        assert np.abs(chest.image.astype(int) - other.image).mean() > 3


def test_masks_keep_to_their_definitions(chests: list[Phantom]) -> None:
    for chest in [*chests, *(render("chest", seed, 128, {**WARD, **AIR}) for seed in SEEDS)]:
        masks = chest.masks
        assert not (masks["lungs"] & masks["heart"]).any()
        assert not (masks["lungs"] & ~masks["lungs_full"] & 1).any()
        assert not (masks["pneumothorax"] & ~masks["lungs"] & 1).any()
        behind = masks["lungs_full"] & masks["heart"]
        assert behind.sum() > 0.3 * masks["heart"].sum(), "lungs_full runs through the heart"
        for name, pieces in (("heart", 1), ("lungs", 2), ("lungs_full", 2), ("clavicles", 2)):
            assert cv2.connectedComponents(masks[name], connectivity=8)[0] - 1 == pieces, name


def test_the_chest_is_the_right_way_round(chests: list[Phantom]) -> None:
    """The patient's right is the image's left: heart to the image's right, right lung larger, right dome higher."""
    hearts, lungs, domes = [], [], []
    for chest in chests:
        masks, middle = chest.masks, round(128 * sum(x for x, _ in chest.facts["domes"]) / 2)
        hearts.append(masks["heart"][:, middle:].sum() / masks["heart"].sum())
        lungs.append(masks["lungs"][:, :middle].sum() / masks["lungs"].sum())
        (right, high), (left, low) = chest.facts["domes"]
        assert right < 0.5 < left
        domes.append(high < low)
    assert 0.58 < np.mean(hearts) < 0.78
    assert min(hearts) > 0.5
    assert np.mean(lungs) > 0.52
    assert np.mean(domes) > 0.85


def test_everything_is_at_its_height(chests: list[Phantom]) -> None:
    for chest in chests:
        masks = chest.masks
        lungs, heart = centre(masks["lungs_full"]), centre(masks["heart"])
        assert np.nonzero(masks["clavicles"])[0].max() < lungs[0] * 128, "clavicles above the middle of the lungs"
        assert heart[0] > lungs[0]
        top, bottom = np.nonzero(masks["lungs"].any(axis=1))[0][[0, -1]]
        assert top < np.nonzero(masks["clavicles"])[0].max(), "the apices reach above the clavicles"
        assert bottom - top > 0.5 * 128
        for _, y in chest.facts["domes"]:
            assert heart[0] < y < bottom / 128
        width = {name: np.ptp(np.nonzero(masks[name])[1]) for name in ("heart", "lungs_full")}
        assert width["heart"] / width["lungs_full"] == pytest.approx(chest.facts["cardiothoracic"], abs=0.03)


def test_air_is_dark_bone_and_heart_are_bright() -> None:
    for seed in SEEDS:
        chest = render("chest", seed, 256, {"uneven": 0.0, "marker": 0.0})
        grey, masks = chest.image[..., 0].astype(float), chest.masks
        lung = grey[masks["lungs"] == 1].mean()
        assert grey[masks["heart"] == 1].mean() > lung + 50
        over = masks["clavicles"] & masks["lungs"]
        beside = cv2.dilate(over, np.ones((9, 9), np.uint8)) & masks["lungs"] & ~masks["clavicles"] & 1
        assert grey[over == 1].mean() > grey[beside == 1].mean() + 8
        below = int(max(y for _, y in chest.facts["domes"]) * 256) + 12
        assert grey[below : below + 8, 100:156].mean() > lung + 60, "liver and spine under the domes"


def test_a_pneumothorax_is_dark_bare_and_outermost() -> None:
    sides = set()
    for seed in SEEDS:
        quiet = {"noise": 0.0, "marker": 0.0}
        chest, healthy = (render("chest", seed, 256, {**quiet, **camera}) for camera in (AIR, {}))
        air = chest.masks["pneumothorax"]
        assert np.array_equal(chest.masks["lungs"], healthy.masks["lungs"])
        assert not healthy.masks["pneumothorax"].any() and healthy.facts["pneumothorax"] == ""
        assert chest.image[air == 1].mean() < healthy.image[air == 1].mean()
        assert (centre(air)[1] < 0.5) == (chest.facts["pneumothorax"] == "right")
        sides.add(chest.facts["pneumothorax"])
        deep = cv2.distanceTransform(chest.masks["lungs_full"], cv2.DIST_L2, 5)
        lung = chest.masks["lungs"] & ~air & 1
        same = lung & (np.arange(256) < 128 if chest.facts["pneumothorax"] == "right" else np.arange(256) >= 128)
        assert np.percentile(deep[air == 1], 25) < np.percentile(deep[same == 1], 50), "it lies along the chest wall"
        inner = cv2.erode(air, np.ones((7, 7), np.uint8)) == 1
        if inner.sum() > 50:
            fine = [
                np.abs(cv2.Laplacian(film.image.astype(np.float32), cv2.CV_32F))[inner].mean()
                for film in (chest, healthy)
            ]
            assert fine[0] < fine[1], "no lung markings in it"
    assert sides == {"left", "right"}


def test_a_pneumothorax_comes_in_many_sizes() -> None:
    films = [render("chest", seed, 96, AIR).masks for seed in range(30)]
    shares = [film["pneumothorax"].sum() / film["lungs"].sum() for film in films]
    assert min(shares) > 0.01
    assert min(shares) < 0.08 < 0.3 < max(shares) < 0.6


@pytest.mark.parametrize(
    ("setting", "low", "high", "target", "grows"),
    [
        ("field", 42.0, 34.0, "lungs", 1.2),
        ("height", 1.0, 0.8, "lungs", 1.1),
        ("heart", 0.9, 1.3, "heart", 1.2),
        ("inspiration", -2.0, 1.0, "lungs_full", 1.08),
    ],
)
def test_settings_do_what_they_say(setting: str, low: float, high: float, target: str, grows: float) -> None:
    less, more = (
        np.mean([render("chest", seed, 96, {setting: value}).masks[target].mean() for seed in SEEDS])
        for value in (low, high)
    )
    assert more > grows * less


def test_a_film_taken_in_bed_shows_a_large_heart_and_short_lungs() -> None:
    upright, bed = ([render("chest", seed, 64, {"portable": chance}) for seed in SEEDS] for chance in (0.0, 1.0))
    for one, other in zip(upright, bed, strict=True):
        assert (one.facts["portable"], other.facts["portable"]) == (False, True)
        assert other.facts["cardiothoracic"] > one.facts["cardiothoracic"] + 0.03
        assert other.masks["lungs_full"].sum() < one.masks["lungs_full"].sum()
    assert 0.38 < np.mean([one.facts["cardiothoracic"] for one in upright]) < 0.48


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("exposure", 1.3),
        ("contrast", 1.4),
        ("enhance", 0.6),
        ("scatter", 0.4),
        ("blur", 0.005),
        ("noise", 0.05),
        ("uneven", 0.2),
        ("bones", 1.8),
        ("markings", 2.0),
        ("breasts", 1.0),
        ("build", 1.6),
        ("nodules", 6.0),
        ("opacities", 3.0),
        ("devices", 5.0),
        ("collimation", 1.0),
        ("marker", 1.0),
    ],
)
def test_every_setting_shows(setting: str, value: float) -> None:
    plain = {"marker": 0.0, "breasts": 0.0}
    changes = [
        np.abs(
            render("chest", seed, 96, {**plain, setting: value}).image.astype(int)
            - render("chest", seed, 96, plain).image
        ).max()
        for seed in range(3)
    ]
    assert max(changes) > 8


@pytest.mark.parametrize("name", sorted(CHEST))
def test_declared_phantoms_hold_their_target(name: str) -> None:
    about: Any = CHEST[name]
    shares = np.array([render("chest", seed, 96, about["camera"]).masks[about["target"]].mean() for seed in range(20)])
    low, high = SHARES[about["target"]]
    assert shares.min() >= low
    assert shares.max() <= high


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (
            {"pneumothoraces": 1.0},
            "chest phantoms have no camera setting 'pneumothoraces'; did you mean 'pneumothorax'",
        ),
        ({"field": (40.0, 30.0)}, "number or (low, high)"),
        ({"noise": "much"}, "number or (low, high)"),
    ],
)
def test_bad_requests_say_what_to_do(camera: Any, message: str) -> None:
    with pytest.raises(BenchError) as caught:
        render("chest", 0, 64, camera)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
