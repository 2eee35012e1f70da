"""Rotation and multi-modal instances, dense InfoNCE, memory banks, jigsaw, C2L: golden vectors and references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.losses import (
    dense_info_nce,
    info_nce,
    instance_discrimination,
    instdisc_nce,
    instdisc_normaliser,
    instdisc_softmax,
    jigsaw_clustering,
    multimodal_instance,
    nt_xent,
    rotation_instance,
    updated_bank,
)
from tests.loss_checks import (
    assert_near,
    cross_entropy_reference,
    golden,
    paired_rows,
    randn,
    tangential,
    unit,
    value_and_gradients,
)

PRECISIONS = ((torch.float64, 1e-10), (torch.float32, 1e-4))


# --- references: one term at a time, in the precision they are given


def partners_reference(rows: Tensor, temperature: float, partners: list[list[int]], left_out: list[set[int]]) -> Tensor:
    """Sum over the partners, mean over the rows, of the instance loss; row i is not compared with left_out[i]."""
    rows = unit(rows)
    keys = rows.detach()
    total = rows.new_zeros(())
    for i, row in enumerate(rows):
        e = {j: (row @ keys[j] / temperature).exp() for j in range(len(rows)) if j not in left_out[i]}
        for partner in partners[i]:
            everything = torch.stack(list(e.values())).sum()
            total = total - (e[partner] / everything).log()
            for j in e:
                if j != partner:
                    total = total - (torch.stack([e[k] for k in e if k != j]).sum() / everything).log()
    return total / len(rows)


def rotation_reference(rows: Tensor, temperature: float) -> Tensor:
    half = len(rows) // 2
    partners = [[(1 - i // half) * half + i % half // 4 * 4 + turn for turn in range(4)] for i in range(len(rows))]
    return partners_reference(rows, temperature, partners, [{i} for i in range(len(rows))]) / 4


def multimodal_reference(rows: Tensor, temperature: float) -> Tensor:
    half = len(rows) // 2
    partners, left_out = [], []
    for i in range(len(rows)):
        image, view = i % half // 2, i // half
        partners.append([(1 - view) * half + 2 * image + modality for modality in (0, 1)])
        left_out.append({view * half + 2 * image, view * half + 2 * image + 1})
    return partners_reference(rows, temperature, partners, left_out)


def dense_reference(
    query_grid: Tensor,
    key_grid: Tensor,
    query_backbone: Tensor,
    key_backbone: Tensor,
    queue: Tensor,
    temperature: float,
) -> Tensor:
    terms = []
    for b in range(len(query_grid)):
        for s in range(query_grid.shape[1]):
            likeness = [
                F.cosine_similarity(query_backbone[b, s], key_backbone[b, t], dim=0).item()
                for t in range(key_grid.shape[1])
            ]
            key = unit(key_grid[b, likeness.index(max(likeness))])
            terms.append(cross_entropy_reference(unit(query_grid[b, s]), key, list(unit(queue)), temperature))
    return torch.stack(terms).mean()


def nce_reference(
    features: Tensor, bank: Tensor, index: Tensor, noise_index: Tensor, temperature: float, normaliser: float
) -> Tensor:
    features, bank = unit(features), unit(bank)
    c = noise_index.shape[1] / len(bank)
    total = features.new_zeros(())
    for feature, own, noise in zip(features, index, noise_index, strict=True):
        p = (feature @ bank[own] / temperature).exp() / normaliser
        total = total - (p / (p + c)).log()
        for k in noise:
            p = (feature @ bank[k] / temperature).exp() / normaliser
            total = total - (c / (p + c)).log()
    return total / len(features)


def jigsaw_reference(features: Tensor, image_index: Tensor, temperature: float) -> Tensor:
    features = unit(features)
    count, terms = len(features), []
    for i in range(count):
        same = [j for j in range(count) if j != i and image_index[j] == image_index[i]]
        for partner in same:
            negatives = [features[j] for j in range(count) if j not in (i, partner)]
            terms.append(cross_entropy_reference(features[i], features[partner], negatives, temperature))
    return torch.stack(terms).mean()


# --- golden vectors


def test_rotation_instance_golden() -> None:
    numbers = golden("rotori_instance")
    rows, slope = numbers["x"], numbers["grad"]
    value, (gradient,) = value_and_gradients(lambda x: rotation_instance(x, numbers["T"].item()), rows)
    assert value.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    assert_near(gradient[: len(slope)], tangential(slope, rows[: len(slope)]), 1e-5)


def test_multimodal_instance_golden() -> None:
    numbers = golden("emmd_four")
    rows, slope = numbers["x"], numbers["grad"]
    value, (gradient,) = value_and_gradients(lambda x: multimodal_instance(x, numbers["T"].item()), rows)
    assert value.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    assert_near(gradient[: len(slope)], tangential(slope, rows[: len(slope)]), 1e-5)


def test_dense_info_nce_golden() -> None:
    """The file keeps the backbone features and the gradient of the first image; the others match by one-hot features.

    Its gradient belongs to lambda times the loss."""
    numbers = golden("densecl")
    temperature, share, match = numbers["T"].item(), numbers["lambda_"].item(), numbers["match_index"]
    query_grid, key_grid = (numbers[name].transpose(1, 2) for name in ("q_grid", "k_grid"))  # (4, 49, 128)
    query_backbone, key_backbone = (numbers[name].transpose(1, 2) for name in ("q_backbone", "k_backbone"))
    queue = numbers["queue2"].T
    first, (slope,) = value_and_gradients(
        lambda x: dense_info_nce(x, key_grid[:1], query_backbone, key_backbone, queue, temperature), query_grid[:1]
    )
    expected = numbers["grad_q_grid"].transpose(1, 2) / share * len(query_grid)
    assert_near(slope, tangential(expected, query_grid[:1]), 1e-5)
    positions = torch.eye(49)
    value = dense_info_nce(query_grid, key_grid, positions[match], positions.expand(4, 49, 49), queue, temperature)
    assert value.item() == pytest.approx(numbers["loss_dense"].item(), rel=1e-5)
    alone = dense_info_nce(query_grid[:1], key_grid[:1], positions[match[:1]], positions[None], queue, temperature)
    assert alone.item() == pytest.approx(first.item(), rel=1e-6)


def test_memory_bank_golden() -> None:
    numbers = golden("instdisc")
    features, bank, index = numbers["x"], numbers["memory_before"], numbers["y"]
    temperature, normaliser = numbers["T"].item(), numbers["Z"]
    assert torch.equal(numbers["idx"][:, 0], index)
    noise = numbers["idx"][:, 1:]
    assert instdisc_normaliser(features, bank, index, noise, temperature).item() == pytest.approx(
        normaliser.item(), rel=1e-5
    )
    for name, loss in (
        ("nce", lambda x: instdisc_nce(x, bank, index, noise, temperature, normaliser)),
        ("softmax", lambda x: instdisc_softmax(x, bank, index, temperature)),
    ):
        value, (gradient,) = value_and_gradients(loss, features)
        assert value.item() == pytest.approx(numbers[f"loss_{name}"].item(), rel=1e-5)
        assert_near(gradient, tangential(numbers[f"grad_{name}"], features), 1e-5)
    before = bank.clone()
    after = updated_bank(bank, index, 7 * features, numbers["momentum"].item())
    assert torch.equal(bank, before)
    torch.testing.assert_close(after[index], numbers["memory_after_rows"], rtol=0, atol=1e-6)
    untouched = torch.ones(len(bank), dtype=torch.bool).scatter(0, index, False)
    assert torch.equal(after[untouched], bank[untouched])


def test_jigsaw_clustering_golden() -> None:
    numbers = golden("jigclu")
    features, labels, slope = numbers["features"], numbers["label_clu"], numbers["grad"]
    value, (gradient,) = value_and_gradients(lambda x: jigsaw_clustering(x, labels, numbers["T"].item()), features)
    assert value.item() == pytest.approx(numbers["loss_clu"].item(), rel=1e-5)
    assert_near(gradient[: len(slope)], tangential(slope, features[: len(slope)]), 1e-5)


def test_c2l_terms_and_queue_golden() -> None:
    """InfoNCE three times, the queue filled in between: keys, keys of mixed images, mixed keys."""
    numbers = golden("c2l_softmax")
    temperature, share = numbers["T"].item(), numbers["lam"].item()
    key = numbers["feat_k"]
    mixed_key = share * key + (1 - share) * key[numbers["perm"]]
    queue, losses = numbers["memory_before"].clone(), []
    query, mixed_query = (numbers[name].clone().requires_grad_() for name in ("feat_q", "mixed_q"))
    steps = ((query, key), (mixed_query, numbers["mixed_k"]), (mixed_query, mixed_key))
    for place, (asking, answer) in enumerate(steps):
        losses.append(info_nce(asking, answer, queue.clone(), temperature))
        assert losses[-1].item() == pytest.approx(numbers[f"l{place + 1}"].item(), rel=1e-5)
        queue[8 * place : 8 * (place + 1)] = unit(answer)
    torch.testing.assert_close(queue[:24], numbers["memory_after"], rtol=0, atol=1e-6)
    loss = torch.stack(losses).mean()
    assert loss.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    for gradient, name in zip(torch.autograd.grad(loss, [query, mixed_query]), ("grad_q", "grad_mixed_q"), strict=True):
        torch.testing.assert_close(gradient, numbers[name], rtol=1e-4, atol=1e-6)


def test_contrastive_clustering_instance_golden() -> None:
    numbers = golden("contrastive_clustering")
    views = [numbers["z_i"], numbers["z_j"]]
    value, gradients = value_and_gradients(lambda *x: nt_xent(*x, numbers["T_instance"].item()), *views)
    assert value.item() == pytest.approx(numbers["loss_instance"].item(), rel=1e-5)
    for gradient, view, name in zip(gradients, views, ("grad_zi", "grad_zj"), strict=True):
        slope = numbers[name]
        assert_near(gradient[: len(slope)], tangential(slope, view[: len(slope)]), 1e-5)


# --- independent float64 references


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("images", [1, 3])
def test_rotation_instance_reference(images: int, temperature: float) -> None:
    rows = 2 * paired_rows(4 * images, 5, 0.5, seed=images)
    expected, (slope,) = value_and_gradients(lambda x: rotation_reference(x, temperature), rows)
    for dtype, tolerance in PRECISIONS:
        value, (gradient,) = value_and_gradients(lambda x: rotation_instance(x, temperature), rows.to(dtype))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert_near(gradient, slope, tolerance)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("images", [1, 5])
def test_multimodal_instance_reference(images: int, temperature: float) -> None:
    rows = 3 * paired_rows(2 * images, 5, 0.5, seed=images)
    expected, (slope,) = value_and_gradients(lambda x: multimodal_reference(x, temperature), rows)
    for dtype, tolerance in PRECISIONS:
        value, (gradient,) = value_and_gradients(lambda x: multimodal_instance(x, temperature), rows.to(dtype))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert_near(gradient, slope, tolerance)


def test_rotation_instance_is_the_mean_of_four_instance_losses() -> None:
    """Many rows, so that they come in several blocks: turn the second view and take plain instance discrimination."""
    rows = paired_rows(1024, 16, 0.5).float()
    first, second = rows.reshape(2, 256, 4, 16)
    turned = [torch.cat([first, second.roll(turn, 1)]).reshape(2048, 16) for turn in range(4)]
    expected = sum(instance_discrimination(one, 0.1).item() for one in turned) / 4
    value, (gradient,) = value_and_gradients(lambda x: rotation_instance(x, 0.1), rows)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    _, (slope,) = value_and_gradients(
        lambda x: (
            sum(
                instance_discrimination(torch.cat([x[:1024].reshape(256, 4, 16), part]).reshape(2048, 16), 0.1)
                for part in (x[1024:].reshape(256, 4, 16).roll(turn, 1) for turn in range(4))
            )
            / 4
        ),
        rows,
    )
    assert_near(gradient, slope, 1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_dense_info_nce_reference(temperature: float) -> None:
    grids = [2 * randn(3, 4, 5, seed=1), 3 * randn(3, 4, 5, seed=2)]
    backbones, queue = [randn(3, 4, 6, seed=3).exp(), randn(3, 4, 6, seed=4).exp()], randn(7, 5, seed=5)
    expected, slopes = value_and_gradients(
        lambda q, k, n: dense_reference(q, k, *backbones, n, temperature), *grids, queue
    )
    for dtype, tolerance in PRECISIONS:
        given = [tensor.to(dtype) for tensor in (*grids, queue)]
        value, gradients = value_and_gradients(lambda q, k, n: dense_info_nce(q, k, *backbones, n, temperature), *given)
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)


def test_dense_info_nce_leaves_the_backbone_features_alone() -> None:
    grid, backbone = randn(2, 3, 4), randn(2, 3, 5).requires_grad_()
    loss = dense_info_nce(grid.clone().requires_grad_(), grid, backbone, backbone, randn(6, 4), 0.1)
    assert torch.autograd.grad(loss, backbone, allow_unused=True) == (None,)


@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.5])
def test_memory_bank_reference(temperature: float) -> None:
    features, bank = 2 * randn(4, 6, seed=1), 3 * randn(11, 6, seed=2)
    index, noise = torch.tensor([3, 0, 10, 7]), torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(3))
    noise[1, 2] = 0  # the own vector as noise
    normaliser = 11 * math.exp(0.3 / temperature)
    expected, slopes = value_and_gradients(
        lambda f, b: nce_reference(f, b, index, noise, temperature, normaliser), features, bank
    )
    logits = unit(features) @ unit(bank).T / temperature
    softmax = -logits.log_softmax(1)[range(4), index].mean()
    for dtype, tolerance in PRECISIONS:
        value, gradients = value_and_gradients(
            lambda f, b: instdisc_nce(f, b, index, noise, temperature, normaliser), features.to(dtype), bank.to(dtype)
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)
        plain = instdisc_softmax(features.to(dtype), bank.to(dtype), index, temperature)
        assert plain.item() == pytest.approx(softmax.item(), rel=tolerance)
    mean = logits.exp().gather(1, torch.cat([index[:, None], noise], 1)).mean()
    estimate = instdisc_normaliser(features, bank, index, noise, temperature)
    assert estimate.item() == pytest.approx(11 * mean.item(), rel=1e-10)


def test_updated_bank_moves_rows_by_the_momentum() -> None:
    bank, features, index = unit(randn(5, 3)), 4 * randn(2, 3, seed=1), torch.tensor([4, 1])
    after = updated_bank(bank, index, features.clone().requires_grad_(), 0.3)
    assert not after.requires_grad
    for row, place in enumerate((4, 1)):
        torch.testing.assert_close(after[place], unit(0.3 * bank[place] + 0.7 * unit(features[row])))
    torch.testing.assert_close(updated_bank(bank, index, features, 1.0), bank)
    torch.testing.assert_close(updated_bank(bank, index, features, 0.0)[index], unit(features))


@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.5])
def test_jigsaw_clustering_reference(temperature: float) -> None:
    features, image_index = 2 * randn(12, 5, seed=1), torch.tensor([7, 2, 2, 9, 7, 9, 9, 2, 7, 7, 2, 9])
    expected, (slope,) = value_and_gradients(lambda x: jigsaw_reference(x, image_index, temperature), features)
    for dtype, tolerance in PRECISIONS:
        value, (gradient,) = value_and_gradients(
            lambda x: jigsaw_clustering(x, image_index, temperature), features.to(dtype)
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert_near(gradient, slope, tolerance)


def test_gradients_by_finite_differences() -> None:
    index, noise = torch.tensor([0, 3, 5]), torch.tensor([[1, 2], [2, 2], [4, 5]])
    backbones = [randn(1, 3, 4, seed=seed) for seed in (7, 8)]
    for loss, inputs in (
        (lambda f, b: instdisc_nce(f, b, index, noise, 0.2, 50.0), [randn(3, 4), randn(6, 4, seed=1)]),
        (lambda f, b: instdisc_softmax(f, b, index, 0.2), [randn(3, 4), randn(6, 4, seed=1)]),
        (lambda x: jigsaw_clustering(x, torch.tensor([0, 1] * 4), 0.2), [randn(8, 3)]),
        (
            lambda q, k, n: dense_info_nce(q, k, *backbones, n, 0.2),
            [randn(1, 3, 4, seed=seed) for seed in (1, 2)] + [randn(5, 4, seed=3)],
        ),
    ):
        assert torch.autograd.gradcheck(loss, [tensor.clone().requires_grad_() for tensor in inputs])


# --- hard inputs


HARD_ROWS = {
    "identical": torch.ones(32, 4, dtype=torch.float64),
    "solved": torch.eye(16, dtype=torch.float64).repeat(2, 1),
    "partners_opposite": torch.cat([randn(16, 4), -randn(16, 4)]),
    "own_view_alike": unit(randn(16, 8)).repeat_interleave(2, 0),
}


@pytest.mark.parametrize("rows", HARD_ROWS.values(), ids=HARD_ROWS)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("loss", [rotation_instance, multimodal_instance])
def test_instance_losses_finite_and_precise(loss: Callable[..., Tensor], temperature: float, rows: Tensor) -> None:
    exact, (slope,) = value_and_gradients(lambda x: loss(x, temperature), rows)
    value, (gradient,) = value_and_gradients(lambda x: loss(x, temperature), rows.float())
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert value.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-6)
    assert (gradient - slope).abs().max().item() <= 1e-4 * max(1.0, slope.abs().max().item())


def test_instdisc_nce_far_from_its_normaliser() -> None:
    """Shares that underflow or exceed all bounds leave a finite loss with a useful gradient."""
    features, bank = randn(4, 6, dtype=torch.float32), randn(9, 6, seed=1, dtype=torch.float32)
    index, noise = torch.arange(4), torch.arange(4, 8).repeat(4, 1)
    for normaliser in (1e-30, 1e30):
        value, (gradient,) = value_and_gradients(
            lambda x, z=normaliser: instdisc_nce(x, bank, index, noise, 0.01, z), features
        )
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
