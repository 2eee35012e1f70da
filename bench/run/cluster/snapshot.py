"""The code that runs is the code at submission: a copy of the packages, named after its content, first on the path."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.data.store import utc_now, write_bytes, write_json
from bench.run.provenance import PACKAGES, SNAPSHOT, code_home, commit, digest_of
from bench.spec import BenchError, file_digest

DIGITS = 16  # of a digest in a folder's name


@dataclass(frozen=True)
class Snapshot:
    """Where the copies lie."""

    folder: Path  # goes first on the path
    code: str  # digest of the packages
    plugins: tuple[str, ...]  # files outside the packages


def take(runs: Path, plugins: Iterable[str]) -> Snapshot:
    """Copies the packages and the plug-in files below `runs`, unless the same content lies there already.

    A TOML file of a task stays where it is: its paths are relative to it, and the images are not copied either.
    """
    home = runs / "snapshots"
    code = digest_of(code_home())
    folder = home / code[:DIGITS]
    if not (folder / SNAPSHOT).exists():
        _copy_packages(home, folder, code)
    return Snapshot(folder, code, tuple(_copy_plugin(home, Path(path)) for path in plugins))


def _copy_packages(home: Path, folder: Path, code: str) -> None:
    beside = home / f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        home.mkdir(parents=True, exist_ok=True)
        for package in PACKAGES:
            shutil.copytree(
                code_home() / package, beside / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        if digest_of(beside) != code:
            raise BenchError("the code was edited while it was copied for the jobs; run the command again")
        write_json(beside / SNAPSHOT, {"code": code, "commit": commit(), "time": utc_now()})
        if folder.exists():  # a copy that never was finished
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        if not (folder / SNAPSHOT).exists():  # otherwise another run was faster
            raise BenchError(f"the code cannot be copied to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy_plugin(home: Path, path: Path) -> str:
    if path.suffix != ".py":
        return str(path)
    target = home / "plugins" / file_digest(path)[:DIGITS] / path.name
    if not target.exists():
        write_bytes(target, path.read_bytes())
    return str(target)
