"""Whole files, records, claims: nothing torn, nothing lost, one owner at a time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.data.store import (
    Damaged,
    Store,
    add_event,
    claim,
    claims,
    collected_warnings,
    live_owner,
    load_checkpoint,
    load_tensors,
    previous_of,
    read_events,
    save_tensors,
    write_bytes,
)
from bench.spec import SCHEMA, BenchError

KEY = "ab" * 32


def record(status: str = "done", key: str = KEY, **more: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "cell_key": key, "status": status, "reason": "", "score": 0.5, **more}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", tmp_path / "results")


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# ------------------------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_as_it_was_written(store: Store) -> None:
    assert store.read(KEY) is None
    assert store.write(record(score=0.1 + 0.2))
    found = store.read(KEY)
    assert found is not None and found["score"] == 0.1 + 0.2
    assert [item["cell_key"] for item in store.records()] == [KEY]


def test_a_result_is_written_once_and_a_failure_makes_room_for_it(store: Store) -> None:
    assert store.write(record("failed", score=None)) and store.done(KEY) is None
    assert store.write(record(score=0.7))
    assert not store.write(record("failed", score=None)) and not store.write(record(score=0.8))
    found = store.done(KEY)
    assert found is not None and found["score"] == 0.7


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    path.write_text(path.read_text().replace("0.5", "0.6"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scalar(path: Path) -> None:
    path.write_text("3\n")


def binary(path: Path) -> None:
    path.write_bytes(b"\xff\x00" * 100)


def other_key(path: Path) -> None:
    path.write_text(path.read_text().replace(KEY, "cd" * 32))


@pytest.mark.parametrize("damage", [truncate, flip, empty, scalar, binary, other_key])
def test_a_damaged_record_is_set_aside_named_and_missing(store: Store, damage: Any) -> None:
    store.write(record())
    damage(store.record_path(KEY))
    with collected_warnings() as warnings:
        assert store.read(KEY) is None
    kept = list((store.results / "quarantine").iterdir())
    assert len(kept) == 1 and not store.record_path(KEY).exists()
    assert len(warnings) == 1 and str(kept[0]) in warnings[0] and "run again" in warnings[0]
    assert store.write(record()) and store.done(KEY) is not None


def test_two_damaged_records_of_one_cell_are_both_kept(store: Store) -> None:
    for _ in range(2):
        store.write(record())
        truncate(store.record_path(KEY))
        with collected_warnings():
            assert store.read(KEY) is None
    assert len(list((store.results / "quarantine").iterdir())) == 2


def test_a_record_of_another_schema_is_kept_aside_when_the_cell_is_run_again(store: Store) -> None:
    store.write(record(schema=SCHEMA + 1))
    assert store.done(KEY) is None
    with collected_warnings() as warnings:
        assert store.write(record())
    assert store.done(KEY) is not None and len(warnings) == 1 and f"schema {SCHEMA + 1}" in warnings[0]
    kept = next((store.results / "quarantine").iterdir())
    assert json.loads(kept.read_text())["schema"] == SCHEMA + 1


def test_a_result_of_a_gpu_that_does_not_tell_its_precision_is_run_again(store: Store) -> None:
    """Release 0.2 computed in bfloat16 there, under the key that means float32 now."""
    store.write(record(device_type="cuda"))
    assert store.done(KEY) is None
    with collected_warnings() as warnings:
        assert store.write(record(device_type="cuda", precision="32"))
    assert store.done(KEY) is not None and len(warnings) == 1 and "bfloat16" in warnings[0]
    assert not store.write(record(device_type="cuda", precision="32", score=0.1))
    assert len(list((store.results / "quarantine").iterdir())) == 1


# --------------------------------------------------------------------------------------------------- unwritable places


def test_a_file_where_a_folder_is_needed_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(BenchError, match="cannot be written: a file stands where a folder is needed") as error:
        Store(tmp_path / "runs", tmp_path / "results").prepare()
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_sentence_and_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(record("failed"))
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BenchError, match="the disk is full"):
        store.write(record())
    monkeypatch.undo()
    found = store.read(KEY)
    assert found is not None and found["status"] == "failed"
    assert [path.name for path in (store.results / "records").iterdir()] == [f"{KEY}.json"]


def test_preparing_leaves_nothing_behind(store: Store) -> None:
    store.prepare()
    assert list(store.runs.iterdir()) == [] and list((store.results / "records").iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- tensors


def some_tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "plain": base,
        "same memory": base,
        "view": base.t(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "step": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "nothing": torch.empty(0, 3),
    }


def test_tensors_and_meta_come_back_bit_for_bit(tmp_path: Path) -> None:
    meta = {"step": 3, "rng": [1, 2], "name": "ä", "rate": 0.1}
    save_tensors(tmp_path / "a.safetensors", some_tensors(), meta)
    tensors, found = load_tensors(tmp_path / "a.safetensors")
    assert found == meta and tensors.keys() == some_tensors().keys()
    for name, wanted in some_tensors().items():
        assert tensors[name].dtype == wanted.dtype and torch.equal(tensors[name], wanted), name


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tensors(tmp_path / name, some_tensors(), {"b": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, some_tensors(), {"step": 3})
    whole = path.read_bytes()
    meta = whole.index(rb"step\":3") + len(rb"step\":")
    for place in (0, 9, meta, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Damaged):
            load_tensors(path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            load_tensors(path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for step in (1, 2):
        save_tensors(path, {"x": torch.ones(3) * step}, {"step": step}, keep_previous=True)
    truncate(path)
    with collected_warnings() as warnings:
        found = load_checkpoint(path)
    assert found is not None and found[1] == {"step": 1} and found[0]["x"][0] == 1
    assert len(warnings) == 1 and "damaged-1" in warnings[0] and "the one before it is used" in warnings[0]
    truncate(previous_of(path))
    with collected_warnings() as warnings:
        assert load_checkpoint(path) is None
    assert "starts again" in warnings[0]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 2


def test_a_writer_killed_between_its_two_renames_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"x": torch.ones(3)}, {"step": 1})
    path.rename(previous_of(path))
    with collected_warnings() as warnings:
        found = load_checkpoint(path)
    assert found is not None and found[1] == {"step": 1} and warnings == []


def test_a_full_disk_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"x": torch.ones(3)}, {"step": 1}, keep_previous=True)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BenchError, match="the disk is full"):
        save_tensors(path, {"x": torch.zeros(3)}, {"step": 2}, keep_previous=True)
    monkeypatch.undo()
    assert load_tensors(path)[1] == {"step": 1} and [item.name for item in tmp_path.iterdir()] == [path.name]


# -------------------------------------------------------------------------------------------------------------- claims


def contend(folder: Path, rounds: int, barrier: Any, wins: Any) -> None:
    for number in range(rounds):
        barrier.wait()
        held = claim(folder / str(number))
        barrier.wait()  # nobody lets go before all have tried
        if held is not None:
            wins.put(number)
            held.release()


def race(folder: Path, rounds: int) -> list[int]:
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(8), context.Queue()
    crowd = [context.Process(target=contend, args=(folder, rounds, barrier, wins)) for _ in range(8)]
    for process in crowd:
        process.start()
    won = sorted(wins.get(timeout=60) for _ in range(rounds))
    for process in crowd:
        process.join(timeout=60)
    assert wins.empty() and all(process.exitcode == 0 for process in crowd)
    return won


def test_of_eight_contenders_exactly_one_wins(tmp_path: Path) -> None:
    assert race(tmp_path, 50) == list(range(50))


def leave_claim(folder: Path) -> None:
    """A claim whose owner was killed."""
    code = "import os, sys, pathlib; from bench.data.store import claim; claim(pathlib.Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=False, cwd=Path(__file__).parent.parent)


def test_of_eight_contenders_exactly_one_takes_over_from_the_dead(tmp_path: Path) -> None:
    leave_claim(tmp_path / "0")
    dead = (tmp_path / "0" / "claim.1").read_bytes()
    for number in range(1, 20):
        write_bytes(tmp_path / str(number) / "claim.1", dead)
    assert race(tmp_path, 20) == list(range(20))
    assert all((tmp_path / str(number) / "claim.2").exists() for number in range(20))


def test_a_claim_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    first = claim(tmp_path)
    assert first is not None and first.generation == 1 and claim(tmp_path) is None
    owner = live_owner(tmp_path)
    assert owner is not None and owner["pid"] == os.getpid()
    first.release()
    first.release()
    assert live_owner(tmp_path) is None
    second = claim(tmp_path)
    assert second is not None and second.generation == 2
    second.release()


def test_a_contender_that_slept_cannot_take_a_released_generation(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held is not None
    held.release()
    late = tmp_path / "late"
    late.write_text("{}")
    assert not claims._create_claim(tmp_path, 1, b"{}", late)


def rewrite_owner(folder: Path, **changes: Any) -> None:
    path = folder / "claim.1"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "age", "live"),
    [
        ({}, 0, True),
        ({}, 9999, True),  # alive on this machine, however late its heartbeat
        ({"started": "1"}, 0, False),  # its number belongs to another process now
        ({"pid": 2**22 + 1}, 0, False),
        ({"machine": "elsewhere"}, 0, True),
        ({"machine": "elsewhere"}, claims.STALE_SECONDS + 5, False),
    ],
)
def test_who_counts_as_alive(tmp_path: Path, changes: dict[str, Any], age: float, live: bool) -> None:
    held = claim(tmp_path)
    assert held is not None
    rewrite_owner(tmp_path, **changes)
    os.utime(tmp_path / "claim.1", (time.time() - age,) * 2)
    assert (live_owner(tmp_path) is not None) == live
    other = claim(tmp_path)
    assert (other is None) == live
    if other is not None:
        other.release()
    held.release()


def test_an_unreadable_claim_is_judged_by_its_age(tmp_path: Path) -> None:
    (tmp_path / "claim.1").write_bytes(b"")
    assert claim(tmp_path) is None
    os.utime(tmp_path / "claim.1", (0, 0))
    held = claim(tmp_path)
    assert held is not None
    held.release()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_that_ended_but_was_not_collected_is_dead() -> None:
    child = subprocess.Popen(["true"])
    for _ in range(100):
        if claims._started(child.pid) is None:
            break
        time.sleep(0.05)
    assert claims._started(child.pid) is None
    child.wait()


def test_an_owner_that_slept_learns_that_it_lost_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    held = claim(tmp_path)
    assert held is not None
    before = held.path.stat().st_mtime_ns
    time.sleep(0.1)
    assert held.path.stat().st_mtime_ns > before and not held.lost.is_set()
    (tmp_path / "claim.2").write_text("{}")
    assert held.lost.wait(2)
    held.release()


def test_without_hard_links_a_claim_is_still_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    held = claim(tmp_path)
    assert held is not None and claim(tmp_path) is None
    held.release()


# -------------------------------------------------------------------------------------------------------------- events


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    add_event(tmp_path, "started", step=1)
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "fini')
    add_event(tmp_path, "started", step=2)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    assert {"time", "host", "pid"} <= read_events(tmp_path)[0].keys()
