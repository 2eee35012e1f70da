"""The radiograph: what every part takes from the beam, and what film or detector make of the rest."""

from __future__ import annotations

import cv2
import numpy as np

from bench.data.phantoms.chest.anatomy import Anatomy, Camera
from bench.data.phantoms.chest.findings import Discs, Findings
from bench.data.phantoms.chest.paint import Frame, Layers, cage, depth_below
from bench.data.phantoms.drawing import (
    BACKGROUND,
    Bytes,
    Pixels,
    Points,
    blank,
    clouds,
    coverage,
    grain,
    soften,
    to_size,
)


def expose(
    anatomy: Anatomy, findings: Findings, part: Layers, frame: Frame, lens: Camera, rng: np.random.Generator
) -> Pixels:
    """(S, S) weakening of the beam; 0 in free air, about 1 behind spine and liver."""
    size, cm = frame.size, 1.0 / frame.pixel
    inside = depth_below(cage(anatomy), frame)
    thorax = to_size(0.35 + 0.65 * _rise(inside, 7.0), size)  # thickness of the lungs, from the chest wall inwards
    bulk = to_size(_ramp(inside, 9.0), size)
    heart = part.heart * to_size(_rise(depth_below(anatomy.heart, frame), 4.0), size)
    great = part.great * to_size(_rise(depth_below(anatomy.mediastinum[0], frame), 2.6), size)
    flesh = part.body * to_size(_rise(_deepest(anatomy.body, frame), 6.0), size)
    covered = np.maximum(np.maximum(part.heart, part.great), part.shade)
    behind = _behind(part, heart, great, size)
    lung = (part.halves * (1.0 - covered) + behind * covered) * thorax
    below = part.abdomen * (1.0 - 0.4 * heart)
    weakening = (
        0.50 * flesh
        + 0.13 * bulk
        + 0.10 * below
        + 0.05 * great
        + 0.05 * heart
        + 0.03 * part.shade * (1.0 - part.abdomen)
    )
    weakening = weakening - 0.44 * lung + to_size(0.012 * clouds(rng, 24), size) * part.body
    weakening = weakening + _lung_texture(anatomy, findings, part, lung, frame, lens, rng)
    weakening = weakening - 0.07 * soften(part.airway, 0.06 * cm) - 0.08 * soften(part.gas, 0.2 * cm) * below
    weakening = weakening + lens.bones * _bones(part, covered, cm)
    weakening = weakening + 0.12 * soften(part.breasts, 0.25 * cm) * part.body
    return weakening + 0.22 * part.devices


def _behind(part: Layers, heart: Pixels, great: Pixels, size: int) -> Pixels:
    """The lung that shines through heart and great vessels, fading towards the spine and the diaphragm."""
    small = cv2.resize(part.halves, (BACKGROUND, BACKGROUND), interpolation=cv2.INTER_AREA)
    seen = to_size(soften(small, 0.028 * BACKGROUND), size)
    return np.clip(2.0 * seen - 0.9, 0.0, 1.0) * np.clip(0.42 - 0.16 * heart - 0.3 * great, 0.0, 1.0) * part.halves


def _rise(depth: Pixels, full: float) -> Pixels:
    """The thickness of a round body as share of its greatest, at `depth` cm from its edge; `full` cm in it is 1."""
    share = np.clip(depth / full, 0.0, 1.0)
    rise: Pixels = np.sqrt(np.maximum(1.0 - (1.0 - share) ** 2, 0.0)).astype(np.float32)
    return cv2.GaussianBlur(rise, (0, 0), 0.8)


def _ramp(depth: Pixels, full: float) -> Pixels:
    """0 at the edge, 1 from `full` cm inwards, level at both ends."""
    share = np.clip(depth / full, 0.0, 1.0)
    return (share * share * (3.0 - 2.0 * share)).astype(np.float32)


def _deepest(outlines: tuple[Points, ...], frame: Frame) -> Pixels:
    """(128, 128) distance in cm to the edge of whichever outline lies deepest."""
    return np.maximum.reduce([depth_below(outline, frame) for outline in outlines])


def _bones(part: Layers, covered: Pixels, cm: float) -> Pixels:
    """Ribs fade where heart or liver scatter most; `cm` in pixels."""
    cover = 1.0 - 0.6 * np.maximum(covered, part.abdomen)
    ribs = (0.052 * part.posterior + 0.034 * part.anterior + 0.045 * part.rims) * cover
    flat = 0.085 * soften(part.shoulders, 0.10 * cm) + 0.085 * soften(part.spine, 0.07 * cm)
    return ribs + 0.085 * part.clavicles + flat


def _lung_texture(
    anatomy: Anatomy,
    findings: Findings,
    part: Layers,
    lung: Pixels,
    frame: Frame,
    lens: Camera,
    rng: np.random.Generator,
) -> Pixels:
    """Vessels and fine structure, absent where the lung is; clouding, nodules, the pleural line."""
    size = frame.size
    fine = to_size(0.010 * clouds(rng, 40) + 0.008 * clouds(rng, 90), size)
    thick = np.minimum(lung * 1.6, 1.0)
    hila = to_size(_hila(anatomy, frame), size) * (1.0 - 0.6 * part.great)
    tissue = lens.markings * (0.19 * soften(part.vessels, 0.05 / frame.pixel) + 0.055 * hila + fine) * thick
    tissue = tissue + to_size(_clouding(findings.opacities, frame, rng), size) * thick
    tissue = tissue + 0.13 * soften(part.nodules, 0.08 / frame.pixel) * np.minimum(part.halves, 1.0)
    if findings.collapse is not None:
        shrunk = float(findings.collapse.gap.max())
        bare = np.maximum(2.0 * thick - 1.0, 0.0)  # not in front of the heart
        tissue = tissue * (1.0 - part.air) + (0.12 * part.pleura - 0.07 * part.air) * bare
        tissue = tissue + 0.10 * shrunk**2 * thick * (1.0 - part.air) * _side(findings, frame)
    return tissue


