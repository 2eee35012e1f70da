"""Fundus phantoms: a colour photograph of a retina with exact masks of vessels, disc, cup, hard exudates and field.

The eye is built in degrees of visual angle on the retina (1 degree is about 0.29 mm) with the disc at the origin, x
towards the temporal side and y downwards, as complex numbers; a right eye is mirrored when it is photographed. Anatomy
after textbook values: fovea 15.5 degrees temporal and a little below the disc, disc 6 degrees wide and taller than it
is wide, arcades as logarithmic spirals around the fovea, artery to vein calibre 2:3, calibres at a branching after
Murray (the sum of cubes is conserved), no vessel within 2 degrees of the fovea. The same seed is the same eye under
every camera and at every size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.phantoms import VERSIONS, CameraValue, Phantom
from bench.spec import BenchError

VERSION = VERSIONS["fundus"]

Reals = NDArray[Any]  # float64
Pixels = NDArray[Any]  # float32
Bytes = NDArray[Any]  # uint8
Points = NDArray[Any]  # complex128, degrees: real part temporal, imaginary part down

STEP = 0.6  # degrees between two points of a vessel's centre line
THINNEST = 0.17  # degrees; a thinner vessel is not drawn
AVASCULAR = 2.1  # degrees around the fovea that no vessel enters
EYE_RADIUS = 36.0  # degrees around the middle of disc and fovea that are modelled
SUBPIXEL_BITS = 4
BACKGROUND = 128  # side of the grid on which smooth fields are computed


@dataclass(frozen=True)
class Camera:
    """How a photograph is taken and what kind of eye sits before the lens; gains and amounts have no unit."""

    fov: float = 45.0  # degrees across the image
    height: float = 1.0  # visible height over width of the field of view; below 1 the top and bottom are cut off
    centre: float = 0.4  # where the camera points: 0 at the fovea, 1 at the disc
    jitter: float = 1.5  # degrees, standard deviation of the pointing
    roll: float = 4.0  # degrees, standard deviation of the head's tilt
    notch: float = 0.0  # above 0.5 a tab marks the upper right edge of the field
    red: float = 1.0  # channel gains
    green: float = 1.0
    blue: float = 1.0
    exposure: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    uneven: float = 0.15  # depth of the illumination gradient
    vignette: float = 0.25  # share of light lost at the edge
    haze: float = 0.0  # media opacity, 0 clear, 1 nothing seen
    blur: float = 0.0025  # standard deviation as share of the image side
    noise: float = 0.012  # standard deviation of the sensor noise, image range 1
    dust: float = 0.0  # mean number of specks
    vessel: float = 1.0  # vessel contrast
    central_reflex: float = 0.5  # light streak on the arteries
    nerve_fibre: float = 0.3  # silky reflexes along the arcades
    texture: float = 1.0  # choroidal pattern
    tortuosity: float = 1.0
    calibre: float = 1.0
    cup: float = 0.45  # vertical cup to disc ratio
    exudates: float = 0.0  # mean number of clusters
    haemorrhages: float = 0.0  # mean number
    microaneurysms: float = 0.0  # mean number
    drusen: float = 0.0  # mean number
    cotton_wool: float = 0.0  # mean number

    @classmethod
    def draw(cls, settings: Mapping[str, CameraValue], rng: np.random.Generator) -> Camera:
        """The camera of one image: ranges drawn, everything not set at its default."""
        known: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; settings are: {', '.join(known)}"
                raise BenchError(f"fundus phantoms have no camera setting {name!r}{hint}")
        shares = rng.random(len(known))
        values = {}
        for share, (name, default) in zip(shares, known.items(), strict=True):
            low, high = _bounds(name, settings.get(name, default))
            values[name] = low + float(share) * (high - low)
        return cls(**values)


def _bounds(name: str, value: CameraValue) -> tuple[float, float]:
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends) or ends[0] > ends[1]:
        raise BenchError(f"camera setting {name!r} is a number or (low, high), got {value!r}")
    return float(ends[0]), float(ends[1])


@dataclass(frozen=True)
class Anatomy:
    """The parts of one eye that need no drawing."""

    right: bool
    fovea: complex
    disc: Points  # outline, degrees
    cup: Points
    crescent: Points  # peripapillary atrophy, at the temporal side of the disc
    disc_radius: float
    hilus: complex  # where the vessels leave the disc
    pigment: Reals  # (3,) reflectance of the retina
    macula: Reals  # (2,) depth and radius in degrees of the macular shade
    depths: Reals  # (3,) how visible mottle, choroidal vessels and grain are


@dataclass(frozen=True)
class Vessel:
    """One unbranched run of a vessel: a child starts a run of its own."""

    line: Points  # (N,)
    calibre: Reals  # (N,) diameter in degrees
    vein: bool


@dataclass(frozen=True)
class Brood:
    """One generation of B vessels before they are grown."""

    start: Points  # (B,)
    heading: Points  # (B,) unit
    width: Reals  # (B,) degrees
    pull: Reals  # (B, 4): around the fovea (signed), inwards while going around, out of the disc, off the fovea
    vein: NDArray[np.bool_]  # (B,)


@dataclass(frozen=True)
class Blobs:
    """Roundish lesions."""

    centre: Points  # (N,)
    radius: Reals  # (N,) degrees
    strength: Reals  # (N,) in [0, 1]


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

    @property
    def pixel(self) -> float:
        """Degrees per pixel, across."""
        return 2.0 * self.radius * 1.01 / self.size


def render(seed: int, size: int, camera: Mapping[str, CameraValue]) -> Phantom:
    """A fundus photograph of `size` x `size` pixels; masks: vessels, disc, cup, exudates, fov."""
    lens = Camera.draw(camera, np.random.default_rng([seed, 1]))
    anatomy = _anatomy(np.random.default_rng([seed, 2]), lens)
    vessels = _vessels(np.random.default_rng([seed, 3]), anatomy, lens)
    exudates, dark, pale = _lesions(np.random.default_rng([seed, 4]), anatomy, lens)
    frame = _frame(np.random.default_rng([seed, 5]), anatomy, lens, size)

    field = _field(frame, lens)
    head = _paint_disc(anatomy, frame)
    tree, reflex = _paint_vessels(vessels, frame)
    lesions = _paint_lesions(exudates, dark, pale, np.random.default_rng([seed, 6]), frame)

    light = np.random.default_rng([seed, 7])
    image = _background(anatomy, vessels, frame, lens, light)
    image = _add_disc(image, head, size)
    image = _add_lesions(image, lesions, size)
    image = _add_vessels(image, tree, reflex, lens, size)
    image = _photograph(image, field, lens, light, size)
    seen = field >= 0.5
    masks = {
        "vessels": (tree[..., 0] >= 0.5) & seen,
        "disc": (head[..., 0] >= 0.5) & seen,
        "cup": (head[..., 1] >= 0.5) & seen,
        "exudates": (lesions[..., 0] >= 0.5) & seen,
        "fov": seen,
    }
    return Phantom(
        image=image,
        masks={name: mask.astype(np.uint8) for name, mask in masks.items()},
        facts=_facts(anatomy, frame, exudates, dark),
    )


def _facts(anatomy: Anatomy, frame: Frame, exudates: Blobs, dark: Blobs) -> dict[str, object]:
    """What a reader of the photograph would note; `grade` follows the lesion load, 0 healthy to 4."""
    fovea, disc = frame.shares(np.array([anatomy.fovea, 0.0])).tolist()
    load = len(exudates.centre) / 12 + len(dark.centre) / 6
    return {
        "eye": "right" if anatomy.right else "left",
        "fovea": fovea,
        "disc": disc,
        "cup_to_disc": float(np.ptp(anatomy.cup.imag) / np.ptp(anatomy.disc.imag)),
        "exudates": len(exudates.centre),
        "dark_lesions": len(dark.centre),
        "grade": int(np.searchsorted([0.01, 1.0, 4.0, 9.0], load, side="right")),
    }


def _anatomy(rng: np.random.Generator, lens: Camera) -> Anatomy:
    right = bool(rng.random() < 0.5)
    fovea = complex(15.5 + 0.7 * rng.standard_normal(), 1.6 + 0.8 * rng.standard_normal())
    radius = 3.05 + 0.25 * rng.standard_normal()
    axes = np.array([radius, radius * rng.uniform(1.02, 1.16)])
    disc = _outline(axes, 0.010, rng)
    ratio = float(np.clip(lens.cup * (1 + 0.16 * rng.standard_normal()), 0.18, 0.82))
    shift = complex(rng.uniform(0.0, 0.12), rng.uniform(-0.06, 0.06)) * radius * (1 - ratio) * 1.6
    cup = _outline(axes * ratio * rng.uniform([0.92, 0.98], [1.06, 1.02]), 0.018, rng) + shift
    crescent = disc * rng.choice([1.0, 1.06, 1.14], p=[0.5, 0.3, 0.2]) + rng.uniform(0.05, 0.3)
    orange, red, brown = np.array([0.74, 0.36, 0.17]), np.array([0.72, 0.29, 0.16]), np.array([0.62, 0.28, 0.14])
    mix = rng.dirichlet([2.0, 1.2, 0.8])
    return Anatomy(
        right=right,
        fovea=fovea,
        disc=disc,
        cup=cup,
        crescent=crescent,
        disc_radius=float(radius),
        hilus=complex(-0.16 + 0.08 * rng.standard_normal(), 0.06 * rng.standard_normal()) * radius + 0.5 * shift,
        pigment=mix[0] * orange + mix[1] * red + mix[2] * brown,
        macula=rng.uniform([0.22, 3.2], [0.42, 4.6]),
        depths=rng.uniform([0.03, 0.02, 0.005], [0.08, 0.22, 0.02]) * lens.texture,
    )


def _outline(axes: Reals, roughness: float, rng: np.random.Generator) -> Points:
    """A closed outline of 64 points: an ellipse with three slow waves on it."""
    angle = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
    waves = rng.standard_normal((3, 2)) * roughness
    orders = np.arange(2, 5)[:, None] * angle
    rim = 1.0 + (waves[:, :1] * np.cos(orders) + waves[:, 1:] * np.sin(orders)).sum(axis=0)
    outline: Points = rim * (axes[0] * np.cos(angle) + 1j * axes[1] * np.sin(angle))
    return outline


def _frame(rng: np.random.Generator, anatomy: Anatomy, lens: Camera, size: int) -> Frame:
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


# -------------------------------------------------------------------------------------------------------------- vessels


def _vessels(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> list[Vessel]:
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


# -------------------------------------------------------------------------------------------------------------- lesions


def _lesions(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> tuple[Blobs, Blobs, Blobs]:
    """Hard exudates; dark lesions (haemorrhages, microaneurysms); pale soft ones (drusen, cotton wool spots)."""
    clusters = [_cluster(rng, anatomy) for _ in range(rng.poisson(lens.exudates))]
    exudates = _clear_of_disc(_merge(clusters), anatomy)
    haemorrhages = _scatter(rng, rng.poisson(lens.haemorrhages), 11.0, (0.25, 0.9), (0.55, 0.95), anatomy)
    microaneurysms = _scatter(rng, rng.poisson(lens.microaneurysms), 9.0, (0.13, 0.24), (0.5, 0.8), anatomy)
    drusen = _scatter(rng, rng.poisson(lens.drusen), 4.5, (0.15, 0.5), (0.2, 0.42), anatomy)
    wool = _scatter(rng, rng.poisson(lens.cotton_wool), 10.0, (0.7, 1.5), (0.35, 0.6), anatomy)
    dark = _clear_of_disc(_merge([haemorrhages, microaneurysms]), anatomy)
    return exudates, dark, _clear_of_disc(_merge([drusen, wool]), anatomy)


def _cluster(rng: np.random.Generator, anatomy: Anatomy) -> Blobs:
    """Hard exudates: a cloud, a ring around a leak, a plaque with satellites, or rays of a macular star."""
    kind = rng.choice(["cloud", "ring", "plaque", "star"], p=[0.5, 0.25, 0.15, 0.1])
    away = rng.gamma(2.5, 2.1) + 0.6
    middle = anatomy.fovea + away * np.exp(2j * np.pi * rng.random())
    count = int(rng.integers(7, 40))
    radius = np.minimum(0.10 + rng.gamma(1.6, 0.085, count), 0.55)
    spread = rng.standard_normal(count) + 1j * rng.standard_normal(count)
    turn = np.exp(2j * np.pi * rng.random(count))
    if kind == "cloud":
        place = middle + rng.uniform(0.5, 1.6) * spread * np.exp(1j * rng.random())
    elif kind == "ring":
        arc = np.exp(1j * (rng.uniform(0, 2 * np.pi) + rng.uniform(2.5, 6.2) * rng.random(count)))
        place = middle + rng.uniform(1.2, 3.2) * arc + 0.16 * spread
    elif kind == "plaque":
        core = rng.random(count) < 0.5
        place = middle + np.where(core, 0.4, 1.5) * spread
        radius = np.where(core, radius * rng.uniform(1.2, 2.4), radius)
    else:
        rays = np.exp(1j * (rng.uniform(0, 2 * np.pi) + np.deg2rad(24.0) * rng.integers(0, 8, count)))
        place = anatomy.fovea + rays * rng.uniform(0.9, 4.0, count) + 0.06 * spread + 0.02 * turn
    return Blobs(place, radius, rng.uniform(0.8, 1.0, count))


def _scatter(
    rng: np.random.Generator,
    count: int,
    spread: float,
    radius: tuple[float, float],
    strength: tuple[float, float],
    anatomy: Anatomy,
) -> Blobs:
    offset = rng.standard_normal(count) + 1j * rng.standard_normal(count)
    return Blobs(0.8 * anatomy.fovea + spread * offset, rng.uniform(*radius, count), rng.uniform(*strength, count))


def _merge(parts: Sequence[Blobs]) -> Blobs:
    return Blobs(
        np.concatenate([np.empty(0, dtype=complex), *(part.centre for part in parts)]),
        np.concatenate([np.empty(0), *(part.radius for part in parts)]),
        np.concatenate([np.empty(0), *(part.strength for part in parts)]),
    )


def _clear_of_disc(blobs: Blobs, anatomy: Anatomy) -> Blobs:
    keep = np.abs(blobs.centre) > 1.35 * anatomy.disc_radius + blobs.radius
    return Blobs(blobs.centre[keep], blobs.radius[keep], blobs.strength[keep])


# -------------------------------------------------------------------- drawing: geometry -> coverage in [0, 1] per pixel


def _fineness(size: int) -> int:
    """Supersampling factor: masks are the geometry's coverage of a pixel, cut at one half."""
    return 4 if size <= 256 else 2


