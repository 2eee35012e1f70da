"""Parts that several methods are built of: what training remembers, as saved buffers, slowly moving copies, k-means."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from lightly.models.utils import deactivate_requires_grad
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

IMAGENET = 1_281_167  # images that papers state their numbers of clusters for
FULL_KMEANS_ROWS = 50_000  # above, k-means goes by mini-batches


class FeatureQueue(nn.Module):
    """The latest `size` feature vectors, first in, first out: a ring whose end wraps, saved with the model.

    lightly's memory bank is not saved, and drops what passes its end. rows: (Q, D), unit vectors, random at first.
    position: the row that the next vector takes.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dimensions), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, features: Tensor) -> None:
        """Takes features (B, D) as they are, in their order; of more than Q only the last Q stay."""
        size = len(self.rows)
        places = (self.position + torch.arange(len(features), device=features.device)) % size
        self.rows[places[-size:]] = features[-size:].to(self.rows.dtype)
        self.position.copy_((self.position + len(features)) % size)

    def snapshot(self) -> Tensor:
        """The rows (Q, D) as they are now; a loss may hold on to them while the queue moves on."""
        return self.rows.clone()


def momentum_copy(module: Module) -> Module:
    """A copy that starts equal and takes no gradient; `update_momentum` of lightly lets it follow."""
    twin = copy.deepcopy(module)
    deactivate_requires_grad(twin)
    return twin


def cluster_count(on_imagenet: int, size: int) -> int:
    """Clusters for a corpus of `size` images where the paper has `on_imagenet` of them: as many images to a cluster.

    At least 16 where that leaves four images to a cluster, at least 2, and never more than images.
    """
    return min(size, max(2, min(16, size // 4), round(on_imagenet * size / IMAGENET)))


def kmeans(features: Tensor, clusters: int, restarts: int = 1) -> tuple[Tensor, Tensor]:
    """Groups features (N, D) by scikit-learn's k-means: assignment (N,) and centres (clusters, D), both on the CPU.

    20 iterations from random rows, the best of `restarts` starts, in mini-batches where there are more than 50,000
    rows; a cluster that runs empty starts again from a row far from its centre. Seeded from torch's generator, and on
    one thread, so that every sum has one order.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31 - 1, ()))
    if len(features) <= FULL_KMEANS_ROWS:
        search = KMeans(clusters, init="random", n_init=restarts, max_iter=20, random_state=seed)
    else:
        rows = max(4096, 4 * clusters)
        search = MiniBatchKMeans(
            clusters, init="random", n_init=restarts, max_iter=20, batch_size=rows, random_state=seed
        )
    with threadpool_limits(1):
        search.fit(features.float().cpu().numpy())
    return torch.from_numpy(search.labels_).long(), torch.from_numpy(search.cluster_centers_).float()
