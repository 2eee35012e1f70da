"""Swapped prediction, cluster contrast, prototypes, triplets, Barlow twins: golden vectors, references, hard inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightlys_sinkhorn
from torch import Tensor

from bench.losses import (
    barlow_twins,
    cluster_contrast,
    concentration,
    proto_nce,
    sinkhorn,
    swapped_prediction,
    triplet_similarity,
)
from tests.loss_checks import (
    assert_near,
    cross_entropy_reference,
    golden,
    randn,
    tangential,
    unit,
    value_and_gradients,
)

PRECISIONS = ((torch.float64, 1e-10), (torch.float32, 1e-4))


# --- references: one term at a time, in the precision they are given


def sinkhorn_reference(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    samples, prototypes = scores.shape
    mass = (scores / epsilon).exp()
    mass = mass / mass.sum()
    for _ in range(iterations):
        mass = mass / mass.sum(0) / prototypes
        mass = mass / mass.sum(1, keepdim=True) / samples
    return mass * samples


def swapped_reference(
    scores: Tensor, code_views: list[int], temperature: float, epsilon: float, queues: list[Tensor]
) -> Tensor:
    terms = []
    for place, view in enumerate(code_views):
        code = sinkhorn_reference(torch.cat([queues[place], scores[view].detach()]), epsilon, 3)[-scores.shape[1] :]
        for other in range(len(scores)):
            if other != view:
                for b in range(scores.shape[1]):
                    e = (scores[other, b] / temperature).exp()
                    terms.append(-(code[b] * (e / e.sum()).log()).sum())
    return torch.stack(terms).mean()


def cluster_reference(assignment0: Tensor, assignment1: Tensor, temperature: float) -> Tensor:
    columns = [unit(column) for view in (assignment0, assignment1) for column in view.T]
    clusters, terms = assignment0.shape[1], []
    for i in range(2 * clusters):
        partner = (i + clusters) % (2 * clusters)
        negatives = [columns[j] for j in range(2 * clusters) if j not in (i, partner)]
        terms.append(cross_entropy_reference(columns[i], columns[partner], negatives, temperature))
    total = torch.stack(terms).mean()
    for view in (assignment0, assignment1):
        share = view.sum(0) / view.sum()
        total = total + math.log(clusters) + sum(p * p.log() for p in share)
    return total


def proto_reference(
    query: Tensor, prototypes: list[Tensor], assignment: list[Tensor], density: list[Tensor], negatives: list[Tensor]
) -> Tensor:
    total = query.new_zeros(())
    for centres, cluster, spread, others in zip(prototypes, assignment, density, negatives, strict=True):
        centres = unit(centres)
        candidates = [*cluster.tolist(), *others.tolist()]
        for row, vector in enumerate(unit(query)):
            e = torch.stack([(vector @ centres[c] / spread[c]).exp() for c in candidates])
            total = total - (e[row] / e.sum()).log()
    return total / (len(query) * len(prototypes))


def barlow_reference(z0: Tensor, z1: Tensor, weight: float, center: bool) -> Tensor:
    total = z0.new_zeros(())
    for i in range(z0.shape[1]):
        for j in range(z0.shape[1]):
            a, b = z0[:, i], z1[:, j]
            if center:
                a, b = ((c - c.mean()) / (c.var(correction=0) + 1e-5).sqrt() for c in (a, b))
                correlation = (a * b).mean()
            else:
                correlation = (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())
            total = total + ((1 - correlation) ** 2 if i == j else weight * correlation**2)
    return total


def concentration_reference(
    squared: np.ndarray, assignment: np.ndarray, clusters: int, temperature: float
) -> np.ndarray:
    spread = np.zeros(clusters)
    for c in range(clusters):
        distances = np.sqrt(squared[assignment == c])
        if len(distances) > 1:
            spread[c] = distances.mean() / np.log(len(distances) + 10)
    for c in range(clusters):
        if (assignment == c).sum() <= 1:
            spread[c] = spread.max()
    spread = np.clip(spread, np.percentile(spread, 10), np.percentile(spread, 90))
    return temperature * spread / spread.mean()


# --- golden vectors


def test_swapped_prediction_golden() -> None:
    numbers = golden("swav")
    scores, epsilon, iterations = numbers["scores"], numbers["epsilon"].item(), int(numbers["iterations"])
    code_views, temperature = int(numbers["n_high_res"]), numbers["T"].item()
    for view in range(code_views):
        torch.testing.assert_close(
            sinkhorn(scores[view], epsilon, iterations), numbers[f"codes_view{view}"], rtol=1e-5, atol=1e-6
        )
    value, (gradient,) = value_and_gradients(
        lambda x: swapped_prediction(x, code_views, temperature, epsilon, iterations), scores
    )
    assert value.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    torch.testing.assert_close(gradient, numbers["grad_scores"], rtol=1e-4, atol=1e-6)


def test_sinkhorn_with_a_queue_golden() -> None:
    numbers = golden("swav_sinkhorn_queue")
    both = torch.cat([numbers["queue_scores"], numbers["scores"]])
    codes = sinkhorn(both, numbers["epsilon"].item(), int(numbers["iterations"]))[-len(numbers["scores"]) :]
    torch.testing.assert_close(codes, numbers["codes"], rtol=1e-5, atol=1e-6)


def test_cluster_contrast_golden() -> None:
    numbers = golden("contrastive_clustering")
    value, gradients = value_and_gradients(
        lambda *x: cluster_contrast(*x, numbers["T_cluster"].item()), numbers["c_i"], numbers["c_j"]
    )
    assert value.item() == pytest.approx(numbers["loss_cluster_with_entropy"].item(), rel=1e-5)
    for gradient, name in zip(gradients, ("grad_ci", "grad_cj"), strict=True):
        torch.testing.assert_close(gradient, numbers[name], rtol=1e-4, atol=1e-6)


def test_proto_nce_golden() -> None:
    numbers = golden("pcl_protonce")
    lists = [
        [numbers[f"centroids{m}"] for m in range(2)],
        [numbers[f"im2cluster{m}"][numbers["index"]] for m in range(2)],
        [numbers[f"density{m}"] for m in range(2)],
        [numbers[f"neg_ids{m}"] for m in range(2)],
    ]
    value, (gradient,) = value_and_gradients(lambda x: proto_nce(x, *lists), numbers["q"])
    assert value.item() == pytest.approx(numbers["loss_proto"].item(), rel=1e-5)
    assert_near(gradient, tangential(numbers["grad"], numbers["q"]), 1e-5)


def test_concentration_golden() -> None:
    numbers = golden("pcl_density")
    clusters, temperature = int(numbers["k"]), numbers["temperature"].item()
    density = concentration(numbers["sq_distance"], numbers["assignment"], clusters, temperature)
    torch.testing.assert_close(density, numbers["density"], rtol=1e-5, atol=1e-6)


def test_triplet_similarity_golden() -> None:
    numbers = golden("simtriplet")
    targets = [numbers[name] for name in ("z1", "z2", "z3")]
    value, gradients = value_and_gradients(
        lambda *p: triplet_similarity(*p, *targets), *(numbers[name] for name in ("p1", "p2", "p3"))
    )
    assert value.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    for gradient, name in zip(gradients, ("grad_p1", "grad_p2", "grad_p3"), strict=True):
        torch.testing.assert_close(gradient, numbers[name], rtol=1e-4, atol=1e-6)


def test_barlow_twins_golden() -> None:
    numbers = golden("barlowtwins")
    weight = numbers["lambda_"].item()
    value, gradients = value_and_gradients(lambda *z: barlow_twins(*z, weight), numbers["z1"], numbers["z2"])
    assert value.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    for gradient, name in zip(gradients, ("grad_z1", "grad_z2"), strict=True):
        slope = numbers[name]
        torch.testing.assert_close(gradient[: len(slope)], slope, rtol=1e-4, atol=1e-6)
    alone = barlow_twins(numbers["z1"], numbers["z2"], 0.0)
    assert alone.item() == pytest.approx(numbers["on_diag"].item(), rel=1e-5)
    assert barlow_twins(numbers["z1"], numbers["z2"], 1.0).item() - alone.item() == pytest.approx(
        numbers["off_diag"].item(), rel=1e-5
    )


def test_barlow_twins_uncentred_golden() -> None:
    numbers = golden("mixcl_paper_formula")
    z0, z1 = numbers["Z1"], numbers["Z1p"]
    assert barlow_twins(z0, z1, 0.0, center=False).item() == pytest.approx(numbers["on_diag"].item(), rel=1e-5)
    both = numbers["on_diag"].item() + numbers["off_diag"].item()
    assert barlow_twins(z0, z1, 1.0, center=False).item() == pytest.approx(both, rel=1e-5)


# --- independent float64 references


@pytest.mark.parametrize("queue", ["none", "shared", "own"])
@pytest.mark.parametrize("code_views", [2, (2, 0), [3]])
def test_swapped_prediction_reference(code_views: int | list[int], queue: str) -> None:
    scores = 0.5 * randn(4, 5, 6, seed=1)
    coded = list(range(code_views)) if isinstance(code_views, int) else list(code_views)
    past = 0.5 * randn(len(coded), 7, 6, seed=2)
    given = {"none": None, "shared": past[0], "own": past}[queue]
    queues = {"none": [past[0, :0]] * len(coded), "shared": [past[0]] * len(coded), "own": list(past)}[queue]
    expected, (slope,) = value_and_gradients(lambda x: swapped_reference(x, coded, 0.1, 0.2, queues), scores)
    for dtype, tolerance in PRECISIONS:
        value, (gradient,) = value_and_gradients(
            lambda x, dtype=dtype: swapped_prediction(
                x, code_views, 0.1, 0.2, 3, None if given is None else given.to(dtype)
            ),
            scores.to(dtype),
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert_near(gradient, slope, tolerance)


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_sinkhorn_reference(iterations: int) -> None:
    scores = randn(9, 4).tanh()
    codes = sinkhorn(scores.clone().requires_grad_(), 0.1, iterations)
    assert not codes.requires_grad
    torch.testing.assert_close(codes, sinkhorn_reference(scores, 0.1, iterations))
    torch.testing.assert_close(codes.float(), lightlys_sinkhorn(scores.float(), iterations, 0.1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(codes.sum(1), torch.ones(9, dtype=torch.float64))


def test_sinkhorn_fills_prototypes_equally_at_scores_that_overflow() -> None:
    scores = 50 * randn(12, 4, dtype=torch.float32)  # divided by epsilon: far beyond exp's range
    codes = sinkhorn(scores, 0.05, 300)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(12))
    assert (codes.sum(0) - 3).abs().max() < 0.1
    assert not lightlys_sinkhorn(scores, 3, 0.05).isfinite().all()


def test_swapped_prediction_is_lightlys() -> None:
    scores = randn(5, 8, 6).tanh().float()
    reference = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    expected = reference(high_resolution_outputs=list(scores[:2]), low_resolution_outputs=list(scores[2:]))
    assert swapped_prediction(scores, 2, 0.1, 0.05, 3).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_cluster_contrast_reference(temperature: float) -> None:
    views = [randn(7, 4, seed=seed).softmax(1) for seed in (1, 2)]
    expected, slopes = value_and_gradients(lambda *x: cluster_reference(*x, temperature), *views)
    for dtype, tolerance in PRECISIONS:
        value, gradients = value_and_gradients(
            lambda *x: cluster_contrast(*x, temperature), *(view.to(dtype) for view in views)
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)


def test_cluster_contrast_prefers_clusters_that_are_equally_full() -> None:
    even = torch.eye(4).repeat(3, 1)
    all_in_one = torch.eye(4)[:1].repeat(12, 1)
    contrast = -math.log(math.e / (math.e + 6))
    assert cluster_contrast(even, even, 1.0).item() == pytest.approx(contrast, rel=1e-6)
    value, (gradient, _) = value_and_gradients(lambda *x: cluster_contrast(*x, 1.0), all_in_one, all_in_one)
    assert value.item() > contrast + 2 * math.log(4)
    assert gradient.isfinite().all()


def test_proto_nce_reference() -> None:
    query, prototypes = 2 * randn(4, 5, seed=1), [3 * randn(6, 5, seed=2), randn(9, 5, seed=3)]
    lists = (
        [torch.tensor([0, 1, 1, 4]), torch.tensor([8, 8, 2, 0])],
        [0.1 + 0.2 * randn(6, seed=4).sigmoid(), 0.1 + 0.2 * randn(9, seed=5).sigmoid()],
        [torch.tensor([2, 3]), torch.tensor([], dtype=torch.long)],
    )
    expected, slopes = value_and_gradients(lambda q, *c: proto_reference(q, list(c), *lists), query, *prototypes)
    for dtype, tolerance in PRECISIONS:
        given = [tensor.to(dtype) for tensor in (query, *prototypes)]
        value, gradients = value_and_gradients(lambda q, *c: proto_nce(q, list(c), *lists), *given)
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_concentration_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    assignment = generator.integers(0, 15, 60)  # of 17: two stay empty
    squared = generator.random(60) * (1 + assignment)
    expected = concentration_reference(squared, assignment, 17, 0.2)
    density = concentration(torch.from_numpy(squared), torch.from_numpy(assignment), 17, 0.2)
    torch.testing.assert_close(density, torch.from_numpy(expected), rtol=1e-10, atol=0)
    assert density.mean().item() == pytest.approx(0.2)


def test_concentration_without_spread() -> None:
    """Every image is its own centre, or half of the clusters hold copies of one image: no density of zero."""
    lonely = concentration(torch.zeros(4), torch.arange(4), 4, 0.2)
    torch.testing.assert_close(lonely, torch.full((4,), 0.2))
    squared = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1])
    density = concentration(squared, torch.arange(8) // 2, 4, 0.2)
    torch.testing.assert_close(density, torch.tensor([0.02, 0.02, 0.4, 0.4]))


def test_triplet_similarity_reference() -> None:
    p, z = [2 * randn(3, 4, seed=seed) for seed in (1, 2, 3)], [randn(3, 4, seed=seed) for seed in (4, 5, 6)]

    def reference(*given: Tensor) -> Tensor:
        pairs = ((0, 1), (1, 0), (0, 2), (2, 0))
        terms = [unit(given[i])[b] @ unit(z[j])[b] for i, j in pairs for b in range(3)]
        return -torch.stack(terms).sum() / 6

    expected, slopes = value_and_gradients(reference, *p)
    for dtype, tolerance in PRECISIONS:
        value, gradients = value_and_gradients(lambda *x: triplet_similarity(*x, *z), *(one.to(dtype) for one in p))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)
    distance = NegativeCosineSimilarity()
    lightlys = (distance(p[0], z[1]) + distance(p[1], z[0]) + distance(p[0], z[2]) + distance(p[2], z[0])) / 2
    assert lightlys.item() == pytest.approx(expected.item(), rel=1e-6)


def test_triplet_similarity_gives_its_targets_no_gradient() -> None:
    tensors = [randn(3, 4, seed=seed).requires_grad_() for seed in range(6)]
    gradients = torch.autograd.grad(triplet_similarity(*tensors), tensors, allow_unused=True)
    assert all(gradient is not None for gradient in gradients[:3])
    assert gradients[3:] == (None, None, None)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.0051, 2.0])
def test_barlow_twins_reference(weight: float, center: bool) -> None:
    embeddings = [2 * randn(9, 4, seed=1) + 3, randn(9, 4, seed=2) - 1]
    expected, slopes = value_and_gradients(lambda *z: barlow_reference(*z, weight, center), *embeddings)
    for dtype, tolerance in PRECISIONS:
        value, gradients = value_and_gradients(
            lambda *z: barlow_twins(*z, weight, center), *(each.to(dtype) for each in embeddings)
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)


def test_barlow_twins_is_lightlys() -> None:
    z0, z1 = randn(32, 8, seed=1).float(), randn(32, 8, seed=2).float()
    expected = BarlowTwinsLoss(lambda_param=0.0051)(z0, z1)
    assert barlow_twins(z0, z1, 0.0051).item() == pytest.approx(expected.item(), rel=1e-5)


GRADCHECKED: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "cluster": (lambda *x: cluster_contrast(*x, 0.5), [randn(5, 3, seed=seed).softmax(1) for seed in (1, 2)]),
    "barlow": (lambda *x: barlow_twins(*x, 0.1), [randn(5, 3, seed=1), randn(5, 3, seed=2)]),
    "barlow_uncentred": (lambda *x: barlow_twins(*x, 0.1, center=False), [randn(5, 3, seed=1), randn(5, 3, seed=2)]),
    "proto": (
        lambda q, c, d: proto_nce(q, [c], [torch.tensor([0, 2, 2])], [d.exp()], [torch.tensor([1])]),
        [randn(3, 4, seed=1), randn(5, 4, seed=2), randn(5, seed=3)],
    ),
    "triplet": (
        lambda *p: triplet_similarity(*p, *[randn(3, 4, seed=seed) for seed in (4, 5, 6)]),
        [randn(3, 4, seed=seed) for seed in (1, 2, 3)],
    ),
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradients_by_finite_differences(name: str) -> None:
    loss, inputs = GRADCHECKED[name]
    assert torch.autograd.gradcheck(loss, [tensor.clone().requires_grad_() for tensor in inputs])
