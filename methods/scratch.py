"""Scratch: no pretraining; the encoder starts from its random initialisation.

Source: Chen et al., local discrimination, Table 2, row "Scratch".
Departs: the authors' released script for this row trains one stage of 100 epochs, their transfer script two of 100;
here both rows run the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bench.nets import Backbone
from bench.registry import method


@dataclass(frozen=True)
class HParams:
    """Nothing to choose."""


@method(
    "scratch", HParams, version=1, title="Scratch",
    paper="no pretraining", groups=("baseline",), trains=False,
)  # fmt: skip
class Scratch(nn.Module):
    """The encoder as it was initialised."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: object) -> None:
        super().__init__()
        self.backbone = backbone
