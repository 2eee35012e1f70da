"""How much of a dataset is there, by names and file sizes alone."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from bench import data
from bench.cli.checkup.kinds import DAMAGED, FOUND, MISSING, NOTE, Finding, Status, Target
from bench.registry import Registry
from bench.spec import BenchError, TaskSpec


def look(target: Target, data_root: Path | None) -> Status:
    """How much of a task or corpus is there; nothing is decoded."""
    spec, status = target.spec, _look(target, data_root)
    if spec is None:
        return status
    return dataclasses.replace(status, licence=spec.licence, citation=spec.citation, source=spec.source)


def _look(target: Target, data_root: Path | None) -> Status:
    spec, root = target.spec, _root(target, data_root)
    if root is None:
        odd = _odd([data_root / name for name in spec.folders], "folder") if spec is not None and data_root else []
        expected = spec.train + spec.test if isinstance(spec, TaskSpec) else None
        state = DAMAGED if odd else MISSING
        return Status(target.name, target.kind, state, None, expected=expected, damaged=tuple(odd))
    try:
        next(root.iterdir(), None)  # a folder nobody may read says so here
        if isinstance(spec, TaskSpec):
            return _look_at_task(spec, root, data_root)
        return _look_at_corpus(target, root, data_root)
    except data.NoImages:
        return Status(target.name, target.kind, MISSING, root)
    except BenchError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or root} cannot be read ({error.strerror}): check its permissions"
    return Status(target.name, target.kind, DAMAGED, root, damaged=(sentence,))


def _root(target: Target, data_root: Path | None) -> Path | None:
    return target.folder if target.spec is None else data.find_root(target.spec, data_root)


def _look_at_task(spec: TaskSpec, root: Path, data_root: Path | None) -> Status:
    found = data.inventory(spec, data_root)
    listed = [sample for part in found.parts.values() for sample in part]
    damaged = [*_odd([root / name for name in found.missing], "file")] if found.files else [*found.missing]
    damaged += _empty(path for sample in listed for path in sample.files)
    return Status(
        spec.name,
        "task",
        DAMAGED if damaged else found.state,
        root,
        images=found.present,
        expected=found.expected,
        masks=sum(len(sample.masks) for sample in listed),
        missing=found.missing if found.files else (),
        damaged=tuple(dict.fromkeys(damaged)),
        absent=tuple(part for part, listed in found.parts.items() if not listed),
        rule=found.rule,
    )


def _look_at_corpus(target: Target, root: Path, data_root: Path | None) -> Status:
    assert not isinstance(target.spec, TaskSpec)
    files = data.corpus_files(target.name, target.spec, data_root)
    damaged = tuple(_empty(files))
    state = DAMAGED if damaged else FOUND
    return Status(target.name, "corpus", state, root, images=len(files), damaged=damaged)


def _odd(paths: Iterable[Path], wanted: str) -> list[str]:
    """Something else stands in the place of a file or folder, or it lies where nobody may look: a sentence each."""
    found: list[str] = []
    for path in paths:
        closed = f"{path.parent} cannot be entered: check its permissions"
        if path.parent.is_dir() and not os.access(path.parent, os.R_OK | os.X_OK):
            found += [closed] if closed not in found else []
        elif path.is_symlink():
            found.append(f"{path} is a link that leads to no {wanted}: repair it or take it out")
        elif os.path.lexists(path):
            found.append(f"{path} is no {wanted}: put the {wanted} there that its name promises")
    return found


def _empty(paths: Iterable[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            if path.stat().st_size == 0:
                found.append(f"{path} is empty: download it again or take it out")
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror}): download it again or take it out")
    return found


def strangers(data_root: Path, registry: Registry) -> list[Finding]:
    """Folders under the data root that no task and no corpus reads, with a word on names that are nearly right."""
    known = {
        name: spec.name
        for shelf in (registry.tasks, registry.corpora)
        for spec in shelf.values()
        for name in spec.folders
    }
    plain = {_plain(name): name for name in known}
    folded = {name.casefold() for name in known}
    found = []
    if data_root.resolve().name.casefold() in folded:
        text = f"{data_root} has the name of a dataset: give --data the folder that it lies in"
        found.append(Finding(NOTE, "unused", (), "", text))
    for path in sorted(data_root.iterdir()):
        if path.name.startswith(".") or not path.is_dir() or path.name.casefold() in folded:
            continue
        near = difflib.get_close_matches(_plain(path.name), plain, n=1, cutoff=0.8)
        text = f"{path.name} is no dataset or corpus of this version: nothing reads this folder"
        if near:
            text += f"; if it is that of {known[plain[near[0]]]}, call it {plain[near[0]]}"
        found.append(Finding(NOTE, "unused", (), path.name, text))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
