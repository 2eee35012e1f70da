"""What single methods do beyond the contract: memories, montages, orders of rows, what is cut out of what."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import registry, views
from bench.data import Corpus
from bench.nets import Backbone
from bench.parts import FeatureQueue, momentum_copy
from bench.run import pretrain
from bench.spec import CorpusInfo, Site
from bench.views import Batch, View, normalise
from methods import c2l, emmd, jigclu
from tests.conftest import pretrain_cell, textured_corpus
from tests.loss_checks import golden

SHELVES = registry.scan()
PAPER_BATCHES = {
    "instdisc": 256,
    "embinva": 128,
    "densecl": 256,
    "jigclu": 256,
    "c2l": 128,
    "simtriplet": 256,
    "rotation": 192,
}


def _run(name: str, corpus: Corpus, **changes: Any) -> pretrain._Run:
    cell = pretrain_cell(name, **({"steps": 8} | changes))
    run = pretrain._Run(cell, SHELVES.methods[name], corpus, pretrain.set_up(Site(Path(), Path(), None)))
    run.method.train()
    return run


def _step(run: pretrain._Run, step: int) -> None:
    run.enter(step)
    run.train_step()


def _seen(run: pretrain._Run) -> Tensor:
    """What the encoder is given in one step."""
    seen: list[Tensor] = []
    encoder = pretrain.handed_on(run.method)["encoder"]
    handle = encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    _step(run, 0)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def _batch(run: pretrain._Run) -> Batch:
    return pretrain.make_batch(run.corpus, run.cell, run.declared, 0, 0, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------------- memories


def test_a_queue_wraps_and_keeps_the_latest() -> None:
    queue = FeatureQueue(5, 2)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(5))
    assert set(queue.state_dict()) == {"rows", "position"}
    before = queue.snapshot()
    given = torch.arange(24.0).reshape(12, 2)
    queue.enqueue(given[:3])
    queue.enqueue(given[3:7])  # rows 3, 4, 0, 1
    assert torch.equal(queue.rows, given[[5, 6, 2, 3, 4]])
    assert int(queue.position) == 2
    assert not torch.equal(before, queue.rows)
    queue.enqueue(given)  # more than it holds
    assert torch.equal(queue.rows.sort(0).values, given[-5:])
    assert int(queue.position) == (2 + 12) % 5
    assert torch.equal(queue.rows[int(queue.position)], given[-5])  # the oldest is the next to go


def test_a_momentum_copy_takes_no_gradient_and_shares_nothing() -> None:
    layer = torch.nn.Linear(3, 2)
    twin = momentum_copy(layer)
    assert torch.equal(twin.weight, layer.weight)
    assert twin.weight.data_ptr() != layer.weight.data_ptr()
    assert layer.weight.requires_grad
    assert not any(item.requires_grad for item in twin.parameters())


@pytest.mark.parametrize(("name", "own", "slow"), [("densecl", "query", "momentum_key"), ("c2l", "backbone", "")])
def test_the_key_encoder_is_a_moving_average(name: str, own: str, slow: str) -> None:
    run = _run(name, textured_corpus(6, 32, 3), encoder_momentum=0.75)
    moving, still = getattr(run.method, own), getattr(run.method, slow or f"momentum_{own}")
    _step(run, 0)  # both were equal until the first optimiser step
    started, towards = copy.deepcopy(dict(still.named_parameters())), copy.deepcopy(dict(moving.named_parameters()))
    _step(run, 1)
    assert any(not torch.equal(started[key], towards[key]) for key in started)
    for key, value in still.named_parameters():
        torch.testing.assert_close(value, 0.75 * started[key] + 0.25 * towards[key])


@pytest.mark.parametrize(("name", "queues"), [("densecl", ("queue", "dense_queue")), ("c2l", ("queue",))])
def test_queues_are_never_longer_than_the_corpus(name: str, queues: tuple[str, ...]) -> None:
    assert all(len(getattr(_run(name, textured_corpus(6, 32, 3)).method, queue).rows) == 6 for queue in queues)
    assert all(
        len(getattr(_run(name, textured_corpus(6, 32, 3), queue_size=5).method, queue).rows) == 5 for queue in queues
    )


def test_instdisc_remembers_what_it_saw_and_normalises_once() -> None:
    run = _run("instdisc", textured_corpus(10, 32, 3))
    method: Any = run.method
    assert method.bank.shape == (10, 128)
    assert method.noise == 10  # not 4096 of ten images
    assert float(method.normaliser) == 0
    before = method.bank.clone()
    _step(run, 0)
    seen = _batch(run).index
    others = [row for row in range(10) if row not in seen.tolist()]
    assert torch.equal(method.bank[others], before[others])
    assert bool((method.bank[seen] != before[seen]).any(1).all())
    torch.testing.assert_close(method.bank[seen].norm(dim=1), torch.ones(len(seen)))
    estimated = float(method.normaliser)
    assert 10 < estimated < 10 * 2.718 ** (1 / 0.07)
    _step(run, 1)
    assert float(method.normaliser) == estimated
    assert {"bank", "normaliser"} <= set(method.state_dict())


@pytest.mark.parametrize("name", PAPER_BATCHES)
def test_the_rate_follows_the_batch(name: str) -> None:
    paper = SHELVES.methods[name].defaults["lr"]
    for batch, expected in ((PAPER_BATCHES[name], paper), (PAPER_BATCHES[name] // 4, float(paper) / 4)):
        cell = pretrain_cell(name, batch_size=batch)
        method: Any = pretrain.build_method(cell, SHELVES.methods[name], textured_corpus(4, 32, 3))
        assert method.recipe().lr == pytest.approx(expected)
        assert method.recipe().optimizer == "sgd"


# ------------------------------------------------------------------------------------------------------- single methods


def test_c2l_compares_and_enqueues_in_the_order_of_its_code() -> None:
    numbers = golden("c2l_softmax")
    info = CorpusInfo(size=128, channels=3, view_size=32, batch_size=8, steps=1)
    method = c2l.C2L(Backbone("tiny_vgg16"), c2l.HParams(projection=64, temperature=float(numbers["T"])), info)
    method.queue.rows.copy_(numbers["memory_before"])
    query, mixed = numbers["feat_q"].requires_grad_(), numbers["mixed_q"].requires_grad_()
    key, weight = numbers["feat_k"], float(numbers["lam"])
    parts = method.compare(query, mixed, key, numbers["mixed_k"], c2l._mix(key, numbers["perm"], weight))
    for part, stored in zip(("image", "mixed", "feature"), ("l1", "l2", "l3"), strict=True):
        torch.testing.assert_close(parts[part].detach(), numbers[stored], rtol=1e-5, atol=1e-5)
    after = numbers["memory_after"]  # the rows that were written
    torch.testing.assert_close(method.queue.rows[: len(after)], after, rtol=1e-4, atol=1e-5)
    assert torch.equal(method.queue.rows[len(after) :], numbers["memory_before"][len(after) :])
    assert len(after) == 3 * len(key)
    torch.stack(list(parts.values())).mean().backward()
    for rows, stored in ((query, "grad_q"), (mixed, "grad_mixed_q")):
        torch.testing.assert_close(rows.grad, numbers[stored], rtol=1e-4, atol=1e-6)


def test_c2l_mixes_images_mostly_with_themselves() -> None:
    run = _run("c2l", textured_corpus(6, 32, 3))
    seen: list[Tensor] = []
    run.method.backbone.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore
    _step(run, 0)
    plain, mixed = seen
    assert torch.equal(plain, _batch(run).views[0].images)
    distances = torch.cdist(mixed.flatten(1), plain.flatten(1))
    assert torch.equal(distances.argmin(1), torch.arange(len(plain)))
    assert float((mixed - plain).abs().max()) > 0


def test_densecl_enqueues_one_pooled_vector_per_image() -> None:
    run = _run("densecl", textured_corpus(12, 64, 3), image_size=64)
    method: Any = run.method
    given: list[tuple[Tensor, Tensor, Tensor]] = []
    method.momentum_key.register_forward_hook(lambda *call: given.append(call[2]))
    _step(run, 0)
    key, key_grid, key_cells = given[0]
    assert key_grid.shape == (4, 16, 128)  # the coarsest map of a 64 px view has 4 x 4 cells
    assert key_cells.shape == (4, 16, method.query.backbone.width)
    torch.testing.assert_close(method.queue.rows[:4], F.normalize(key, dim=1))
    torch.testing.assert_close(method.dense_queue.rows[:4], F.normalize(key_grid.mean(1), dim=1))
    assert method.query(torch.rand(1, 3, 160, 160))[1].shape == (1, 49, 128)


def test_jigclu_montage_as_in_its_code() -> None:
    numbers = golden("jigclu")
    crops = numbers["crops"].flatten(0, 1)[numbers["permute"]]
    assert torch.equal(jigclu.montages(crops), numbers["montage"])
    rows = jigclu.split(jigclu.montages(crops))  # pooled pixels: each row must be the mean of its own crop
    torch.testing.assert_close(rows, crops.mean(dim=(2, 3)))


def test_jigclu_names_image_and_quadrant_of_every_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops painted with their image and quadrant: the labels that reach the losses must say the same."""
    run = _run("jigclu", textured_corpus(8, 64, 3), image_size=64)
    method: Any = run.method
    painted = []
    for place in range(4):
        images = torch.stack([torch.full((3, 32, 32), 10.0 * image + place) for image in range(4)])
        painted.append(View(images, torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.long)))
    monkeypatch.setattr(method.backbone, "forward", lambda images: [images])
    method.projector, method.locator = torch.nn.Identity(), torch.nn.Identity()
    told: dict[str, Tensor] = {}
    monkeypatch.setattr(
        jigclu, "jigsaw_clustering", lambda rows, image, _: told.update(rows=rows, image=image) or rows.sum()
    )
    monkeypatch.setattr(F, "cross_entropy", lambda _, place: told.update(place=place) or place.sum())
    method.training_step(Batch(painted, torch.arange(4), 0.0, 0))
    assert torch.equal(told["rows"][:, 0], 10.0 * told["image"] + told["place"])
    assert told["image"].tolist() != sorted(told["image"].tolist())  # shuffled across the batch


