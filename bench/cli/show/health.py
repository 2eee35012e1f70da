"""What `bench doctor` looks at: interpreter, packages, devices, disk, data, plug-in files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.cli.checkup import DAMAGED, FOUND, Status, check_root, look, targets
from bench.cli.show.amounts import bytes_text, counted
from bench.registry import Registry
from bench.spec import BenchError


@dataclass(frozen=True)
class Check:
    """One thing `bench doctor` looked at."""

    name: str
    state: str  # ok, note, problem
    detail: str


def doctor(registry: Registry, runs: Path, results: Path, data: Path | None) -> list[Check]:
    """Everything a run depends on, looked at now: interpreter, packages, devices, disk, data, plug-in files."""
    return [
        _python(),
        *_packages(),
        *_devices(),
        _slurm(),
        *(_disk(name, folder) for name, folder in (("runs", runs), ("results", results))),
        *_datasets(registry, data),
        *(Check("plug-in", "problem", why) for why in registry.broken.values()),
    ]


def _python() -> Check:
    cores = os.cpu_count() or 1
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()}, {counted(cores, 'core')}")


def _packages() -> list[Check]:
    checks = []
    for name in ("medssl-bench", "torch", "torchvision", "lightly", "timm", "segmentation-models-pytorch"):
        try:
            checks.append(Check(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            note = name == "medssl-bench"
            detail = "run from its folder, not installed" if note else f"not installed: pip install {name}"
            checks.append(Check(name, "note" if note else "problem", detail))
    return checks


def _devices() -> list[Check]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check("gpu", "problem", f"torch cannot be imported: {reason}")]
    if not torch.cuda.is_available():
        return [Check("gpu", "note", "none that torch can use: runs go to the CPU")]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        Check(f"gpu {index}", "ok", f"{item.name}, {bytes_text(item.total_memory)}") for index, item in enumerate(found)
    ]


def _slurm() -> Check:
    if shutil.which("sbatch") is None:
        return Check("slurm", "note", "no sbatch here: cells run on this machine")
    try:
        done = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("slurm", "problem", f"sbatch is here but sinfo does not answer ({type(error).__name__})")
    version = done.stdout.strip() or done.stderr.strip() or "no version told"
    return Check("slurm", "ok" if done.returncode == 0 else "problem", version)


def _disk(name: str, folder: Path) -> Check:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check(name, "problem", f"{folder}: nothing can be written to {there}")
    free = shutil.disk_usage(there).free
    return Check(name, "ok" if free > 5e9 else "note", f"{folder}: {bytes_text(free)} free")


def _datasets(registry: Registry, data: Path | None) -> list[Check]:
    if data is None:
        return [
            Check("data", "note", "no data root (--data or BENCH_DATA): runs use phantoms, generated images, not data")
        ]
    try:
        check_root(data)
    except BenchError as error:
        return [Check("data", "problem", str(error))]
    looked = [look(target, data) for target in targets((), registry)]
    return [Check("data", "ok", str(data)), *(_dataset(status) for status in looked)]


def _dataset(status: Status) -> Check:
    images = f"{status.folder}, {status.counts} images"
    if status.state == DAMAGED:
        more = f" and {len(status.damaged) - 1} more such" if len(status.damaged) > 1 else ""
        return Check(status.name, "problem", f"{status.damaged[0]}{more}")
    if status.state == FOUND:
        return Check(status.name, "ok", images)
    if status.missing:
        return Check(status.name, "note", f"{images}: {status.lacking}; from {status.source}")
    return Check(status.name, "note", f"not here; from {status.source}")
