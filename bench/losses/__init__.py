"""Losses as pure functions of tensors, so that anyone can check them against a paper.

Every vector that is compared is l2-normalised here first: temperatures divide cosines. A vector whose norm is at most
1e-12 counts as zero: it stays zero and receives no gradient. Arithmetic is float32 or better whatever the input, under
autocast too. Wrong shapes and temperatures raise `ValueError`.
"""

from __future__ import annotations

from bench.losses.cluster import cluster_contrast, concentration, proto_nce, sinkhorn, swapped_prediction
from bench.losses.contrast import (
    dense_info_nce,
    info_nce,
    instdisc_nce,
    instdisc_normaliser,
    instdisc_softmax,
    jigsaw_clustering,
    nt_xent,
    updated_bank,
)
from bench.losses.instance import instance_discrimination, multimodal_instance, rotation_instance
from bench.losses.region import assignment_entropy, region_discrimination, soft_dice
from bench.losses.similarity import barlow_twins, triplet_similarity

__all__ = [
    "assignment_entropy",
    "barlow_twins",
    "cluster_contrast",
    "concentration",
    "dense_info_nce",
    "info_nce",
    "instance_discrimination",
    "instdisc_nce",
    "instdisc_normaliser",
    "instdisc_softmax",
    "jigsaw_clustering",
    "multimodal_instance",
    "nt_xent",
    "proto_nce",
    "region_discrimination",
    "rotation_instance",
    "sinkhorn",
    "soft_dice",
    "swapped_prediction",
    "triplet_similarity",
    "updated_bank",
]
