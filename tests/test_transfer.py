"""The protocols: what is trained, what is selected on what, and that stopping changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench import data, metrics, nets, registry
from bench.data import store
from bench.parts import phases
from bench.parts.cases import Cases
from bench.protocols import finetune, linear
from bench.run import pretrain, transfer
from bench.spec import BenchError, CellError, CellInterrupted, Site, TransferCell
from tests.conftest import pretrain_cell, textured_corpus, textured_images, transfer_cell

SHELVES = registry.scan()
TASK = next(iter(SHELVES.tasks))
PROTOCOLS = SHELVES.protocols_of(SHELVES.tasks[TASK])
SIZE = 32


def _dataset(count: int = 12, seed: int = 0) -> data.Dataset:
    """Bright blobs to be found: six images to train on, two to validate, the rest to test."""
    images = textured_images(count, SIZE, 3, seed)
    masks = (images.mean(axis=3) > 128).astype(np.uint8)
    names = tuple(f"image{index}" for index in range(count))
    spacing, frames = np.full((count, 2), np.nan), np.tile([1.0, 0.0], (count, 2, 1))
    arrays = {"images": images, "masks": masks, "frames": frames, "spacing": spacing}
    return data.Dataset(arrays, names, ("",) * count, (2, 3, 4, 5, 6, 7), (0, 1), tuple(range(8, count)))


def _each(found: dict[str, Any]) -> dict[str, float]:
    """The score of every test image."""
    return dict(zip(found["cases"]["names"], found["cases"]["scores"]["dsc"][""], strict=True))


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> data.Dataset:
    made = _dataset()
    monkeypatch.setattr(data, "open_dataset", lambda *_: made)
    return made


def _cell(protocol: str, **changes: Any) -> TransferCell:
    fields = {"phase_steps": 6, "checks": 3} | changes
    return transfer_cell(pretrain_cell("scratch", image_size=SIZE), TASK, protocol=protocol, **fields)


def _judge(
    cell: TransferCell, folder: Path, report: Any = lambda _: None, weights: Path | None = None
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    site = Site(folder, folder, None, checkpoint_seconds=-1.0)
    return transfer.transfer(cell, SHELVES, site, folder, weights, report)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_every_test_image_and_names_its_selection(protocol: str, dataset: data.Dataset, tmp_path: Path) -> None:
    found = _judge(_cell(protocol), tmp_path / "one")
    assert list(_each(found)) == [dataset.names[index] for index in dataset.test]
    assert found["score"] == pytest.approx(np.mean(list(_each(found).values())))
    assert found["n_images"] == len(dataset.test)
    assert found["selection"] == SHELVES.protocols[protocol].selection
    assert _judge(_cell(protocol), tmp_path / "other") | {"seconds": 0} == found | {"seconds": 0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_test_part_selects_nothing(
    protocol: str, dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other test images and masks the same state or threshold is chosen."""
    facts = ("validation_loss", "best_at", "threshold", "validation_score")
    before = _judge(_cell(protocol), tmp_path / "one")
    other = _dataset(seed=1)
    images, masks = dataset.images.copy(), dataset.arrays["masks"].copy()
    images[8:], masks[8:] = other.images[8:], 1 - other.arrays["masks"][8:]
    changed = dataclasses.replace(dataset, arrays={**dataset.arrays, "images": images, "masks": masks})
    monkeypatch.setattr(data, "open_dataset", lambda *_: changed)
    after = _judge(_cell(protocol), tmp_path / "other")
    assert {name: before.get(name) for name in facts} == {name: after.get(name) for name in facts}
    assert before["score"] != after["score"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_judges_in_bfloat16_too(protocol: str, dataset: data.Dataset, tmp_path: Path) -> None:
    full, half = (_judge(_cell(protocol, precision=name), tmp_path / name) for name in ("32", "bf16"))
    assert half["score"] == pytest.approx(full["score"], abs=0.1)
    assert _cell(protocol, precision="bf16").key != _cell(protocol).key


@pytest.mark.parametrize("stop", [2, 6, 7, 11])
def test_stopping_and_going_on_changes_nothing(stop: int, dataset: data.Dataset, tmp_path: Path) -> None:
    cell = _cell("finetune")
    whole = _judge(cell, tmp_path / "whole")
    seen: list[int] = []

    def report(progress: dict[str, Any]) -> None:
        seen.append(progress["step"])
        if progress["step"] == stop and seen.count(stop) == 1:
            raise CellInterrupted("asked to stop")

    with pytest.raises(CellInterrupted):
        _judge(cell, tmp_path / "stopped", report)
    resumed = _judge(cell, tmp_path / "stopped", report)
    assert seen == [*range(1, stop + 1), *range(stop + 1, 13)]
    assert resumed["cases"] == whole["cases"]
    assert resumed["steps_run"] == 12 - stop


def test_a_checkpoint_of_another_cell_is_left_alone(dataset: data.Dataset, tmp_path: Path) -> None:
    first = _judge(_cell("finetune"), tmp_path / "folder")
    second = _judge(_cell("finetune", seed=1), tmp_path / "folder")
    assert second["steps_run"] == 12
    assert second["score"] != first["score"]


def test_the_first_phase_trains_the_decoder_alone(dataset: data.Dataset, tmp_path: Path) -> None:
    nets_seen: list[nets.SegmentationNet] = []
    states: list[dict[str, torch.Tensor]] = []
    real = phases.Trainer._one_step

    def watched(self: phases.Trainer, *rest: Any) -> float:
        assert isinstance(self.net, nets.SegmentationNet)
        nets_seen.append(self.net)
        states.append(copy.deepcopy(self.net.backbone.state_dict()))
        return real(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases.Trainer, "_one_step", watched)
        _judge(_cell("finetune"), tmp_path)
    for state in states[1:7]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())
    assert any(not torch.equal(states[-1][name], value) for name, value in states[0].items())


