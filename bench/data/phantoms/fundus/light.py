"""The colour photograph: what retina, vessels and lesions reflect, and what optics and sensor make of it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from bench.data.phantoms.drawing import BACKGROUND, Bytes, Pixels, Points, clouds, grain, soften, to_size
from bench.data.phantoms.fundus.eye import Anatomy, Camera, Vessel
from bench.data.phantoms.fundus.paint import Frame


def background(
    anatomy: Anatomy, vessels: Sequence[Vessel], frame: Frame, lens: Camera, rng: np.random.Generator
) -> Pixels:
    """(S, S, 3) reflectance of the retina without disc, vessels and lesions."""
    place = frame.degrees(BACKGROUND)
    from_fovea = np.abs(place - anatomy.fovea).astype(np.float32)
    from_disc = np.abs(place).astype(np.float32)
    mottle, tessellation, fine = (np.float32(depth) for depth in anatomy.depths)
    outside = 1.0 - np.exp(-((from_fovea / 9.0) ** 2))
    tone = 1.0 + mottle * (clouds(rng, 5) + 0.6 * clouds(rng, 11)) + fine * clouds(rng, 64)
    choroid = tessellation * outside * (_choroid(place - anatomy.fovea, rng) - 0.3)
    depth, radius = (np.float32(value) for value in anatomy.macula)
    shade = depth * np.exp(-((from_fovea / radius) ** 2)) + 0.15 * np.exp(-((from_fovea / 1.3) ** 2))
    glow = 0.10 * np.exp(-((from_disc / 7.0) ** 2))
    silk = np.float32(0.16 * lens.nerve_fibre) * _nerve_fibres(vessels, frame, rng)
    base = anatomy.pigment.astype(np.float32)
    layers = [
        base[0] * (tone + 0.5 * choroid) * (1.0 - 0.45 * shade) + 0.5 * glow + 0.7 * silk,
        base[1] * (tone + 1.0 * choroid) * (1.0 - 0.95 * shade) + 0.8 * glow + silk,
        base[2] * (tone + 0.7 * choroid) * (1.0 - 0.8 * shade) + 0.4 * glow + 0.9 * silk,
    ]
    return to_size(np.dstack(layers).astype(np.float32), frame.size)


def _choroid(place: Points, rng: np.random.Generator) -> Pixels:
    """(128, 128) bright streaks between choroidal vessels, running away from the macula, in [0, 1]."""
    nodes = rng.standard_normal((2, 16, 80), dtype=np.float32)
    wobble = 0.16 * clouds(rng, 9)
    turn = ((np.angle(place) / (2 * np.pi) + 0.5) * 80).astype(np.float32)
    depth = (np.log1p(np.abs(place) / 4.0) * 2.4).astype(np.float32)
    streaks = [
        cv2.remap(layer, turn + bend * 8.0, depth + bend * 2.0, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        for layer, bend in zip(nodes, (wobble, -wobble), strict=True)
    ]
    return np.minimum(np.abs(streaks[0] + 0.6 * streaks[1]), 1.0)


def _nerve_fibres(vessels: Sequence[Vessel], frame: Frame, rng: np.random.Generator) -> Pixels:
    """(128, 128) silky light patches beside the trunks."""
    canvas = np.zeros((BACKGROUND, BACKGROUND), dtype=np.uint8)
    for vessel in vessels[:8]:
        beside = vessel.line[6:40] + rng.uniform(0.5, 1.6) * (1j if vessel.vein else -1j)
        corners = np.rint(frame.shares(beside) * BACKGROUND * 16).astype(np.int32)
        cv2.polylines(canvas, [corners], False, (255,), thickness=2, lineType=cv2.LINE_AA, shift=4)
    patches = np.maximum(clouds(rng, 14), 0.0)
    return soften(canvas.astype(np.float32) / 255, 1.2) * patches


def add_disc(image: Pixels, head: Pixels, size: int) -> Pixels:
    """Rim and cup brighten the retina; their borders are softer than the masks'."""
    soft = soften(head, 0.005 * size)
    rim, cup, crescent = soft[..., 0:1], soften(head[..., 1], 0.009 * size)[..., None], soft[..., 2:3]
    image = image + 0.3 * crescent * (np.array([0.84, 0.58, 0.36], dtype=np.float32) - image)
    image = image + 0.85 * rim * (np.array([0.98, 0.61, 0.33], dtype=np.float32) - image)
    return image + 0.82 * cup * (np.array([1.04, 0.96, 0.70], dtype=np.float32) - image)