def _hila(anatomy: Anatomy, frame: Frame) -> Pixels:
    """(128, 128) the crowded roots of the lungs."""
    share = (np.arange(BACKGROUND, dtype=np.float32) + 0.5) / BACKGROUND
    spots = [
        np.exp(-(((share[None, :] - x) / 1.7) ** 2 + ((share[:, None] - y) * frame.height / 2.6) ** 2) * frame.field**2)
        for x, y in frame.shares(anatomy.hila).tolist()
    ]
    return (spots[0] + spots[1]).astype(np.float32)


def _side(findings: Findings, frame: Frame) -> Pixels:
    """1 over the half of the chest with the collapsed lung."""
    assert findings.collapse is not None
    depth = depth_below(findings.collapse.half.field, frame)
    return to_size((depth > 0.0).astype(np.float32), frame.size)


def _clouding(opacities: Discs, frame: Frame, rng: np.random.Generator) -> Pixels:
    """(128, 128) patchy densities."""
    patches = np.zeros((BACKGROUND, BACKGROUND), dtype=np.float32)
    if len(opacities.centre) == 0:
        return patches
    share = (np.arange(BACKGROUND, dtype=np.float32) + 0.5) / BACKGROUND
    texture = 0.75 + 0.35 * clouds(rng, 14) + 0.25 * clouds(rng, 36)
    spots = np.column_stack([frame.shares(opacities.centre), opacities.radius, opacities.strength])
    for x, y, radius, strength in spots.tolist():
        away = np.hypot(share[None, :] - x, share[:, None] - y) * frame.field / radius
        patches = np.maximum(patches, strength * np.exp(-(away**2)) * texture)
    return np.float32(0.30) * np.maximum(patches, 0.0)


def develop(weakening: Pixels, frame: Frame, lens: Camera, rng: np.random.Generator) -> Bytes:
    """(S, S, 1) the film: bright where little came through."""
    size = frame.size
    share = np.linspace(-1.0, 1.0, BACKGROUND, dtype=np.float32)
    angle = rng.uniform(0.0, 2 * np.pi)
    slope = share[None, :] * np.float32(np.cos(angle)) + share[:, None] * np.float32(np.sin(angle))
    image = weakening + lens.uneven * to_size(slope, size)
    wide = soften(cv2.resize(image, (BACKGROUND, BACKGROUND), interpolation=cv2.INTER_AREA), 0.06 * BACKGROUND)
    veil = to_size(wide, size)
    image = image + lens.scatter * (veil - image) + 0.8 * lens.enhance * (image - veil)
    image = soften(image, lens.blur * size)
    image = 1.0 / (1.0 + np.exp(-5.4 * lens.contrast * (image - 0.48 - 0.3 * (lens.exposure - 1.0))))
    image = (image - 0.03) / 0.94
    image = image + lens.noise * grain(rng, size, 256) * (0.4 + image)
    image = _borders(image, lens, rng)
    image = _letter(image, lens, rng)
    film: Bytes = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    return film[..., None]


def _borders(image: Pixels, lens: Camera, rng: np.random.Generator) -> Pixels:
    """Unexposed strips that the collimator leaves at one or two sides."""
    size = len(image)
    present, tone, widths, which = rng.random(), rng.choice([0.02, 0.97]), rng.uniform(0.005, 0.035, 4), rng.random(4)
    if present >= lens.collimation:
        return image
    image = image.copy()
    for turn, (wide, chosen) in enumerate(zip(widths, which, strict=True)):
        if chosen < 0.45:
            np.rot90(image, turn)[: max(1, round(float(wide) * size))] = tone
    return image


def _letter(image: Pixels, lens: Camera, rng: np.random.Generator) -> Pixels:
    """An R at the patient's right or an L at the left, in lead or printed in a box."""
    size = len(image)
    present, left, boxed = rng.random(), rng.random() < 0.5, rng.random() < 0.35
    x, y, tall = rng.uniform(0.04, 0.12), rng.uniform(0.05, 0.2), rng.uniform(0.028, 0.045)
    if rng.random() < 0.2:
        y = 0.96 - y
    if present >= lens.marker:
        return image
    canvas, plate = blank(size, 1), blank(size, 1)
    side = len(canvas)
    scale = tall * side / 22.0
    corner = (int((1.0 - x - 0.03 if left else x) * side), int(y * side))
    if boxed:
        reach = int(0.75 * tall * side)
        middle = (corner[0] + int(9 * scale), corner[1] - int(11 * scale))
        cv2.rectangle(plate, (middle[0] - reach, middle[1] - reach), (middle[0] + reach, middle[1] + reach), (255,), -1)
    pen = max(1, round(2.6 * scale))
    cv2.putText(canvas, "L" if left else "R", corner, cv2.FONT_HERSHEY_SIMPLEX, scale, (255,), pen, cv2.LINE_AA)
    box, letter = coverage(plate, size), coverage(canvas, size)
    image = image + box * (0.30 - image)
    return image + letter * (0.96 - image)
