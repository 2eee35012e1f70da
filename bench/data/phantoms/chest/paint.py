"""From the geometry of a chest to the share of every pixel that each of its parts covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.phantoms.chest.anatomy import Anatomy, Camera
from bench.data.phantoms.chest.findings import Collapse, Discs, Findings, Vessels
from bench.data.phantoms.chest.outline import Band
from bench.data.phantoms.drawing import (
    BACKGROUND,
    SUBPIXEL_BITS,
    Bytes,
    Pixels,
    Points,
    Reals,
    blank,
    canvas_corners,
    coverage,
    fill,
    fineness,
    ribbon,
)


@dataclass(frozen=True)
class Frame:
    """From the chest to the film."""

    centre: complex  # cm
    stretch: tuple[float, float]
    field: float  # cm across
    height: float
    turn: complex
    size: int

    def shares(self, points: Points) -> Reals:
        """(...) cm -> (..., 2) x and y as shares of the image side."""
        seen = (self.stretch[0] * points.real + 1j * self.stretch[1] * points.imag - self.centre) * self.turn
        share: Reals = np.stack([0.5 + seen.real / self.field, 0.5 + seen.imag / (self.field * self.height)], axis=-1)
        return share

    @property
    def pixel(self) -> float:
        """cm per pixel, across."""
        return self.field / self.size


def aim(rng: np.random.Generator, anatomy: Anatomy, lens: Camera, size: int) -> Frame:
    """The film is centred on the lungs, give or take the jitter."""
    lungs = np.concatenate([half.field for half in anatomy.halves])
    wide, tall = anatomy.stretch
    middle = complex(0.0, 0.5 * tall * (lungs.imag.min() + lungs.imag.max()) + 0.2)
    off = complex(*(lens.jitter * rng.standard_normal(2)))
    turn = np.exp(1j * np.deg2rad(lens.roll * rng.standard_normal()))
    return Frame(middle + off, (wide, tall), lens.field, lens.height, complex(turn), size)


@dataclass(frozen=True)
class Layers:
    """(S, S) coverage in [0, 1] of everything that casts a shadow."""

    body: Pixels
    cage: Pixels  # the inside of the chest and what lies below it
    halves: Pixels  # both halves of the chest down to the diaphragm
    heart: Pixels
    great: Pixels  # mediastinum above and beside the heart
    shade: Pixels  # what lies under the heart
    abdomen: Pixels
    airway: Pixels
    clavicles: Pixels
    clavicle_mask: Pixels  # only what lies over lungs and ribs
    posterior: Pixels
    anterior: Pixels
    rims: Pixels  # cortical edges of the ribs and clavicles
    shoulders: Pixels
    spine: Pixels
    vessels: Pixels
    gas: Pixels
    breasts: Pixels
    air: Pixels  # pneumothorax
    pleura: Pixels
    nodules: Pixels
    devices: Pixels


def paint(anatomy: Anatomy, vessels: Sequence[Vessels], findings: Findings, frame: Frame) -> Layers:
    return Layers(
        body=_shapes(anatomy.body, frame),
        cage=_shapes([cage(anatomy)], frame),
        halves=_shapes([half.field for half in anatomy.halves], frame),
        heart=_shapes([anatomy.heart], frame),
        great=_shapes(anatomy.mediastinum[:1], frame),
        shade=_shapes(anatomy.mediastinum[1:], frame),
        abdomen=_shapes([_abdomen(anatomy)], frame),
        airway=_bands(anatomy.airway, frame),
        clavicles=_bands(anatomy.clavicles, frame),
        clavicle_mask=_bands([_over_cage(anatomy, at) for at in (0, 1)], frame),
        posterior=_bands(anatomy.posterior, frame),
        anterior=_bands(anatomy.anterior, frame),
        rims=_rims(anatomy, frame),
        shoulders=_outlined([*anatomy.blades, *anatomy.humeri], frame),
        spine=_spine(anatomy.spine, frame),
        vessels=_vessels(vessels, frame),
        gas=_shapes(anatomy.gas, frame),
        breasts=_breasts(anatomy.breasts, frame),
        air=_air(findings.collapse, frame),
        pleura=_pleura(findings.collapse, frame),
        nodules=_nodules(findings.nodules, frame),
        devices=_devices(findings, frame),
    )


def cage(anatomy: Anatomy) -> Points:
    """The inner chest wall of both sides, on to below the film."""
    right, left = anatomy.halves
    return np.concatenate([left.cage, right.cage[::-1]])


def _abdomen(anatomy: Anatomy) -> Points:
    """What lies below both domes."""
    right, left = anatomy.halves
    skirts = [half.cage[len(half.wall) :] for half in (left, right)]
    return np.concatenate([skirts[0][::-1], left.arch, right.arch[::-1], skirts[1]])


def depth_below(outline: Points, frame: Frame) -> Pixels:
    """(128, 128) distance in cm from a pixel inside the outline to it; 0 outside."""
    canvas = np.zeros((BACKGROUND, BACKGROUND), dtype=np.uint8)
    corners = np.rint((frame.shares(outline) * BACKGROUND - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(canvas, [corners], (1,), shift=SUBPIXEL_BITS)
    padded = cv2.copyMakeBorder(canvas, 40, 40, 40, 40, cv2.BORDER_REPLICATE)  # an edge of the film is no edge of it
    away = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[40:-40, 40:-40]
    return away * np.float32(frame.field / BACKGROUND)


def _corners(lines: Sequence[Points] | Points, frame: Frame) -> list[NDArray[np.int32]]:
    """Canvas coordinates of many lines, converted at once."""
    if isinstance(lines, np.ndarray):
        return list(canvas_corners(frame.shares(lines), frame.size))
    if not lines:
        return []
    ends = np.cumsum([len(line) for line in lines])[:-1]
    return np.split(canvas_corners(frame.shares(np.concatenate(lines)), frame.size), ends)


def _stamp(canvas: Bytes, outlines: Sequence[Points] | Points, shade: int, frame: Frame) -> None:
    for corners in _corners(outlines, frame):
        fill(canvas, corners, (shade,))


def _thick(width: float, frame: Frame) -> tuple[int, float]:
    """Thickness on the canvas for a line of `width` cm, and how much fainter it is where that is less than one."""
    wide = width / frame.pixel * fineness(frame.size)
    return max(1, round(wide)), min(1.0, wide)


def _shapes(outlines: Sequence[Points], frame: Frame) -> Pixels:
    canvas = blank(frame.size, 1)
    _stamp(canvas, outlines, 255, frame)
    return coverage(canvas, frame.size)


def _bands(bands: Sequence[Band], frame: Frame) -> Pixels:
    return _shapes([ribbon(band.line, band.half) for band in bands], frame)


def _lines(canvas: Bytes, lines: Sequence[Points] | Points, width: float, shade: float, frame: Frame) -> None:
    thickness, faint = _thick(width, frame)
    cv2.polylines(
        canvas, _corners(lines, frame), False, (int(255 * shade * faint),), thickness, cv2.LINE_8, SUBPIXEL_BITS
    )


def _rims(anatomy: Anatomy, frame: Frame) -> Pixels:
    """Cortical edges; the lower edge of a bone is the denser one, the front of a rib the fainter part."""
    canvas = blank(frame.size, 1)
    for bones, shade in ((anatomy.anterior, 0.5), (anatomy.posterior, 0.8), (anatomy.clavicles, 1.0)):
        upper, lower = [], []
        for bone in bones:
            outline = ribbon(bone.line, 0.92 * bone.half)
            one, other = outline[: len(bone.line)], outline[len(bone.line) :]
            below = one.imag.mean() > other.imag.mean()
            lower.append(one if below else other)
            upper.append(other if below else one)
        _lines(canvas, upper, 0.10, 0.6 * shade, frame)
        _lines(canvas, lower, 0.13, shade, frame)
    return coverage(canvas, frame.size)


def _over_cage(anatomy: Anatomy, at: int) -> Band:
    """The part of a clavicle that lies over lung and ribs, as the published outlines have it."""
    bone, half = anatomy.clavicles[at], anatomy.halves[at]
    lateral = half.cage[int(half.cage.imag.argmin()) :]
    limit = np.interp(bone.line.imag, lateral.imag, np.abs(lateral.real)) + 1.0
    end = max(4, int((np.abs(bone.line.real) < limit).sum()))
    return Band(bone.line[:end], bone.half[:end])


def _outlined(outlines: Sequence[Points], frame: Frame) -> Pixels:
    """Flat bones: thin in the middle, dense at the edge."""
    canvas = blank(frame.size, 1)
    _stamp(canvas, outlines, 110, frame)
    _lines(canvas, [np.append(outline, outline[:1]) for outline in outlines], 0.28, 1.0, frame)
    return coverage(canvas, frame.size)


def _spine(line: Points, frame: Frame) -> Pixels:
    """Vertebral bodies with end plates, pedicles and spinous processes."""
    canvas = blank(frame.size, 1)
    levels = np.arange(-20.0, 25.0, 2.15)
    middle = np.interp(levels, line.imag, line.real) + 1j * levels
    half = np.interp(levels, [-20.0, -8.0, 20.0], [1.35, 1.6, 2.05])
    turn = np.exp(1j * np.linspace(0.0, 2 * np.pi, 13))
    box = np.array([-1.0 - 0.92j, 1.0 - 0.92j, 0.9, 1.0 + 0.92j, -1.0 + 0.92j, -0.9])
    bodies = middle[:, None] + half[:, None] * box.real + 1j * box.imag  # (V, 6)
    _stamp(canvas, bodies, 150, frame)
    _lines(canvas, np.concatenate([bodies[:, :2], bodies[:, 3:5]]), 0.14, 0.85, frame)
    pedicles = np.concatenate([middle - 0.68 * half, middle + 0.68 * half]) - 0.2j
    _lines(canvas, pedicles[:, None] + 0.26 * turn.real + 0.42j * turn.imag, 0.10, 0.9, frame)
    _stamp(canvas, middle[:, None] + 1.1j + 0.24 * turn.real + 0.5j * turn.imag, 230, frame)
    return coverage(canvas, frame.size)


def _vessels(vessels: Sequence[Vessels], frame: Frame) -> Pixels:
    canvas = blank(frame.size, 1)
    for generation in reversed(vessels):
        depth = min(1.0, 1.4 * generation.width + 0.08)
        _lines(canvas, generation.lines, generation.width, depth, frame)
    return coverage(canvas, frame.size)


def _breasts(outlines: Sequence[Points], frame: Frame) -> Pixels:
    """A sharp fold below and no edge above: shells that all touch at the lowest point."""
    canvas = blank(frame.size, 1)
    for step in range(12):
        for outline in outlines:
            low = outline[outline.imag.argmax()]
            _stamp(canvas, [low + (outline - low) * (1.0 - 0.07 * step)], 75 + 15 * step, frame)
    return coverage(canvas, frame.size)


def _air(collapse: Collapse | None, frame: Frame) -> Pixels:
    if collapse is None:
        return np.zeros((frame.size, frame.size), dtype=np.float32)
    return _shapes([np.concatenate([collapse.outer, collapse.inner[::-1]])], frame)


def _pleura(collapse: Collapse | None, frame: Frame) -> Pixels:
    """The pleural line, where the lung has left the wall."""
    canvas = blank(frame.size, 1)
    if collapse is not None:
        _lines(canvas, [collapse.inner[collapse.gap > 0.015]], 0.13, 1.0, frame)
    return coverage(canvas, frame.size)


def _nodules(nodules: Discs, frame: Frame) -> Pixels:
    canvas = blank(frame.size, 1)
    angle = np.linspace(0.0, 2 * np.pi, 20, endpoint=False)
    for centre, radius, strength in zip(nodules.centre, nodules.radius, nodules.strength, strict=True):
        outline = centre + radius * (1.0 + 0.07 * np.sin(3 * angle + centre.real)) * np.exp(1j * angle)
        _stamp(canvas, [outline], int(255 * strength), frame)
    return coverage(canvas, frame.size)


def _devices(findings: Findings, frame: Frame) -> Pixels:
    canvas = blank(frame.size, 1)
    if findings.tubes:
        _lines(canvas, findings.tubes, 0.22, 0.5, frame)
    if findings.cables:
        _lines(canvas, findings.cables, 0.20, 0.8, frame)
    rim = 0.55 * np.exp(1j * np.linspace(0.0, 2 * np.pi, 16, endpoint=False))
    _stamp(canvas, findings.pads[:, None] + rim, 255, frame)
    return coverage(canvas, frame.size)
