"""What only MoCo has: a queue that wraps, and a key encoder that follows slowly."""

from __future__ import annotations

import copy

import pytest
import torch

from bench import registry
from bench.run import pretrain
from bench.spec import Site
from tests.conftest import pretrain_cell, textured_corpus

SHELVES = registry.scan()


def _run(name: str, corpus_size: int, **hparams: float) -> pretrain._Run:
    from pathlib import Path

    cell = pretrain_cell(name, batch_size=4, steps=8, **hparams)
    corpus = textured_corpus(corpus_size, 32, 3)
    fabric = pretrain.set_up(Site(Path(), Path(), None))
    run = pretrain._Run(cell, SHELVES.methods[name], corpus, fabric)
    run.method.train()
    return run


@pytest.mark.parametrize("name", ["moco", "mocov2"])
def test_the_queue_wraps_and_is_never_longer_than_the_corpus(name: str) -> None:
    run = _run(name, corpus_size=6)
    queue, position = run.method.queue.rows, run.method.queue.position
    assert queue.shape == (6, 128)
    before = queue.clone()
    run.enter(0)
    run.train_step()
    assert int(position) == 4
    assert torch.equal(queue[4:], before[4:])
    kept = queue.clone()
    run.enter(1)
    run.train_step()
    assert int(position) == 2  # rows 4, 5, 0, 1
    assert torch.equal(queue[2:4], kept[2:4])
    assert not any(torch.equal(queue[row], kept[row]) for row in (4, 5, 0, 1))
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(6))


def test_the_key_encoder_is_a_moving_average() -> None:
    """The query encoder is moved far away first: what one step of training moves is less than any tolerance."""
    run = _run("moco", corpus_size=6, encoder_momentum=0.9)
    for own, slow in (
        (run.method.backbone, run.method.momentum_backbone),
        (run.method.projector, run.method.momentum_projector),
    ):
        with torch.no_grad():
            for item in own.parameters():
                item.add_(torch.randn_like(item))
        started = {name: value.clone() for name, value in slow.named_parameters()}
        before = copy.deepcopy(dict(own.named_parameters()))  # what the key encoder moves towards
        run.enter(0)
        run.train_step()
        for name, value in slow.named_parameters():
            torch.testing.assert_close(value, 0.9 * started[name] + 0.1 * before[name])
            assert (value - started[name]).abs().max() > 0.05
            assert value.grad is None
