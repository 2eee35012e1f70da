"""The retinal vessels: trunks from the disc, branching generation by generation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.data.phantoms.drawing import Points, Reals
from bench.data.phantoms.fundus.eye import Anatomy, Camera, Vessel

STEP = 0.6  # degrees between two points of a vessel's centre line
THINNEST = 0.17  # degrees; a thinner vessel is not drawn
AVASCULAR = 2.1  # degrees around the fovea that no vessel enters
EYE_RADIUS = 36.0  # degrees around the middle of disc and fovea that are modelled


@dataclass(frozen=True)
class Brood:
    """One generation of B vessels before they are grown."""

    start: Points  # (B,)
    heading: Points  # (B,) unit
    width: Reals  # (B,) degrees
    pull: Reals  # (B, 4): around the fovea (signed), inwards while going around, out of the disc, off the fovea
    vein: NDArray[np.bool_]  # (B,)


def grow_vessels(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> list[Vessel]:
    """The tree, generation by generation; a vessel ends where it meets another of its own kind."""
    brood = _trunks(rng, anatomy, lens)
    taken = {vein: np.zeros((128, 128), dtype=np.int32) for vein in (False, True)}
    tree: list[Vessel] = []
    for steps in (76, 34, 20, 12):
        brood = _grow(brood, steps, anatomy, lens, taken, tree, rng)
    return tree


def _trunks(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> Brood:
    """Eight trunks, artery and vein to each quadrant, and short vessels from the disc to the macula."""
    up = np.array([1.0, -1.0] * 4 + [1.0, -1.0, 1.0])
    vein = np.array([False, False, True, True] * 2 + [False, True, True])
    temporal = np.array([True] * 4 + [False] * 4 + [True] * 3)
    macular = np.arange(11) >= 8
    tilt = rng.uniform(0.0, 18.0, 11)
    angle = np.where(temporal, 92.0 + tilt - 10.0 * vein, 112.0 + 2.2 * tilt)
    angle = np.where(macular, rng.uniform(18.0, 48.0, 11), angle)
    width = np.where(vein, 0.60, 0.43) * np.where(temporal, 1.0, 0.78) * rng.uniform(0.88, 1.1, 11) * lens.calibre
    width = np.where(macular, 0.27 * lens.calibre, width)
    pull = np.zeros((11, 4))
    pull[:, 0] = np.where(macular, 0.3, np.where(temporal, 1.0, 0.0)) * up
    pull[:, 1] = np.where(temporal, rng.uniform(0.12, 0.30, 11) - 0.05 * vein, 0.0)
    pull[:, 2] = np.where(temporal, 0.0, 0.6)
    start = anatomy.hilus + anatomy.disc_radius * (rng.uniform(-0.12, 0.12, 11) - 1j * up * rng.uniform(0.0, 0.1, 11))
    return Brood(start, np.exp(-1j * np.deg2rad(angle) * up), width, pull, vein)


def _grow(
    brood: Brood,
    steps: int,
    anatomy: Anatomy,
    lens: Camera,
    taken: dict[bool, NDArray[np.int32]],
    tree: list[Vessel],
    rng: np.random.Generator,
) -> Brood:
    """Append a generation to `tree` and return the next: children at every branching that the grown vessel reached."""
    count, most = len(brood.start), 18
    gaps = rng.uniform(1.8, 5.4, (count, most))
    gaps[:, 0] = rng.uniform(1.6, 4.4, count)
    at = (np.cumsum(gaps, axis=1) / STEP).astype(int)  # (B, 18) index of each branching along the line
    twig = rng.random((count, most)) < 0.78
    share = rng.uniform(np.where(twig, 0.36, 0.68), np.where(twig, 0.60, 0.86))  # child's calibre over its parent's
    side = np.where((np.arange(most) + rng.integers(0, 2, (count, 1))) % 2 == 0, 1.0, -1.0)
    side *= np.where(rng.random((count, most)) < 0.2, -1.0, 1.0)
    calibre = _calibre(brood.width, at, share, steps)
    bends = _bends(at, share, side, steps, lens, rng)
    line = _walk(brood, bends, anatomy)
    length = _reach(line, calibre, anatomy)
    for row in range(count):
        length[row] = _claim(line[row, : length[row]], taken[bool(brood.vein[row])], len(tree) + row + 1)
    for row, end in enumerate(length.tolist()):
        tip = np.minimum((end - np.arange(end)) / 6, 1.0)  # a vessel fades out where it ends
        faded = np.maximum(calibre[row, :end] * tip, 0.5 * THINNEST)
        tree.append(Vessel(line[row, :end], faded, bool(brood.vein[row])))
    return _children(brood, line, calibre, length, at, share, side, anatomy, rng)


def _calibre(width: Reals, at: NDArray[np.int_], share: Reals, steps: int) -> Reals:
    """(B, T) diameters: a slow taper, and Murray's law at every branching."""
    loss = np.ones((len(width), steps))
    row, nth = np.nonzero(at < steps)
    loss[row, at[row, nth]] = np.cbrt(1.0 - share[row, nth] ** 3)
    taper = 0.9985 ** np.arange(steps)
    # The branchings that fall between the drawn ones are too fine to draw and take little.
    calibre: Reals = width[:, None] * np.maximum(np.cumprod(loss, axis=1), 0.42) * taper
    return calibre


