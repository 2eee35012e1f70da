"""Weights from elsewhere: every way of naming them is recognised, nothing is unpickled, nothing is loaded in part."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from bench import nets, registry
from bench.data.store import Store
from bench.nets import weights
from bench.run import grid, pretrain
from bench.run.cell import run_cell
from bench.run.grid import Request
from bench.spec import BenchError, CellError, PretrainCell, Site, cell_from_dict, cell_to_dict, site_to_dict
from tests.conftest import pretrain_cell, transfer_cell

Tensors = dict[str, Tensor]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics of normalisation as no fresh network has them, so that a layer in another's place shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, item in module.state_dict().items():
        if name.endswith("running_var"):
            item.copy_(torch.rand(item.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            item.copy_(torch.randn(item.shape, generator=generator))
    return module.eval()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> Tensors:
    return weights.read(path, digest(path))


def coarsest(backbone: nets.Backbone, images: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone.eval()(images)[-1]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(1)
    return shaken(torchvision.models.resnet18(weights=None))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def resnet_map(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.Sequential(*list(network.children())[:-2])(images)


# -------------------------------------------------------------------------------------------------- ways of naming them


def plain(network: nn.Module) -> Any:
    return network.state_dict()


def as_moco(network: nn.Module) -> Any:
    query = {f"module.encoder_q.{name}": item for name, item in network.state_dict().items()}
    key = {f"module.encoder_k.{name}": item + 1 for name, item in network.state_dict().items()}
    state = query | key | {"module.queue": torch.randn(128, 8)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]}
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}


def as_lightly(network: nn.Module) -> Any:
    trunk = nn.Sequential(*list(network.children())[:-1])
    own = {f"backbone.{name}": item for name, item in trunk.state_dict().items()}
    slow = {f"backbone_momentum.{name}": item * 2 for name, item in trunk.state_dict().items()}
    return {"state_dict": slow | own, "hyper_parameters": {"lr": 0.06}, "global_step": 5}


def as_dino(network: nn.Module) -> Any:
    student = {f"module.backbone.{name}": item + 1 for name, item in network.state_dict().items()}
    return {
        "student": student,
        "teacher": {f"backbone.{name}": item for name, item in network.state_dict().items()},
        "epoch": 3,
    }


def as_unet(network: nn.Module) -> Any:
    model = smp.Unet("resnet18", encoder_weights=None)
    own = {name: item for name, item in network.state_dict().items() if not name.startswith("fc.")}
    model.encoder.load_state_dict(own)
    return model.state_dict()


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (plain, ""),
        (as_moco, "state_dict.module.encoder_q."),
        (as_lightly, "state_dict.backbone."),
        (as_dino, "teacher.backbone."),
        (as_unet, "encoder."),
    ],
)
@pytest.mark.parametrize("backbone", ["tu-resnet18", "resnet18"])
def test_a_resnet_is_read_from_every_kind_of_file(
    wrap: Callable[[nn.Module], Any], prefix: str, backbone: str, resnet: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "file.pt"
    torch.save(wrap(resnet), path)
    target = nets.Backbone(backbone)
    if backbone == "resnet18":  # the paper's, with another stem
        message = r"only \d+ weights.* fit resnet18, .*missing: stem\.0\.0\.weight.*tu-resnet18"
        with pytest.raises(CellError, match=message):
            weights.load(target, read(path))
        return
    facts = weights.load(target, read(path))
    assert facts["prefix"] == prefix
    assert facts["matched"] == len(target.encoder.state_dict())
    assert facts["missing"] == []
    torch.testing.assert_close(coarsest(target, images), resnet_map(resnet, images))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("prefix", "names"),
    [("features.", "torchvision"), ("backbone.0.", "torchvision"), ("module.encoder_q.features.", "torchvision")],
)
def test_vgg16_is_torchvisions_with_normalisation(
    suffix: str, prefix: str, names: str, images: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    layers = shaken(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True))
    state = {f"{prefix}{name}": item for name, item in layers.state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(2, 2)
    path = tmp_path / f"vgg{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    target = nets.Backbone("vgg16")
    facts = weights.load(target, read(path))
    assert (facts["names"], facts["prefix"], facts["not_used"]) == (names, prefix, ["classifier.0.weight"])
    with torch.no_grad():
        expected = layers[:-1](images)  # without the last pooling
    torch.testing.assert_close(coarsest(target, images), expected)


@pytest.mark.parametrize(
    ("backbone", "build"),
    [
        ("tu-convnext_atto", lambda: timm.create_model("convnext_atto", pretrained=False)),
        ("tu-resnet18", lambda: timm.create_model("resnet18", pretrained=False)),
        ("mobilenet_v2", lambda: torchvision.models.mobilenet_v2(weights=None)),
        ("efficientnet-b0", lambda: smp.encoders.get_encoder("efficientnet-b0", weights=None)),
    ],
)
def test_other_networks_are_read_from_their_library(backbone: str, build: Callable[[], nn.Module]) -> None:
    source, target = shaken(build()), nets.Backbone(backbone)
    facts = weights.load(target, dict(source.state_dict()))
    assert facts["matched"] == len(target.encoder.state_dict())
    held = {float(item.double().sum()) for item in source.state_dict().values()}
    assert all(float(item.double().sum()) in held for item in target.encoder.state_dict().values())


def test_our_own_export_and_our_own_checkpoint_are_read(tmp_path: Path) -> None:
    cell = pretrain_cell("scratch")
    shelves = registry.scan()
    method = pretrain.build_method(cell, shelves.methods["scratch"], None)
    shaken(method)
    pretrain.export(method, cell, tmp_path)
    target = nets.Backbone("tiny_vgg16")
    facts = weights.load(target, read(tmp_path / pretrain.ENCODER))
    assert (facts["names"], facts["prefix"], facts["unexpected"]) == ("bench", "encoder.", 0)
    before = nets.probe(pretrain.handed_on(method)["encoder"], 3)
    assert nets.probe(target.encoder, 3) == pytest.approx(before, rel=1e-6)

    state = {f"method.{name}": item for name, item in method.state_dict().items()}
    slow = {name.replace("backbone", "momentum_backbone", 1): item * 2 for name, item in state.items()}
    again = nets.Backbone("tiny_vgg16")
    assert weights.load(again, slow | state)["prefix"] == "method.backbone.encoder."
    assert nets.probe(again.encoder, 3) == nets.probe(target.encoder, 3)


def test_the_report_is_in_the_log(resnet: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bench")
    facts = weights.load(nets.Backbone("tu-resnet18"), dict(resnet.state_dict()))
    assert "120 matched, missing none, 2 unexpected" in caplog.text
    assert facts["not_used"] == ["fc.weight", "fc.bias"]


# ------------------------------------------------------------------------------------------------------------- channels


def test_from_colours_to_grey_the_first_kernels_are_summed(resnet: nn.Module, images: Tensor) -> None:
    target = nets.Backbone("tu-resnet18", 1)
    facts = weights.load(target, dict(resnet.state_dict()))
    assert facts["first_convolution"] == "3 channels to 1"
    grey = images[:, :1]
    expected = resnet_map(resnet, grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(coarsest(target, grey), expected, atol=1e-4, rtol=0)


def test_from_grey_to_colours_each_gets_a_third(images: Tensor) -> None:
    source, target = nets.Backbone("tiny_vgg16", 1), nets.Backbone("tiny_vgg16", 3)
    assert weights.load(target, dict(source.encoder.state_dict()))["first_convolution"] == "1 channels to 3"
    mean = images.mean(1, keepdim=True)
    torch.testing.assert_close(coarsest(target, images), coarsest(source, mean), atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------------- refusals


def small() -> Tensors:
    return dict(nets.Backbone("tiny_vgg16").encoder.state_dict())


def test_only_the_counters_of_normalisation_may_be_missing() -> None:
    state = {name: item for name, item in small().items() if not name.endswith("num_batches_tracked")}
    facts = weights.load(nets.Backbone("tiny_vgg16"), state)
    assert len(facts["missing"]) == 13
    assert all(name.endswith("num_batches_tracked") for name in facts["missing"])
    state.pop("stages.2.1.0.bias")
    target = nets.Backbone("tiny_vgg16")
    before = nets.probe(target.encoder, 3)
    with pytest.raises(CellError, match=r"not loaded in part; missing: stages\.2\.1\.0\.bias; check --backbone"):
        weights.load(target, state)
    assert nets.probe(target.encoder, 3) == before


def test_what_does_not_fit_at_all_is_an_error(resnet: nn.Module) -> None:
    wanted = r"would fit tiny_vgg16 \(it wants stages\.0\.0\.0\.weight \(16, 3, 3, 3\), the file has"
    wide = dict(nets.Backbone("small_vgg16").encoder.state_dict())
    other = {"a": torch.zeros(2), "b": torch.zeros(3)}
    for state, count in ((dict(resnet.state_dict()), "1 of the 122"), (wide, "13 of the 91"), (other, "none of the 2")):
        with pytest.raises(CellError, match=rf"^{count} weights in the file {wanted}"):
            weights.load(nets.Backbone("tiny_vgg16"), state)


def test_a_weight_that_is_no_number_is_refused() -> None:
    state = small()
    state["stages.1.0.0.bias"] = torch.full_like(state["stages.1.0.0.bias"], torch.nan)
    with pytest.raises(CellError, match=r"stages\.1\.0\.0\.bias in the file is not finite"):
        weights.load(nets.Backbone("tiny_vgg16"), state)


def test_two_networks_that_fit_as_well_are_not_guessed_between() -> None:
    one, other = small(), {f"right.{name}": item for name, item in small().items()}
    state = {f"left.{name}": item for name, item in one.items()} | other
    with pytest.raises(CellError, match=r"2 networks fit equally well \(left\., right\.\)"):
        weights.load(nets.Backbone("tiny_vgg16"), state)
    same = {f"{side}.{name}": item for side in ("left", "right") for name, item in one.items()}
    assert weights.load(nets.Backbone("tiny_vgg16"), same)["prefix"] == "left."


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plainly", [False, True])
def test_nothing_is_unpickled(plainly: bool, tmp_path: Path) -> None:
    path, sprung = tmp_path / "model.pt", tmp_path / "sprung"
    content = {"state_dict": {"x": torch.zeros(1)}, "config": Trap(sprung)}
    path.write_bytes(pickle.dumps(content)) if plainly else torch.save(content, path)
    with pytest.raises(CellError, match=r"model\.pt (holds more than tensors|is neither)"):
        read(path)
    assert not sprung.exists()


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    save_file({"a": torch.zeros(4)}, path)
    header = path.read_bytes()
    torch.save({"a": torch.zeros(400)}, path)
    archive = path.read_bytes()
    for content, message in (
        (b"hello, this is no checkpoint", "neither a safetensors file"),
        (b"", "neither a safetensors file"),
        (header[:-3], "damaged safetensors file"),
        (archive[: len(archive) // 2], "neither a safetensors file nor a whole one of torch.save"),
    ):
        path.write_bytes(content)
        with pytest.raises(CellError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    torch.save({"epoch": 3, "names": ["a"]}, path)
    with pytest.raises(CellError, match="holds no tensors with names"):
        read(path)
    with pytest.raises(CellError, match="cannot be read: No such file"):
        weights.read(tmp_path / "gone", "0" * 64)


# ------------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request("!all", "chase,scr_heart", runs=tmp_path / "runs", results=tmp_path / "results", budget="smoke")


@pytest.fixture
def shelves() -> registry.Registry:
    return registry.scan()


def written(path: Path, seed: int = 0, channels: int = 3) -> Path:
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    save_file(nets.Backbone("tiny_vgg16", channels).encoder.state_dict(), path)
    return path


def brought(asked: Request, shelves: registry.Registry) -> list[PretrainCell]:
    return [cell for cell in grid.expand(asked, shelves).pretrainings if cell.weights]


def test_a_file_is_known_by_its_content_wherever_it_lies(
    request_: Request, shelves: registry.Registry, tmp_path: Path
) -> None:
    one, moved = written(tmp_path / "my encoder.safetensors"), tmp_path / "elsewhere" / "my encoder.safetensors"
    asked = replace(request_, methods=f"ckpt:{one}", tasks="chase")
    (cell,) = brought(asked, shelves)
    assert cell.label == f"ckpt:my encoder.safetensors@{digest(one)[:7]}"
    assert cell.weights == digest(one)
    moved.parent.mkdir()
    one.rename(moved)
    (again,) = brought(replace(asked, methods=f"ckpt:{moved}"), shelves)
    assert (again.key, again.label) == (cell.key, cell.label)
    assert str(tmp_path) not in repr(again.choices)
    assert cell_from_dict(cell_to_dict(again)) == again
    (other,) = brought(replace(asked, methods=f"ckpt:{written(moved, seed=1)}"), shelves)
    assert other.key != cell.key and other.label != cell.label


def test_several_files_are_several_rows_and_seeds_share_them(
    request_: Request, shelves: registry.Registry, tmp_path: Path
) -> None:
    one, two = written(tmp_path / "one.safetensors"), written(tmp_path / "two.safetensors", seed=1)
    made = grid.expand(replace(request_, methods=f"ckpt:{one},ckpt:{two}", tasks="chase", seeds=3), shelves)
    labels = [cell.label.partition("@")[0] for cell in made.pretrainings]
    assert labels == ["ckpt:one.safetensors", "ckpt:two.safetensors"]
    assert {len(children) for children in made.children.values()} == {3}
    assert len({cell.key for cell in made.transfers}) == 9  # with scratch, whose encoders differ by seed
    assert {cell.seed for cell in made.transfers if cell.pretrain.weights} == {0, 1, 2}
    rows = grid.plan(made, request_.store)
    assert {row.seconds for row in rows if isinstance(row.cell, PretrainCell)} == {0.0}


def test_colour_and_grey_tasks_have_an_encoder_each(
    request_: Request, shelves: registry.Registry, tmp_path: Path
) -> None:
    cells = brought(replace(request_, methods=f"ckpt:{written(tmp_path / 'a.safetensors')}"), shelves)
    assert [cell.channels for cell in cells] == [3, 1]
    assert len({cell.key for cell in cells}) == 2


def test_what_cannot_be_asked_for_is_said(request_: Request, shelves: registry.Registry, tmp_path: Path) -> None:
    one, twin = written(tmp_path / "one.safetensors"), written(tmp_path / "twin.safetensors")
    for methods, message in (
        ("ckpt", "ckpt takes a file of weights: write --methods ckpt:PATH"),
        ("ckpt:", "ckpt is written with a file: NAME:PATH"),
        ("simclr:x.pt", "simclr takes no file"),
        (f"ckpt:{tmp_path}/gone.pt", r"the weights .*gone\.pt cannot be read: No such file or directory$"),
        (f"ckpt:{tmp_path}/a,b.pt", r"unknown method 'b\.pt'.*; the path of a file cannot hold a comma"),
        (f"ckpt:{tmp_path}", "cannot be read: Is a directory"),
        (f"ckpt:{one},ckpt:{twin}", r"twin\.safetensors and .*one\.safetensors are the same weights"),
    ):
        with pytest.raises(BenchError, match=message):
            grid.expand(replace(request_, methods=methods, tasks="chase"), shelves)


def test_all_and_groups_leave_out_what_needs_a_file(request_: Request, shelves: registry.Registry) -> None:
    made = grid.expand(replace(request_, methods="weights", tasks="chase", backbone="vgg16"), shelves)
    assert [cell.method for cell in made.pretrainings] == ["imagenet"]
    assert "ckpt" not in grid.expand(replace(request_, methods="all", tasks="chase"), shelves).methods


def test_a_backbone_without_weights_is_not_available(request_: Request, shelves: registry.Registry) -> None:
    made = grid.expand(replace(request_, methods="imagenet", tasks="chase"), shelves)
    why = made.unavailable["imagenet", "chase"]
    assert why.startswith("imagenet has no weights for the backbone tiny_vgg16; choose a --backbone, such as vgg16")
    assert {cell.pretrain.method for cell in made.transfers} == {"scratch"}


def test_a_declaration_must_say_where_weights_come_from(tmp_path: Path) -> None:
    head = "@dataclass(frozen=True)\nclass HParams:\n    x: int = 1\n\n"
    for more, message in (
        ("trains=False, weights='somewhere'", "it takes library or file$"),
        ("weights='file'", "it takes library or file beside trains=False"),
    ):
        path = tmp_path / "mine.py"
        call = f"@method('m', HParams, version=1, title='T', paper='P', groups=(), {more})"
        path.write_text(f"{head}{call}\nclass M: ...\n")
        with pytest.raises(BenchError, match=message):
            registry.bare().add_file(path)


# ------------------------------------------------------------------------------------------------------------- the cell


def the_cell(path: Path) -> PretrainCell:
    return replace(pretrain_cell("ckpt"), weights=digest(path), weights_file=str(path), label=f"ckpt:{path.name}")


def test_a_cell_leaves_the_encoder_and_says_what_matched(site: Site, tmp_path: Path) -> None:
    cell = the_cell(written(tmp_path / "mine.safetensors"))
    store = Store(site.runs, site.results)
    assert cell.trained
    outcome = run_cell(cell_to_dict(cell), site_to_dict(site))
    assert outcome.status == "done", outcome.reason
    state = store.pretrained(cell)
    assert state is not None
    assert state["weights_match"] == {
        "file": "mine.safetensors",
        "names": "bench",
        "prefix": "",
        "matched": 91,
        "missing": [],
        "unexpected": 0,
        "not_used": [],
        "first_convolution": "",
    }
    (tmp_path / "mine.safetensors").unlink()  # the encoder is ours now
    judged = transfer_cell(cell, "chase", phase_steps=1)
    outcome = run_cell(cell_to_dict(judged), site_to_dict(site))
    assert outcome.status == "done", outcome.reason
    record = store.done(judged.key)
    assert record is not None
    assert record["weights"] == cell.weights
    assert record["weights_match"] == state["weights_match"]
    assert str(tmp_path) not in repr(record)


def test_a_file_that_changed_since_the_plan_fails_the_cell(site: Site, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.safetensors")
    cell = the_cell(path)
    written(path, seed=1)
    outcome = run_cell(cell_to_dict(cell), site_to_dict(site))
    assert outcome.status == "failed"
    assert outcome.reason == "mine.safetensors changed since the run was planned: start the command again"
    assert not Store(site.runs, site.results).encoder(cell).exists()
