"""Tensors on disk: safetensors files that carry a checksum of all they hold, and checkpoints with the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.store.files import explained, flush_folder, report_damage, write_beside
from bench.spec import BenchError, canonical_json

if TYPE_CHECKING:
    from torch import Tensor


class Damaged(BenchError):
    """A file whose content is not what was written."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Writes a safetensors file whose header holds `meta` (plain data) and a checksum of everything.

    `keep_previous` leaves what stood there as `NAME.previous.safetensors`: a good file exists at every instant.
    """
    from safetensors.torch import save

    blob = save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(blob[:8], "little")
    layout, data = json.loads(blob[8:start]), memoryview(blob)[start:]
    facts = {"meta": dict(meta), "sha256": _checksum(layout, meta, data)}
    header = json.dumps({"__metadata__": {"bench": canonical_json(facts)}, **layout}).encode()
    header += b" " * (-len(header) % 8)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = write_beside(path, len(header).to_bytes(8, "little"), header, data)
        if keep_previous and path.exists():
            path.replace(previous_of(path))
        temporary.replace(path)
        flush_folder(path.parent)


def _checksum(layout: Mapping[str, Any], meta: Mapping[str, Any], data: memoryview) -> str:
    total = hashlib.sha256(canonical_json([layout, dict(meta)]).encode())
    total.update(data)
    return total.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and meta of a file `save_tensors` wrote; Damaged where one bit of it changed."""
    from safetensors.torch import load

    try:
        blob = path.read_bytes()
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from error
    try:
        start = 8 + int.from_bytes(blob[:8], "little")
        layout = json.loads(blob[8:start])
        facts = json.loads(layout.pop("__metadata__")["bench"])
        whole = facts["sha256"] == _checksum(layout, facts["meta"], memoryview(blob)[start:])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{path} is damaged: it is not what was written")
    return load(blob), facts["meta"]


def previous_of(path: Path) -> Path:
    """Where `save_tensors(..., keep_previous=True)` leaves the file before."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole one of `path` and the file before it, or None; a damaged one is set aside with a warning."""
    for candidate, spare in ((path, previous_of(path)), (previous_of(path), None)):
        if not candidate.exists():
            continue
        try:
            return load_tensors(candidate)
        except Damaged:
            found = spare is not None and spare.exists()
            consequence = "the one before it is used" if found else "the cell starts again"
            report_damage(candidate, None, "checkpoint", consequence)
    return None
