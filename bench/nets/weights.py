"""Weights that were trained elsewhere: read without unpickling anything, and matched to an encoder by name and shape.

Libraries name the same layers differently, and training code puts prefixes in front (`module.encoder_q.`). For every
known way of naming an encoder's weights, and every prefix that the file has, what fits is counted; the best one is
taken if it is the whole encoder, and refused with what is missing if it is only a part.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import nets
from bench.spec import FAILED, CellError

log = logging.getLogger("bench")

NAMED = 4  # weights that a sentence names before it only counts
LISTED = 20  # that a record lists
OPTIONAL = "num_batches_tracked"  # ends the name of what a file may lack: it only counts the steps of a normalisation
# Which of several networks in one file is meant: what these words stand for is what their papers hand on (MoCo: the
# query encoder; DINO: the teacher; BYOL: the online network; an average of a model: the average) ...
_MEANT = re.compile(r"(^|[._])(encoder_q|teacher|online|ema)")
_NOT_MEANT = re.compile(r"(^|[._])(encoder_k|student|target|momentum)")  # ... and their counterparts


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path, sha256: str) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of one that torch.save wrote, nested names joined by dots.

    CellError where it is neither, has not the content that was expected, or holds what would have to be unpickled.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise CellError(FAILED, f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise CellError(FAILED, f"{path.name} changed since the run was planned: start the command again")
    tensors = dict(_flat(_loaded(blob, path.name)))
    if not tensors:
        raise CellError(FAILED, f"{path.name} holds no tensors with names: save a state_dict()")
    return tensors


def _loaded(blob: bytes, name: str) -> Any:
    if blob[8:9] == b"{":  # after eight bytes of length, the header of a safetensors file
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(blob)
        except (SafetensorError, ValueError) as error:
            raise CellError(FAILED, f"{name} is a damaged safetensors file ({error})") from error
    try:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not blob.startswith((b"PK\x03\x04", b"\x80")):
            raise CellError(FAILED, f"{name} is neither a safetensors file nor one that torch.save wrote") from error
        raise CellError(
            FAILED,
            f"{name} holds more than tensors and plain values, and nothing is unpickled from a file: open it where you "
            f"trust it, and save its state_dict() alone",
        ) from error
    except Exception as error:  # of a damaged file, torch raises whatever its damage leads to
        why = next(iter(str(error).splitlines()), "")[:200]
        more = f": {why}" if " " in why else ""  # a bare number or name tells nobody anything
        raise CellError(FAILED, f"{name} is neither a safetensors file nor a whole one of torch.save{more}") from error


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(value, Mapping):
        return
    for name, item in value.items():
        if isinstance(item, Tensor):
            yield f"{prefix}{name}", item.detach()
        else:
            yield from _flat(item, f"{prefix}{name}.")


# ------------------------------------------------------------------------------------------------------------ spelling


def spellings(encoder: nn.Module) -> dict[str, dict[str, str]]:
    """The ways to name an encoder's weights, prefixes aside: whose names -> {our name: theirs}."""
    own = list(encoder.state_dict())
    found = {"bench": {name: name for name in own}}
    if isinstance(encoder, nets.VGGEncoder):
        found["torchvision"] = _vgg_names(encoder, own)
    elif isinstance(encoder, nets.ResNetEncoder):
        found["torchvision"] = _renamed(own, r"layers\.(\d)\.", lambda at: f"layer{at + 1}.")
        found["lightly"] = _renamed(own, r"layers\.(\d)\.", lambda at: f"{at + 4}.")
    elif isinstance(encoder, nets.SmpEncoder):
        theirs = {name: name.removeprefix("trunk.") for name in own}
        found["segmentation-models-pytorch"] = theirs
        plain = {name: other.removeprefix("model.") for name, other in theirs.items()}
        found["torchvision or timm"] = plain
        # timm flattens the first part of a name where it returns a pyramid: stages_0.blocks for stages.0.blocks
        found["timm"] = {name: re.sub(r"^([a-z]+)_(\d+)(?=\.)", r"\1.\2", other) for name, other in plain.items()}
        found["lightly"] = {name: numbered for name, other in plain.items() if (numbered := _numbered(other))}
    return found


