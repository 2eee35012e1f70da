"""Local discrimination: tell patches apart (Pd), mix them on the hypersphere (+mix), then tell regions apart (Rd).

Source: Chen et al., Unsupervised Local Discrimination for Medical Images, version 2 (2022), sections 4.2 to 4.4 and
6.1.2; `rd_v1` has the region loss of version 1 (2021), a joint probability.
Departs from the paper, as its released code does: rows of both views are queries and all others of both views
negatives (Eq. 5 has one direction), losses are means (Eqs. 8, 13, 20 sum), keys are detached, mixing draws from (0.2,
0.8), entropy in bits (Eq. 32: natural), crops shared by the two views (the text suggests independent ones), K = 32
embedding channels and temperatures 0.1 and 0.2 (not stated). `rd_v1` adds the version 1 term that its text has and
that code has not.
Departs from both: images come in shuffled epochs, not with replacement; the geometry is one bilinear sampling, not
several nearest ones; the jitter's order is fixed; the last state is handed on, between the stages (by name) and in
the end (the code takes the lowest loss on a validation part); in a run shorter than 10,000 steps the patch stage gets
more than its fifth (`warmup_steps`), because region discrimination on embeddings that were not warmed up collapses,
as section 4.3 says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.losses import assignment_entropy, instance_discrimination, region_discrimination
from bench.nets import Backbone, PixelDecoder, patch_embeddings, region_embeddings
from bench.parts.parallel import gather, part, ranks
from bench.registry import method
from bench.spec import BenchError, CorpusInfo, Recipe, Stage
from bench.views import Batch, Crop, Flip, Gray, HalfTurn, Jitter, Op, QuarterTurn, Rotate, Views

PATCH_SHARE = 0.2  # 20 of 100 epochs
REGION_SHARE = 0.2  # what a short run leaves at least for the region stage


@dataclass(frozen=True)
class HParams:
    """Defaults of Rd, version 2."""

    grid: int = 8  # patches per side
    mixup: bool = True  # hypersphere mixup
    clusters: int = 16  # regions; 0: no region stage
    joint: bool = False  # version 1's region loss, a joint probability
    embedding: int = 32  # channels of a pixel embedding
    patch_temperature: float = 0.1  # divides the patch logits
    region_temperature: float = 0.2  # divides the region logits
    region_weight: float = 10.0  # of the region loss
    entropy_weight: float = 0.1  # of the assignment entropy
    lr: float = 1e-3  # Adam, halved every 10 epochs of a stage
    warmup_steps: int = 2000  # fewest steps of the patch stage, as far as that leaves a fifth of the run for regions


SHARED: dict[str, Any] = {
    "version": 1,
    "paper": "Chen et al. 2021 and 2022, local discrimination",
    "groups": ("ld", "dense", "medical"),
    "paper_batch": 8,
    "min_batch": 2,
    "batch_multiple": 2,
    "parallel": "gather",
}


@method("pd", HParams, title="Pd", paper_steps=20000, set={"mixup": False, "clusters": 0}, **SHARED)
@method("pd_mix", HParams, title="Pd+mix", paper_steps=20000, set={"clusters": 0}, **SHARED)
@method("rd", HParams, title="Rd", paper_steps=100000, **SHARED)
@method("rd_v1", HParams, title="Rd (v1 loss)", paper_steps=100000, set={"joint": True}, **SHARED)
class LocalDiscrimination(nn.Module):
    """Patch discrimination, then region discrimination on top of it."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        if hparams.clusters == 1:
            raise BenchError(
                "one region cannot be told from others: set clusters to 0 (no region stage) or to 2 and more"
            )
        self.hparams, self.steps = hparams, corpus_info.steps
        self.backbone = backbone
        self.decoder = PixelDecoder(backbone, hparams.embedding, hparams.clusters)

    def views(self) -> Views:
        shared: tuple[Op, ...] = (Flip(0.5, 0.5), Rotate(180), Crop((0.9, 1.0)))
        each: tuple[Op, ...] = (Rotate(2), Jitter(0.4, 0.4, 0.4, 0.02), Gray(0.2))
        return Views(shared=shared, each=(each, (*each, HalfTurn(), QuarterTurn())))

    def recipe(self) -> Recipe:
        warmup = min(self.hparams.warmup_steps / self.steps, 1 - REGION_SHARE)
        share = max(PATCH_SHARE, warmup)
        patch = Stage(share, schedule="halve", period=10 / 20)
        region = Stage(1 - share, schedule="halve", period=10 / 80)
        return Recipe("adam", self.hparams.lr, stages=(patch, region) if self.hparams.clusters else (patch,))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        view0, view1 = batch.views  # (B, C, S, S)
        images = torch.cat([view0.images, view1.images])
        if self.hparams.mixup:
            mixed, weight = self._mix(view0.images)
            images = torch.cat([images, mixed])
        pixels, assignment = self.decoder(self.backbone(images))  # (2B + B/2, K, S, S), (2B + B/2, C, S, S)
        real = 2 * len(view0.images)
        patches = patch_embeddings(pixels, self.hparams.grid)  # (2B + B/2, G, K)
        first, second = patches[: real // 2], self._unturned(patches[real // 2 : real], batch)
        parts = {"patch": self._discriminate(first, second)}
        if self.hparams.mixup:
            parts["mixup"] = self._mixup_loss(first, patches[real:], weight)
        loss = torch.stack(list(parts.values())).sum()
        if assignment is not None and batch.stage == 1:
            regions = gather(region_embeddings(pixels[:real], assignment[:real]))  # (2B, C, K)
            parts["region"] = region_discrimination(regions, self.hparams.region_temperature, self.hparams.joint)
            parts["entropy"] = assignment_entropy(assignment[:real])
            loss = loss + self.hparams.region_weight * parts["region"] + self.hparams.entropy_weight * parts["entropy"]
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def _unturned(self, patches: Tensor, batch: Batch) -> Tensor:
        """Patches of the second view, put back to where the first view has them: (B, G, K)."""
        grid = self.hparams.grid
        maps = patches.transpose(1, 2).unflatten(2, (grid,) * self.backbone.dims)  # (B, K, g, g)
        return batch.views[1].unturn(maps).flatten(2).transpose(1, 2)

    def _discriminate(self, first: Tensor, second: Tensor) -> Tensor:
        rows = torch.cat([gather(first).flatten(0, 1), gather(second).flatten(0, 1)])  # (2 B G, K)
        return instance_discrimination(rows, self.hparams.patch_temperature)

    def _mix(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """First half and second half of the batch mixed (Eq. 15): (B/2, C, S, S) and weights (B/2,)."""
        one, other = images.chunk(2)
        weight = (part(torch.rand(ranks() * len(one))) * 0.6 + 0.2).to(images.device)
        return torch.lerp(other, one, weight[:, None, None, None]), weight

    def _mixup_loss(self, first: Tensor, mixed: Tensor, weight: Tensor) -> Tensor:
        """A mixed patch must find the mixture of its patches' embeddings (Eqs. 16 to 20), which takes no gradient."""
        one, other = first.detach().float().chunk(2)  # (B/2, G, K)
        target = F.normalize(torch.lerp(other, one, weight[:, None, None]), dim=2)
        return self._discriminate(mixed, target)

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.backbone.encoder, "decoder": self.decoder}
