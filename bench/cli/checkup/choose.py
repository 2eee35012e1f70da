"""Which tasks and corpora a command line means, and whether its data root can be looked into."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from bench.cli.checkup.kinds import Target
from bench.data import FOLDER
from bench.registry import Registry
from bench.spec import BenchError, CorpusSpec, TaskSpec, suggest


def targets(names: Sequence[str], registry: Registry) -> list[Target]:
    """Tasks and corpora by name, group, gl*b, `all`, `folder:PATH` or file, once each; no names: all there are."""
    chosen: dict[str, Target] = {}
    for name in names or ("all",):
        for target in _resolve(name, registry):
            chosen.setdefault(target.name, target)
    return list(chosen.values())


def _resolve(name: str, registry: Registry) -> list[Target]:
    if name.startswith(FOLDER):
        target = Target(name, "corpus", None)
        if not target.folder.is_dir():
            raise BenchError(f"{target.folder} is no folder: {FOLDER}PATH takes a folder of images")
        return [target]
    if name.endswith((".py", ".toml")):
        return [Target(task, "task", registry.tasks[task]) for task in registry.select("task", name)]
    groups = registry.groups("task")
    known: dict[str, TaskSpec | CorpusSpec] = {**registry.tasks, **registry.corpora}
    members = list(known) if name == "all" else groups.get(name) or fnmatch.filter(known, name)
    if not members:
        near = suggest(name, [*known, *groups, "all"]) or "; `bench list tasks` and `bench list corpora` show names"
        raise BenchError(f"no task or corpus is called {name!r}{near}")
    return [Target(item, "task" if item in registry.tasks else "corpus", known[item]) for item in members]


def check_root(data_root: Path) -> None:
    """BenchError where a data root cannot be listed."""
    try:
        next(data_root.iterdir(), None)
    except NotADirectoryError:
        raise BenchError(f"{data_root} is a file: give --data the folder where the datasets lie") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BenchError(
            f"the data root {data_root} cannot be read ({reason}): give --data the folder where the datasets lie"
        ) from None
