"""The contract of pretraining methods, held by every registered one: a new file is tested unasked."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import data, nets, registry
from bench.data import store
from bench.run import pretrain
from bench.spec import CellError, MethodSpec, PretrainCell, Site
from tests.conftest import pretrain_cell, textured_corpus

SHELVES = registry.scan()
TRAINED = [name for name, spec in SHELVES.methods.items() if spec.trains]
SIZE = 32
# What falls where the loss cannot be compared, with the memory as it is: the cross-entropy that noise contrast against
# a bank estimates (the loss itself rises while the bank fills with features instead of random vectors).
# DINO's loss is the teacher's entropy, which the centre raises at first, and the student's divergence from the teacher.
SURROGATES = {"instdisc": "softmax", "dino": "divergence"}


def _batch_size(spec: MethodSpec) -> int:
    least = max(4, spec.min_batch)
    return math.ceil(least / spec.batch_multiple) * spec.batch_multiple


def _cell(name: str, **changes: Any) -> PretrainCell:
    return pretrain_cell(name, **({"batch_size": _batch_size(SHELVES.methods[name])} | changes))


def _run(cell: PretrainCell, corpus: data.Corpus) -> pretrain._Run:
    fabric = pretrain.set_up(Site(Path(), Path(), None))
    run = pretrain._Run(cell, SHELVES.methods[cell.method], corpus, fabric)
    run.method.train()
    return run


@pytest.fixture(params=[3, 1], ids=["rgb", "gray"])
def channels(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("name", list(SHELVES.methods))
def test_declares_itself(name: str) -> None:
    spec = SHELVES.methods[name]
    assert spec.title
    assert spec.paper
    assert spec.groups
    assert spec.version >= 1
    assert (spec.paper_steps > 0 and spec.paper_batch >= spec.min_batch) == spec.trains
    assert all(field.doc for field in spec.fields)  # `bench show` prints what each is for
    hparams = registry.hparams_of(spec, {})
    assert {field.name: getattr(hparams, field.name) for field in spec.fields} == spec.defaults
    with pytest.raises((AttributeError, TypeError)):
        hparams.__setattr__(spec.fields[0].name if spec.fields else "x", 1)


def _trained(run: pretrain._Run) -> torch.nn.Module:
    """The encoder that learns: the one handed on, or the one that it follows."""
    method: Any = run.method
    handed: torch.nn.Module = pretrain.handed_on(method)["encoder"]
    if all(item.requires_grad for item in handed.parameters()):
        return handed
    assert not any(item.requires_grad for item in handed.parameters()), "a part of the encoder is frozen"
    found = [part for part in run.method.modules() if isinstance(part, nets.Backbone) and part.encoder is not handed]
    assert len(found) == 1 and all(item.requires_grad for item in found[0].encoder.parameters())
    return found[0].encoder


@pytest.mark.parametrize("name", TRAINED)
def test_one_step_is_finite_and_reaches_the_encoder(name: str, channels: int) -> None:
    cell, corpus = _cell(name, channels=channels), textured_corpus(8, SIZE, channels)
    run = _run(cell, corpus)
    for step in (0, cell.steps - 1):
        run.enter(step)
        losses = run.train_step()
        assert all(math.isfinite(value) for value in losses.values()), losses
    encoder = _trained(run)
    silent = [
        key for key, item in encoder.named_parameters() if item.grad is None or not bool(item.grad.abs().sum() > 0)
    ]
    # a convolution's bias before batch normalisation has no effect, so its gradient is rounding noise or nothing
    assert [key for key in silent if not key.endswith("bias")] == []
    frozen = [key for key, item in run.method.named_parameters() if not item.requires_grad and item.grad is not None]
    assert frozen == []
    assert all("momentum" not in key for key, item in run.method.named_parameters() if item.grad is not None)


@pytest.mark.parametrize("name", TRAINED)
def test_one_step_in_bfloat16_keeps_memory_and_losses_in_float32(name: str) -> None:
    """Networks compute in half; parameters, queues, banks, statistics and losses do not."""
    found = []
    for precision in ("32", "bf16"):
        cell, corpus = replace(_cell(name), precision=precision), textured_corpus(8, SIZE, 3)
        run = pretrain._Run(cell, SHELVES.methods[name], corpus, pretrain.set_up(Site(Path(), Path(), None), precision))
        run.method.train()
        for step in (0, cell.steps - 1):
            run.enter(step)
            found.append(run.train_step())
        half = [key for key, item in run.method.state_dict().items() if item.dtype in (torch.bfloat16, torch.float16)]
        assert not half
    full, half_precision = found[0]["loss"], found[2]["loss"]
    assert all(math.isfinite(value) for losses in found for value in losses.values())
    assert half_precision == pytest.approx(full, rel=0.05, abs=0.05)
    assert half_precision != full  # it was computed in another precision at all


@pytest.mark.parametrize("name", list(SHELVES.methods))
def test_export_is_handed_over_whole(name: str, tmp_path: Path) -> None:
    cell, corpus = _cell(name), textured_corpus(8, SIZE, 3)
    method = pretrain.build_method(cell, SHELVES.methods[name], corpus)
    pretrain.export(method, cell, tmp_path)
    tensors, meta = store.load_tensors(tmp_path / pretrain.ENCODER)
    backbone = nets.Backbone(cell.backbone, cell.channels)
    report = nets.hand_over(
        backbone.encoder, {key[8:]: value for key, value in tensors.items() if key.startswith("encoder.")}
    )
    assert not report.missing
    assert not report.unexpected
    assert nets.probe(backbone.encoder, 3) == pytest.approx(meta["probe"], rel=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_a_few_steps_on_a_tiny_set_lower_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss on fixed batches with the memory (queues, banks) as it was at the start: filling it changes the question.

    So do new clusters: a method that groups the corpus does so once, at the start.
    """
    cell, corpus = _cell(name, steps=24), textured_corpus(8, SIZE, 3)
    run, part = _run(cell, corpus), SURROGATES.get(name, "loss")
    run.enter(0)
    monkeypatch.setattr(run, "begins_epoch", lambda step: False)
    memory = {
        key: value.clone()
        for key, value in run.method.named_buffers()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")) and name not in SURROGATES
    }

    def loss() -> float:
        trial = copy.deepcopy(run.method)
        trial.load_state_dict(memory, strict=False)
        values = []
        for step in range(4):
            torch.manual_seed(step)
            batch = pretrain.make_batch(corpus, cell, run.declared, step, run.bounds.index(0), torch.device("cpu"))
            with torch.no_grad():
                values.append(float(trial.training_step(batch)[part]))  # type: ignore[operator]
        return sum(values) / len(values)

    before = loss()
    for step in range(cell.steps):
        run.enter(step)
        run.step = step % 4  # the same four batches and views again and again
        run.train_step()
    assert loss() < before


