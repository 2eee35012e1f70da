"""What is particular to the clustering, restoring and generating methods; the contract of all is in test_methods.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import parts, registry
from bench.data import Corpus
from bench.nets import Backbone
from bench.run import pretrain
from bench.spec import BenchError, CorpusInfo, Site
from methods import cgm, context_restoration, deepcluster, ipmi21
from tests.conftest import pretrain_cell, textured_corpus

SHELVES = registry.scan()
OWN = ("deepcluster", "swav", "cc", "pcl", "supervised", "context_restoration", "cgm", "ipmi21")
SIZE = 32


def _run(name: str, corpus: Corpus, **changes: Any) -> pretrain._Run:
    cell = pretrain_cell(name, **({"batch_size": 4, "steps": 8} | changes))
    run = pretrain._Run(cell, SHELVES.methods[name], corpus, pretrain.set_up(Site(Path(), Path(), None)))
    run.method.train()
    return run


def _step(run: pretrain._Run, step: int) -> dict[str, float]:
    run.enter(step)
    return run.train_step()


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_trains_on_other_backbones(name: str, backbone: str) -> None:
    run = _run(name, textured_corpus(8, 64, 1), backbone=backbone, channels=1, image_size=64)
    assert all(math.isfinite(value) for value in _step(run, 0).values())


# -------------------------------------------------------------------------------------------------------------- k-means


@pytest.mark.parametrize(
    ("on_imagenet", "size", "expected"),
    [
        (10000, parts.IMAGENET, 10000),
        (10000, 35126, 274),
        (25000, 35126, 685),
        (10000, 200, 16),  # four images to a cluster are left
        (10000, 40, 10),
        (10000, 8, 2),
        (10000, 1, 1),
    ],
)
def test_clusters_shrink_with_the_corpus(on_imagenet: int, size: int, expected: int) -> None:
    assert parts.cluster_count(on_imagenet, size) == expected


def _groups(count: int, each: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(count, 5, generator=generator)
    own = torch.arange(count).repeat_interleave(each)
    return centres[own] + 0.1 * torch.randn(count * each, 5, generator=generator), own


@pytest.mark.parametrize("full", [True, False], ids=["full", "mini-batches"])
def test_kmeans_finds_separate_groups_and_is_seeded(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, own = _groups(4, 30)
    if not full:
        monkeypatch.setattr(parts, "FULL_KMEANS_ROWS", 10)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        threads = torch.get_num_threads()
        assignment, centres = parts.kmeans(rows, 4, restarts=5)
        assert torch.get_num_threads() == threads
        found.append((assignment, centres))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for group in range(4):
        members = assignment[own == group]
        assert bool((members == members[0]).all())
        spread = (centres[members[0]] - rows[own == group].mean(0)).norm()
        assert float(spread) < (1e-4 if full else 1.0)  # groups are some 20 apart; mini-batches leave a running mean


# ---------------------------------------------------------------------------------------------------------- deepcluster


def test_whitening_forgets_any_linear_map() -> None:
    """Whitened rows are determined up to a rotation, so their cosines outlive an invertible affine map."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 6, generator=generator)
    mixed = rows @ torch.randn(6, 6, generator=generator) + 5
    plain, again = deepcluster.whiten(rows, 6), deepcluster.whiten(mixed, 6)
    torch.testing.assert_close(plain @ plain.T, again @ again.T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain.norm(dim=1), torch.ones(40))


