"""Which code made a number."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.run import provenance


def test_results_do_not_make_a_checkout_dirty_and_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def told() -> str | None:
        provenance.commit.cache_clear()
        return provenance.commit()

    monkeypatch.setattr(provenance, "code_home", lambda: tmp_path)
    assert told() is None
    git("init", "-q")
    for package in provenance.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("1\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert told() == head
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "record.json").write_text("{}")
    assert told() == head
    (tmp_path / "methods" / "mine.py").write_text("2\n")
    assert told() == f"{head}-dirty"
    provenance.commit.cache_clear()
