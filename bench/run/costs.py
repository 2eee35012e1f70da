"""What cells have cost: GPU-hours, CPU-hours, energy, and how long their jobs waited in a queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

ATTEMPT = ("finished", "failed", "interrupted")  # events that end an attempt and say what it took


@dataclass(frozen=True)
class Costs:
    """A sum; None where nothing is known of it."""

    gpu_seconds: float | None = None  # a GPU was held
    cpu_seconds: float | None = None  # of cells without a GPU
    energy_joules: float | None = None  # of GPUs that a cell had to itself
    queue_seconds: float | None = None  # between submission and start of a job

    def __add__(self, other: Costs) -> Costs:
        return Costs(**{item.name: _sum(getattr(self, item.name), getattr(other, item.name)) for item in fields(self)})

    def data(self) -> dict[str, float | None]:
        """For programs: hours and kilowatt-hours."""
        return {
            "gpu_hours": _scaled(self.gpu_seconds, 3600),
            "cpu_hours": _scaled(self.cpu_seconds, 3600),
            "energy_kwh": _scaled(self.energy_joules, 3.6e6),
            "queue_hours": _scaled(self.queue_seconds, 3600),
        }

    def text(self) -> str:
        """`1.25 GPU-hours, 0.40 kWh, 3.10 hours in the queue`; empty where nothing is known."""
        units = ("GPU-hours", "CPU-hours", "kWh", "hours in the queue")
        return ", ".join(
            f"{_digits(amount)} {unit}" for amount, unit in zip(self.data().values(), units, strict=True) if amount
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


def _scaled(amount: float | None, unit: float) -> float | None:
    return None if amount is None else amount / unit


def _digits(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 0.1 else f"{amount:.2g}"


def cost_of(facts: Mapping[str, Any]) -> Costs:
    """What an event or a record says of itself: `device_type`, `device_seconds`, `energy_joules`."""
    seconds, gpu = facts.get("device_seconds"), facts.get("device_type") == "cuda"
    if facts.get("device_type") is None or seconds is None:
        return Costs()
    return Costs(seconds if gpu else None, None if gpu else seconds, facts.get("energy_joules"))


def cost_of_events(events: Iterable[Mapping[str, Any]]) -> Costs:
    """What all attempts at a cell took, those included that failed or were interrupted; queues apart."""
    return sum((cost_of(event) for event in events if event.get("event") in ATTEMPT), Costs())


def waits(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Job -> seconds it waited in a queue, of the jobs that took a cell up."""
    return {str(event["job"]): float(event["queue_seconds"]) for event in events if event.get("queue_seconds")}


def cost_of_records(records: Iterable[Mapping[str, Any]]) -> Costs:
    """What is behind the numbers of a table: transfers, and every pretraining and every job's wait once."""
    total, once = Costs(), dict[tuple[str, str], Costs]()
    for record in records:
        total += cost_of(record)
        trained = {name: record.get(f"pretrain_{name}") for name in ("device_type", "device_seconds", "energy_joules")}
        once["pretrain", str(record.get("pretrain_key"))] = cost_of(trained)
        if record.get("queue_seconds"):
            once["job", str(record.get("job"))] = Costs(queue_seconds=float(record["queue_seconds"]))
    return sum(once.values(), total)
