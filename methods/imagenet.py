"""ImageNet: the weights of a classifier of photographs, as the libraries ship them for their encoders.

Source: segmentation-models-pytorch's `imagenet` weights, and timm's default ones for `tu-` encoders; vgg16 is
torchvision's vgg16_bn. The libraries fetch them when they are first asked for, and keep them.
Departs: for grey images the kernels of the first convolution are summed over the colours, as timm does; grey images
are normalised as for every other method here (mean and deviation 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from bench.nets import Backbone, weights
from bench.registry import method
from bench.spec import FAILED, CellError

TWINS = {"vgg16": "vgg16_bn"}  # our name -> the library's, where the networks are the same


@dataclass(frozen=True)
class HParams:
    """Nothing to choose."""


@method(
    "imagenet", HParams, version=1, title="ImageNet",
    paper="Deng et al. 2009; weights of timm and segmentation-models-pytorch", groups=("weights",), trains=False,
    weights="library",
    lacks=("tiny_vgg16", "small_vgg16", "resnet18", "resnet34", "resnet50"),  # the papers' own, which nobody trained
)  # fmt: skip
class ImageNet(nn.Module):
    """An encoder trained on labelled photographs."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: object) -> None:
        super().__init__()
        self.backbone = backbone

    def bring_weights(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """given: nothing; the libraries know where the weights are."""
        return weights.load(self.backbone, _fetched(self.backbone.name))


def _fetched(backbone: str) -> dict[str, Tensor]:
    """The weights of a library's encoder for colour images; CellError where there are none, or none to be had."""
    name = TWINS.get(backbone, backbone)
    try:
        encoder: nn.Module = smp.encoders.get_encoder(name, weights=True if name.startswith("tu-") else "imagenet")
    except Exception as error:  # of a dozen kinds, by library, version and what is wrong with the network
        if "pretrained weights" in str(error):
            none = f"the libraries have no ImageNet weights for the backbone {backbone}"
            raise CellError(FAILED, f"{none}; vgg16, and encoders of timm as tu-NAME, have some") from error
        raise CellError(
            FAILED,
            f"the ImageNet weights of {backbone} are not here and could not be fetched ({type(error).__name__}): run "
            f"once with a connection, which keeps them for later, or name a file of weights with --methods ckpt:PATH",
        ) from error
    return dict(encoder.state_dict())
