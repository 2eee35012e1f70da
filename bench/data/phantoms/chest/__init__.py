"""Chest phantoms: a frontal chest film with exact masks of heart, lungs, clavicles and pneumothorax.

The chest is built in centimetres (see `anatomy`), filled (`findings`), painted part by part (`paint`), and every part
takes its share from the beam (`film`). The same seed is the same patient under every camera and at every size.
Masks after the published outlines: `lungs` without heart and mediastinum (SCR, van Ginneken et al., Med. Image Anal.
10(1):19-40, 2006), `lungs_full` drawn through the heart down to the diaphragm, `clavicles` only where they lie over
lungs and ribs (SCR), `heart` through the great vessels' roots, `pneumothorax` the air beside the lung, empty where
there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.data.phantoms import VERSIONS, CameraValue, Phantom
from bench.data.phantoms.chest.anatomy import Anatomy, Camera, build_chest
from bench.data.phantoms.chest.film import develop, expose
from bench.data.phantoms.chest.findings import Findings, find, grow_vessels
from bench.data.phantoms.chest.outline import RIGHT
from bench.data.phantoms.chest.paint import Frame, aim, paint

VERSION = VERSIONS["chest"]


def render(seed: int, size: int, camera: Mapping[str, CameraValue]) -> Phantom:
    """A chest film of `size` x `size` pixels, one channel; masks: heart, lungs, lungs_full, clavicles, pneumothorax."""
    lens = Camera.draw(camera, np.random.default_rng([seed, 1]))
    anatomy = build_chest(np.random.default_rng([seed, 2]), lens)
    vessels = grow_vessels(np.random.default_rng([seed, 3]), anatomy)
    findings = find(np.random.default_rng([seed, 4]), anatomy, lens)
    frame = aim(np.random.default_rng([seed, 5]), anatomy, lens, size)
    layers = paint(anatomy, vessels, findings, frame)
    rng = np.random.default_rng([seed, 6])
    image = develop(expose(anatomy, findings, layers, frame, lens, rng), frame, lens, rng)
    heart, full = layers.heart >= 0.5, layers.halves >= 0.5
    lungs = full & ~heart & (layers.great < 0.5) & (layers.shade < 0.5)
    masks = {
        "heart": heart,
        "lungs": lungs,
        "lungs_full": full,
        "clavicles": layers.clavicle_mask >= 0.5,
        "pneumothorax": (layers.air >= 0.5) & lungs,
    }
    return Phantom(
        image=image,
        masks={name: mask.astype(np.uint8) for name, mask in masks.items()},
        facts=_facts(anatomy, findings, frame),
    )


def _facts(anatomy: Anatomy, findings: Findings, frame: Frame) -> dict[str, object]:
    """What a reader of the film would note.

    `domes` are the diaphragm's highest points, right and left; `cardiothoracic` is the heart's width over the chest's.
    """
    domes = [half.arch[int(half.arch.imag.argmin())] for half in anatomy.halves]
    inner = sum(float(np.abs(half.wall.real).max()) for half in anatomy.halves)
    collapse = findings.collapse
    return {
        "portable": anatomy.portable,
        "cardiothoracic": float(np.ptp(anatomy.heart.real) / inner),
        "domes": frame.shares(np.array(domes)).tolist(),
        "pneumothorax": "" if collapse is None else "right" if collapse.half.side == RIGHT else "left",
        "nodules": len(findings.nodules.centre),
        "opacities": len(findings.opacities.centre),
        "devices": len(findings.cables) + len(findings.tubes),
    }
