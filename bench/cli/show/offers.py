"""What is on offer: lists of methods, tasks, groups, corpora, backbones and tables, and one plug-in in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.cli.show.terminal import columns, facts, say
from bench.registry import Registry, Spec
from bench.spec import BACKBONES, BenchError, CorpusSpec, DatasetSpec, Origin, TaskSpec, suggest


def method_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per method."""
    return [
        {
            "method": spec.name,
            "title": spec.title,
            "groups": list(spec.groups),
            "trains": spec.trains,
            "paper": spec.paper,
        }
        for spec in registry.methods.values()
    ]


def task_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per task."""
    return [
        {
            "task": spec.name,
            "title": spec.title,
            "groups": list(spec.groups),
            "corpus": spec.corpus,
            "metrics": ", ".join(spec.metrics),
            "train": spec.train,
            "test": spec.test,
            "licence": spec.licence,
        }
        for spec in registry.tasks.values()
    ]


def group_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per group of methods or of tasks."""
    return [
        {"group": group, "of": f"{kind}s", "members": members}
        for kind in ("method", "task")
        for group, members in registry.groups(kind).items()
    ]


def corpus_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per corpus."""
    return [
        {
            "corpus": spec.name,
            "title": spec.title,
            "channels": spec.channels,
            "licence": spec.licence,
            "tasks": [task.name for task in registry.tasks.values() if task.corpus == spec.name],
        }
        for spec in registry.corpora.values()
    ]


def dataset_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per dataset."""
    return [
        {
            "dataset": spec.name,
            "title": spec.title,
            "images": f"{spec.dims}-D, {spec.channels} channel{'s' * (spec.channels > 1)}",
            "licence": spec.licence,
            **_standing_on(spec, registry),
        }
        for spec in registry.datasets.values()
    ]


def _standing_on(dataset: DatasetSpec, registry: Registry) -> dict[str, list[str]]:
    """The tasks and corpora that stand on a dataset."""
    shelves: dict[str, Mapping[str, TaskSpec | CorpusSpec]] = {"tasks": registry.tasks, "corpora": registry.corpora}
    return {
        kind: [item.name for item in shelf.values() if item.dataset == dataset.name] for kind, shelf in shelves.items()
    }


def protocol_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per protocol."""
    return [
        {
            "protocol": spec.name,
            "title": spec.title,
            "judges": list(spec.truths),
            "images": ", ".join(f"{dims}-D" for dims in spec.dims),
            "phases": spec.phases,
            "selection": spec.selection,
        }
        for spec in registry.protocols.values()
    ]


def metric_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per metric."""
    return [
        {
            "metric": spec.name,
            "title": spec.title,
            "unit": spec.unit or "-",
            "better": "higher" if spec.higher_is_better else "lower",
            "compares": list(spec.truths),
            "of": "all cases" if spec.pooled else "each case",
            "empty truth": spec.empty,
        }
        for spec in registry.metrics.values()
    ]


def backbone_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per backbone at three channels: parameters of the encoder and of both decoders."""
    from bench.nets import Backbone, PixelDecoder, SegmentationNet, parameters

    rows = []
    for name in (*BACKBONES, *registry.backbones):
        backbone = Backbone(name, build=registry.encoder(name))
        rows.append(
            {
                "backbone": name,
                "images": f"{backbone.dims}-D",
                "encoder_parameters": parameters(backbone.encoder),
                "decoder_parameters": parameters(PixelDecoder(backbone)),
                "transfer_decoder_parameters": parameters(SegmentationNet(backbone).decoder),
            }
        )
    return rows


def layout_rows() -> list[dict[str, Any]]:
    """One row per table layout."""
    from bench.table import load_layout, load_layouts

    layouts = {name: load_layout(name) for name in load_layouts()}
    return [
        {
            "table": name,
            "title": layout.title,
            "rows": len(layout.rows),
            "columns": len(layout.columns),
            "source": layout.source,
        }
        for name, layout in layouts.items()
    ]


def offered(kind: str, registry: Registry) -> list[dict[str, Any]]:
    """What there is of a kind, a row each."""
    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "methods": lambda: method_rows(registry),
        "tasks": lambda: task_rows(registry),
        "groups": lambda: group_rows(registry),
        "corpora": lambda: corpus_rows(registry),
        "datasets": lambda: dataset_rows(registry),
        "protocols": lambda: protocol_rows(registry),
        "metrics": lambda: metric_rows(registry),
        "backbones": lambda: backbone_rows(registry),
        "tables": layout_rows,
    }
    return rows[kind]()


def rows(found: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal fields as a table, whole numbers to the right."""
    numbers = [name for name, value in found[0].items() if isinstance(value, int) and not isinstance(value, bool)]
    values = [[_flat(value) for value in row.values()] for row in found]
    columns([_words(name) for name in found[0]], values, right=[_words(name) for name in numbers])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _flat(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def find_plugins(name: str, registry: Registry) -> dict[str, Spec]:
    """What is called `name`, by its kind; BenchError with the nearest neighbours where there is nothing.

    A dataset and the one task or corpus that stands on it often share a name: the task comes first, the dataset last.
    """
    shelves: dict[str, Mapping[str, Spec]] = {
        "method": registry.methods,
        "task": registry.tasks,
        "corpus": registry.corpora,
        "dataset": registry.datasets,
        "protocol": registry.protocols,
        "metric": registry.metrics,
        "backbone": registry.backbones,
    }
    found = {kind: shelf[name] for kind, shelf in shelves.items() if name in shelf}
    if found:
        return found
    for file, why in registry.broken.items():
        if file.endswith(f"/{name}.py"):
            raise BenchError(f"{name!r} cannot be used: {why}")
    known = [item for shelf in shelves.values() for item in shelf]
    near = suggest(name, known) or "; `bench list methods` and `bench list tasks` show names"
    raise BenchError(f"nothing is called {name!r}{near}")


def plugin(kind: str, spec: Spec, registry: Registry) -> None:
    """A declaration in full, with a method's hyper-parameters below it."""
    values = declaration(spec, registry)
    fields = values.pop("fields", [])
    where = f"{values.pop('file')}:{values.pop('line')}"
    values.pop("does")
    named = [(_words(name), _flat(value)) for name, value in values.items() if name != "name"]
    facts([(kind, spec.name), *named, ("file", where)])
    if fields:
        say()
        columns(["hyper-parameter", "type", "default", "what it is"], [item.values() for item in fields], ["default"])
        say()
        say(f"change one with --set {spec.name}.{fields[0]['name']}=VALUE")


_OF_IMAGES = ("title", "licence", "citation", "source", "revision", "folders", "layout", "channels", "dims", "classes")


def declaration(spec: Spec, registry: Registry) -> dict[str, Any]:
    """A declaration as plain data, its origin flattened to `file`, `line` and the digest `does`.

    Of a dataset what belongs to its images, and the tasks and corpora that stand on it: what they take from it besides
    is theirs to show.
    """
    values = dataclasses.asdict(dataclasses.replace(spec, origin=Origin("", 0, "")))
    del values["origin"]
    if isinstance(spec, DatasetSpec):
        values = {name: values[name] for name in ("name", *_OF_IMAGES)} | _standing_on(spec, registry)
    return values | {"file": spec.origin.file, "line": spec.origin.line, "does": spec.origin.does}