def test_whitening_keeps_the_leading_components_and_no_empty_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(50, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    rows = rows - rows.mean(0)
    padded = torch.cat([rows, torch.zeros(50, 4), rows[:, :1]], dim=1)  # rank 3 in 8 columns
    assert deepcluster.whiten(padded, 8).shape == (50, 3)
    leading = deepcluster.whiten(padded, 2)
    assert leading.shape == (50, 2)
    assert abs(float(torch.corrcoef(torch.stack([leading[:, 1].sign(), rows[:, 0].sign()]))[0, 1])) > 0.9


def test_deepcluster_groups_images_that_look_alike() -> None:
    images = textured_corpus(16, SIZE, 3).images // 4
    images[::2] += 180
    run = _run("deepcluster", Corpus(images))
    run.enter(0)
    assignment: Tensor = run.method.assignment  # type: ignore[assignment]
    assert not set(assignment[::2].tolist()) & set(assignment[1::2].tolist())


def test_every_cluster_weighs_the_same() -> None:
    run = _run("deepcluster", textured_corpus(40, SIZE, 3))
    run.enter(0)
    assignment: Tensor = run.method.assignment  # type: ignore[assignment]
    weight: Tensor = run.method.class_weight  # type: ignore[assignment]
    members = assignment.bincount(minlength=10)
    assert len(weight) == 10
    assert len(set(members.tolist())) > 1
    totals = (weight * members)[members > 0]
    torch.testing.assert_close(totals, torch.full_like(totals, 4.0))
    assert bool((weight[members == 0] == 0).all())


def test_the_classifier_starts_afresh_every_epoch_with_plain_descent() -> None:
    run = _run("deepcluster", textured_corpus(8, SIZE, 3), steps=4, least_steps=2)
    top: torch.nn.Linear = run.method.top_layer  # type: ignore[assignment]
    (descent,) = run.part_optimizers
    assert {id(item) for item in descent.param_groups[0]["params"]} == {id(item) for item in top.parameters()}
    assert descent.param_groups[0]["momentum"] == 0
    assert run.optimizer.param_groups[0]["momentum"] == 0.9
    started = []
    for step in range(4):
        run.enter(step)
        if run.begins_epoch(step):
            started.append(top.weight.detach().clone())
            assert float(started[-1].std()) == pytest.approx(0.01, rel=0.2)
            assert not bool(top.bias.any())
        run.train_step()
        assert not torch.equal(top.weight, started[-1])
    assert len(started) == 2
    assert not torch.equal(*started)


def test_clusters_last_for_several_short_epochs() -> None:
    run = _run("deepcluster", textured_corpus(8, SIZE, 3), steps=8, least_steps=3)  # an epoch has two steps
    top: torch.nn.Linear = run.method.top_layer  # type: ignore[assignment]
    started = []
    for step in range(8):
        before = top.weight.detach().clone()
        run.enter(step)
        if not torch.equal(before, top.weight):
            started.append(step)
        run.train_step()
    assert started == [0, 4]


# ------------------------------------------------------------------------------------------------------------------ pcl


def test_prototypes_come_after_the_warm_up() -> None:
    run = _run("pcl", textured_corpus(16, SIZE, 3), steps=40)  # ten epochs of four steps
    seen = ["prototype" in _step(run, step) for step in range(6)]
    assert seen == [False] * 4 + [True] * 2


def test_prototypes_are_the_unit_centres_of_the_momentum_features() -> None:
    run = _run("pcl", textured_corpus(40, SIZE, 3), clusters=100000)  # 10, 10 and 10 clusters of 40 images
    run.enter(0)
    method: Any = run.method
    method.eval()
    features = torch.cat(
        [method._key(images) for _, images in pretrain.Sweep(run.corpus, run.cell, torch.device("cpu"))]
    )
    assert method.assignment.shape == (3, 40)
    for place, clusters in enumerate(method.clusters):
        prototypes, density = method.get_buffer(f"prototypes{place}"), method.get_buffer(f"density{place}")
        assert prototypes.shape == (clusters, 128)
        for cluster in range(clusters):
            members = features[method.assignment[place] == cluster]
            torch.testing.assert_close(
                prototypes[cluster], torch.nn.functional.normalize(members.mean(0), dim=0), rtol=1e-3, atol=1e-4
            )
        assert float(density.mean()) == pytest.approx(0.2, rel=1e-3)
    assert not torch.equal(method.assignment[0], method.assignment[1])  # every clustering has a start of its own


def test_clusterings_double() -> None:
    run = _run("pcl", textured_corpus(40, SIZE, 3), clusters=parts.IMAGENET // 4, clusterings=2)
    assert run.method.clusters == [10, 20]


def test_negatives_are_other_clusters() -> None:
    method: Any = _run("pcl", textured_corpus(8, SIZE, 3), negatives=5).method
    own = torch.tensor([3, 3, 7])
    drawn = [method._negatives(12, own) for _ in range(200)]
    assert all(len(set(item.tolist())) == 5 for item in drawn)
    assert set(torch.cat(drawn).tolist()) == set(range(12)) - {3, 7}
    assert set(method._negatives(5, own % 5).tolist()) == {0, 1, 4}  # all there are


# ----------------------------------------------------------------------------------------------------------------- swav


def test_prototypes_rest_at_first_and_stay_unit_vectors() -> None:
    run = _run("swav", textured_corpus(8, SIZE, 3), frozen=0.25)
    prototypes: Tensor = run.method.prototypes.weight  # type: ignore[assignment, union-attr]
    moved = []
    for step in range(4):
        before = torch.nn.functional.normalize(prototypes.detach(), dim=1)
        _step(run, step)
        moved.append(not torch.allclose(before, prototypes, atol=1e-7))
        assert (prototypes.grad is not None) == moved[-1]
    assert moved == [False, False, True, True]


def test_the_queue_is_used_once_due_and_full() -> None:
    run = _run("swav", textured_corpus(12, SIZE, 3), queue_start=0.25)
    used = []
    for step in range(5):
        used.append(run.method._queue_scores(step / 8) is not None)  # type: ignore[operator]
        _step(run, step)
    assert used == [False, False, False, True, True]  # due from step 2, twelve features after three steps
    queues: Any = run.method.queues
    assert not torch.equal(queues[0].rows, queues[1].rows)
    torch.testing.assert_close(queues[0].rows.norm(dim=1), torch.ones(12))


def test_crops_of_two_sizes() -> None:
    run = _run("swav", textured_corpus(8, 128, 3), image_size=128)
    batch = pretrain.make_batch(run.corpus, run.cell, run.declared, 0, 0, torch.device("cpu"))
    assert [view.images.shape[-1] for view in batch.views] == [128] * 2 + [48] * 6


@pytest.mark.parametrize(("images", "queue", "prototypes"), [(8, 8, 6), (5000, 3840, 3000)])
def test_prototypes_in_proportion_to_the_queue(images: int, queue: int, prototypes: int) -> None:
    corpus = Corpus(np.broadcast_to(np.uint8(0), (images, SIZE, SIZE, 3)))
    method: Any = _run("swav", corpus).method
    assert method.queues[0].rows.shape == (queue, 128)
    assert method.prototypes.weight.shape == (prototypes, 128)


# ---------------------------------------------------------------------------------------------------- cc and supervised


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("cc", "clusters", 1), ("ipmi21", "clusters", 1), ("context_restoration", "patch", 0.5)],
)
def test_settings_that_make_no_sense_are_refused(name: str, field: str, value: float) -> None:
    with pytest.raises(BenchError, match=f"{name}.{field} must be"):
        _run(name, textured_corpus(8, SIZE, 3), **{field: value})