def test_training_learns_the_blobs(dataset: data.Dataset, tmp_path: Path) -> None:
    short = _judge(_cell("finetune", phase_steps=1, checks=1), tmp_path / "short")
    long = _judge(_cell("finetune", phase_steps=40, checks=8), tmp_path / "long")
    assert long["score"] > max(0.85, short["score"])


def test_the_linear_probe_is_the_least_squares_solution(dataset: data.Dataset) -> None:
    torch.manual_seed(0)
    backbone = nets.Backbone("tiny_vgg16").eval()
    cases = Cases(dataset, SHELVES.tasks[TASK], torch.device("cpu"))
    probe = linear.Probe(backbone, 1, torch.device("cpu"))
    rows, targets = [], []
    for index in dataset.train:
        pixels, target = cases.take([index])
        probe.see(pixels, target, torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(index)))
        with torch.no_grad():
            levels = [F.interpolate(level, size=(SIZE, SIZE), mode="bilinear") for level in backbone(pixels)]
        rows.append(torch.cat([*levels, torch.ones(1, 1, SIZE, SIZE)], dim=1)[0].flatten(1).T)
        targets.append(target.flatten())
    probe.solve()
    features, wanted = torch.cat(rows).double(), torch.cat(targets).double()
    scale = features.square().mean(0).sqrt().clamp(min=1e-8)
    scaled = features / scale
    gram = scaled.T @ scaled / len(scaled) + linear.RIDGE * torch.eye(scaled.shape[1], dtype=torch.float64)
    expected = (scaled @ torch.linalg.solve(gram, scaled.T @ wanted / len(scaled))).float()
    found = torch.cat([probe.scores(cases.take([index])[0]) for index in dataset.train]).flatten()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_the_best_threshold_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 16, 16, generator=generator) > 0.8
    scores = target.float() + 0.4 * torch.randn(3, 16, 16, generator=generator)
    cut, score = linear.best_threshold(scores, target)
    found = [float(metrics.dsc(scores > trial, target).mean()) for trial in torch.linspace(-1, 2, 2000)]
    assert score == pytest.approx(max(found), abs=0.01)
    assert score == pytest.approx(float(metrics.dsc(scores > cut, target).mean()))


def test_weights_are_handed_over_and_proven(dataset: data.Dataset, tmp_path: Path) -> None:
    cell = pretrain_cell("simclr", image_size=SIZE)
    method = pretrain.build_method(cell, SHELVES.methods["simclr"], textured_corpus(8, 32, 3))
    pretrain.export(method, cell, tmp_path)
    weights = tmp_path / pretrain.ENCODER
    report = transfer.load_encoder(nets.Backbone("tiny_vgg16"), weights)
    assert len(report.matched) == len(nets.Backbone("tiny_vgg16").encoder.state_dict())
    tensors, meta = store.load_tensors(weights)
    store.save_tensors(weights, tensors, meta | {"probe": [value * 1.1 for value in meta["probe"]]})
    with pytest.raises(CellError, match="where its pretraining computed"):
        transfer.load_encoder(nets.Backbone("tiny_vgg16"), weights)
    tensors.pop(next(name for name in tensors if name.startswith("encoder.")))
    store.save_tensors(weights, tensors, meta)
    with pytest.raises(CellError, match="not handed over whole"):
        transfer.load_encoder(nets.Backbone("tiny_vgg16"), weights)


