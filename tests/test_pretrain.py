"""Schedules, stages and optimisers of the pretraining loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import pretrain, registry
from bench.spec import Recipe, Stage

SHELVES = registry.scan()


def _rates(stage: Stage, steps: int = 100, lr: float = 1.0) -> list[float]:
    recipe = Recipe("adam", lr, stages=(stage,))
    return [pretrain.learning_rate(recipe, stage, step / steps) for step in range(steps)]


def test_halving() -> None:
    rates = _rates(Stage(schedule="halve", period=10 / 80), steps=80)
    assert [rates[at] for at in (0, 9, 10, 20, 79)] == [1.0, 1.0, 0.5, 0.25, 0.5**7]


def test_step_drops_at_its_shares() -> None:
    rates = _rates(Stage(schedule="step", drops=(0.6, 0.8)))
    assert rates[59] == 1.0
    assert rates[60] == pytest.approx(0.1)
    assert rates[80] == pytest.approx(0.01)


def test_cosine_falls_to_nothing_after_its_warmup() -> None:
    rates = _rates(Stage(schedule="cosine", warmup=0.1))
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] < 1e-6
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_an_unknown_schedule_or_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        _rates(Stage(schedule="linear"))
    with pytest.raises(ValueError, match="unknown optimizer 'sdg'"):
        pretrain.build_optimizer(Recipe("sdg", 0.1), [nn.Parameter(torch.zeros(1))])


def test_stages_share_the_steps() -> None:
    recipe = Recipe("adam", 1e-3, stages=(Stage(0.2), Stage(0.8)))
    assert pretrain.stage_bounds(recipe, 100) == [0, 20, 100]
    assert pretrain.stage_bounds(Recipe("adam", 1e-3, stages=(Stage(0.2),)), 100) == [0, 100]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_an_optimizer_goes_on_as_if_never_stopped(name: str) -> None:
    def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (weight.sin() * torch.arange(6.0).view(2, 3)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def fresh(values: torch.Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(values.clone())
        return weight, pretrain.build_optimizer(Recipe(name, 0.1, weight_decay=0.01), [weight])

    weight, optimizer = fresh(torch.ones(2, 3))
    step(weight, optimizer)
    tensors, plain = pretrain.pack_optimizer(optimizer)
    other, resumed = fresh(weight.detach())
    pretrain.unpack_optimizer(resumed, {key: value.clone() for key, value in tensors.items()}, plain)
    for _ in range(2):
        step(weight, optimizer)
        step(other, resumed)
    assert torch.equal(weight, other)


@pytest.mark.parametrize(("image_size", "expected"), [(512, 448), (256, 224), (128, 128), (96, 96), (64, 64), (32, 32)])
def test_view_sizes(image_size: int, expected: int) -> None:
    assert pretrain.view_size(image_size) == expected


@pytest.mark.parametrize("name", [name for name, spec in SHELVES.methods.items() if spec.trains])
def test_every_recipe_can_be_built(name: str) -> None:
    from tests.conftest import pretrain_cell

    method = pretrain.build_method(pretrain_cell(name), SHELVES.methods[name], 8)
    recipe: Recipe = method.recipe()  # type: ignore[operator]
    pretrain.build_optimizer(recipe, list(method.parameters()))
    for stage in recipe.stages:
        assert all(0 <= pretrain.learning_rate(recipe, stage, at / 50) <= recipe.lr for at in range(50))
