"""Reads every image and mask of datasets and corpora and says what is wrong with them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench import data
from bench.cli.checkup.kinds import (
    DAMAGED,
    MISSING,
    NAMED,
    NOTE,
    PROBLEM,
    Checked,
    Finding,
    Status,
    Target,
    Tick,
)
from bench.cli.checkup.look import look, strangers
from bench.cli.checkup.read import Reader
from bench.data import RunLength, Sample, leaks
from bench.registry import Registry
from bench.spec import BenchError, CorpusSpec, TaskSpec

Parts = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    checked: tuple[Checked, ...]
    findings: tuple[Finding, ...]  # problems first

    @property
    def problems(self) -> int:
        return sum(finding.level == PROBLEM for finding in self.findings)


def verify(
    chosen: Sequence[Target], registry: Registry, data_root: Path | None, cache: Path, tick: Tick, *, named: bool
) -> Report:
    """Everything about some tasks and corpora.

    named: they were asked for by name, so each must be there, and what else lies under the data root is no matter.
    """
    looked = [(target, look(target, data_root)) for target in chosen]
    findings = list(_absences(looked, data_root, named))
    there = [(target, status) for target, status in looked if status.images]
    reader = Reader(cache)
    datasets = [_Dataset(target, status, data_root) for target, status in there]
    reader.read((job for dataset in datasets for job in dataset.jobs()), tick)
    for dataset in datasets:
        findings += [*dataset.damages(reader), *dataset.mismatches(reader), *dataset.twins(reader)]
        findings += dataset.splits()
    findings += _audits(datasets, reader, cache, tick)
    findings += _known(datasets)
    if not named and data_root is not None:
        findings += strangers(data_root, registry)
    merged = _merged(findings, data_root)
    present = {dataset.name: dataset for dataset in datasets}
    checked = tuple(
        _judged(status, present[status.name].sizes(reader) if status.name in present else "", merged)
        for _, status in looked
        if status.state != MISSING or status.folder is not None
    )
    return Report(checked, merged)


def _merged(findings: Sequence[Finding], data_root: Path | None) -> tuple[Finding, ...]:
    """The same sentence about several tasks once, problems first, files as they lie under the data root."""
    prefix = re.compile(rf"(?<!\S){re.escape(str(data_root))}/") if data_root is not None else None
    names: dict[tuple[str, str, str, str], list[str]] = {}
    for item in findings:
        file, text = (prefix.sub("", words) if prefix is not None else words for words in (item.file, item.text))
        known = names.setdefault((item.level, item.kind, file, text), [])
        known += [name for name in item.names if name not in known]
    found = [Finding(level, kind, tuple(who), file, text) for (level, kind, file, text), who in names.items()]
    return tuple(sorted(found, key=lambda item: item.level != PROBLEM))


def _judged(status: Status, sizes: str, findings: Sequence[Finding]) -> Checked:
    own = [item for item in findings if status.name in item.names and item.level == PROBLEM]
    damaged = any(item.kind in ("damaged", "mask") for item in own)
    return Checked(status, sizes, DAMAGED if damaged else status.state, len(own))


def _absences(looked: Sequence[tuple[Target, Status]], data_root: Path | None, named: bool) -> Iterator[Finding]:
    """What is not there, or not whole, or stands where something else should."""
    lost = []
    for target, status in looked:
        names = (target.name,)
        for sentence in status.damaged:
            yield Finding(PROBLEM, "damaged", names, "", sentence)
        if status.missing:
            advice = f"get them from {status.source}{_partial(status) if status.images else ''}"
            yield Finding(PROBLEM, "missing", names, str(status.folder), f"{status.lacking}: {advice}")
        elif status.state == MISSING:
            lost.append(target.name)
            if named:
                what = f"no folder {' or '.join(target.spec.folders)}" if target.spec else "nothing"
                place = f"{what} is under {data_root}" if status.folder is None else f"none of it is in {status.folder}"
                text = f"{place}: get it from {status.source} ({status.licence})"
                yield Finding(PROBLEM, "missing", names, "", text)
    if lost and not named:
        none = len(lost) == len(looked)
        text = f"not under {data_root}: {', '.join(lost)}; `bench data status` tells where to get them"
        yield Finding(PROBLEM if none else NOTE, "missing", (), "", text)


def _partial(status: Status) -> str:
    """What --allow-partial would make of a dataset."""
    absent = "".join(f", none of its {part} part" for part in status.absent)
    rule = f" ({status.rule})" if status.rule else ""
    return f"; {status.counts} images are whole{absent}: --allow-partial runs on them{rule}"


class _Dataset:
    """A task or corpus that is there, at least in part."""

    def __init__(self, target: Target, status: Status, data_root: Path | None) -> None:
        self.name, self.target, self.status = target.name, target, status
        self.parts: dict[str, list[Sample]] = {}  # of a task: what a run would train and test on
        self.files: list[Path] = []
        if isinstance(target.spec, TaskSpec):
            self.parts = _parts(target.spec, data_root)
            self.files = [sample.image for part in self.parts.values() for sample in part]
        else:
            images = data.corpus_images(target.name, target.spec, data_root)
            self.files = [path for item in images for path in (item.path, item.pair) if path is not None]

    @property
    def how(self) -> str:
        """How its images are read."""
        return str(self.target.channels)

    @property
    def samples(self) -> list[Sample]:
        return [sample for part in self.parts.values() for sample in part]

    def jobs(self) -> Iterator[tuple[Path, str]]:
        yield from ((path, self.how) for path in self.files)
        yield from ((mask, "mask") for sample in self.samples for mask in sample.masks if isinstance(mask, Path))

    def good(self, path: Path, reader: Reader) -> bool:
        return not reader.measures[path, self.how].error

    def sizes(self, reader: Reader) -> str:
        """`999x960`, or `512x340 to 4288x2848`: width times height."""
        measures = [reader.measures[path, self.how] for path in self.files]
        found = sorted({(item.width * item.height, item.width, item.height) for item in measures if not item.error})
        texts = [f"{width}x{height}" for _, width, height in found]
        return " to ".join(dict.fromkeys([texts[0], texts[-1]])) if texts else ""

    def damages(self, reader: Reader) -> Iterator[Finding]:
        for job in dict.fromkeys(self.jobs()):
            error = reader.measures[job].error
            if error and error not in self.status.damaged:
                yield Finding(PROBLEM, "damaged", (self.name,), str(job[0]), error)

    def mismatches(self, reader: Reader) -> Iterator[Finding]:
        """Masks of another size than their image or too dark to count, and images in which nothing is marked."""
        for sample in self.samples:
            image = reader.measures[sample.image, self.how]
            marked = []
            for mask in sample.masks:
                measure = reader.mask(mask)
                marked.append(measure.top > 0)
                if measure.error or image.error:
                    marked.append(True)
                    if isinstance(mask, RunLength) and measure.error:
                        text = f"the mask of {sample.image}: {measure.error}"
                        yield Finding(PROBLEM, "mask", (self.name,), str(sample.image), text)
                elif not data.mask_factor((measure.height, measure.width), (image.height, image.width)):
                    sizes = f"{measure.width}x{measure.height}, its image {image.width}x{image.height}"
                    text = f"the mask of {sample.image} is {sizes}: check that the two belong together"
                    yield Finding(PROBLEM, "mask", (self.name,), str(sample.image), text)
                elif isinstance(self.target.spec, TaskSpec) and data.is_faint(measure.top, self.target.spec):
                    yield Finding(PROBLEM, "mask", (self.name,), str(mask), data.faint(f"{mask}", measure.top))
            if not any(marked):
                text = f"nothing is marked in the mask of {sample.image}: check that this is meant"
                yield Finding(NOTE, "empty mask", (self.name,), str(sample.image), text)

    def twins(self, reader: Reader) -> Iterator[Finding]:
        """Images that are there twice, byte by byte."""
        part_of = {sample.image: part for part, listed in self.parts.items() for sample in listed}
        same: defaultdict[str, list[Path]] = defaultdict(list)
        for path in dict.fromkeys(self.files):
            if self.good(path, reader):
                same[reader.digests.of(path)].append(path)
        for files in same.values():
            for first, second in pairwise(files):
                if part_of.get(first) == part_of.get(second):
                    text = f"{first} and {second.name} are the same file: the image counts twice; take one out"
                    yield Finding(NOTE, "duplicate", (self.name,), str(first), text)

    def splits(self) -> Iterator[Finding]:
        """Parts without images, and patients in more than one part."""
        for part, listed in self.parts.items():
            if not listed:
                text = f"{self.name} has no image in its {part} part: complete {self.status.folder}"
                yield Finding(PROBLEM, "split", (self.name,), str(self.status.folder), text)
        patients = [{sample.patient for sample in listed if sample.patient} for listed in self.parts.values()]
        both = sorted(set.intersection(*patients)) if patients else []
        if both:
            more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
            text = f"patients {', '.join(both[:NAMED])}{more} are in the train and in the test part of {self.name}"
            yield Finding(NOTE, "split", (self.name,), str(self.status.folder), f"{text}: say so beside its numbers")


def _parts(spec: TaskSpec, data_root: Path | None) -> dict[str, list[Sample]]:
    """What a run would train and test on, with --allow-partial where that is needed."""
    try:
        return data.samples(spec, data_root, allow_partial=True)
    except BenchError:  # too little to be split
        return data.inventory(spec, data_root).parts


# ---------------------------------------------------------------------------------------------------------------- leaks


def _audits(datasets: Sequence[_Dataset], reader: Reader, cache: Path, tick: Tick) -> Iterator[Finding]:
    """Every corpus against every task, and the train part of every task against its test part."""
    groups = _by_images(datasets, reader)
    corpora = [dataset for dataset in datasets if not dataset.parts]
    total = len(groups) * (1 + len(corpora))
    done = 0
    for names, parts in groups:
        tick("comparing images", done, total)
        yield from _between_parts(names, parts, cache)
        done += 1
        for corpus in corpora:
            tick("comparing images", done, total)
            files = [path for path in corpus.files if corpus.good(path, reader)]
            yield from _into(corpus.name, names, leaks.audit(files, parts, cache), parts)
            done += 1
    tick("comparing images", total, total)


def _by_images(datasets: Sequence[_Dataset], reader: Reader) -> list[tuple[tuple[str, ...], Parts]]:
    """Tasks on the same images together: their names, and their parts without what cannot be read."""
    groups: dict[tuple[tuple[str, tuple[Path, ...]], ...], tuple[list[str], Parts]] = {}
    for dataset in datasets:
        parts = {
            part: [sample for sample in listed if dataset.good(sample.image, reader)]
            for part, listed in dataset.parts.items()
        }
        if any(parts.values()):
            key = tuple((part, tuple(sample.image for sample in listed)) for part, listed in parts.items())
            groups.setdefault(key, ([], parts))[0].append(dataset.name)
    return [(tuple(names), parts) for names, parts in groups.values()]


def _between_parts(names: tuple[str, ...], parts: Parts, cache: Path) -> Iterator[Finding]:
    test = {"test": parts.get("test", ())}
    for hit in leaks.audit([sample.image for sample in parts.get("train", ())], test, cache).hits:
        text = (
            f"{hit.corpus} (train) and {hit.labelled} (test) are {_likeness(hit.how)}: "
            "the test part is not apart; take one of them out"
        )
        yield Finding(PROBLEM, "leak", names, str(hit.corpus), text)


def _into(corpus: str, names: tuple[str, ...], audit: leaks.Audit, parts: Parts) -> Iterator[Finding]:
    """Images of a corpus that are labelled images of tasks; those that are one file, in one sentence."""
    labelled = {(part, sample.name): sample.image for part, listed in parts.items() for sample in listed}
    own: dict[str, list[Path]] = defaultdict(list)
    whose = " and ".join(names)
    for hit in audit.hits:
        if hit.corpus.resolve() == labelled[hit.part, hit.labelled].resolve():
            own[hit.part].append(hit.corpus)
            continue
        text = (
            f"{hit.corpus} and {hit.labelled} ({hit.part} part) are {_likeness(hit.how)}: "
            "--drop-leaks leaves it out of the corpus"
        )
        yield Finding(PROBLEM, "leak", (corpus, *names), str(hit.corpus), text)
    for part, files in own.items():
        text = (
            f"the corpus {corpus} holds all {len(files)} images"
            if len(files) == len(parts[part])
            else f"the corpus {corpus} holds {len(files)} of the {len(parts[part])} images"
        )
        advice = f"of the {part} part of {whose} ({files[0].name}, ...): --drop-leaks leaves them out of the corpus"
        yield Finding(PROBLEM, "leak", (corpus, *names), str(files[0].parent), f"{text} {advice}")


def _likeness(how: str) -> str:
    return "the same file" if how == "exact" else "one photograph"


def _known(datasets: Sequence[_Dataset]) -> Iterator[Finding]:
    """Pairs that are known to share images, where one side of them is here."""
    for dataset in datasets:
        spec = dataset.target.spec
        for other in spec.known_leaks if isinstance(spec, (TaskSpec, CorpusSpec)) else ():
            pair = " and ".join(sorted((dataset.name, other)))
            text = f"{pair} are known to share images: numbers from that pair are marked"
            yield Finding(NOTE, "known leak", (dataset.name,), "", text)