def test_nothing_to_score_is_a_failure(dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.overlap, "dsc", lambda prediction, target, spacing: np.full(len(prediction), math.nan))
    with pytest.raises(CellError, match="nothing to score"):
        _judge(_cell("finetune", phase_steps=1, checks=1), tmp_path)


def test_a_loss_that_turns_nan_names_its_step(
    dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "_dice_loss", lambda logits, target: logits.sum() * math.nan)
    with pytest.raises(CellError, match="nan at step 1 of phase 'decoder'"):
        _judge(_cell("finetune"), tmp_path)


# ------------------------------------------------------------------------------------------------------- the same cases


def _without(dataset: data.Dataset, *rows: int) -> data.Dataset:
    masks = dataset.arrays["masks"].copy()
    masks[list(rows)] = 0
    return dataclasses.replace(dataset, arrays={**dataset.arrays, "masks": masks})


@pytest.mark.parametrize("marks", [0, 1])
def test_the_truth_alone_says_which_cases_count(marks: int) -> None:
    """Whether a row marks something in an image without target changes how that is told, and no mean."""
    dataset, task = _without(_dataset(), 9), SHELVES.tasks[TASK]
    right = dataset.arrays["masks"][list(dataset.test)].copy()
    right[1] = marks  # image 9, the second of the test part
    metric = [(spec, registry.load(spec)) for spec in SHELVES.metrics_of(task)]
    found = transfer._scores(right, dataset, task, metric)
    assert found["score"] == 1.0
    assert (found["n_images"], found["n_cases"], found["false_marks"]) == (3, 4, float(marks))
    assert math.isnan(_each(found)["image9"])
    whole = transfer._scores(right, _dataset(), task, metric)
    assert (whole["n_images"], whole["false_marks"]) == (4, None) and whole["score"] < 1


def test_a_structure_that_is_not_in_a_case_is_left_out_of_its_own_mean() -> None:
    dataset = _dataset()
    masks = dataset.arrays["masks"].copy()
    masks[9][masks[9] == 1] = 2  # no first structure there, and in no other case the second
    dataset = dataclasses.replace(dataset, arrays={**dataset.arrays, "masks": masks})
    task = dataclasses.replace(SHELVES.tasks[TASK], structures=("one", "two"))
    metric = [(spec, registry.load(spec)) for spec in SHELVES.metrics_of(task)]
    predicted = masks[list(dataset.test)].copy()
    predicted[0] = 2  # wrong in both: the first is not found, the second marked where it is not
    found = transfer._scores(predicted, dataset, task, metric)
    assert found["structures"]["dsc"] == {"one": pytest.approx(2 / 3), "two": 1.0}
    assert found["scores"]["dsc"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["n_images"] == 4 and found["false_marks"] == pytest.approx(1 / 4)


def test_a_test_part_without_any_target_is_refused_before_anything_is_trained(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cell, kind = _cell("finetune"), data.KINDS[SHELVES.tasks[TASK].truth]
    whole, count = data.open_dataset(cell, SHELVES, site), SHELVES.tasks[TASK].train
    drawn = type(kind).drawn

    def emptied(first: int, end: int) -> Any:
        numbers = iter(range(len(whole.names)))

        def draw(*given: Any) -> dict[str, Any]:
            found = drawn(*given)
            return {"masks": found["masks"] * (not first <= next(numbers) < end)}

        return draw

    monkeypatch.setattr(type(kind), "drawn", emptied(count, len(whole.names)))
    with pytest.raises(BenchError, match=f"no test image of {TASK} has a target: there is nothing to score"):
        data.open_dataset(cell, SHELVES, dataclasses.replace(site, runs=site.runs / "other"))
    monkeypatch.setattr(type(kind), "drawn", emptied(0, len(whole.validation)))
    data.open_dataset(cell, SHELVES, dataclasses.replace(site, runs=site.runs / "third"))
    assert f"no validation image of {TASK} has a target" in caplog.text


def test_a_threshold_is_chosen_by_the_images_that_have_a_target() -> None:
    scores = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    target = scores > 0.6
    with_empty = torch.cat([scores, scores[:3]]), torch.cat([target, torch.zeros_like(target[:3])])
    assert linear.best_threshold(*with_empty)[1] == linear.best_threshold(scores, target)[1] == 1
    assert linear.best_threshold(scores, torch.zeros_like(target)) == (
        linear.HALFWAY,
        pytest.approx(math.nan, nan_ok=True),
    )
