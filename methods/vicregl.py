"""VICRegL: VICReg of whole images and, at the same time, of cells that lie at one place or look alike in two views.

Source: Bardes, Ponce, LeCun, VICRegL: Self-Supervised Learning of Local Visual Features, NeurIPS 2022,
arXiv:2210.01571, Eqs. 2 to 5; its ResNet-50 recipe of two full-sized views and 300 epochs.
Departs: the coarsest map is pooled to the paper's 7 x 7 cells (its own is 7 x 7 at 224 px and stride 32; ours has more
cells); the expander of images is four times as wide as the backbone (paper: 8192 on 2048); lightly's local projector
normalises by layer, not by batch; LARS with the paper's rate from 256 images per step on, below that Adam with a rate
of its own, as in this project's SimCLR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightly.loss import VICRegLLoss
from lightly.models.modules.heads import VicRegLLocalProjectionHead, VICRegProjectionHead
from torch import Tensor, nn

from bench.nets import Backbone, average, pool
from bench.parts.parallel import gather
from bench.parts.recipes import lars_or_adam
from bench.registry import method
from bench.spec import CorpusInfo, Recipe
from bench.views import Batch, Blur, Crop, Flip, Gray, Jitter, Solarize, View, Views


@dataclass(frozen=True)
class HParams:
    """Defaults of the paper."""

    global_weight: float = 0.75  # of the images' loss; the cells' has the rest
    invariance: float = 25.0  # weight of the distance between what is matched
    variance: float = 25.0  # weight of the hinge on every feature's standard deviation
    covariance: float = 1.0  # weight of the covariances between features
    grid: int = 7  # cells per side, at most the side of the coarsest map
    matches: int = 20  # pairs of cells that are kept, those closest to one another
    expansion: int = 4  # width of the images' expander, in widths of the backbone
    local_projection: int = 512  # width of the cells' projector
    lr: float = 0.2  # LARS, for 256 images; scaled linearly with the batch
    small_batch_lr: float = 3e-4  # Adam, below 256 images per step
    weight_decay: float = 1e-6  # of either optimiser
    warmup: float = 0.033  # share of the steps with a rising rate


@method(
    "vicregl", HParams, version=2, title="VICRegL",
    paper="Bardes et al. 2022, arXiv:2210.01571", groups=("instance", "dense"),
    paper_steps=5145,  # 300 epochs of the local discrimination paper's 35,126 fundus images
    paper_batch=2048, min_batch=2, parallel="gather",
)  # fmt: skip
class VICRegL(nn.Module):
    """VICReg with a branch for whole images and one for matched cells."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.hparams, self.batch_size = hparams, corpus_info.batch_size
        self.backbone = backbone
        width, local = hparams.expansion * backbone.width, hparams.local_projection
        self.expander = VICRegProjectionHead(backbone.width, width, width)
        self.local_projector = VicRegLLocalProjectionHead(backbone.width, local, local)
        self.criterion = VICRegLLoss(
            hparams.invariance,
            hparams.variance,
            hparams.covariance,
            alpha=hparams.global_weight,
            num_matches=(hparams.matches, hparams.matches),
        )

    def views(self) -> Views:
        ops = (Crop((0.08, 1.0)), Flip(), Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), Gray(0.2))
        return Views(each=((*ops, Blur(p=1.0)), (*ops, Blur(p=0.1), Solarize(0.2))))

    def recipe(self) -> Recipe:
        return lars_or_adam(self.hparams, self.batch_size)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        features = [self._features(view.images) for view in batch.views]
        places = [cell_places(view, cells.shape[2]) for view, (_, cells) in zip(batch.views, features, strict=True)]
        with torch.autocast(places[0].device.type, enabled=False):  # covariances do not survive half precision
            whole = [(gather(image), gather(cells)) for image, cells in features]
            loss = self.criterion(whole, [gather(each) for each in places]).sum()  # of one element
        return {"loss": loss}

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, *S) -> image vectors (B, D) and cell vectors (B, n, n, E), of volumes (B, n * n, n, E)."""
        coarsest = self.backbone(images)[-1]  # (B, F, h, w)
        cells = pool(coarsest, min(self.hparams.grid, *coarsest.shape[2:])).movedim(1, -1)
        return self.expander(average(coarsest)).float(), self.local_projector(cells.flatten(1, -3)).float()


def cell_places(view: View, side: int) -> Tensor:
    """Where the centres of a view's cells, `side` along an axis, lie in the source, in [-1, 1]: (B, cells, side, D)."""
    dims = view.affine.shape[1]
    centres = (2 * torch.arange(side, dtype=view.affine.dtype) + 1) / side - 1
    axes = torch.meshgrid(*[centres] * dims, indexing="ij")
    points = torch.stack([*axes[::-1], torch.ones_like(axes[0])], dim=-1)  # (*cells, D + 1): x, y(, z), 1
    places = torch.einsum("bij,yxj->byxi", view.affine.cpu(), points.flatten(0, -3))
    return places.to(view.images.device, torch.float32)