@pytest.mark.parametrize("name", TRAINED)
def test_same_seed_same_weights_and_resume_is_exact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped twice and one that never stops and keeps no checkpoint: two runs of one seed."""
    corpus = textured_corpus(6, SIZE, 3)
    monkeypatch.setattr(data, "open_corpus", lambda *_: corpus)
    cell, spec = _cell(name, steps=5), SHELVES.methods[name]

    def train(folder: str, seconds: float, stop_after: int | None = None) -> dict[str, Any]:
        """Trains with a checkpoint after so many seconds; what stops it leaves none."""
        target = tmp_path / folder
        target.mkdir(exist_ok=True)

        def report(progress: dict[str, Any]) -> None:
            if progress["step"] == stop_after:
                raise KeyboardInterrupt

        return pretrain.pretrain(
            cell, spec, SHELVES, Site(tmp_path, tmp_path, None, checkpoint_seconds=seconds), target, report
        )

    assert train("whole", math.inf)["steps_run"] == cell.steps
    for stop in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            train("stopped", -1.0, stop_after=stop)
    assert train("stopped", math.inf)["steps_run"] == 2  # from the checkpoint of step 3
    whole, stopped = ((tmp_path / folder / pretrain.ENCODER).read_bytes() for folder in ("whole", "stopped"))
    assert whole == stopped


def test_a_loss_that_turns_nan_fails_the_cell_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = textured_corpus(6, SIZE, 3)
    monkeypatch.setattr(data, "open_corpus", lambda *_: corpus)
    cell = _cell("simclr", steps=6)
    real = pretrain._Run.train_step

    def poisoned(self: pretrain._Run) -> dict[str, float]:
        losses = real(self)
        return losses | {"loss": math.nan} if self.step == 3 else losses

    monkeypatch.setattr(pretrain._Run, "train_step", poisoned)
    site = Site(tmp_path, tmp_path, None, checkpoint_seconds=-1.0)
    with pytest.raises(CellError, match=r"nan at step 4 of 6; the last good checkpoint \(step 3\) is kept"):
        pretrain.pretrain(cell, SHELVES.methods["simclr"], SHELVES, site, tmp_path, lambda _: None)
    assert store.load_checkpoint(tmp_path / pretrain.CHECKPOINT) is not None


def test_weights_that_turn_nan_never_reach_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss whose update spoils the weights: the checkpoint before it is the one that stays."""
    corpus = textured_corpus(6, SIZE, 3)
    monkeypatch.setattr(data, "open_corpus", lambda *_: corpus)
    cell = _cell("simclr", steps=6)
    real = pretrain._Run.train_step

    def spoils(self: pretrain._Run) -> dict[str, float]:
        losses = real(self)
        if self.step == 3:
            next(iter(self.method.parameters())).data.fill_(math.nan)
        return losses

    monkeypatch.setattr(pretrain._Run, "train_step", spoils)
    site = Site(tmp_path, tmp_path, None, checkpoint_seconds=-1.0)
    with pytest.raises(CellError, match=r"not finite after step 4 of 6; the last good checkpoint \(step 3\) is kept"):
        pretrain.pretrain(cell, SHELVES.methods["simclr"], SHELVES, site, tmp_path, lambda _: None)
    found = store.load_checkpoint(tmp_path / pretrain.CHECKPOINT)
    assert found is not None
    assert all(bool(value.isfinite().all()) for value in found[0].values())
