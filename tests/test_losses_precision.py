"""Every loss under autocast, in half precision, with zero vectors, NaN, large inputs and wrong shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.losses import (
    assignment_entropy,
    barlow_twins,
    cluster_contrast,
    concentration,
    dense_info_nce,
    info_nce,
    instance_discrimination,
    instdisc_nce,
    instdisc_normaliser,
    instdisc_softmax,
    jigsaw_clustering,
    multimodal_instance,
    nt_xent,
    proto_nce,
    region_discrimination,
    rotation_instance,
    sinkhorn,
    soft_dice,
    swapped_prediction,
    triplet_similarity,
    updated_bank,
)
from tests.loss_checks import assert_near, paired_rows, randn, value_and_gradients

ones = torch.ones


def places(*values: int, like: Tensor | None = None) -> Tensor:
    return torch.tensor(values, device=None if like is None else like.device)


def dense(x: Tensor) -> Tensor:
    grids = [x[start : start + 6].reshape(2, 3, -1) for start in (0, 6)]
    backbones = [randn(2, 3, 4, seed=seed).to(x) for seed in (1, 2)]
    return dense_info_nce(*grids, *backbones, x[12:], 0.1)


def nce(x: Tensor) -> Tensor:
    own = places(0, 1, 2, 3, 4, 5, like=x)
    return instdisc_nce(x[:6], x[6:], own, places(9, 7, 0, 17, like=x).repeat(6, 1), 0.1, 300.0)


def prototypes(x: Tensor) -> Tensor:
    assignment = [places(0, 1, 1, 2, 4, 5, like=x), places(2, 3, 4, 5, 6, 7, like=x)]
    density = [torch.linspace(*ends, device=x.device) for ends in ((0.1, 0.3, 8), (0.2, 0.1, 10))]
    return proto_nce(x[:6], [x[6:14], x[14:]], assignment, density, [places(6, 7, like=x), places(0, 1, 9, like=x)])


# Losses that compare vectors, as functions of (24, D) rows.
VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "instance": lambda x: instance_discrimination(x, 0.1),
    "rotation": lambda x: rotation_instance(x, 0.1),
    "multimodal": lambda x: multimodal_instance(x, 0.1),
    "region": lambda x: region_discrimination(x.reshape(4, 6, -1), 0.2, joint=True),
    "info_nce": lambda x: info_nce(x[:6], x[6:12], x[12:], 0.1),
    "nt_xent": lambda x: nt_xent(x[:12], x[12:], 0.1),
    "dense": dense,
    "instdisc_nce": nce,
    "instdisc_softmax": lambda x: instdisc_softmax(x[:6], x[6:], places(5, 4, 3, 2, 1, 0, like=x), 0.1),
    "jigsaw": lambda x: jigsaw_clustering(x, torch.arange(24, device=x.device) % 6, 0.1),
    "proto_nce": prototypes,
    "triplet": lambda x: triplet_similarity(*x.chunk(6)),
}
# Losses on columns or scores.
TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "barlow": lambda x: barlow_twins(x[:12], x[12:], 0.005),
    "barlow_uncentred": lambda x: barlow_twins(x[:12], x[12:], 0.005, center=False),
    "cluster": lambda x: cluster_contrast(x[:12].abs(), x[12:].abs(), 0.5),
    "swapped": lambda x: swapped_prediction(x[:18].reshape(3, 6, -1), 2, 0.1, 0.5, 3, x[18:]),
}
LOSSES = VECTORS | TABLES


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    loss, rows = LOSSES[name], paired_rows(12, 32, 0.5).float()
    expected, (slope,) = value_and_gradients(loss, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, (gradient,) = value_and_gradients(loss, rows)
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert torch.equal(gradient, slope)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_rows_are_computed_in_float32(name: str) -> None:
    loss, rows = LOSSES[name], paired_rows(12, 32, 0.5).bfloat16()
    value, (gradient,) = value_and_gradients(loss, rows)
    expected, (slope,) = value_and_gradients(loss, rows.float())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_near(gradient, slope, 0.01)


@pytest.mark.parametrize("name", LOSSES)
def test_single_precision_agrees_with_double(name: str) -> None:
    loss, rows = LOSSES[name], paired_rows(12, 32, 0.5)
    expected, (slope,) = value_and_gradients(loss, rows)
    value, (gradient,) = value_and_gradients(loss, rows.float())
    assert expected.dtype == torch.float64
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient, slope, 1e-4)


@pytest.mark.parametrize("name", VECTORS)
def test_zero_vectors_stay_finite_and_still(name: str) -> None:
    rows = paired_rows(12, 8, 0.5).float()
    rows[3] = rows[7] = rows[20] = 0
    value, (gradient,) = value_and_gradients(VECTORS[name], rows)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[[3, 7, 20]].eq(0).all()
    assert gradient[0].abs().max() > 0
    value, (gradient,) = value_and_gradients(VECTORS[name], torch.zeros(24, 8))
    assert value.isfinite()
    assert gradient.eq(0).all()


@pytest.mark.parametrize("name", TABLES)
def test_empty_tables_stay_finite(name: str) -> None:
    rows = paired_rows(12, 8, 0.5).float()
    rows[:, 2] = 0
    for given in (rows, torch.zeros(24, 8), ones(24, 8)):
        value, (gradient,) = value_and_gradients(TABLES[name], given)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_large_inputs_stay_finite(name: str) -> None:
    value, (gradient,) = value_and_gradients(LOSSES[name], 3e4 * paired_rows(12, 8, 0.5).float())
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_not_a_number_is_not_hidden(name: str) -> None:
    rows = paired_rows(12, 8, 0.5).float()
    rows[5, 2] = math.nan
    assert LOSSES[name](rows).isnan()


@pytest.mark.parametrize("name", VECTORS)
def test_length_of_vectors_does_not_matter(name: str) -> None:
    rows = paired_rows(12, 8, 0.5)
    lengths = randn(24, 1, seed=5).exp()
    torch.testing.assert_close(VECTORS[name](rows * lengths), VECTORS[name](rows))


WRONG: dict[str, tuple[Callable[[], Tensor], str]] = {
    "odd_rows": (lambda: instance_discrimination(ones(5, 2), 0.1), r"rows \(2N, D\)"),
    "one_pair": (lambda: instance_discrimination(ones(2, 2), 0.1), "N >= 2"),
    "rows_3d": (lambda: instance_discrimination(ones(4, 2, 2), 0.1), r"got \(4, 2, 2\)"),
    "cold": (lambda: instance_discrimination(ones(4, 2), 0.0), "temperature must be positive"),
    "weight_zero": (lambda: instance_discrimination(ones(4, 2), 0.1, 0.0), "negative_weight must be positive"),
    "weight_nan": (lambda: instance_discrimination(ones(4, 2), 0.1, math.nan), "negative_weight"),
    "one_region": (lambda: region_discrimination(ones(4, 1, 2), 0.1), "C >= 2"),
    "regions_2d": (lambda: region_discrimination(ones(4, 2), 0.1), r"\(N, C, K\)"),
    "region_cold": (lambda: region_discrimination(ones(4, 2, 2), -1), "temperature"),
    "entropy_1d": (lambda: assignment_entropy(ones(4)), r"\(N, C, \*S\)"),
    "key_shape": (lambda: info_nce(ones(4, 2), ones(3, 2), ones(5, 2), 0.1), "alike"),
    "queue_shape": (lambda: info_nce(ones(4, 2), ones(4, 2), ones(2, 5), 0.1), r"queue \(Q, 2\)"),
    "queue_empty": (lambda: info_nce(ones(4, 2), ones(4, 2), ones(0, 2), 0.1), "Q >= 1"),
    "nce_cold": (lambda: info_nce(ones(4, 2), ones(4, 2), ones(5, 2), math.inf), "temperature"),
    "views": (lambda: nt_xent(ones(4, 2), ones(4, 3), 0.1), "alike"),
    "views_cold": (lambda: nt_xent(ones(4, 2), ones(4, 2), math.nan), "temperature"),
    "dice_shape": (lambda: soft_dice(ones(2, 1, 4, 4), ones(2, 4, 4), 1), "one shape"),
    "dice_smooth": (lambda: soft_dice(ones(2, 4), ones(2, 4), -1), "smooth"),
    "rotation": (lambda: rotation_instance(ones(12, 2), 0.1), r"rows \(8B, D\), got \(12, 2\)"),
    "rotation_none": (lambda: rotation_instance(ones(0, 2), 0.1), r"rows \(8B, D\)"),
    "rotation_cold": (lambda: rotation_instance(ones(8, 2), 0.0), "temperature"),
    "multimodal": (lambda: multimodal_instance(ones(6, 2), 0.1), r"rows \(4B, D\), got \(6, 2\)"),
    "multimodal_cold": (lambda: multimodal_instance(ones(8, 2), -1.0), "temperature"),
    "dense_keys": (
        lambda: dense_info_nce(ones(2, 3, 4), ones(2, 4, 3), ones(2, 3, 5), ones(2, 3, 5), ones(6, 4), 0.1),
        r"key_grid \(2, 3, 4\), got \(2, 4, 3\)",
    ),
    "dense_backbone": (
        lambda: dense_info_nce(ones(2, 3, 4), ones(2, 3, 4), ones(2, 5, 3), ones(2, 5, 3), ones(6, 4), 0.1),
        r"query_backbone \(2, 3, F\)",
    ),
    "dense_queue": (
        lambda: dense_info_nce(ones(2, 3, 4), ones(2, 3, 4), ones(2, 3, 5), ones(2, 3, 5), ones(4, 6), 0.1),
        r"queue \(Q, 4\)",
    ),
    "bank": (lambda: instdisc_softmax(ones(2, 3), ones(3, 2), places(0, 1), 0.1), r"bank \(N, 3\), got \(3, 2\)"),
    "bank_index": (lambda: instdisc_softmax(ones(2, 3), ones(4, 3), places(0), 0.1), r"index \(2\), got \(1,\)"),
    "noise": (
        lambda: instdisc_nce(ones(2, 3), ones(4, 3), places(0, 1), places(0, 1), 0.1, 1.0),
        r"noise_index \(2, K\), got \(2,\)",
    ),
    "normaliser": (
        lambda: instdisc_nce(ones(2, 3), ones(4, 3), places(0, 1), places(0, 1).reshape(2, 1), 0.1, 0.0),
        "normaliser must be positive",
    ),
    "normaliser_cold": (
        lambda: instdisc_normaliser(ones(2, 3), ones(4, 3), places(0, 1), places(0, 1).reshape(2, 1), 0.0),
        "temperature",
    ),
    "bank_features": (lambda: updated_bank(ones(4, 3), places(0, 1), ones(2, 2), 0.5), r"features \(B, 3\)"),
    "jigsaw": (lambda: jigsaw_clustering(ones(6, 2), places(0, 0, 0, 0, 1, 1), 0.1), r"features \(4B, D\)"),
    "jigsaw_index": (lambda: jigsaw_clustering(ones(4, 2), places(0, 0, 0), 0.1), r"image_index \(4\)"),
    "jigsaw_three": (lambda: jigsaw_clustering(ones(4, 2), places(0, 0, 0, 1), 0.1), "exactly four times"),
    "jigsaw_eight": (lambda: jigsaw_clustering(ones(8, 2), torch.zeros(8).long(), 0.1), "exactly four times"),
    "scores": (lambda: swapped_prediction(ones(4, 3), 2, 0.1, 0.05, 3), r"scores \(V, B, P\), got \(4, 3\)"),
    "code_views": (lambda: swapped_prediction(ones(2, 4, 3), 3, 0.1, 0.05, 3), "code_views among them"),
    "code_views_none": (lambda: swapped_prediction(ones(2, 4, 3), (), 0.1, 0.05, 3), "code_views among them"),
    "code_views_twice": (lambda: swapped_prediction(ones(2, 4, 3), (1, 1), 0.1, 0.05, 3), "code_views among them"),
    "one_view": (lambda: swapped_prediction(ones(1, 4, 3), 1, 0.1, 0.05, 3), "V >= 2"),
    "queue_scores": (
        lambda: swapped_prediction(ones(2, 4, 3), 2, 0.1, 0.05, 3, ones(5, 4)),
        r"queue_scores \(Q, 3\), got \(5, 4\)",
    ),
    "queue_of_other_views": (
        lambda: swapped_prediction(ones(2, 4, 3), 2, 0.1, 0.05, 3, ones(3, 5, 3)),
        r"queue_scores \(2, Q, 3\), got \(3, 5, 3\)",
    ),
    "epsilon": (lambda: sinkhorn(ones(4, 3), 0.0, 3), "epsilon must be positive"),
    "iterations": (lambda: sinkhorn(ones(4, 3), 0.05, 0), "iterations must be at least 1"),
    "clusters": (lambda: cluster_contrast(ones(4, 3), ones(3, 4), 1.0), r"assignment1 \(4, 3\)"),
    "one_cluster": (lambda: cluster_contrast(ones(4, 1), ones(4, 1), 1.0), "C >= 2"),
    "clusterings": (lambda: proto_nce(ones(2, 3), [ones(4, 3)], [], [ones(4)], [places(1)]), r"lengths \[1, 0, 1, 1\]"),
    "no_clustering": (lambda: proto_nce(ones(2, 3), [], [], [], []), "four lists"),
    "prototypes": (
        lambda: proto_nce(ones(2, 3), [ones(3, 4)], [places(0, 1)], [ones(3)], [places(2)]),
        r"prototypes \(K, 3\), got \(3, 4\)",
    ),
    "density": (
        lambda: proto_nce(ones(2, 3), [ones(4, 3)], [places(0, 1)], [ones(3)], [places(2)]),
        r"density \(4\), got \(3,\)",
    ),
    "negatives": (
        lambda: proto_nce(ones(2, 3), [ones(4, 3)], [places(0, 1)], [ones(4)], [places(2).reshape(1, 1)]),
        r"negatives \(R\), got \(1, 1\)",
    ),
    "distances": (lambda: concentration(ones(4), places(0, 0, 1), 2, 0.2), r"squared_distances \(N\), got \(4,\)"),
    "cluster_number": (lambda: concentration(ones(3), places(0, 0, 2), 2, 0.2), "assignment below 2, got 2"),
    "triplet": (lambda: triplet_similarity(*[ones(4, 3)] * 5, ones(3, 4)), r"z3 \(4, 3\), got \(3, 4\)"),
    "barlow": (lambda: barlow_twins(ones(4, 3), ones(4, 2), 0.1), "alike"),
    "barlow_one": (lambda: barlow_twins(ones(1, 3), ones(1, 3), 0.1), "at least 2 rows"),
    "barlow_weight": (lambda: barlow_twins(ones(4, 3), ones(4, 3), -1.0), "weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_gpu_under_autocast_agrees_with_cpu(name: str) -> None:
    loss, rows = LOSSES[name], paired_rows(12, 32, 0.5).float()
    expected, (slope,) = value_and_gradients(loss, rows)
    with torch.autocast("cuda", dtype=torch.float16):
        value, (gradient,) = value_and_gradients(loss, rows.cuda())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient.cpu(), slope, 1e-4)