def add_lesions(image: Pixels, lesions: Pixels, size: int) -> Pixels:
    if not lesions.any():
        return image
    pale = 0.75 * soften(lesions[..., 2], 0.008 * size)[..., None]
    dark = soften(lesions[..., 1], 0.002 * size)[..., None]
    hard = 0.9 * soften(lesions[..., 0], 0.0012 * size)[..., None]
    image = image + pale * (np.array([0.96, 0.80, 0.52], dtype=np.float32) - image)
    image = image * (1.0 - dark * np.array([0.42, 0.72, 0.62], dtype=np.float32))
    return image + hard * (np.array([1.0, 0.88, 0.42], dtype=np.float32) - image)


def add_vessels(image: Pixels, tree: Pixels, reflex: Pixels, lens: Camera, size: int) -> Pixels:
    """Blood absorbs green most; veins are darker; arteries carry a light streak."""
    profile = 0.78 * tree + 0.22 * soften(tree, 0.004 * size)
    vein, artery = profile[..., 1:2] * lens.vessel, profile[..., 2:3] * lens.vessel
    image = image * (1.0 - np.minimum(vein, 1.1) * np.array([0.36, 0.62, 0.52], dtype=np.float32))
    image = image * (1.0 - np.minimum(artery, 1.1) * np.array([0.20, 0.50, 0.42], dtype=np.float32))
    streak = (0.55 * lens.central_reflex * reflex)[..., None]
    return image + streak * np.array([0.22, 0.20, 0.12], dtype=np.float32)


def photograph(image: Pixels, field: Pixels, lens: Camera, rng: np.random.Generator, size: int) -> Bytes:
    """Illumination, haze, optics, sensor."""
    image = image * to_size(_illumination(lens, rng), size)[..., None]
    if lens.haze > 0.0:
        veil = to_size(np.clip(lens.haze * (1.0 + 0.35 * clouds(rng, 4)), 0.0, 0.95), size)[..., None]
        image = image + veil * (np.array([0.80, 0.62, 0.44], dtype=np.float32) * image.mean() / 0.45 - image)
    image = soften(image, lens.blur * size)
    image = _tone(image, lens)
    speckle = np.stack([grain(rng, size, 256), grain(rng, size, 128), grain(rng, size, 128)], axis=-1)
    mixing = np.array([[1.0, 1.0, 1.0], [0.5, 0.0, -0.5], [0.25, -0.25, 0.25]], dtype=np.float32)
    image = image + lens.noise * (speckle @ mixing)
    for x, y, radius, depth in rng.random((rng.poisson(lens.dust), 4)):
        image = _speck(image, x, y, 0.004 + 0.014 * radius, 0.05 + 0.14 * depth)
    dark = np.float32(0.014) + np.float32(0.006) * speckle[..., :1]
    seen = field[..., None]
    photograph: Bytes = np.rint(np.clip(image * seen + dark * (1.0 - seen), 0.0, 1.0) * 255).astype(np.uint8)
    return photograph


def _illumination(lens: Camera, rng: np.random.Generator) -> Pixels:
    """(128, 128) light over the field: falls off to the edge, brighter on one side, blotchy."""
    share = np.linspace(-1.0, 1.0, BACKGROUND, dtype=np.float32)
    x, y = share[None, :], share[:, None]
    angle, shift = rng.uniform(0.0, 2 * np.pi), rng.uniform(-0.25, 0.25, 2)
    falloff = np.hypot(x - shift[0], y - shift[1]) ** 3
    slope = x * np.cos(angle) + y * np.sin(angle)
    light = 1.0 - lens.vignette * falloff + lens.uneven * (0.8 * slope + 0.35 * clouds(rng, 3))
    lit: Pixels = np.maximum(lens.exposure * light, 0.12).astype(np.float32)
    return lit


def _tone(image: Pixels, lens: Camera) -> Pixels:
    """White balance, saturation, contrast around the mean, soft shoulder at the bright end."""
    image = image * np.array([lens.red, lens.green, lens.blue], dtype=np.float32)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + lens.saturation * (image - grey)
    level = image.mean(axis=(0, 1))
    image = np.maximum(level + lens.contrast * (image - level), 0.0)
    return np.where(image > 0.8, 0.8 + 0.2 * np.tanh((image - 0.8) / 0.2), image)


def _speck(image: Pixels, x: float, y: float, radius: float, depth: float) -> Pixels:
    """A dust grain out of focus: a faint dark round patch."""
    share = (np.arange(len(image), dtype=np.float32) + 0.5) / len(image)
    away = np.hypot(share[None, :] - x, share[:, None] - y)
    patch = np.clip((radius - away) / (0.5 * radius) + 0.5, 0.0, 1.0)
    return image * (1.0 - depth * patch[..., None])
