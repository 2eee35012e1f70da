"""Which code runs: the digest of the packages, and the commit they come from."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from bench.data.store import read_json
from bench.spec import digest, file_digest

PACKAGES = ("bench", "methods", "tasks")
SNAPSHOT = "snapshot.json"  # beside the packages where they are a copy: what they are a copy of


def code_home() -> Path:
    """The folder that holds the packages."""
    return Path(__file__).resolve().parents[2]


@cache
def code_digest() -> str:
    """SHA-256 over the names and contents of every file of the packages, looked at once per process."""
    return digest_of(code_home())


def digest_of(home: Path) -> str:
    """The digest of the packages in a folder, as they are now."""
    paths = sorted(path for package in PACKAGES for path in (home / package).rglob("*"))
    files = [path for path in paths if "__pycache__" not in path.parts and path.suffix != ".pyc" and path.is_file()]
    return digest({path.relative_to(home).as_posix(): file_digest(path) for path in files})


@cache
def commit() -> str | None:
    """The checkout's commit, with `-dirty` where code differs from it; None outside a checkout and its copies.

    Records and tables that a run adds to its checkout change no number.
    """
    home = code_home()
    copied = read_json(home / SNAPSHOT)
    if copied is not None:
        return copied.get("commit")
    if not (home / ".git").exists():
        return None
    try:
        head = _git(home, "rev-parse", "HEAD")
        changed = _git(home, "status", "--porcelain", "--", *PACKAGES)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head or None


def _git(home: Path, *words: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(home), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=10, env=environment, check=True
    ).stdout.strip()
