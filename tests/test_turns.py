"""Several optimisers that take turns inside a step: what learns, what stands still, resume, two processes, bf16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from bench import registry, views
from bench.data.store import load_tensors
from bench.nets import Backbone
from bench.parts import FeatureQueue, parallel
from bench.run import pretrain
from bench.run.turns import Turn, turns
from bench.spec import BenchError, CellError, CorpusInfo, Part, PretrainCell, Recipe, Site, Stage
from bench.views import Batch, Flip, Views
from tests.conftest import pretrain_cell, textured_corpus
from tests.test_ddp import together

SHELVES = registry.scan()
STEPS = 4
ADVERSARY = Part("discriminator.", "sgd", 0.1, loss="discriminator", turn=1)
ADVERSARIES = Recipe("sgd", 0.05, parts=(ADVERSARY,))


class _Adversaries(nn.Module):
    """The encoder makes vectors that the discriminator should take for noise; both normalise their batch."""

    def __init__(self, backbone: Backbone, info: CorpusInfo, recipe: Recipe = ADVERSARIES) -> None:
        super().__init__()
        self.backbone, self.declared = backbone, recipe
        self.head = nn.Sequential(nn.BatchNorm1d(backbone.width), nn.Linear(backbone.width, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 1))
        self.memory = FeatureQueue(16, 6)  # of nobody: filled in the discriminator's turn
        self.register_buffer("turns", torch.zeros(2, dtype=torch.long))

    def views(self) -> Views:
        return Views(each=((Flip(),),))

    def recipe(self) -> Recipe:
        return self.declared

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        self.turns[batch.turn] += 1
        made = self.head(self.backbone.pooled(batch.views[0].images))  # (B, 6)
        if batch.turn == 0:
            doubt = 1 - self.discriminator(made)
            return {"loss": doubt.square().mean(), "doubt": doubt.mean()}
        self.memory.enqueue(parallel.gather(made.detach()))
        whole = torch.randn(parallel.ranks() * len(made), 6, dtype=made.dtype)
        real = self.discriminator(parallel.part(whole).to(made.device))
        false = self.discriminator(made.detach())
        return {"discriminator": (1 - real).square().mean() + false.square().mean(), "loss": false.mean()}

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.backbone.encoder}


def build(cell: PretrainCell, *_: object, recipe: Recipe = ADVERSARIES) -> nn.Module:
    torch.manual_seed(5)
    info = CorpusInfo(10, 3, 32, cell.batch_size, cell.steps)
    return _Adversaries(Backbone(cell.backbone, 3), info, recipe)


def begin(fabric: Any = None, recipe: Recipe = ADVERSARIES) -> pretrain._Run:
    cell = pretrain_cell("simclr", steps=STEPS, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "build_method", lambda *given: build(*given, recipe=recipe))
        fabric = fabric or pretrain.set_up(Site(Path(), Path(), None))
        run = pretrain._Run(cell, SHELVES.methods["simclr"], textured_corpus(10, 32, 3), fabric)
    run.method.train()
    return run


def go_on(run: pretrain._Run, first: int = 0, end: int = STEPS) -> list[dict[str, float]]:
    losses = []
    for step in range(first, end):
        run.enter(step)
        losses.append(run.train_step())
    return losses


def snapshot(run: pretrain._Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.method.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# --------------------------------------------------------------------------------------------------------- turn by turn


def test_in_a_turn_only_its_own_side_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = begin(), list[tuple[int, set[str]]]()
    take = pretrain._Run._take

    def watched(self: pretrain._Run, turn: Turn, batch: Batch) -> dict[str, Tensor]:
        learning = {name for name, item in self.method.named_parameters() if item.requires_grad}
        side = "discriminator" if turn.number else ("backbone", "head")
        assert all(name.startswith(side) for name in learning)
        return take(self, turn, batch)

    def between(self: Turn, method: nn.Module) -> Any:
        context, before = alone(self, method), snapshot(run)

        class Watch:
            def __enter__(self) -> None:
                context.__enter__()

            def __exit__(watch, *failure: Any) -> None:
                context.__exit__(*failure)
                seen.append((self.number, moved(before, snapshot(run))))

        return Watch()

    alone = Turn.alone
    monkeypatch.setattr(pretrain._Run, "_take", watched)
    monkeypatch.setattr(Turn, "alone", between)
    go_on(run)
    assert [number for number, _ in seen] == [0, 1] * STEPS
    for number, names in seen:
        sides = {name.partition(".")[0] for name in names}
        assert sides == ({"discriminator", "memory", "turns"} if number else {"backbone", "head", "turns"})
        statistics = {"1.running_mean", "1.running_var"} if number else {"0.running_mean", "0.running_var"}
        assert {f"{'discriminator' if number else 'head'}.{name}" for name in statistics} <= names
    assert all(item.requires_grad for item in run.method.parameters())
    assert run.method.turns.tolist() == [STEPS, STEPS]  # type: ignore[operator, union-attr]


def test_every_turn_minimises_its_own_loss() -> None:
    """Against the same two optimisers written out by hand."""
    run, by_hand = begin(), begin()
    by_hand.enter(0)
    losses = go_on(run, 0, 1)[0]
    method, statistics = by_hand.method, snapshot(by_hand)
    torch.manual_seed(pretrain.derive(0, "step", 0))
    batch = pretrain.make_batch(by_hand.corpus, by_hand.cell, by_hand.declared, 0, 0, torch.device("cpu"))
    sides = (
        [*method.backbone.parameters(), *method.head.parameters()],  # type: ignore[union-attr, operator]
        list(method.discriminator.parameters()),  # type: ignore[union-attr, operator]
    )
    expected = {}
    for turn, (side, key) in enumerate(zip(sides, ("loss", "discriminator"), strict=True)):
        loss = method.training_step(replace(batch, turn=turn))[key]  # type: ignore[operator]
        expected[key] = float(loss.detach())
        gradients = torch.autograd.grad(loss, side)
        with torch.no_grad():
            for item, gradient in zip(side, gradients, strict=True):
                item -= (0.1 if turn else 0.05) * gradient
    assert {key: losses[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert set(losses) == {"loss", "doubt", "discriminator"}
    for name, value in run.method.named_parameters():
        torch.testing.assert_close(value, method.get_parameter(name), rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, statistics[name]), name


def test_a_part_has_a_schedule_of_its_own() -> None:
    part = replace(ADVERSARY, stage=Stage(schedule="cosine"))
    run = begin(recipe=replace(ADVERSARIES, stages=(Stage(0.5, "cosine"), Stage(0.5)), parts=(part,)))
    rates = []
    for step in range(STEPS):
        run.enter(step)
        rates.append([item.param_groups[0]["lr"] for item in (run.optimizer, *run.part_optimizers)])
    assert [first for first, _ in rates] == pytest.approx([0.05, 0.025, 0.05, 0.05])
    assert [second for _, second in rates] == pytest.approx([0.1, 0.1 * 0.853553, 0.05, 0.1 * 0.146447], rel=1e-5)


def test_one_turn_freezes_nothing() -> None:
    recipe = Recipe("sgd", 0.05, parts=(Part(("discriminator.", "head."), "sgd", 0.1),))
    run = begin(recipe=recipe)
    (turn,) = run.turns
    assert turn == Turn(0, "loss", (0, 1), (), ())
    assert len(run.part_optimizers[0].param_groups[0]["params"]) == 4 + 6


# ----------------------------------------------------------------------------------------- resume, processes, precision


def test_adversaries_resume_to_the_same_bits(tmp_path: Path) -> None:
    recipe = replace(ADVERSARIES, optimizer="adam", parts=(replace(ADVERSARY, optimizer="adam"),))
    whole = begin(recipe=recipe)
    go_on(whole)
    for stop in (1, 3):
        first = begin(recipe=recipe)
        go_on(first, 0, stop)
        first.save(tmp_path, stop)
        again = begin(recipe=recipe)
        assert again.resume(tmp_path) == stop
        go_on(again, stop)
        assert not moved(whole.method.state_dict(), again.method.state_dict())
        ours, theirs = (run.part_optimizers[0].state_dict()["state"] for run in (whole, again))
        assert all(torch.equal(value, theirs[at][name]) for at in ours for name, value in ours[at].items())


def test_what_a_killed_turn_left_is_not_resumed(tmp_path: Path) -> None:
    """A kill between two turns: the step is made again from its beginning."""
    run = begin()
    go_on(run, 0, 2)
    run.save(tmp_path, 2)
    run.enter(2)
    batch = pretrain.make_batch(run.corpus, run.cell, run.declared, 2, 0, torch.device("cpu"))
    with run.turns[0].alone(run.method):
        run._take(run.turns[0], batch)
    again, whole = begin(), begin()
    assert again.resume(tmp_path) == 2
    go_on(again, 2)
    go_on(whole)
    assert not moved(whole.method.state_dict(), again.method.state_dict())


def test_a_turn_that_fails_leaves_nothing_frozen() -> None:
    run = begin()
    with pytest.raises(ZeroDivisionError), run.turns[0].alone(run.method):
        raise ZeroDivisionError
    assert all(item.requires_grad for item in run.method.parameters())


def steps_in_double(fabric: Any, arguments: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    single, ready = Tensor.float, views.ready
    with pytest.MonkeyPatch.context() as patch:
        torch.set_default_dtype(torch.float64)
        patch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))
        patch.setattr(views, "ready", lambda images: ready(images).double())
        try:
            run = begin(fabric)
            losses = go_on(run)
        finally:
            torch.set_default_dtype(torch.float32)
    return losses, run.method.state_dict()


def test_two_processes_take_the_turns_that_one_takes(site: Site) -> None:
    alone, state = steps_in_double(pretrain.set_up(site), None)
    shared, other = together(steps_in_double, None, replace(site, ranks=2))
    for one, two in zip(alone, shared, strict=True):
        assert two == pytest.approx(one, rel=1e-6)
    assert list(state) == list(other)
    for name, value in state.items():
        if value.dim() > 1 or "running" in name:  # the gradient of a bias before a normalisation is rounding alone
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-8, msg=name)


def test_turns_in_half_precision() -> None:
    run = begin(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    before = snapshot(run)
    losses = go_on(run)
    exact = go_on(begin())
    assert losses[0] == pytest.approx(exact[0], rel=0.05, abs=0.05)  # later ones part: four images are normalised
    assert losses[0] != exact[0]
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in losses)
    assert {value.dtype for name, value in run.method.named_parameters()} == {torch.float32}
    assert set(dict(run.method.named_parameters())) <= moved(before, snapshot(run))


def test_a_run_of_adversaries_leaves_its_encoder(tmp_path: Path, site: Site) -> None:
    run = begin()
    facts = pretrain._train(run, site, tmp_path, lambda facts: None)
    assert facts["steps_run"] == STEPS
    kept = load_tensors(tmp_path / pretrain.ENCODER)[0]
    assert {name.partition(".")[0] for name in kept} == {"encoder"}


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            Recipe("adam", 0.1, parts=(Part(("head.", "critic."), "adam", 0.1),)),
            r"the recipe of gan has an optimiser for 'critic\.', .* there are backbone, head, discriminator",
        ),
        (
            Recipe("adam", 0.1, parts=(Part("head.", "adam", 0.1), Part("head.1", "sgd", 0.1))),
            r"gives head\.1\.weight to two optimisers, by 'head\.' and by 'head\.1'",
        ),
        (
            Recipe("adam", 0.1, parts=(Part(("backbone", "head", "discriminator"), "adam", 0.1),)),
            "leave its own optimiser nothing",
        ),
        (Recipe("adam", 0.1, parts=(replace(ADVERSARY, turn=2),)), "turns of the recipe of gan are 0, 2, not 0, 1"),
        (
            Recipe("adam", 0.1, parts=(replace(ADVERSARY, turn=0),)),
            "turn 0 of the recipe of gan minimises 'loss' and 'discriminator': give each loss a turn of its own",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_a_sentence(recipe: Recipe, words: str) -> None:
    method = build(pretrain_cell("simclr"), recipe=recipe)
    with pytest.raises(BenchError, match=words) as caught:
        turns(method, recipe, "gan")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_returned_is_named_with_its_turn() -> None:
    run = begin(recipe=replace(ADVERSARIES, parts=(replace(ADVERSARY, loss="critic"),)))
    run.enter(0)
    words = "must return a dict with 'critic' in turn 1; it returned discriminator, loss"
    with pytest.raises(BenchError, match=words):
        run.train_step()


def test_a_loss_of_any_turn_that_is_no_number_ends_the_run(tmp_path: Path, site: Site) -> None:
    run = begin()
    with torch.no_grad():
        run.method.discriminator[3].bias.fill_(float("nan"))  # type: ignore[union-attr, index]
    with pytest.raises(CellError, match="the loss became nan at step 1 of 4"):
        pretrain._train(run, site, tmp_path, lambda facts: None)
    run = begin(recipe=replace(ADVERSARIES, parts=(replace(ADVERSARY, lr=float("inf")),)))
    with pytest.raises(CellError, match="became"):
        pretrain._train(run, site, tmp_path, lambda facts: None)
