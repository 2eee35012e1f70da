"""Options that commands share, and the request that a command line makes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli import complete
from bench.spec import BenchError

if TYPE_CHECKING:
    from bench.run.grid import Request

WHAT, LENGTH, PLACE = "What is compared", "How long and how large", "Where it runs"


def option(kind: Any, name: str, text: str, panel: str, default: str = "", metavar: str | None = None) -> Any:
    """An option that is None where it was not given; `default` is what the help says then happens."""
    shown = f"{text} (default: {default})" if default else text
    looks: dict[str, Any] = {"rich_help_panel": panel, "show_default": False, "metavar": metavar}
    return Annotated[kind, typer.Option(name, help=shown, autocompletion=complete.BEHIND.get(name), **looks)]


Text, Whole, Folder = str | None, int | None, Path | None

# What `run` and `plan` share. The command line wins over --profile, and both over the defaults of `Request`.
REQUEST: dict[str, Any] = {
    "methods": option(Text, "--methods", "Names, groups, all, gl*bs, !exclusions, ./files.py.", WHAT, metavar="A,B"),
    "tasks": option(Text, "--tasks", "Names, groups, all, gl*bs, !exclusions, ./files.py.", WHAT, metavar="A,B"),
    "layout": option(
        Text, "--layout", "All that a table shows; --methods and --tasks then choose of it.", WHAT, metavar="NAME"
    ),
    "seeds": option(Whole, "--seeds", "Repetitions.", WHAT, "1", "N"),
    "backbone": option(Text, "--backbone", "See `bench list backbones`.", WHAT, "tiny_vgg16", "NAME"),
    "protocol": option(
        Text, "--protocol", "How encoders are judged; see `bench list protocols`.", WHAT, "the task's own", "NAME"
    ),
    "corpus": option(Text, "--corpus", "Images to pretrain on: NAME or folder:PATH.", WHAT, "the task's own", "NAME"),
    "label_fraction": option(Text, "--label-fraction", "Shares of the labels to use.", WHAT, "1", "F,F"),
    "folds": option(Text, "--folds", "Folds of tasks that have them.", WHAT, "all", "N,N"),
    "set": option(
        list[str] | None, "--set", "A hyper-parameter: METHOD.FIELD=VALUE (repeatable).", WHAT, metavar="SET"
    ),
    "budget": option(Text, "--budget", "smoke, quick, short, paper, or one of the profile.", LENGTH, "quick", "NAME"),
    "steps": option(Whole, "--steps", "Pretraining steps, on top of the budget.", LENGTH, metavar="N"),
    "image_size": option(Whole, "--image-size", "Side of the images in pixels.", LENGTH, metavar="PX"),
    "batch_size": option(Whole, "--batch-size", "Images per pretraining step.", LENGTH, metavar="N"),
    "transfer_steps": option(Whole, "--transfer-steps", "Steps of each phase of a transfer.", LENGTH, metavar="N"),
    "transfer_epochs": option(Whole, "--transfer-epochs", "The same in epochs.", LENGTH, metavar="N"),
    "precision": option(Text, "--precision", "32, or bf16 where the network is computed.", LENGTH, "32", "NAME"),
    "data": option(Folder, "--data", "Data root, or BENCH_DATA; none: phantoms.", PLACE, metavar="DIR"),
    "runs": option(Folder, "--runs", "Checkpoints and logs.", PLACE, "./runs", "DIR"),
    "results": option(Folder, "--results", "Records.", PLACE, "./results", "DIR"),
    "jobs": option(Whole, "--jobs", "Cells at a time.", PLACE, "one per core, or per GPU", "N"),
    "device": option(Text, "--device", "cpu, cuda, cuda:1.", PLACE, "the GPU where there is one", "NAME"),
    "checkpoint_seconds": option(
        float | None, "--checkpoint-seconds", "Least seconds between two checkpoints of a cell.", PLACE, "30", "S"
    ),
    "skip_missing": option(bool | None, "--skip-missing", "Leave out tasks whose data is absent.", PLACE),
    "allow_partial": option(bool | None, "--allow-partial", "Run on what is there of an incomplete dataset.", PLACE),
    "drop_leaks": option(
        bool | None, "--drop-leaks", "Leave out corpus images that a labelled dataset also holds.", WHAT
    ),
    "cells_per_gpu": option(
        Whole, "--cells-per-gpu", "Cells that share a GPU, as far as its memory allows.", PLACE, "1", "N"
    ),
    "gpus_per_cell": option(
        Whole, "--gpus-per-cell", "Devices that share one pretraining, and its batch.", PLACE, "1", "N"
    ),
    "profile": option(Folder, "--profile", "TOML file of these options; the command line wins.", PLACE, metavar="FILE"),
}

Wait = Annotated[
    bool,
    typer.Option("--wait", help="On a cluster: watch the jobs until all have ended.", rich_help_panel=PLACE),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="On a cluster: do not ask about many GPU-hours.", rich_help_panel=PLACE),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Runs = Annotated[Path, typer.Option("--runs", help="Checkpoints and logs.", metavar="DIR")]
Results = Annotated[Path, typer.Option("--results", help="Records.", metavar="DIR")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Data root, or BENCH_DATA.", metavar="DIR", show_default=False)
]
RUNS, RESULTS = Path("runs"), Path("results")


def requesting(command: Callable[..., int]) -> Callable[..., int]:
    """Gives `command(asked, ...)` the options of REQUEST beside its own; `asked` holds those that were given."""

    def wrapper(**values: Any) -> int:
        asked = {name: values.pop(name) for name in REQUEST}
        return command({name: value for name, value in asked.items() if value not in (None, [])}, **values)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for name, kind in REQUEST.items()
    ]
    wrapper.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


def request_of(asked: dict[str, Any]) -> Request:
    """The request of a command line: what was given, on top of the profile, on top of BENCH_DATA."""
    from bench.run.grid import Request, load_profile, parse_folds, parse_fractions

    given = dict(asked)
    profile = given.pop("profile", None)
    if "label_fraction" in given:
        given["label_fractions"] = parse_fractions(given.pop("label_fraction"))
    if "folds" in given:
        given["folds"] = parse_folds(given["folds"])
    if "set" in given:
        given["set"] = tuple(given["set"])
    merged = {"data": data_from_environment()} | (load_profile(profile) if profile else {}) | given
    for name in ("methods", "tasks"):
        if not merged.get(name) and not merged.get("layout"):
            raise BenchError(f"name some {name} with --{name}, separated by commas; `bench list {name}` shows them")
    return Request(**merged)


def data_from_environment() -> Path | None:
    text = os.environ.get("BENCH_DATA", "")
    return Path(text).expanduser() if text else None