def _bends(
    at: NDArray[np.int_], share: Reals, side: Reals, steps: int, lens: Camera, rng: np.random.Generator
) -> Points:
    """(B, T) unit rotations per step: slow waves, and a turn away from each child."""
    count = len(at)
    along = np.arange(steps) * STEP
    wave, phase = rng.uniform(4.0, 11.0, (count, 2, 1)), rng.uniform(0.0, 2 * np.pi, (count, 2, 1))
    swing = rng.uniform(0.08, 0.45, (count, 2, 1)) * lens.tortuosity
    angle = (swing * 2 * np.pi * STEP / wave * np.cos(2 * np.pi * along / wave + phase)).sum(axis=1)
    angle += 0.03 * lens.tortuosity * rng.standard_normal((count, steps))
    row, nth = np.nonzero(at < steps)
    angle[row, at[row, nth]] -= side[row, nth] * 0.34 * share[row, nth] ** 2
    bends: Points = np.exp(1j * angle)
    return bends


def _walk(brood: Brood, bends: Points, anatomy: Anatomy) -> Points:
    """(B, T) centre lines: each step turns a little towards the vessel's pull, then by its bend."""
    place, heading = brood.start, brood.heading
    around, inwards, outwards, off = brood.pull.T
    line = np.empty(bends.shape, dtype=complex)
    for step in range(bends.shape[1]):
        line[:, step] = place
        ray = place - anatomy.fovea
        distance = np.abs(ray)
        ray = ray / (distance + 1e-6)
        guard = np.maximum(0.0, 1.0 - distance / 6.5)
        want = around * 1j * ray + (off - np.abs(around) * inwards + 1.2 * guard) * ray
        want += outwards * place / (np.abs(place) + 1.0)
        heading = (heading + 0.11 * want) * bends[:, step]
        heading = heading / np.abs(heading)
        place = place + STEP * heading
    return line


def _reach(line: Points, calibre: Reals, anatomy: Anatomy) -> NDArray[np.int_]:
    """(B,) points of each line before it gets too thin, nears the fovea or leaves the modelled part of the eye."""
    ended = (calibre < THINNEST) | (np.abs(line - anatomy.fovea) < AVASCULAR + calibre)
    ended |= np.abs(line - 0.6 * anatomy.fovea) > EYE_RADIUS
    length: NDArray[np.int_] = np.where(ended.any(axis=1), ended.argmax(axis=1), line.shape[1])
    return length


def _claim(line: Points, taken: NDArray[np.int32], name: int) -> int:
    """Points of the line before it meets another vessel; what is kept is marked as taken."""
    cells = 0.8
    column = (line.real / cells + 48).astype(int).clip(0, 127)
    row = (line.imag / cells + 64).astype(int).clip(0, 127)
    met = taken[row, column] != 0
    met[:4] = False  # still beside its parent
    met &= np.abs(line) > 3.2  # on the disc all lie together
    length = int(met.argmax()) if met.any() else len(line)
    if length >= 4:
        taken[row[:length], column[:length]] = name
    return length


def _children(
    brood: Brood,
    line: Points,
    calibre: Reals,
    length: NDArray[np.int_],
    at: NDArray[np.int_],
    share: Reals,
    side: Reals,
    anatomy: Anatomy,
    rng: np.random.Generator,
) -> Brood:
    angle = np.deg2rad(rng.uniform(28.0, 62.0, at.shape))
    weights = rng.uniform(0.25, 0.7, (*at.shape, 2))
    row, nth = np.nonzero(at < np.maximum(length - 1, 0)[:, None])
    here = at[row, nth]
    start = line[row, here]
    ahead = line[row, here + 1] - start
    heading = ahead / np.abs(ahead) * np.exp(1j * side[row, nth] * angle[row, nth])
    ray = (start - anatomy.fovea) / np.abs(start - anatomy.fovea)
    off = (heading * np.conj(ray)).real
    temporal = start.real > 2.0
    pull = np.zeros((len(row), 4))
    pull[:, 0] = 0.25 * brood.pull[row, 0]
    pull[:, 2] = np.where(temporal, 0.0, weights[row, nth, 0])
    pull[:, 3] = np.where(temporal, np.sign(off) * weights[row, nth, 1], 0.0)
    width = calibre[row, np.maximum(here - 1, 0)] * share[row, nth]
    keep = width > THINNEST
    return Brood(start[keep], heading[keep], width[keep], pull[keep], brood.vein[row][keep])
