"""From the geometry of an eye to the share of every pixel that each of its parts covers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.phantoms.drawing import (
    SUBPIXEL_BITS,
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
from bench.data.phantoms.fundus.eye import Anatomy, Blobs, Camera, Lesions, Vessel


@dataclass(frozen=True)
class Frame:
    """From the retina to the image."""

    centre: complex
    radius: float  # degrees from the middle to the edge of the field
    height: float
    turn: complex
    mirror: float
    size: int

    def shares(self, points: Points) -> Reals:
        """(N,) degrees -> (N, 2) x and y as shares of the image side."""
        seen = points - self.centre
        seen = (self.mirror * seen.real + 1j * seen.imag) * self.turn
        across = 2.0 * self.radius * 1.01
        return np.stack([0.5 + seen.real / across, 0.5 + seen.imag / (across * self.height)], axis=-1)

    def degrees(self, side: int) -> Points:
        """(side, side) positions of the pixel centres of a `side` x `side` image."""
        share = (np.arange(side) + 0.5) / side - 0.5
        across = 2.0 * self.radius * 1.01
        seen = (share[None, :] * across + 1j * share[:, None] * across * self.height) * np.conj(self.turn)
        place: Points = self.mirror * seen.real + 1j * seen.imag + self.centre
        return place

    def shows(self, points: Points) -> NDArray[np.bool_]:
        """(N,) whether each point lies in the field of view, cut at the top and bottom of the image."""
        low = 2.0 * np.abs(self.shares(points)[:, 1] - 0.5)
        inside: NDArray[np.bool_] = (np.abs(points - self.centre) < self.radius) & (low < 1.0)
        return inside

    @property
    def pixel(self) -> float:
        """Degrees per pixel, across."""
        return 2.0 * self.radius * 1.01 / self.size


def aim(rng: np.random.Generator, anatomy: Anatomy, lens: Camera, size: int) -> Frame:
    off = complex(*(lens.jitter * rng.standard_normal(2)))
    roll = np.deg2rad(lens.roll * rng.standard_normal())
    return Frame(
        centre=anatomy.fovea * (1.0 - lens.centre) + off,
        radius=lens.fov / 2.0,
        height=lens.height,
        turn=complex(np.exp(1j * roll)),
        mirror=-1.0 if anatomy.right else 1.0,
        size=size,
    )


def corners_of(points: Points, frame: Frame) -> NDArray[np.int32]:
    """Fixed-point canvas coordinates, (..., 2)."""
    return canvas_corners(frame.shares(points), frame.size)


def paint_disc(anatomy: Anatomy, frame: Frame) -> Pixels:
    """(S, S, 3): disc, cup, crescent."""
    canvas = blank(frame.size, 3)
    fill(canvas, corners_of(anatomy.crescent, frame), (0, 0, 255))
    fill(canvas, corners_of(anatomy.disc, frame), (255, 0, 0))
    fill(canvas, corners_of(anatomy.cup, frame), (255, 255, 0))
    return coverage(canvas, frame.size)


def paint_vessels(vessels: Sequence[Vessel], frame: Frame) -> tuple[Pixels, Pixels]:
    """(S, S, 3): vessel, depth of vein, depth of artery; and (S, S): the light streak on the wider arteries."""
    canvas, streak = blank(frame.size, 3), blank(frame.size, 1)
    edge = 0.5 * frame.pixel / fineness(frame.size)  # a filled polygon includes the canvas pixels on its border
    seen = [vessel for vessel in vessels if len(vessel.line) >= 4 and in_view(vessel.line, frame)]
    for vessel in sorted(seen, key=lambda vessel: float(vessel.calibre[0])):
        drawn = np.maximum(vessel.calibre, 1.15 * frame.pixel)  # the thinnest are drawn one pixel wide, but fainter
        depth = float(np.clip(0.42 + 1.1 * vessel.calibre.mean(), 0.0, 1.0))
        depth *= float((vessel.calibre.mean() / drawn.mean()) ** 0.7)
        shade = int(255 * depth)
        outline = corners_of(ribbon(vessel.line, drawn / 2 - edge), frame)
        fill(canvas, outline, (255, shade, 0) if vessel.vein else (255, 0, shade))
        if not vessel.vein and vessel.calibre[0] > 0.3:
            fill(streak, corners_of(ribbon(vessel.line, 0.14 * vessel.calibre), frame), (255,))
        elif vessel.vein:
            fill(streak, outline, (0,))
    return coverage(canvas, frame.size), coverage(streak, frame.size)


def in_view(line: Points, frame: Frame) -> bool:
    return bool((np.abs(line - frame.centre) < frame.radius * 1.05).any())


def paint_lesions(lesions: Lesions, rng: np.random.Generator, frame: Frame) -> Pixels:
    """(S, S, 3): hard exudates, dark lesions, pale soft lesions."""
    canvas = blank(frame.size, 3)
    layers = ((2, lesions.pale, 0.22, 0.6), (1, lesions.dark, 0.22, 0.4), (0, lesions.exudates, 0.22, 0.6))
    for channel, blobs, roughness, slimmest in layers:
        for corners, strength in blob_outlines(blobs, roughness, slimmest, rng, frame):
            colour = [0, 0, 0]
            colour[channel] = 255 if channel == 0 else int(255 * strength)
            cv2.fillConvexPoly(canvas, corners, colour, lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)
    return coverage(canvas, frame.size)


def blob_outlines(
    blobs: Blobs, roughness: float, slimmest: float, rng: np.random.Generator, frame: Frame
) -> Iterator[tuple[NDArray[np.int32], float]]:
    angle = 2 * np.pi * (np.arange(10) + rng.uniform(-0.25, 0.25, (len(blobs.centre), 10))) / 10
    rim = 1.0 + roughness * rng.standard_normal((len(blobs.centre), 10)).clip(-1.5, 1.5)
    squash = rng.uniform(slimmest, 1.0, (len(blobs.centre), 1))
    turn = np.exp(2j * np.pi * rng.random((len(blobs.centre), 1)))
    edge = 0.5 * frame.pixel / fineness(frame.size)
    reach = np.maximum(blobs.radius - edge, 0.25 * frame.pixel)[:, None] * rim
    outline = blobs.centre[:, None] + turn * reach * (np.cos(angle) + 1j * squash * np.sin(angle))
    return zip(corners_of(outline, frame), blobs.strength.tolist(), strict=True)


def paint_field(frame: Frame, lens: Camera) -> Pixels:
    """(S, S) coverage of the field of view: a disc, cut at the image border, with a tab where the camera has one."""
    share = (np.arange(frame.size) + 0.5) / frame.size - 0.5
    across = 2.0 * frame.radius * 1.01
    x, y = share[None, :] * across, share[:, None] * across * frame.height
    covered = (frame.radius - np.hypot(x, y)) / frame.pixel + 0.5
    if lens.notch > 0.5:
        angle = -np.arcsin(min(0.82 * frame.height, 0.7))
        tab = frame.radius * np.exp(1j * angle)
        covered = np.maximum(covered, (0.045 * frame.radius - np.hypot(x - tab.real, y - tab.imag)) / frame.pixel + 0.5)
    return covered.clip(0.0, 1.0).astype(np.float32)
