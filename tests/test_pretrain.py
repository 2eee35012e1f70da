"""Schedules, stages and optimisers of the pretraining loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import registry
from bench.data import Corpus
from bench.nets import Backbone
from bench.parts import checkpoints
from bench.run import pretrain
from bench.spec import CorpusInfo, Part, Recipe, Site, Stage
from bench.views import Batch, Crop, Views
from tests.conftest import pretrain_cell, textured_corpus

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
    tensors, plain = checkpoints.pack_optimizer(optimizer)
    other, resumed = fresh(weight.detach())
    checkpoints.unpack_optimizer(resumed, {key: value.clone() for key, value in tensors.items()}, plain)
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

    method = pretrain.build_method(pretrain_cell(name), SHELVES.methods[name], textured_corpus(8, 32, 3))
    recipe: Recipe = method.recipe()  # type: ignore[operator]
    pretrain.build_optimizer(recipe, list(method.parameters()))
    for stage in recipe.stages:
        assert all(0 <= pretrain.learning_rate(recipe, stage, at / 50) <= recipe.lr for at in range(50))


@dataclass(frozen=True)
class _HParams:
    pass


class _Clusterer(nn.Module):
    """Looks at the whole corpus in every epoch, and has a head with an optimiser of its own."""

    means: Tensor

    def __init__(self, backbone: Backbone, hparams: _HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.backbone, self.info = backbone, corpus_info
        self.head = nn.Linear(backbone.width, 1)
        self.register_buffer("means", torch.zeros(corpus_info.size))
        self.passes: list[list[int]] = []

    def views(self) -> Views:
        return Views(each=((Crop((0.5, 1.0)),),))

    def recipe(self) -> Recipe:
        return Recipe("adam", 1e-3, stages=(Stage(0.5), Stage(0.5)), parts=(Part("head.", "sgd", 0.5),))

    def start_epoch(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.eval()
        seen = []
        for index, images in loader:
            assert images.shape[1:] == (self.info.channels, self.info.view_size, self.info.view_size)
            self.means[index] = images.mean(dim=(1, 2, 3))
            seen += index.tolist()
        self.passes.append(seen)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        assert self.training
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.index % 3)
        assert len(batch.pairs) == len(batch.views)
        wanted = self.means[batch.index][:, None]
        return {"loss": (self.head(self.backbone.pooled(batch.views[0].images)) - wanted).square().mean()}


def _clustering(corpus: Corpus, steps: int, batch_size: int) -> pretrain._Run:
    cell = pretrain_cell("simclr", steps=steps, batch_size=batch_size)
    made: list[nn.Module] = []

    def build(*_: object) -> nn.Module:
        info = CorpusInfo(len(corpus), 3, pretrain.view_size(cell.image_size), batch_size, steps, corpus.classes)
        torch.manual_seed(0)
        made.append(_Clusterer(Backbone(cell.backbone, 3), _HParams(), info))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "build_method", build)
        fabric = pretrain.set_up(Site(Path(), Path(), None))
        return pretrain._Run(cell, replace(SHELVES.methods["simclr"], needs="pairs"), corpus, fabric)


@pytest.mark.parametrize(("name", "count"), [("simclr", 0), ("emmd", 2)])
def test_views_of_a_second_modality_are_made_for_those_who_need_it(name: str, count: int) -> None:
    cell, corpus = pretrain_cell(name, steps=1), textured_corpus(6, 32, 3)
    assert corpus.pairs is not None
    run = pretrain._Run(cell, SHELVES.methods[name], corpus, pretrain.set_up(Site(Path(), Path(), None)))
    batch = pretrain.make_batch(run.corpus, cell, run.declared, 0, 0, torch.device("cpu"))
    assert (len(batch.views), len(batch.pairs)) == (2, count)


def test_seeds_and_steps_see_other_views_of_other_images() -> None:
    """Whatever is drawn for a batch is drawn from seed and step, and from nothing else."""
    corpus = textured_corpus(6, 32, 3)
    one = textured_corpus(1, 32, 3)  # of one image, so that what differs is the view
    run = pretrain._Run(
        pretrain_cell("simclr"), SHELVES.methods["simclr"], corpus, pretrain.set_up(Site(Path(), Path(), None))
    )

    def shown(images: Corpus, seed: int, step: int) -> Tensor:
        cell = pretrain_cell("simclr", seed=seed, batch_size=1)
        return pretrain.make_batch(images, cell, run.declared, step, 0, torch.device("cpu")).views[0].images

    assert torch.equal(shown(corpus, 3, 5), shown(corpus, 3, 5))
    assert not torch.equal(shown(one, 3, 5), shown(one, 4, 5))
    assert not torch.equal(shown(one, 3, 5), shown(one, 3, 6))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_pretraining_computes_in_the_precision_of_its_cell(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    forward = Backbone.forward

    def watched(self: Backbone, images: Tensor) -> list[Tensor]:
        features = forward(self, images)
        seen.append(features[-1].dtype)
        return features

    monkeypatch.setattr(Backbone, "forward", watched)
    monkeypatch.setattr(pretrain.data, "open_corpus", lambda *_: textured_corpus(6, 32, 3))
    cell = replace(pretrain_cell("simclr", steps=2), precision=precision)
    site = Site(tmp_path, tmp_path, None)
    pretrain.pretrain(cell, SHELVES.methods["simclr"], SHELVES, site, tmp_path, lambda facts: None)
    assert set(seen) == {torch.float32 if precision == "32" else torch.bfloat16}


def test_a_method_may_look_at_the_corpus_once_per_epoch() -> None:
    run = _clustering(textured_corpus(10, 32, 3), steps=8, batch_size=4)  # epochs begin at steps 0, 3, 5
    assert [step for step in range(8) if run.begins_epoch(step)] == [0, 3, 5]
    for step in range(8):
        run.enter(step)
        run.train_step()
    assert run.method.passes == [list(range(10))] * 3
    assert bool((run.method.means != 0).all())  # type: ignore[operator]


def test_a_part_of_the_parameters_has_an_optimiser_of_its_own() -> None:
    run = _clustering(textured_corpus(10, 32, 3), steps=4, batch_size=4)
    own = {id(item) for group in run.part_optimizers[0].param_groups for item in group["params"]}
    rest = {id(item) for group in run.optimizer.param_groups for item in group["params"]}
    assert own == {id(item) for item in run.method.head.parameters()}  # type: ignore[union-attr]
    assert own.isdisjoint(rest)
    assert len(own | rest) == len(list(run.method.parameters()))
    before = run.method.head.bias.clone()  # type: ignore[union-attr, operator]
    run.enter(0)
    run.train_step()
    moved = before - run.method.head.bias  # type: ignore[operator]
    torch.testing.assert_close(moved, 0.5 * run.method.head.bias.grad)  # type: ignore[union-attr, operator]


def test_a_checkpoint_holds_every_optimiser_and_what_an_epoch_began_with(tmp_path: Path) -> None:
    corpus = textured_corpus(10, 32, 3)

    def go_on(run: pretrain._Run, first: int, end: int) -> pretrain._Run:
        for step in range(first, end):
            run.enter(step)
            run.train_step()
        return run

    whole = go_on(_clustering(corpus, 8, 4), 0, 8).method.state_dict()
    for stop in (2, 3, 4, 6):
        go_on(_clustering(corpus, 8, 4), 0, stop).save(tmp_path, stop)
        again = _clustering(corpus, 8, 4)
        assert again.resume(tmp_path) == stop
        resumed = go_on(again, stop, 8).method.state_dict()
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())
