"""Seconds of a whole pretraining step over the seconds of its network's bare forward and backward.

    python tests/benchmarks/overhead.py METHOD [--budget quick] [--device cpu] [--rounds 12]

The bare part replays every call that the method makes to its modules in one step, on ready tensors of the same shapes,
with a backward pass where the step had one. Whole step and bare part alternate in one run; medians are compared. One
JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import data, registry
from bench.run import pretrain
from bench.run.grid import Request, expand
from bench.spec import PretrainCell, Site


def replay_of(method: nn.Module, step: Callable[[], object]) -> Callable[[], None]:
    """The calls that one step makes to the method's modules, as something to be run alone."""
    calls: list[tuple[nn.Module, tuple[Any, ...], bool]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], outputs: object) -> None:
        calls.append((module, _ready(inputs), torch.is_grad_enabled()))

    hooks = [child.register_forward_hook(note) for child in method.children()]
    step()
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for module, inputs, learns in calls:
            with torch.set_grad_enabled(learns):
                outputs = _tensors(module(*inputs))
            if learns:
                total = torch.stack([output.mean() for output in outputs]).sum()
                total.backward()  # type: ignore[no-untyped-call]

    return run


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [item for part in value or () for item in _tensors(part)]


def _ready(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
    return type(value)(_ready(part) for part in value)


class Watch:
    """Seconds by part, each measured with the device idle."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, list[float]]()

    def time(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        began = self._now()
        result = work(*arguments)
        self.parts.setdefault(part, []).append(self._now() - began)
        return result

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def median(self, part: str) -> float:
        return statistics.median(self.parts[part])


def measure(name: str, budget: str, device: str, rounds: int) -> dict[str, Any]:
    """Ratio and shares of one method."""
    shelves = registry.scan()
    task = next(iter(shelves.tasks))
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), Path(folder), None, device=device)
        request = Request(methods=name, tasks=task, budget=budget, runs=site.runs, results=site.results)
        cell: PretrainCell = next(item for item in expand(request, shelves).pretrainings if item.method == name)
        fabric = pretrain.set_up(site)
        run = pretrain._Run(cell, shelves.get("method", name), data.open_corpus(cell, shelves, site), fabric)
        run.method.train()
        watch, last = Watch(fabric.device), cell.steps - 1
        run.enter(last)
        replay = replay_of(run.method, run.train_step)
        replay()
        for _ in range(rounds):
            watch.time("bare", replay)
            watch.time("step", run.train_step)
            batch = watch.time("views", _batch, run)
            loss = watch.time("forward and loss", _loss, run, batch)
            watch.time("backward", fabric.backward, loss)
            watch.time("optimizer", run.optimizer.step)
    whole = sum(watch.median(part) for part in ("views", "forward and loss", "backward", "optimizer"))
    return {
        "benchmark": "overhead",
        "method": name,
        "budget": budget,
        "device": device,
        "threads": torch.get_num_threads(),
        "step_seconds": round(watch.median("step"), 5),
        "bare_seconds": round(watch.median("bare"), 5),
        "ratio": round(watch.median("step") / watch.median("bare"), 4),
        "shares": {
            part: round(watch.median(part) / whole, 4)
            for part in ("views", "forward and loss", "backward", "optimizer")
        },
    }


def _batch(run: pretrain._Run) -> Any:
    return pretrain.make_batch(run.corpus, run.cell, run.declared, run.step, run.stage, run.fabric.device)


def _loss(run: pretrain._Run, batch: Any) -> Tensor:
    with run.fabric.autocast():
        parts: dict[str, Tensor] = run.method.training_step(batch)  # type: ignore[operator]
    return parts["loss"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("method", nargs="+")
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=12)
    chosen = parser.parse_args()
    for method_name in chosen.method:
        print(json.dumps(measure(method_name, chosen.budget, chosen.device, chosen.rounds)), flush=True)
