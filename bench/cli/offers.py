"""`bench list`, `show`, `doctor`, `new`: what there is, whether it can run, and adding to it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import registry
from bench.cli import complete, show
from bench.cli.app import app
from bench.cli.options import RESULTS, RUNS, Data, Json, Results, Runs, data_from_environment
from bench.cli.speak import warn
from bench.spec import BenchError, CorpusSpec, TaskSpec, suggest

PLUGINS = ("methods", "tasks", "datasets", "corpora", "protocols", "metrics", "backbones")
KINDS = ("methods", "tasks", "groups", "datasets", "corpora", "protocols", "metrics", "backbones", "tables")


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", metavar="KIND", autocompletion=complete.of(KINDS)
        ),
    ],
    json: Json = False,
) -> int:
    """List what there is of a kind."""
    if kind not in KINDS:
        raise BenchError(f"`bench list` knows {', '.join(KINDS)}, not {kind!r}{suggest(kind, KINDS)}")
    found = registry.scan()
    rows = show.offered(kind, found)
    if json:
        show.say_json(rows)
    elif rows:
        show.rows(rows)
    else:
        show.say(f"there are no {kind}")
    for why in found.broken.values() if kind != "tables" else ():
        warn(f"a plug-in file cannot be used: {why}")
    return 0


@app.command("show")
def show_(
    name: Annotated[
        str,
        typer.Argument(
            help="A method, task, corpus, dataset or another.", metavar="NAME", autocompletion=complete.one(*PLUGINS)
        ),
    ],
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Draw a task's or corpus's images and masks into this PNG.", metavar="FILE"),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="Which, where a task and its dataset share a name.", metavar="KIND")
    ] = "",
    data: Data = None,
    json: Json = False,
) -> int:
    """Show one plug-in in full, or the images of a task or corpus as a picture."""
    found = registry.scan()
    named = show.find_plugins(name, found)
    kind = kind or next(iter(named))
    if kind not in named:
        raise BenchError(f"{name} is a {' and a '.join(named)}: --kind takes no {kind!r} for it")
    spec = named.pop(kind)
    if sheet is not None:
        from bench.cli import sheet as sheets

        if not isinstance(spec, (TaskSpec, CorpusSpec)):
            raise BenchError(f"{name} is a {kind} and has no images; --sheet draws a task or a corpus")
        sheets.write(name, spec, data or data_from_environment(), sheet)
        show.say(f"{sheet} written")
    elif json:
        show.say_json({"plugin": kind, **show.declaration(spec, found)})
    else:
        show.plugin(kind, spec, found)
        for other in named:
            show.say(f"\n{name} is also a {other}: bench show {name} --kind {other}")
    return 0


@app.command()
def doctor(
    data: Data = None,
    runs: Runs = RUNS,
    results: Results = RESULTS,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Let every method take a few steps here, and compare what must be the same."),
    ] = False,
    methods: Annotated[str, typer.Option("--methods", help="With --prove: these only.", metavar="A,B")] = "all",
    device: Annotated[
        str | None,
        typer.Option("--device", help="With --prove: cpu, cuda, cuda:1 (default: the GPU).", metavar="NAME"),
    ] = None,
    json: Json = False,
) -> int:
    """Look at Python, torch, GPU, Slurm, disk and data; with --prove at what is computed here."""
    found = registry.scan()
    if prove:
        return _prove(found, methods, device, json)
    checks = show.doctor(found, runs, results, data or data_from_environment())
    if json:
        show.say_json([vars(check) for check in checks])
        return 0
    show.columns(["what", "state", "found"], [(check.name, check.state, check.detail) for check in checks])
    problems = sum(check.state == "problem" for check in checks)
    show.say(
        f"\n{show.counted(problems, 'problem')} found" if problems else "\nready to run", "red" if problems else "green"
    )
    return 0


def _prove(found: registry.Registry, methods: str, device: str | None, json: bool) -> int:
    """The page of `bench doctor --prove`; 1 where anything is off."""
    names = found.select("method", methods)
    from bench.run.executor import devices
    from bench.run.prove import prove

    page = prove(found, names, devices(device or "auto")[0], lambda name: print(f"proving {name}", file=sys.stderr))
    if json:
        show.say_json(dataclasses.asdict(page))
        return 1 if page.faults else 0
    exact = page.device == "cpu"
    show.say(f"{page.device} against {'itself' if exact else 'the CPU'}, {page.seconds:.0f} s\n")
    rows = [
        (
            proof.method,
            f"{proof.apart:.1e}" if proof.apart else "the same bits",
            f"{proof.apart_half:.1e}",
            f"{proof.milliseconds:.0f}",
            show.bytes_text(proof.memory),
            show.counted(len(proof.faults), "fault") if proof.faults else "holds",
        )
        for proof in page.proofs
    ]
    show.columns(["method", "32 apart", "bf16 apart", "ms a step", "memory", ""], rows)
    for line in page.ranks:
        show.say(line)
    if page.packed:
        show.say(f"{page.packed} of the largest of these cells share this GPU's memory (--cells-per-gpu)")
    for fault in page.faults:
        show.say(fault, "red")
    show.say(
        f"\n{show.counted(len(page.faults), 'fault')}" if page.faults else "\nproven", "red" if page.faults else "green"
    )
    return 1 if page.faults else 0


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="method or task.", metavar="method|task")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and _.", metavar="NAME")],
) -> int:
    """Write a small method or task to start from."""
    from bench.cli import scaffold

    found = registry.scan()
    path = scaffold.new(kind, name, Path.cwd(), found)
    inside = path.parent == registry.HOME / scaffold.FOLDERS[kind]
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    asked = name if inside else f"./{shown}"
    show.say(f"wrote {shown}: it works as it is; the lines marked EDIT are yours")
    example = {"method": f"--methods {asked} --tasks TASK", "task": f"--methods METHOD --tasks {asked}"}[kind]
    show.say(f"try it: bench run {example} --budget smoke" + (f"; test it: pytest -k {name}" if inside else ""))
    return 0