def test_supervised_needs_grades() -> None:
    assert SHELVES.methods["supervised"].needs == "labels"
    with pytest.raises(BenchError, match="at least two image-level grades, this one has 0"):
        _run("supervised", Corpus(textured_corpus(8, SIZE, 3).images))


def test_supervised_learns_the_grades() -> None:
    corpus = textured_corpus(9, SIZE, 3)
    images = corpus.images // 4 + (60 * (np.arange(9) % 3)).astype(np.uint8)[:, None, None, None]
    run = _run("supervised", Corpus(images, corpus.labels, classes=3), steps=30, batch_size=9, lr=2.0)
    accuracies = [_step(run, step)["accuracy"] for step in range(30)]
    assert sum(accuracies[-10:]) / 10 > 0.9


# -------------------------------------------------------------------------------------------------- context restoration


def test_corners_are_apart_and_reach_everywhere() -> None:
    side, room = 4, 9
    torch.manual_seed(0)
    first, second = context_restoration._separate_corners(20000, room, side, 2)
    for corners in (first, second):
        assert {tuple(item) for item in corners.tolist()} == {(y, x) for y in range(10) for x in range(10)}
    assert bool(((first - second).abs() >= side).any(1).all())


def test_one_swap_exchanges_two_squares() -> None:
    images = torch.arange(3 * 2 * 12 * 12, dtype=torch.float32).reshape(3, 2, 12, 12)
    torch.manual_seed(1)
    out = context_restoration.swap_patches(images, 3, 1)
    for before, after in zip(images, out, strict=True):
        assert int((before != after).any(0).sum()) == 2 * 3 * 3
        assert torch.equal(before.flatten(1).sort().values, after.flatten(1).sort().values)
        assert torch.equal(after[1] - after[0], before[1] - before[0])  # channels move together
        rows, columns = (before != after).any(0).nonzero(as_tuple=True)
        corner = rows[0], columns[0]
        square = after[:, corner[0] : corner[0] + 3, corner[1] : corner[1] + 3]
        origin = (before[0] == square[0, 0, 0]).nonzero()[0]
        assert torch.equal(square, before[:, origin[0] : origin[0] + 3, origin[1] : origin[1] + 3])


def test_swaps_add_up_and_differ_between_images() -> None:
    images = torch.rand(1, 1, 64, 64).expand(4, 1, 64, 64)
    torch.manual_seed(2)
    out = context_restoration.swap_patches(images, 6, 10)
    changed = (out != images).any(1)
    assert not torch.equal(changed[0], changed[1])
    assert int(changed[0].sum()) > 10 * 36
    assert torch.equal(context_restoration.swap_patches(images, 6, 0), images)