def _canvas(size: int, channels: int) -> Bytes:
    side = size * _fineness(size)
    return np.zeros((side, side, channels), dtype=np.uint8)


def _corners(points: Points, frame: Frame) -> NDArray[np.int32]:
    """Fixed-point canvas coordinates, (..., 2)."""
    side = frame.size * _fineness(frame.size)
    corners: NDArray[np.int32] = np.rint((frame.shares(points) * side - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    return corners


def _coverage(canvas: Bytes, size: int) -> Pixels:
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) * np.float32(1 / 255)


def _fill(canvas: Bytes, corners: NDArray[np.int32], colour: tuple[int, ...]) -> None:
    cv2.fillPoly(canvas, [corners], colour, lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)


def _paint_disc(anatomy: Anatomy, frame: Frame) -> Pixels:
    """(S, S, 3): disc, cup, crescent."""
    canvas = _canvas(frame.size, 3)
    _fill(canvas, _corners(anatomy.crescent, frame), (0, 0, 255))
    _fill(canvas, _corners(anatomy.disc, frame), (255, 0, 0))
    _fill(canvas, _corners(anatomy.cup, frame), (255, 255, 0))
    return _coverage(canvas, frame.size)


def _paint_vessels(vessels: Sequence[Vessel], frame: Frame) -> tuple[Pixels, Pixels]:
    """(S, S, 3): vessel, depth of vein, depth of artery; and (S, S): the light streak on the wider arteries."""
    canvas, streak = _canvas(frame.size, 3), _canvas(frame.size, 1)
    edge = 0.5 * frame.pixel / _fineness(frame.size)  # a filled polygon includes the canvas pixels on its border
    seen = [vessel for vessel in vessels if len(vessel.line) >= 4 and _in_view(vessel.line, frame)]
    for vessel in sorted(seen, key=lambda vessel: float(vessel.calibre[0])):
        drawn = np.maximum(vessel.calibre, 1.15 * frame.pixel)  # the thinnest are drawn one pixel wide, but fainter
        depth = float(np.clip(0.42 + 1.1 * vessel.calibre.mean(), 0.0, 1.0))
        depth *= float((vessel.calibre.mean() / drawn.mean()) ** 0.7)
        shade = int(255 * depth)
        outline = _corners(_ribbon(vessel.line, drawn / 2 - edge), frame)
        _fill(canvas, outline, (255, shade, 0) if vessel.vein else (255, 0, shade))
        if not vessel.vein and vessel.calibre[0] > 0.3:
            _fill(streak, _corners(_ribbon(vessel.line, 0.14 * vessel.calibre), frame), (255,))
        elif vessel.vein:
            _fill(streak, outline, (0,))
    return _coverage(canvas, frame.size), _coverage(streak, frame.size)


def _in_view(line: Points, frame: Frame) -> bool:
    return bool((np.abs(line - frame.centre) < frame.radius * 1.05).any())


def _ribbon(line: Points, half: Reals) -> Points:
    """(N,) centre line and half widths -> (2N,) outline."""
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    across = 1j * along / np.abs(along) * half
    return np.concatenate([line + across, (line - across)[::-1]])


def _paint_lesions(exudates: Blobs, dark: Blobs, pale: Blobs, rng: np.random.Generator, frame: Frame) -> Pixels:
    """(S, S, 3): hard exudates, dark lesions, pale soft lesions."""
    canvas = _canvas(frame.size, 3)
    for channel, blobs, roughness, slimmest in ((2, pale, 0.22, 0.6), (1, dark, 0.22, 0.4), (0, exudates, 0.22, 0.6)):
        for corners, strength in _blob_outlines(blobs, roughness, slimmest, rng, frame):
            colour = [0, 0, 0]
            colour[channel] = 255 if channel == 0 else int(255 * strength)
            cv2.fillConvexPoly(canvas, corners, colour, lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)
    return _coverage(canvas, frame.size)


def _blob_outlines(
    blobs: Blobs, roughness: float, slimmest: float, rng: np.random.Generator, frame: Frame
) -> Iterator[tuple[NDArray[np.int32], float]]:
    angle = 2 * np.pi * (np.arange(10) + rng.uniform(-0.25, 0.25, (len(blobs.centre), 10))) / 10
    rim = 1.0 + roughness * rng.standard_normal((len(blobs.centre), 10)).clip(-1.5, 1.5)
    squash = rng.uniform(slimmest, 1.0, (len(blobs.centre), 1))
    turn = np.exp(2j * np.pi * rng.random((len(blobs.centre), 1)))
    edge = 0.5 * frame.pixel / _fineness(frame.size)
    reach = np.maximum(blobs.radius - edge, 0.25 * frame.pixel)[:, None] * rim
    outline = blobs.centre[:, None] + turn * reach * (np.cos(angle) + 1j * squash * np.sin(angle))
    return zip(_corners(outline, frame), blobs.strength.tolist(), strict=True)


def _field(frame: Frame, lens: Camera) -> Pixels:
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


# ---------------------------------------------------------------------------------------------------------------- light


def _soften(layer: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of `sigma` pixels; below a quarter of a pixel there is nothing to do."""
    if sigma < 0.25:
        return layer
    return cv2.GaussianBlur(layer, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _clouds(rng: np.random.Generator, cells: int) -> Pixels:
    """(128, 128) smooth noise of unit variance at its `cells` x `cells` nodes."""
    nodes = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(nodes, (BACKGROUND, BACKGROUND), interpolation=cv2.INTER_CUBIC)


def _to_size(layer: Pixels, size: int) -> Pixels:
    if layer.shape[0] == size:
        return layer
    return cv2.resize(layer, (size, size), interpolation=cv2.INTER_AREA if size < len(layer) else cv2.INTER_CUBIC)


def _background(
    anatomy: Anatomy, vessels: Sequence[Vessel], frame: Frame, lens: Camera, rng: np.random.Generator
) -> Pixels:
    """(S, S, 3) reflectance of the retina without disc, vessels and lesions."""
    place = frame.degrees(BACKGROUND)
    from_fovea = np.abs(place - anatomy.fovea).astype(np.float32)
    from_disc = np.abs(place).astype(np.float32)
    mottle, tessellation, fine = (np.float32(depth) for depth in anatomy.depths)
    outside = 1.0 - np.exp(-((from_fovea / 9.0) ** 2))
    tone = 1.0 + mottle * (_clouds(rng, 5) + 0.6 * _clouds(rng, 11)) + fine * _clouds(rng, 64)
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
    return _to_size(np.dstack(layers).astype(np.float32), frame.size)


def _choroid(place: Points, rng: np.random.Generator) -> Pixels:
    """(128, 128) bright streaks between choroidal vessels, running away from the macula, in [0, 1]."""
    nodes = rng.standard_normal((2, 16, 80), dtype=np.float32)
    wobble = 0.16 * _clouds(rng, 9)
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
    patches = np.maximum(_clouds(rng, 14), 0.0)
    return _soften(canvas.astype(np.float32) / 255, 1.2) * patches


def _add_disc(image: Pixels, head: Pixels, size: int) -> Pixels:
    """Rim and cup brighten the retina; their borders are softer than the masks'."""
    soft = _soften(head, 0.005 * size)
    rim, cup, crescent = soft[..., 0:1], _soften(head[..., 1], 0.009 * size)[..., None], soft[..., 2:3]
    image = image + 0.3 * crescent * (np.array([0.84, 0.58, 0.36], dtype=np.float32) - image)
    image = image + 0.85 * rim * (np.array([0.98, 0.61, 0.33], dtype=np.float32) - image)
    return image + 0.82 * cup * (np.array([1.04, 0.96, 0.70], dtype=np.float32) - image)


def _add_lesions(image: Pixels, lesions: Pixels, size: int) -> Pixels:
    if not lesions.any():
        return image
    pale = 0.75 * _soften(lesions[..., 2], 0.008 * size)[..., None]
    dark = _soften(lesions[..., 1], 0.002 * size)[..., None]
    hard = 0.9 * _soften(lesions[..., 0], 0.0012 * size)[..., None]
    image = image + pale * (np.array([0.96, 0.80, 0.52], dtype=np.float32) - image)
    image = image * (1.0 - dark * np.array([0.42, 0.72, 0.62], dtype=np.float32))
    return image + hard * (np.array([1.0, 0.88, 0.42], dtype=np.float32) - image)


def _add_vessels(image: Pixels, tree: Pixels, reflex: Pixels, lens: Camera, size: int) -> Pixels:
    """Blood absorbs green most; veins are darker; arteries carry a light streak."""
    profile = 0.78 * tree + 0.22 * _soften(tree, 0.004 * size)
    vein, artery = profile[..., 1:2] * lens.vessel, profile[..., 2:3] * lens.vessel
    image = image * (1.0 - np.minimum(vein, 1.1) * np.array([0.36, 0.62, 0.52], dtype=np.float32))
    image = image * (1.0 - np.minimum(artery, 1.1) * np.array([0.20, 0.50, 0.42], dtype=np.float32))
    streak = (0.55 * lens.central_reflex * reflex)[..., None]
    return image + streak * np.array([0.22, 0.20, 0.12], dtype=np.float32)


def _photograph(image: Pixels, field: Pixels, lens: Camera, rng: np.random.Generator, size: int) -> Bytes:
    """Illumination, haze, optics, sensor."""
    image = image * _to_size(_illumination(lens, rng), size)[..., None]
    if lens.haze > 0.0:
        veil = _to_size(np.clip(lens.haze * (1.0 + 0.35 * _clouds(rng, 4)), 0.0, 0.95), size)[..., None]
        image = image + veil * (np.array([0.80, 0.62, 0.44], dtype=np.float32) * image.mean() / 0.45 - image)
    image = _soften(image, lens.blur * size)
    image = _tone(image, lens)
    grain = np.stack([_grain(rng, size, 256), _grain(rng, size, 128), _grain(rng, size, 128)], axis=-1)
    mixing = np.array([[1.0, 1.0, 1.0], [0.5, 0.0, -0.5], [0.25, -0.25, 0.25]], dtype=np.float32)
    image = image + lens.noise * (grain @ mixing)
    for x, y, radius, depth in rng.random((rng.poisson(lens.dust), 4)):
        image = _speck(image, x, y, 0.004 + 0.014 * radius, 0.05 + 0.14 * depth)
    dark = np.float32(0.014) + np.float32(0.006) * grain[..., :1]
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
    light = 1.0 - lens.vignette * falloff + lens.uneven * (0.8 * slope + 0.35 * _clouds(rng, 3))
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


def _grain(rng: np.random.Generator, size: int, cells: int) -> Pixels:
    return _to_size(rng.standard_normal((cells, cells), dtype=np.float32), size)


def _speck(image: Pixels, x: float, y: float, radius: float, depth: float) -> Pixels:
    """A dust grain out of focus: a faint dark round patch."""
    share = (np.arange(len(image), dtype=np.float32) + 0.5) / len(image)
    away = np.hypot(share[None, :] - x, share[:, None] - y)
    patch = np.clip((radius - away) / (0.5 * radius) + 0.5, 0.0, 1.0)
    return image * (1.0 - depth * patch[..., None])