def test_rotori_shows_every_view_in_its_four_turns() -> None:
    run = _run("rotori", textured_corpus(6, 32, 3))
    seen, batch = _seen(run), _batch(run)
    images = torch.cat([view.images for view in batch.views])  # (8, 3, S, S)
    assert len(seen) == 32
    for row, image in enumerate(images):
        for turns in range(4):
            assert torch.equal(seen[4 * row + turns], torch.rot90(image, turns, (1, 2)))


def test_emmd_lets_the_modalities_take_turns() -> None:
    run = _run("emmd", textured_corpus(6, 32, 3))
    seen, batch = _seen(run), _batch(run)
    assert SHELVES.methods["emmd"].needs == "pairs"
    assert len(seen) == 16
    for half, (first, second) in enumerate(zip(batch.views, batch.pairs, strict=True)):
        assert torch.equal(seen[8 * half : 8 * half + 8 : 2], first.images)
        assert torch.equal(seen[8 * half + 1 : 8 * half + 8 : 2], second.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_emmd_substitute_inverts_green_inside_the_field_of_view(channels: int) -> None:
    run = _run("emmd_green", textured_corpus(6, 32, channels), channels=channels)
    assert SHELVES.methods["emmd_green"].needs == ""
    assert len(_seen(run)) == 16
    pixels = torch.rand(2, channels, 8, 8)
    pixels[:, :, :2] = 0  # outside
    made = emmd.inverted_green(normalise(pixels))
    expected = (1 - pixels[:, channels // 2, None]).expand_as(pixels).clone()
    expected[:, :, :2] = 0
    inside = (pixels.amax(1) > 0.1) | (pixels.amax(1) == 0)
    torch.testing.assert_close(
        made.movedim(1, 3)[inside], normalise(expected).movedim(1, 3)[inside], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["rotori", "emmd", "emmd_green"])
def test_the_rate_drops_on_the_way_to_what_the_authors_evaluate(name: str) -> None:
    run = _run(name, textured_corpus(6, 32, 3), steps=8)
    rates = []
    for step in range(8):
        run.enter(step)
        (group,) = run.optimizer.param_groups
        rates.append(group["lr"])
        assert group["weight_decay"] == 1e-4
    assert rates == pytest.approx([1e-4] * 4 + [1e-5] * 4)


def test_simtriplet_takes_its_third_view_from_beside() -> None:
    run = _run("simtriplet", textured_corpus(16, 64, 3), image_size=64, batch_size=16)
    boxes = []
    for view in _batch(run).views:
        centre, reach = view.affine[:, :, 2], view.affine[:, :, :2].abs().sum(2)
        boxes.append((centre, reach))
        assert bool((centre.abs() + reach <= 1 + 1e-6).all())  # inside the image
        assert bool((reach <= 1 / 3 + 1e-3).all())
    (first, first_reach), (second, second_reach), (third, third_reach) = boxes
    assert bool(((first - third).abs() >= first_reach + third_reach - 1e-6).any(1).all())
    assert bool(((second - third).abs() >= second_reach + third_reach - 1e-6).any(1).all())
    assert bool(((first - second).abs() <= 2 / 3 - first_reach).all())  # of one window


def test_barlow_projects_four_widths_and_changes_its_optimiser_with_the_batch() -> None:
    for batch, optimizer, lr in ((4, "adam", 3e-4), (2048, "lars", 1.6)):
        method: Any = _run("barlow", textured_corpus(4, 32, 3), batch_size=batch).method
        assert (method.recipe().optimizer, method.recipe().lr) == (optimizer, pytest.approx(lr))
        assert [layer.out_features for layer in method.projector.modules() if isinstance(layer, torch.nn.Linear)] == (
            [4 * method.backbone.width] * 3
        )


def test_barlow_pixel_correlates_every_level_pixel_by_pixel_uncentred() -> None:
    """Both views show the same pixels; the loss is that of the printed formula, in float64, from the projected maps."""
    run = _run("barlow_pixel", textured_corpus(6, 32, 3))
    method: Any = run.method
    batch = _batch(run)
    assert torch.equal(batch.views[0].affine, batch.views[1].affine)
    maps: list[Tensor] = []
    for projector in method.projectors:
        projector.register_forward_hook(lambda *call: maps.append(call[2]))
    loss = method.training_step(batch)["loss"]
    levels = len(method.backbone.channels)
    assert len(maps) == 2 * levels
    total = torch.zeros((), dtype=torch.float64)
    for width, one, other in zip(method.backbone.channels, maps[:levels], maps[levels:], strict=True):
        assert one.shape[1] == 2 * width
        z0, z1 = (level.double().movedim(1, 3).reshape(-1, 2 * width) for level in (one, other))
        correlation = (z0.T @ z1) / (z0.square().sum(0).sqrt()[:, None] * z1.square().sum(0).sqrt()[None])
        own = correlation.diagonal()
        total += (1 - own).square().sum() + 0.0051 * (correlation.square().sum() - own.square().sum())
    torch.testing.assert_close(loss.double(), total, rtol=1e-4, atol=1e-4)


def test_rotation_shows_all_turns_of_the_same_crop() -> None:
    run = _run("rotation", textured_corpus(6, 32, 3))
    seen, batch = _seen(run), _batch(run)
    for turns, part in enumerate(seen.chunk(4)):
        assert torch.equal(views.turn(batch.views[0].images, torch.full((4,), turns)), part)


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(("name", "layers"), [("moco", 1), ("pcl", 1), ("mocov2", 2), ("instdisc", 1), ("embinva", 1)])
def test_a_head_has_the_layers_of_its_paper(name: str, layers: int) -> None:
    method: Any = pretrain.build_method(pretrain_cell(name), SHELVES.methods[name], textured_corpus(8, 32, 3))
    assert sum(isinstance(part, torch.nn.Linear) for part in method.projector.modules()) == layers


def test_dino_hands_on_its_teacher() -> None:
    method: Any = pretrain.build_method(pretrain_cell("dino"), SHELVES.methods["dino"], textured_corpus(8, 32, 3))
    assert method.export()["encoder"] is method.teacher.backbone.encoder
