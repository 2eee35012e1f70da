"""The pair of a fundus phantom: a fluorescein angiogram of the same eye in the same view.

What holds dye is bright: vessels, microaneurysms, the capillaries, in late frames the disc's rim and leaking spots.
What hides or lacks it is dark: haemorrhages, cotton wool spots without perfusion, the fovea, whose pigment absorbs the
exciting blue light.
"""

from __future__ import annotations

import cv2
import numpy as np

from bench.data.phantoms.drawing import (
    BACKGROUND,
    SUBPIXEL_BITS,
    Bytes,
    Pixels,
    blank,
    clouds,
    coverage,
    grain,
    soften,
    to_size,
)
from bench.data.phantoms.fundus.eye import Anatomy, Blobs, Camera, Lesions
from bench.data.phantoms.fundus.paint import Frame, blob_outlines

STREAM = 8  # of the seed's random numbers; the photograph uses the lower ones


def develop(
    seed: int,
    anatomy: Anatomy,
    disease: Lesions,
    frame: Frame,
    lens: Camera,
    painted: tuple[Pixels, Pixels, Pixels],
) -> Bytes:
    """(S, S, 3) of three equal channels, from the photograph's field, disc and vessels as painted."""
    field, head, blood = painted
    rng, size = np.random.default_rng([seed, STREAM]), frame.size
    late = np.float32(rng.random())  # 0: the veins have just filled; 1: the dye leaves the vessels
    image = to_size(_flush(anatomy, frame, lens, late, rng), size)
    image = _add_disc(image, head, late, size)
    image = _add_lesions(image, disease, frame, late, rng)
    depth = np.minimum(blood[..., 1] * (0.92 + 0.08 * late) + blood[..., 2] * (1.0 - 0.2 * late), 1.0)
    tone = np.float32(0.92) - np.float32(0.22) * late
    core = depth + 0.25 * soften(depth, 0.004 * size)
    image = image + np.clip(1.15 * core, 0.0, 1.0) * (tone - image)
    image = _develop(image, lens, rng, size) * field
    grey = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _flush(anatomy: Anatomy, frame: Frame, lens: Camera, late: np.float32, rng: np.random.Generator) -> Pixels:
    """(128, 128) the glow of choroid and capillaries, with the dark fovea."""
    place = frame.degrees(BACKGROUND)
    away = np.abs(place - anatomy.fovea).astype(np.float32)
    depth, radius = (np.float32(value) for value in anatomy.macula)
    mottle = 0.10 * clouds(rng, 6) + 0.07 * clouds(rng, 20) + 0.05 * clouds(rng, 64)
    base = (0.24 + 0.08 * late) * (1.0 + lens.texture * mottle)
    pigment = (0.55 + 0.6 * depth) * np.exp(-((away / (0.75 * radius)) ** 2))
    free = 0.5 * np.exp(-((away / 1.1) ** 4))  # no capillary in the middle
    rim = 0.05 * np.exp(-(((away - 1.9) / 0.7) ** 2))
    edge = 1.0 - 0.55 * lens.vignette * (np.abs(place - frame.centre).astype(np.float32) / frame.radius) ** 3
    glow: Pixels = np.maximum((base + rim) * (1.0 - pigment) * (1.0 - free) * edge, 0.02)
    return glow


def _add_disc(image: Pixels, head: Pixels, late: np.float32, size: int) -> Pixels:
    """The rim stains in late frames, the cup stays darker, atrophy beside the disc shines."""
    soft = soften(head, 0.006 * size)
    rim, cup, crescent = soft[..., 0], soft[..., 1], soft[..., 2]
    image = image + 0.35 * crescent * (np.float32(0.5) - image)
    image = image + 0.8 * rim * ((0.36 + 0.30 * late) - image)
    return image - 0.5 * cup * (image - (0.20 + 0.16 * late))


def _add_lesions(image: Pixels, disease: Lesions, frame: Frame, late: np.float32, rng: np.random.Generator) -> Pixels:
    """Blood and swollen fibres block the light, exudates a little; microaneurysms shine and leak."""
    size = frame.size
    blocked = _paint(disease.haemorrhages, rng, frame)
    silent = soften(_paint(disease.cotton_wool, rng, frame), 0.008 * size)
    waxy = _paint(disease.exudates, rng, frame)
    stained = soften(_paint(disease.drusen, rng, frame), 0.004 * size)
    dots = _paint(disease.microaneurysms, rng, frame)
    image = image * (1.0 - 0.75 * blocked) * (1.0 - 0.55 * silent) * (1.0 - 0.25 * waxy)
    image = image + stained * (0.2 + 0.25 * late)
    leak = soften(dots, 0.007 * size)
    image = image + np.minimum(3.0 * late * leak, 0.5) * (0.8 - image)
    return image + np.minimum(1.3 * dots, 1.0) * (0.95 - image)


def _paint(blobs: Blobs, rng: np.random.Generator, frame: Frame) -> Pixels:
    """(S, S) coverage of lesions of one kind."""
    canvas = blank(frame.size, 1)
    for corners, strength in blob_outlines(blobs, 0.18, 0.6, rng, frame):
        cv2.fillConvexPoly(canvas, corners, (int(255 * strength),), lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)
    return coverage(canvas, frame.size)


def _develop(image: Pixels, lens: Camera, rng: np.random.Generator, size: int) -> Pixels:
    """Optics, an uneven flash and the film's grain."""
    light = 1.0 + lens.uneven * 0.5 * clouds(rng, 3) - 0.3 * lens.haze
    image = soften(image, 0.8 * lens.blur * size) * np.maximum(to_size(light, size), 0.3)
    image = image + lens.haze * 0.12
    return image + (0.010 + 0.8 * lens.noise) * grain(rng, size, 256) * (0.4 + image)
