"""Instance and region discrimination, entropy, InfoNCE, NT-Xent and Dice against golden vectors, plain float64
references, finite differences and hard inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from bench.losses import (
    assignment_entropy,
    info_nce,
    instance_discrimination,
    nt_xent,
    region_discrimination,
    soft_dice,
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

# --- references: the printed formulas, one term at a time, in the precision they are given


def instance_reference(rows: Tensor, temperature: float, m: float = 1.0) -> Tensor:
    rows = unit(rows)
    keys, count = rows.detach(), len(rows)
    total = rows.new_zeros(())
    for i in range(count):
        partner = (i + count // 2) % count
        e = {j: (rows[i] @ keys[j] / temperature).exp() for j in range(count) if j != i}
        terms = {j: e[j] if j == partner else m * e[j] for j in e}
        denominator = torch.stack(list(terms.values())).sum()
        total = total - (e[partner] / denominator).log()
        for j in e:
            if j != partner:
                others = torch.stack([terms[k] for k in e if k != j]).sum()  # D - e_j without a subtraction at m = 1
                total = total - m * ((others + (m - 1) * e[j]) / denominator).clamp_min(1e-10 if m < 1 else 0).log()
    return total / count


def instance_reference_blocked(rows: Tensor, temperature: float, graded: int) -> tuple[float, Tensor]:
    """Loss over all rows and the gradient of the first `graded` rows, in float64 with m = 1, for many rows."""
    rows = rows.double()
    keys, count = unit(rows), len(rows)
    total, gradient = 0.0, torch.empty(0)
    for start in range(0, count, graded):
        queries = rows[start : start + graded].clone().requires_grad_()
        index = torch.arange(start, start + len(queries))
        logits = (unit(queries) @ keys.T / temperature).scatter(1, index[:, None], -math.inf)
        p = logits.softmax(1)
        partner = ((index + count // 2) % count)[:, None]
        wrong = torch.log1p(-p).scatter(1, partner, 0).sum()
        loss = -(p.gather(1, partner).log().sum() + wrong)
        total += loss.item()
        if start == 0:
            gradient = torch.autograd.grad(loss / count, queries)[0]
    return total / count, gradient


def region_reference(regions: Tensor, temperature: float, joint: bool) -> Tensor:
    regions = unit(regions)
    images, classes, _ = regions.shape
    prototypes = unit(regions.sum(0))
    total = regions.new_zeros(())
    for n in range(images):
        for c in range(classes):
            e = [(prototypes[other] @ regions[n, c] / temperature).exp() for other in range(classes)]
            everything = torch.stack(e).sum()
            total = total - (e[c] / everything).log()
            for wrong in range(classes):
                if joint and wrong != c:
                    rest = torch.stack([e[k] for k in range(classes) if k != wrong]).sum()
                    total = total - (rest / everything).log()
    return total / (images * classes)


def info_nce_reference(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    query, key, queue = unit(query), unit(key), unit(queue)
    terms = [cross_entropy_reference(q, k, list(queue), temperature) for q, k in zip(query, key, strict=True)]
    return torch.stack(terms).mean()


def nt_xent_reference(view0: Tensor, view1: Tensor, temperature: float) -> Tensor:
    vectors, count = unit(torch.cat([view0, view1])), len(view0)
    terms = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        negatives = [vectors[j] for j in range(2 * count) if j not in (i, partner)]
        terms.append(cross_entropy_reference(vectors[i], vectors[partner], negatives, temperature))
    return torch.stack(terms).mean()


# --- golden vectors


@pytest.mark.parametrize("place", range(3), ids=["m=0.5", "m=1", "m=2"])
def test_instance_discrimination_golden(place: int) -> None:
    numbers = golden("embinva")
    rows, m, slope = numbers["x"], numbers["negM"][place].item(), numbers["grad"][place]
    check_instance(rows, numbers["T"].item(), m, numbers["loss"][place], slope, tolerance=1e-4)
    check_instance_truth(rows, numbers["T"].item(), m)


@pytest.mark.parametrize(("rows", "tolerance"), [(16, 3e-4), (1024, 1e-5)])
def test_instance_discrimination_golden_patches(rows: int, tolerance: float) -> None:
    numbers = golden(f"ld_pd_batchcriterion_{rows}")
    check_instance(numbers["x"], numbers["T"].item(), 1, numbers["loss"], numbers["grad"], tolerance)
    if rows == 16:
        check_instance_truth(numbers["x"], numbers["T"].item(), 1)


def check_instance(rows: Tensor, temperature: float, m: float, loss: Tensor, slope: Tensor, tolerance: float) -> None:
    value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, temperature, m), rows)
    graded = len(slope)
    assert value.item() == pytest.approx(loss.item(), abs=tolerance)
    expected = tangential(slope, rows[:graded])
    torch.testing.assert_close(gradient[:graded], expected, rtol=1e-3, atol=tolerance)


def check_instance_truth(rows: Tensor, temperature: float, m: float) -> None:
    """The stored numbers are rounded by a subtraction near zero; in float64 there is a tighter line to hold."""
    expected, (slope,) = value_and_gradients(lambda x: instance_reference(x, temperature, m), rows.double())
    value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, temperature, m), rows)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient, slope, 1e-5)


def test_region_discrimination_golden() -> None:
    numbers = golden("ld_region_and_entropy")
    regions, temperature = numbers["region_features"], numbers["tau"].item()
    value, (gradient,) = value_and_gradients(lambda x: region_discrimination(x, temperature), regions)
    assert value.item() == pytest.approx(numbers["loss_ld"].item(), rel=1e-5)
    slope = numbers["grad_region"]
    assert_near(gradient[: len(slope)], tangential(slope, regions[: len(slope)]), 1e-5)


@pytest.mark.parametrize(("joint", "version"), [(False, "v2"), (True, "v1")])
def test_region_discrimination_printed_formulas(joint: bool, version: str) -> None:
    numbers = golden("ld_region_paper_v1_v2")
    value = region_discrimination(numbers["t"], numbers["tau"].item(), joint=joint)
    assert value.item() == pytest.approx(numbers[f"loss_{version}_mean"].item(), rel=1e-9)
    assert value.item() * 8 * 16 == pytest.approx(numbers[f"loss_{version}_sum"].item(), rel=1e-9)


def test_assignment_entropy_golden() -> None:
    numbers = golden("ld_region_and_entropy")
    value, (gradient,) = value_and_gradients(assignment_entropy, numbers["attention_map"])
    assert value.item() == pytest.approx(numbers["loss_entropy"].item(), rel=1e-5)
    slope = numbers["grad_attention"]
    assert_near(gradient[: len(slope)], slope, 1e-5)


@pytest.mark.parametrize("name", ["moco_lightly_T0.07", "moco_lightly_T0.2"])
def test_info_nce_golden(name: str) -> None:
    numbers = golden(name)
    value, (gradient,) = value_and_gradients(
        lambda query: info_nce(query, numbers["k"], numbers["bank_before"], numbers["T"].item()), numbers["q"]
    )
    assert value.item() == pytest.approx(numbers["loss"].item(), rel=1e-5)
    slope = numbers["grad_q"]
    torch.testing.assert_close(gradient[: len(slope)], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", range(2), ids=["T=0.1", "T=0.5"])
def test_nt_xent_golden(place: int) -> None:
    numbers = golden("ntxent")
    temperature = numbers["T"][place].item()
    value, gradients = value_and_gradients(lambda *x: nt_xent(*x, temperature), numbers["z0"], numbers["z1"])
    assert value.item() == pytest.approx(numbers["loss"][place].item(), rel=1e-5)
    for gradient, name in zip(gradients, ("grad_z0", "grad_z1"), strict=True):
        slope = numbers[name][place]
        torch.testing.assert_close(gradient[: len(slope)], slope, rtol=1e-4, atol=1e-6)


# --- independent float64 references


@pytest.mark.parametrize("spread", [0.3, 2.0])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("m", [0.01, 0.5, 1.0, 1.3, 2.0])
def test_instance_discrimination_reference(m: float, temperature: float, spread: float) -> None:
    rows = 3 * paired_rows(6, 5, spread)
    expected, (slope,) = value_and_gradients(lambda x: instance_reference(x, temperature, m), rows)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, temperature, m), rows.to(dtype))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert_near(gradient, slope, 10 * tolerance)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_instance_discrimination_when_a_negative_takes_all(temperature: float) -> None:
    """Rows 0 and 1 coincide and are no partners: in float32 that q is 1, log(1 - q) about -1 / temperature."""
    rows = paired_rows(4, 16, 3.0)
    rows[1] = rows[0]
    expected, (slope,) = value_and_gradients(lambda x: instance_reference(x, temperature), rows)
    value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, temperature), rows.float())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_near(gradient, slope, 1e-4)


@pytest.mark.parametrize(("count", "tolerance"), [(750, 1e-5), (2048, 1e-5)])
def test_instance_discrimination_many_rows(count: int, tolerance: float) -> None:
    rows = paired_rows(count, 32, 0.5).float()
    expected, slope = instance_reference_blocked(rows, 0.1, graded=256)
    value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, 0.1), rows)
    assert value.item() == pytest.approx(expected, rel=tolerance)
    assert_near(gradient[:256], slope, 10 * tolerance)


def test_instance_discrimination_gradient_scales_with_what_comes_from_above() -> None:
    rows = paired_rows(4, 3, 1.0)
    _, (once,) = value_and_gradients(lambda x: instance_discrimination(x, 0.1), rows)
    _, (thrice,) = value_and_gradients(lambda x: 3 * instance_discrimination(x, 0.1), rows)
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_region_discrimination_reference(temperature: float, joint: bool) -> None:
    regions = 2 * randn(3, 4, 5)
    expected, (slope,) = value_and_gradients(lambda x: region_reference(x, temperature, joint), regions)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        value, (gradient,) = value_and_gradients(
            lambda x: region_discrimination(x, temperature, joint), regions.to(dtype)
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert_near(gradient, slope, tolerance)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5])
def test_info_nce_reference(temperature: float) -> None:
    inputs = [2 * randn(4, 6, seed=1), 3 * randn(4, 6, seed=2), randn(7, 6, seed=3)]
    expected, slopes = value_and_gradients(lambda *x: info_nce_reference(*x, temperature), *inputs)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        value, gradients = value_and_gradients(lambda *x: info_nce(*x, temperature), *(x.to(dtype) for x in inputs))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
def test_nt_xent_reference(temperature: float) -> None:
    inputs = list(paired_rows(5, 6, 0.7).chunk(2))
    expected, slopes = value_and_gradients(lambda *x: nt_xent_reference(*x, temperature), *inputs)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        value, gradients = value_and_gradients(lambda *x: nt_xent(*x, temperature), *(x.to(dtype) for x in inputs))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert_near(gradient, slope, tolerance)


def test_nt_xent_is_lightlys() -> None:
    views = list(paired_rows(32, 16, 0.5).float().chunk(2))
    expected, slopes = value_and_gradients(NTXentLoss(temperature=0.1), *views)
    value, gradients = value_and_gradients(lambda *x: nt_xent(*x, 0.1), *views)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert_near(gradient, slope, 1e-5)


def test_nt_xent_and_info_nce_many_rows() -> None:
    views = list(paired_rows(2048, 32, 0.5).chunk(2))
    expected = nt_xent(*views, 0.1)
    assert nt_xent(*(view.float() for view in views), 0.1).item() == pytest.approx(expected.item(), rel=1e-6)
    unit_views = [unit(view) for view in views]
    queue = unit(randn(4096, 32, seed=9))
    logits = torch.cat([(unit_views[0] * unit_views[1]).sum(1, keepdim=True), unit_views[0] @ queue.T], 1) / 0.07
    value = info_nce(views[0].float(), views[1].float(), queue.float(), 0.07)
    assert value.item() == pytest.approx(-logits.log_softmax(1)[:, 0].mean().item(), rel=1e-6)


def test_assignment_entropy_reference() -> None:
    assignment = randn(2, 3, 4, 5).sigmoid()
    bits = [-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in assignment.flatten().tolist()]
    assert assignment_entropy(assignment).item() == pytest.approx(sum(bits) / len(bits), rel=1e-12)
    assert assignment_entropy(torch.full((1, 2, 3), 0.5)).item() == pytest.approx(1)
    volume = assignment.reshape(2, 3, 2, 2, 5)
    assert assignment_entropy(volume).item() == assignment_entropy(assignment).item()


@pytest.mark.parametrize("smooth", [0.0, 1.0, 1e-3])
def test_soft_dice_reference(smooth: float) -> None:
    prediction, target = randn(2, 1, 4, 5).sigmoid(), randn(2, 1, 4, 5, seed=1) > 0
    overlap = predicted = wanted = 0.0
    for p, y in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        overlap, predicted, wanted = overlap + p * y, predicted + p, wanted + y
    expected = 1 - (2 * overlap + smooth) / (predicted + wanted + smooth)
    for given in (target, target.to(torch.uint8), target.double()):
        assert soft_dice(prediction, given, smooth).item() == pytest.approx(expected, rel=1e-12)


def test_soft_dice_ends() -> None:
    empty, full = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    assert soft_dice(full, full, 1).item() == 0
    assert soft_dice(empty, empty, 1).item() == 0
    assert soft_dice(full, empty, 0).item() == 1
    assert soft_dice(empty, full, 1).item() == pytest.approx(1 - 1 / 129)


GRADCHECKED: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "region": (lambda x: region_discrimination(x, 0.2), [randn(3, 4, 5)]),
    "region_joint": (lambda x: region_discrimination(x, 0.2, joint=True), [randn(3, 4, 5)]),
    "entropy": (assignment_entropy, [randn(2, 3, 4).sigmoid()]),
    "info_nce": (lambda *x: info_nce(*x, 0.2), [randn(4, 5, seed=1), randn(4, 5, seed=2), randn(6, 5, seed=3)]),
    "nt_xent": (lambda *x: nt_xent(*x, 0.2), [randn(4, 5, seed=1), randn(4, 5, seed=2)]),
    "soft_dice": (lambda x: soft_dice(x, randn(2, 4, 5) > 0, 1.0), [randn(2, 4, 5, seed=1).sigmoid()]),
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradients_by_finite_differences(name: str) -> None:
    loss, inputs = GRADCHECKED[name]
    assert torch.autograd.gradcheck(loss, [tensor.clone().requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("m", [0.5, 1.0, 2.0])
def test_instance_discrimination_gradient_by_finite_differences(m: float) -> None:
    """Keys are detached, so a row is moved as a query only: its own term, with every row in place as key."""
    rows, step, row = paired_rows(4, 3, 1.0), 1e-6, 2
    _, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, 0.2, m), rows)
    keys = unit(rows)

    def own_term(query: Tensor) -> float:
        e = (unit(query) @ keys.T / 0.2).exp()
        others = [j for j in range(8) if j not in (row, 6)]
        denominator = e[6] + m * e[others].sum()
        return -((e[6] / denominator).log() + m * (1 - e[others] / denominator).log().sum()).item() / 8

    for axis in range(3):
        move = step * torch.eye(3, dtype=torch.float64)[axis]
        slope = (own_term(rows[row] + move) - own_term(rows[row] - move)) / (2 * step)
        assert gradient[row, axis].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


# --- hard inputs


HARD_ROWS = {
    "random": paired_rows(16, 4, 1.0),
    "identical": torch.ones(32, 4, dtype=torch.float64),
    "solved": torch.eye(16, dtype=torch.float64).repeat(2, 1),
    "partners_opposite": torch.cat([randn(16, 4), -randn(16, 4)]),
    "two_clusters": torch.tensor([[1.0, 0], [-1.0, 0]], dtype=torch.float64).repeat(16, 1).roll(1, 0),
    "wrong_twins": unit(randn(16, 8)).repeat_interleave(2, 0),
}


@pytest.mark.parametrize("rows", HARD_ROWS.values(), ids=HARD_ROWS)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("m", [0.01, 0.5, 1.0, 2.0])
def test_instance_discrimination_finite_and_precise(m: float, temperature: float, rows: Tensor) -> None:
    value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, temperature, m), rows.float())
    assert value.isfinite()
    assert gradient.isfinite().all()
    if m >= 1:  # below 1 the loss itself is ill-conditioned where q meets 1
        exact, (slope,) = value_and_gradients(lambda x: instance_discrimination(x, temperature, m), rows)
        assert value.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-6)
        assert (gradient - slope).abs().max().item() <= 1e-4 * max(1.0, slope.abs().max().item())


def test_saturated_assignment_keeps_a_finite_gradient() -> None:
    value, (gradient,) = value_and_gradients(assignment_entropy, torch.tensor([[0.0, 1.0, 0.25]]))
    assert value.item() == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)) / 3)
    assert gradient.isfinite().all()


def test_half_precision_maps_are_computed_in_float32() -> None:
    large = torch.ones(2, 1, 300, 300, dtype=torch.float16)  # float16 ends at 65,504
    assert soft_dice(large, large, 1).item() == 0
    assert assignment_entropy(large / 2).item() == pytest.approx(1)


@pytest.mark.gpu
def test_gpu_many_rows() -> None:
    rows = paired_rows(2048, 32, 0.5).float()
    expected, slope = instance_reference_blocked(rows, 0.1, graded=256)
    value, (gradient,) = value_and_gradients(lambda x: instance_discrimination(x, 0.1), rows.cuda())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert_near(gradient[:256].cpu(), slope, 1e-4)
