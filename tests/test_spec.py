"""Keys hash scientific choices and nothing else; declarations and budgets refuse what makes no sense."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from bench.spec import (
    BUDGETS,
    BenchError,
    CellError,
    HParam,
    PretrainCell,
    Site,
    TransferCell,
    canonical_json,
    cell_from_dict,
    cell_to_dict,
    derive,
    digest,
    file_digest,
    site_from_dict,
    site_to_dict,
)

PRETRAIN = PretrainCell(
    method="m",
    version=1,
    hparams=(("clusters", 16), ("rate", 0.1)),
    label="m",
    corpus="pool",
    corpus_fingerprint="f0",
    phantom=True,
    backbone="net",
    channels=3,
    budget="quick",
    steps=120,
    image_size=128,
    batch_size=8,
    seed=0,
)
TRANSFER = TransferCell(
    pretrain=PRETRAIN,
    task="t",
    task_version=1,
    dataset_fingerprint="d0",
    phantom=True,
    protocol="finetune",
    label_fraction=1.0,
    fold=0,
    image_size=128,
    phase_steps=40,
    phase_epochs=10,
    checks=4,
    batch_size=2,
    budget="quick",
    seed=0,
)
NAMES_ONLY = {"label", "corpus", "phantom", "budget"}  # what a reader sees; the choice itself is another field
NAMES_ONLY |= {"weights_file"}  # its content is what counts
NAMES_ONLY |= {"dropped", "present", "expected", "rule", "allow_partial", "leaks"}  # the fingerprint sees what is there


def other(value: object) -> object:
    if isinstance(value, tuple):
        return (*value, ("more", 1))
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1  # type: ignore[operator]


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(PretrainCell)])
def test_every_choice_of_a_pretraining_is_in_its_key(name: str) -> None:
    changed = dataclasses.replace(PRETRAIN, **{name: other(getattr(PRETRAIN, name))})
    assert (changed.key == PRETRAIN.key) == (name in NAMES_ONLY)


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(TransferCell) if item.name != "pretrain"])
def test_every_choice_of_a_transfer_is_in_its_key(name: str) -> None:
    changed = dataclasses.replace(TRANSFER, **{name: other(getattr(TRANSFER, name))})
    unused = {"phase_epochs"}  # steps decide the length here
    assert (changed.key == TRANSFER.key) == (name in NAMES_ONLY | unused)


def test_epochs_count_where_steps_do_not() -> None:
    epochs = dataclasses.replace(TRANSFER, phase_steps=None)
    assert epochs.key != dataclasses.replace(epochs, phase_epochs=11).key


def test_another_encoder_is_another_transfer() -> None:
    assert dataclasses.replace(TRANSFER, pretrain=dataclasses.replace(PRETRAIN, seed=1)).key != TRANSFER.key


def test_length_and_corpus_mean_nothing_to_an_untrained_encoder() -> None:
    untrained = dataclasses.replace(PRETRAIN, steps=0)
    assert untrained.key == dataclasses.replace(untrained, corpus_fingerprint="f1", batch_size=3, image_size=64).key


def test_keys_stay_as_they_were() -> None:
    assert PRETRAIN.key == digest(PRETRAIN.choices)
    assert digest({"b": [1, 2.5, None], "a": "ä"}) == "4b12564ba8344d191c82cc500017c21887ae57ff2cd79203f3afc1500a4f50d5"


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": (1.0, "ä")}) == '{"a":[1.0,"\\u00e4"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(math.nan)


def test_cells_and_sites_survive_json() -> None:
    for cell in (PRETRAIN, TRANSFER):
        back = cell_from_dict(json.loads(json.dumps(cell_to_dict(cell))))
        assert back == cell and back.key == cell.key
    for data in (None, Path("/data")):
        site = Site(Path("/r"), Path("/s"), data, plugins=("a.py",))
        assert site_from_dict(json.loads(json.dumps(site_to_dict(site)))) == site


def test_seeds_differ_by_purpose_and_fit_in_63_bits() -> None:
    seeds = {
        derive(seed, *purpose) for seed in range(50) for purpose in (("a",), ("b",), ("a", 1), ("a", "1"), (1, "a"))
    }
    assert len(seeds) == 250 and all(0 <= seed < 2**63 for seed in seeds)


def test_folders_tell_what_is_inside() -> None:
    assert PRETRAIN.folder == f"pretrain/m-{PRETRAIN.key[:12]}"
    assert TRANSFER.folder == f"transfer/t-m-{TRANSFER.key[:12]}"


def test_a_budget_names_its_changes() -> None:
    quick = BUDGETS["quick"]
    assert quick.with_overrides(None, None, None) is quick
    assert quick.with_overrides(quick.steps, None, None).label == "quick"
    changed = quick.with_overrides(7, None, 3)
    assert changed.label == "quick (steps=7, batch_size=3)" and (changed.steps, changed.batch_size) == (7, 3)
    assert changed.transfer_label == "quick"
    with pytest.raises(BenchError, match="--batch-size must be at least 1, not 0"):
        quick.with_overrides(None, None, 0)


def test_a_budget_reaches_the_length_of_a_transfer_and_the_precision() -> None:
    quick = BUDGETS["quick"]
    longer = quick.with_overrides(7, transfer_steps=200, precision="bf16")
    assert longer.label == "quick (steps=7, transfer_steps=200, precision=bf16)"
    assert longer.transfer_label == "quick (transfer_steps=200, precision=bf16)"
    assert (longer.phase_steps, longer.precision) == (200, "bf16")
    epochs = longer.with_overrides(transfer_epochs=12)
    assert (epochs.phase_steps, epochs.phase_epochs) == (None, 12)
    assert epochs.transfer_label == "quick (precision=bf16, transfer_epochs=12)"
    same = quick.with_overrides(transfer_steps=quick.phase_steps, precision="32")
    assert same is quick
    assert quick.with_overrides(transfer_epochs=quick.phase_epochs).phase_steps is None  # steps decided before
    with pytest.raises(BenchError, match="--transfer-steps and --transfer-epochs exclude each other"):
        quick.with_overrides(transfer_steps=3, transfer_epochs=3)
    with pytest.raises(BenchError, match="--transfer-epochs must be at least 1, not 0"):
        quick.with_overrides(transfer_epochs=0)
    with pytest.raises(BenchError, match="unknown precision 'fp16': choose from 32, bf16"):
        quick.with_overrides(precision="fp16")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("bool", "True", True), ("bool", "0", False), ("int", "-3", -3), ("float", "1e-3", 0.001)],
)
def test_a_field_reads_its_type(kind: str, text: str, value: object) -> None:
    parsed = HParam("x", kind, -1).parse(text, "m")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"), [("bool", "2"), ("int", "1.5"), ("int", ""), ("float", "a"), ("float", "inf")]
)
def test_a_field_refuses_other_types(kind: str, text: str) -> None:
    with pytest.raises(BenchError, match=r"m\.x"):
        HParam("x", kind, 0).parse(text, "m")


def test_a_cell_error_is_its_reason() -> None:
    error = CellError("timed out", "after 3 h")
    assert str(error) == "after 3 h" and error.status == "timed out"


def test_a_file_digest_is_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