# ------------------------------------------------------------------------------------------------------------------ cgm


def test_divergence_is_that_of_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, other_mean, other_log_variance = torch.randn(4, 5, 3, generator=generator)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()),
        torch.distributions.Normal(other_mean, (0.5 * other_log_variance).exp()),
    ).sum(1)
    torch.testing.assert_close(cgm._divergence((mean, log_variance), (other_mean, other_log_variance)), expected)


def test_evidence_and_prior_join_as_a_product_of_densities() -> None:
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    one, other = torch.distributions.Normal(1.0, 0.5), torch.distributions.Normal(-2.0, 1.5)
    product = (one.log_prob(grid) + other.log_prob(grid)).exp()
    product = product / product.sum()
    mean = (grid * product).sum()
    variance = ((grid - mean) ** 2 * product).sum()
    values = [torch.tensor([value]) for value in (1.0, math.log(0.25), -2.0, math.log(2.25))]
    joined = cgm._joined((values[0], values[1]), (values[2], values[3]))
    assert float(joined[0]) == pytest.approx(float(mean), abs=1e-4)
    assert float(joined[1].exp()) == pytest.approx(float(variance), rel=1e-4)


def test_the_divergence_fades_in() -> None:
    run = _run("cgm", textured_corpus(8, SIZE, 3), steps=20, warmup=0.5)
    first, half, full = _step(run, 0), _step(run, 5), _step(run, 10)
    assert first["loss"] == pytest.approx(first["error"])
    assert half["loss"] == pytest.approx(half["error"] + 0.5 * half["divergence"])
    assert full["loss"] == pytest.approx(full["error"] + full["divergence"])
    assert full["divergence"] > 0
    heads: Any = run.method.evidence
    assert [head.out_features // 2 for head in heads] == [64, 32, 2]


# --------------------------------------------------------------------------------------------------------------- ipmi21


def test_center_distance_is_the_mean_over_pixels_and_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.nn.functional.normalize(torch.randn(2, 3, 4, 5, generator=generator), dim=1)
    assignment = torch.rand(2, 4, 4, 5, generator=generator)
    assignment = assignment / assignment.sum(1, keepdim=True)
    vectors = pixels.permute(0, 2, 3, 1).reshape(-1, 3).double()
    shares = assignment.permute(0, 2, 3, 1).reshape(-1, 4).double()
    total = 0.0
    for cluster in range(4):
        center = sum(share * vector for share, vector in zip(shares[:, cluster], vectors, strict=True))
        center = center / center.norm()  # type: ignore[union-attr]
        total += sum(
            float(share * (vector - center).square().sum())
            for share, vector in zip(shares[:, cluster], vectors, strict=True)
        )
    assert float(ipmi21.center_distance(pixels, assignment)) == pytest.approx(total / len(vectors), rel=1e-5)


def test_equal_areas_cost_nothing() -> None:
    assert float(ipmi21.area_deviation(torch.full((2, 4, 3, 3), 0.25))) == pytest.approx(0, abs=1e-12)
    one = torch.zeros(2, 4, 3, 3)
    one[:, 1] = 1
    assert float(ipmi21.area_deviation(one)) == pytest.approx((9 + 3) / 4)


def test_whitening_images_that_are_all_alike_makes_one_cluster() -> None:
    rows = deepcluster.whiten(torch.ones(5, 7), 2)
    assert rows.shape == (5, 1) and not bool(rows.any())
    assert len(parts.kmeans(rows, 3)[0].unique()) == 1


@pytest.mark.parametrize(
    ("size", "steps", "batch", "epochs"), [(35126, 27442, 256, 20), (200, 1000, 256, 100), (20, 50, 256, 5)]
)
def test_pcl_waits_a_tenth_of_the_epochs_that_begin(size: int, steps: int, batch: int, epochs: int) -> None:
    spec = SHELVES.methods["pcl"]
    info = CorpusInfo(size, 3, SIZE, batch, steps)
    method: Any = registry.load(spec)(Backbone("tiny_vgg16"), registry.hparams_of(spec, {}), info)
    assert method.warmup_epochs == epochs


def test_swav_without_a_queue_is_told_how() -> None:
    with pytest.raises(BenchError, match=r"swav\.queue_start=1"):
        pretrain.build_method(pretrain_cell("swav", queue_size=0), SHELVES.methods["swav"], None)