def _renamed(own: list[str], pattern: str, new: Any) -> dict[str, str]:
    renamed = {name: re.match(pattern, name) for name in own}
    return {name: new(int(hit[1])) + name[hit.end() :] for name, hit in renamed.items() if hit}


def _vgg_names(encoder: nets.VGGEncoder, own: list[str]) -> dict[str, str]:
    """Convolution, normalisation and ReLU have a number each, and so has every pooling."""
    number, first = 0, dict[str, int]()
    for at, stage in enumerate(encoder.stages):
        for block in range(len(list(stage.children()))):
            first[f"stages.{at}.{block}"] = number
            number += 3
        number += 1
    names = {}
    for name in own:
        block_name, part, rest = re.match(r"(stages\.\d+\.\d+)\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
        names[name] = f"{first[block_name] + int(part)}.{rest}"
    return names


def _numbered(name: str) -> str:
    """A ResNet's weight in a Sequential of the network's children, as lightly's examples build it; "" if it is none."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    part, _, rest = name.partition(".")
    return f"{places[part]}.{rest}" if part in places else ""


# ------------------------------------------------------------------------------------------------------------ matching


@dataclass(frozen=True)
class Match:
    """What of a file fits an encoder, under one way of naming and one prefix."""

    names: str  # whose
    prefix: str  # in front of them in the file
    keys: Mapping[str, str]  # our name -> the file's


def best_match(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> Match | None:
    """The way to read a file that fits most of the encoder, None where nothing fits.

    CellError where the file holds several networks that fit as well, and their names do not tell which is meant.
    """
    found = [item for whose, names in spellings(encoder).items() for item in _matches(encoder, tensors, whose, names)]
    most = max((len(match.keys) for match in found), default=0)
    if most == 0:
        return None
    best: dict[frozenset[str], Match] = {}
    for match in found:
        if len(match.keys) == most:
            best.setdefault(frozenset(match.keys.values()), match)
    ranks = {keys: _rank(match.prefix) for keys, match in best.items()}
    chosen = [match for keys, match in best.items() if ranks[keys] == min(ranks.values())]
    if any(not _equal(chosen[0], other, tensors) for other in chosen[1:]):
        prefixes = ", ".join(match.prefix or "no prefix" for match in chosen[:NAMED])
        raise CellError(
            FAILED, f"{len(chosen)} networks fit equally well ({prefixes}): save the one you mean in a file of its own"
        )
    return chosen[0]


def _rank(prefix: str) -> int:
    return 0 if _MEANT.search(prefix) else 2 if _NOT_MEANT.search(prefix) else 1


def _equal(one: Match, other: Match, tensors: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensors[key], tensors[other.keys[name]]) for name, key in one.keys.items())


def _matches(encoder: nn.Module, tensors: Mapping[str, Tensor], whose: str, names: Mapping[str, str]) -> list[Match]:
    """One match for every prefix under which anything fits."""
    own, first = encoder.state_dict(), _first_convolution(encoder)
    known, under = {theirs: name for name, theirs in names.items()}, dict[str, dict[str, str]]()
    for key, tensor in tensors.items():
        parts = key.split(".")
        for at in range(len(parts)):
            name = known.get(".".join(parts[at:]))
            if name is not None and (tensor.shape == own[name].shape or _summable(name, first, tensor, own[name])):
                prefix = "".join(f"{part}." for part in parts[:at])
                under.setdefault(prefix, {})[name] = key
    return [Match(whose, prefix, keys) for prefix, keys in under.items()]


def _first_convolution(encoder: nn.Module) -> str:
    return next((name for name, item in encoder.state_dict().items() if item.dim() == 4), "")


def _summable(name: str, first: str, theirs: Tensor, own: Tensor) -> bool:
    """Whether the first convolution differs in nothing but 1 and 3 channels of the images."""
    if name != first or theirs.dim() != 4 or theirs.shape[0] != own.shape[0] or theirs.shape[2:] != own.shape[2:]:
        return False
    return {theirs.shape[1], own.shape[1]} == {1, 3}


def _fitted(tensor: Tensor, own: Tensor) -> Tensor:
    """As timm has it: from colours to grey the kernels are summed; from grey to colours each gets a third."""
    if tensor.shape == own.shape:
        return tensor
    return tensor.float().sum(1, keepdim=True) if own.shape[1] == 1 else tensor.float().expand(own.shape) / 3


# ------------------------------------------------------------------------------------------------------------- loading


def load(backbone: nets.Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Loads the encoder of a backbone whole and tells, in the log and as plain data, what matched.

    tensors: by any of the names of `spellings`, with anything in front and anything beside them. Returns {"names":
    whose, "prefix", "matched": count, "missing": optional ones, "unexpected": count, "not_used": the first of those,
    "first_convolution": how it was brought to the channels}. CellError where a weight is missing or not finite.
    """
    encoder = backbone.encoder
    own, first = encoder.state_dict(), _first_convolution(encoder)
    match = best_match(encoder, tensors)
    if match is None or len(match.keys) < len(own) / 2:  # some layers of any two networks have one shape
        raise CellError(FAILED, _nothing_fits(backbone, tensors, len(match.keys) if match else 0))
    missing = [name for name in own if name not in match.keys]
    needed = [name for name in missing if not name.endswith(OPTIONAL)]
    if needed:
        raise CellError(FAILED, _part_fits(backbone, match, needed))
    spoilt = next((key for key in match.keys.values() if not bool(torch.isfinite(tensors[key]).all())), "")
    if spoilt:
        raise CellError(FAILED, f"{spoilt} in the file is not finite")
    fitted = {name: _fitted(tensors[key], own[name]) for name, key in match.keys.items()}
    theirs = tensors[match.keys[first]].shape[1]
    nets.hand_over(encoder, fitted)
    used = set(match.keys.values())
    unused = [key for key in tensors if key not in used]
    adapted = f"{theirs} channels to {own[first].shape[1]}" if theirs != own[first].shape[1] else ""
    log.info(
        "weights named as in %s below %r: %d matched, missing %s, %d unexpected%s",
        match.names,
        match.prefix,
        len(match.keys),
        _few(missing) or "none",
        len(unused),
        f", first convolution from {adapted}" if adapted else "",
    )
    return {
        "names": match.names,
        "prefix": match.prefix,
        "matched": len(match.keys),
        "missing": missing[:LISTED],
        "unexpected": len(unused),
        "not_used": unused[:LISTED],
        "first_convolution": adapted,
    }


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _nothing_fits(backbone: nets.Backbone, tensors: Mapping[str, Tensor], fitting: int) -> str:
    wanted, given = _described(backbone.encoder.state_dict()), _described(tensors)
    return (
        f"{fitting or 'none'} of the {len(tensors)} weights in the file would fit {backbone.name} (it wants {wanted}, "
        f"the file has {given}): check --backbone{_stem_hint(backbone)}"
    )


def _described(tensors: Mapping[str, Tensor]) -> str:
    name, tensor = next(iter(tensors.items()))
    return f"{name} {tuple(tensor.shape)}"


def _part_fits(backbone: nets.Backbone, match: Match, needed: list[str]) -> str:
    below = f" below {match.prefix[:-1]}" if match.prefix else ""
    return (
        f"only {len(match.keys)} weights{below} fit {backbone.name}, and an encoder is not loaded in part; missing: "
        f"{_few(needed)}; check --backbone{_stem_hint(backbone)}"
    )


def _stem_hint(backbone: nets.Backbone) -> str:
    if not isinstance(backbone.encoder, nets.ResNetEncoder):
        return ""
    return f" ({backbone.name} has the stem of the paper; tu-{backbone.name} is the usual one)"
