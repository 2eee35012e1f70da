"""`bench data`: what lies under the data root, whether it is sound, and getting it ready."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import registry
from bench.cli import show
from bench.cli.app import app
from bench.cli.options import RUNS, Data, Json, Runs, data_from_environment
from bench.cli.speak import tell, warn
from bench.spec import BUDGETS, BenchError, Site

if TYPE_CHECKING:
    from bench.cli.checkup import Target

group = typer.Typer(help="Look at datasets and corpora: are they there, are they sound; get them ready.")
app.add_typer(group, name="data")

Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Tasks, corpora, groups, gl*bs, folder:PATH (default: all).", metavar="NAMES", show_default=False
    ),
]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Also what is there of an incomplete dataset.")]
SIZE = BUDGETS["quick"].image_size


@group.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@group.command()
def status(names: Names = None, data: Data = None, json: Json = False) -> int:
    """Show what is there, and where to get the rest."""
    from bench.cli import checkup

    chosen, found, root = _chosen(names, data)
    looked = [checkup.look(target, root) for target in chosen]
    unused = checkup.strangers(root, found) if root is not None and not names else []
    if json:
        show.say_json(
            {
                "data": root,
                "datasets": [show.status_data(item) for item in looked],
                "notes": [vars(item) for item in unused],
            }
        )
        return 0
    if root is None:
        show.say("no data root configured (--data or BENCH_DATA): runs use phantoms, generated images", "yellow")
        show.say()
    show.statuses(looked)
    if unused:
        show.say()
    show.findings(unused)
    return 0


@group.command()
def verify(names: Names = None, data: Data = None, runs: Runs = RUNS, json: Json = False) -> int:
    """Open everything; look for damage, duplicates and leaks.

    Ends with 1 where something is missing, damaged or leaking. What was read is remembered below --runs by content;
    a file counts as read while its size and time stay the same.
    """
    from bench.cli import checkup
    from bench.data.store import collected_warnings

    chosen, found, root = _chosen(names, data, needed=True)
    with collected_warnings() as warnings, show.Meter(sys.stderr) as meter:
        report = checkup.verify(chosen, found, root, runs.absolute() / "cache", meter, named=bool(names))
    if json:
        show.say_json(show.report_data(report))
    else:
        show.report(report)
    tell([], warnings)
    return 1 if report.problems else 0


@group.command()
def prepare(
    names: Annotated[list[str], typer.Argument(help="Tasks, corpora, groups or gl*bs.", metavar="NAMES")],
    image_size: Annotated[int, typer.Option("--image-size", help="Side of the images in pixels.", metavar="PX")] = SIZE,
    allow_partial: Partial = False,
    data: Data = None,
    runs: Runs = RUNS,
) -> int:
    """Decode and resize images now, for runs to come.

    Fills the cache that a run with these names, this size and the same --runs opens.
    """
    from bench.cli import checkup

    chosen, found, root = _chosen(names, data)
    site = Site(runs.absolute(), runs.absolute(), root, plugins=tuple(found.plugins))
    for target in chosen:
        with show.Meter(sys.stderr) as meter:
            made = checkup.prepare(target, found, site, image_size, allow_partial, meter)
        show.say(f"{target.name}: {show.counted(made, 'image')} of {image_size} px ready in {site.cache}")
    return 0


@group.command()
def sample(
    name: Annotated[str, typer.Argument(help="A task or corpus.", metavar="NAME")],
    file: Annotated[Path, typer.Argument(help="The PNG to write.", metavar="FILE.png")],
    data: Data = None,
) -> int:
    """Draw images and their masks into a PNG.

    Images spread over a task or corpus, as a run sees them; masks are drawn as outlines.
    """
    from bench.cli import sheet

    chosen, _, root = _chosen([name], data)
    if len(chosen) > 1:
        raise BenchError(f"{name} is {len(chosen)} of them; name one: {', '.join(target.name for target in chosen)}")
    sheet.write(chosen[0].name, chosen[0].spec, root, file)
    show.say(f"{file} written")
    return 0


@group.command()
def checksums(
    names: Names = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write them here.", metavar="FILE")] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Compare with this list; 1 where they differ.", metavar="FILE")
    ] = None,
    data: Data = None,
) -> int:
    """Print, write or compare the SHA-256 of all files.

    Every file of a dataset's folder is read anew; the list is one that sha256sum reads too.
    """
    from bench.cli import checkup

    if write and compare:
        raise BenchError("--write makes a list and --compare reads one: give one of them")
    chosen, _, root = _chosen(names, data, needed=True)
    wanted = checkup.read_list(compare) if compare else {}
    places = checkup.folders(chosen, root)
    with show.Meter(sys.stderr) as meter:
        found = checkup.sums(places, meter)
    if compare:
        differences = checkup.compare(found, checkup.renamed(wanted, chosen, places), places if names else None)
        return _differences(differences, len(found), compare)
    for name, place in places.items():
        if place is None and names:
            raise BenchError(f"{name} is not under {root}: there is nothing to make checksums of")
    if write:
        checkup.write_list(write, found)
        show.say(f"{write} written: {show.counted(len(found), 'file')}")
    else:
        sys.stdout.write(checkup.as_list(found))
    return 0


def _differences(found: Sequence[tuple[str, str]], files: int, list_: Path) -> int:
    for name, what in found:
        show.say(f"{name} {what}", "red")
    if found:
        show.say(f"{show.counted(len(found), 'difference')} from {list_}", "red")
        return 1
    show.say(f"{show.counted(files, 'file')} as in {list_}", "green")
    return 0


def _chosen(
    names: list[str] | None, data: Path | None, needed: bool = False
) -> tuple[list[Target], registry.Registry, Path | None]:
    """The tasks and corpora that are meant, all there are, and the data root; with words on files that are broken."""
    from bench.cli import checkup
    from bench.data.files import own_root

    found, root = registry.scan(), data or data_from_environment()
    chosen = checkup.targets(names or (), found)
    if root is not None:
        checkup.check_root(root)
    elif needed and any(target.spec is not None and own_root(target.spec) is None for target in chosen):
        raise BenchError("no data root is configured: give the folder of the datasets with --data, or set BENCH_DATA")
    for why in found.broken.values():
        warn(f"a plug-in file cannot be used: {why}")
    return chosen, found, root
