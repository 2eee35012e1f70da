"""Weights from a file: an encoder that was trained elsewhere, judged as it is.

Source: whatever the file is: safetensors, or what torch.save wrote and can be read without unpickling; its weights
named as in timm, torchvision, segmentation-models-pytorch, lightly's examples, MoCo's released checkpoints or this
project's own exports. The file is known by its SHA-256, wherever it lies.
Departs: where the file is for colour images and the task is grey, the kernels of the first convolution are summed, as
timm does; the other way round each colour gets a third. Images are normalised as for every other method here (colours
by ImageNet's statistics, grey by mean and deviation 0.5), whatever the file was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.nets import Backbone, weights
from bench.registry import method


@dataclass(frozen=True)
class HParams:
    """Nothing to choose."""


@method(
    "ckpt", HParams, version=1, title="Checkpoint",
    paper="a file of weights", groups=("weights",), trains=False, weights="file",
    note="What a checkpoint was trained on is not known here, so no leak is looked for.",
)  # fmt: skip
class Checkpoint(nn.Module):
    """The encoder that a file holds."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: object) -> None:
        super().__init__()
        self.backbone = backbone

    def bring_weights(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """given: the tensors of the file."""
        return weights.load(self.backbone, given)
