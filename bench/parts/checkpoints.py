"""What a checkpoint is made of: an optimiser, and the state of a module, as named tensors and plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"

Report = Callable[[dict[str, Any]], None]
"""Takes the facts of a step (phase, step, steps, losses); raises CellInterrupted where the cell is to stop."""


def pack_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str = "optimizer."
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain data."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    prefix: str = "optimizer.",
) -> None:
    """Puts back what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain["state"].items()}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})


def contiguous(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Detached copies on the CPU, fit for safetensors."""
    return {f"{prefix}{name}": value.detach().cpu().contiguous().clone() for name, value in state.items()}
