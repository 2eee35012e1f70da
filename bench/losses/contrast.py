"""Softmax contrast: a vector must find its own key among others, in a queue, a bank or the batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.losses.vectors import check_pair, check_shape, check_temperature, cosines, product, unit


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Find the query's own key among the queue: -log softmax of [query.key, query.queue] / temperature, mean over rows.

    Key and queue are compared as unit vectors and are not detached: whoever owns the momentum encoder decides that.

    Args:
        query: (N, D).
        key: (N, D), row i belongs to query i.
        queue: (Q, D), Q >= 1 negatives shared by all queries.
        temperature: > 0.
    Source: He et al., CVPR 2020 (MoCo), Eq. 1.
    """
    check_temperature(temperature)
    check_pair("info_nce", query, key)
    if queue.ndim != 2 or queue.shape[0] < 1 or queue.shape[1] != query.shape[1]:
        raise ValueError(f"info_nce needs a queue (Q, {query.shape[1]}) with Q >= 1, got {tuple(queue.shape)}")
    query = unit(query)
    positive = (query * unit(key)).sum(1) / temperature  # (N,)
    negatives = cosines(query, unit(queue), temperature)  # (N, Q)
    return F.softplus(negatives.logsumexp(1) - positive).mean()


def nt_xent(view0: Tensor, view1: Tensor, temperature: float) -> Tensor:
    """Each of 2N vectors finds its partner among the 2N - 1 others: softmax cross-entropy, mean over all rows.

    The values are those of lightly's `NTXentLoss`, written here because that one takes half-precision cosines under
    autocast and picks its negatives by boolean indexing, at twice the time of a masked diagonal. Nothing is detached.

    Args:
        view0: (N, D).
        view1: (N, D), row i is the partner of view0's row i.
        temperature: > 0.
    Source: Chen et al., ICML 2020 (SimCLR), Eq. 1.
    """
    check_temperature(temperature)
    check_pair("nt_xent", view0, view1)
    vectors = unit(torch.cat([view0, view1]))  # (2N, D)
    logits = cosines(vectors, vectors, temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(vectors), device=vectors.device).roll(len(view0)))


def dense_info_nce(
    query_grid: Tensor,
    key_grid: Tensor,
    query_backbone: Tensor,
    key_backbone: Tensor,
    queue: Tensor,
    temperature: float,
) -> Tensor:
    """InfoNCE for every cell of a grid; its key is the cell of the other view whose backbone features are most alike.

    Cell s of image b has the key key_grid[b, argmax over t of cos(query_backbone[b, s], key_backbone[b, t])], its
    negatives are the queue; mean over all cells. The match is a choice without gradient. Keys and queue are compared
    as unit vectors and are not detached, as in `info_nce`.

    Args:
        query_grid: (B, S, D) projections, S cells.
        key_grid: (B, S, D).
        query_backbone: (B, S, F) features that the match is made on.
        key_backbone: (B, S, F).
        queue: (Q, D), Q >= 1 negatives shared by all cells.
        temperature: > 0.
    Source: Wang et al., CVPR 2021 (DenseCL).
    """
    check_shape("dense_info_nce", "query_grid", query_grid, "B", "S", "D")
    check_shape("dense_info_nce", "key_grid", key_grid, *query_grid.shape)
    check_shape("dense_info_nce", "query_backbone", query_backbone, *query_grid.shape[:2], "F")
    check_shape("dense_info_nce", "key_backbone", key_backbone, *query_backbone.shape)
    with torch.no_grad():
        match = product(unit(query_backbone), unit(key_backbone).transpose(1, 2)).argmax(2)  # (B, S)
    keys = key_grid.gather(1, match.unsqueeze(2).expand_as(key_grid))  # (B, S, D)
    return info_nce(query_grid.flatten(0, 1), keys.flatten(0, 1), queue, temperature)


def instdisc_softmax(features: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Each image is its own class: softmax cross-entropy of the features over the whole bank, mean over the batch.

    Args:
        features: (B, D).
        bank: (N, D), one vector per image of the corpus, not detached.
        index: (B,) int64, the features' places in the bank.
        temperature: > 0.
    Source: Wu et al., CVPR 2018 (InstDisc), Eq. 2.
    """
    _check_bank("instdisc_softmax", features, bank, index, temperature)
    return F.cross_entropy(cosines(unit(features), unit(bank), temperature), index)


def instdisc_nce(
    features: Tensor,
    bank: Tensor,
    index: Tensor,
    noise_index: Tensor,
    temperature: float,
    normaliser: float | Tensor,
) -> Tensor:
    """Each image is its own class, by noise-contrastive estimation: its bank vector against K drawn uniformly.

    With P_j = exp(cos(feature, bank_j) / temperature) / normaliser and c = K / N, the loss is the mean over the batch
    of -log(P_own / (P_own + c)) - sum over the K of log(c / (P_k + c)). A noise vector that happens to be the own one
    counts as noise.

    Args:
        features: (B, D).
        bank: (N, D), one vector per image of the corpus, not detached.
        index: (B,) int64, the features' places in the bank.
        noise_index: (B, K) int64, K >= 1 places drawn with replacement.
        temperature: > 0.
        normaliser: Z > 0, estimated once (`instdisc_normaliser`).
    Source: Wu et al., CVPR 2018 (InstDisc), Eq. 4 to 6.
    """
    chosen = _bank_logits("instdisc_nce", features, bank, index, noise_index, temperature)
    constant = float(normaliser)
    if not 0 < constant < math.inf:
        raise ValueError(f"normaliser must be positive and finite, got {constant}")
    log_odds = chosen - math.log(constant * noise_index.shape[1] / len(bank))  # of data against noise, (B, 1 + K)
    return (F.softplus(-log_odds[:, 0]) + F.softplus(log_odds[:, 1:]).sum(1)).mean()


@torch.no_grad()
def instdisc_normaliser(
    features: Tensor, bank: Tensor, index: Tensor, noise_index: Tensor, temperature: float
) -> Tensor:
    """Monte Carlo estimate of `instdisc_nce`'s normaliser: N times the mean of exp(cos / temperature), () float64.

    Args: as `instdisc_nce`; the mean is over the own and the noise vectors of the whole batch.
    Source: Wu et al., CVPR 2018 (InstDisc), Eq. 7; taken from the first batch and then kept.
    """
    chosen = _bank_logits("instdisc_normaliser", features, bank, index, noise_index, temperature)
    return len(bank) * chosen.double().exp().mean()


@torch.no_grad()
def updated_bank(bank: Tensor, index: Tensor, features: Tensor, momentum: float) -> Tensor:
    """The bank with rows `index` moved to l2(momentum * row + (1 - momentum) * l2(feature)); the input is untouched.

    Args:
        bank: (N, D) unit vectors.
        index: (B,) int64 without repetition.
        features: (B, D), any length.
        momentum: in [0, 1]; 0.5 in the paper.
    Source: Wu et al., CVPR 2018 (InstDisc); the moving average is the released code's.
    """
    check_shape("updated_bank", "bank", bank, "N", "D")
    check_shape("updated_bank", "features", features, "B", bank.shape[1])
    check_shape("updated_bank", "index", index, len(features))
    rows = unit(momentum * bank[index] + (1 - momentum) * unit(features))
    return bank.index_copy(0, index, rows.to(bank.dtype))


def jigsaw_clustering(features: Tensor, image_index: Tensor, temperature: float) -> Tensor:
    """The four pieces of an image find each other among all pieces of the batch.

    With s_ij = cos(feature_i, feature_j) / temperature and the other three pieces p of the same image, the loss is the
    mean over i and p of -log(exp(s_ip) / sum over j != i of exp(s_ij)). Nothing is detached.

    Args:
        features: (4B, D), pieces in any order.
        image_index: (4B,), equal for the four pieces of one image.
        temperature: > 0.
    Source: Chen et al., CVPR 2021 (JigClu).
    """
    check_temperature(temperature)
    if features.ndim != 2 or features.shape[0] % 4 or features.shape[0] < 4:
        raise ValueError(f"jigsaw_clustering needs features (4B, D), got {tuple(features.shape)}")
    check_shape("jigsaw_clustering", "image_index", image_index, len(features))
    ordered, order = image_index.sort()
    image = ordered.reshape(-1, 4)
    if not (image == image[:, :1]).all() or (image[1:, 0] == image[:-1, 0]).any():
        raise ValueError("jigsaw_clustering needs an image_index that names every image exactly four times")
    vectors = unit(features)[order]  # the four pieces of an image in a row
    logits = cosines(vectors, vectors, temperature).fill_diagonal_(-math.inf)
    pieces = vectors.reshape(len(image), 4, -1)
    others = pieces.sum(1, keepdim=True) - pieces  # the sum of the other three, (B, 4, D)
    return logits.logsumexp(1).mean() - (pieces * others).sum(2).mean() / (3 * temperature)


def _check_bank(loss: str, features: Tensor, bank: Tensor, index: Tensor, temperature: float) -> None:
    check_temperature(temperature)
    check_shape(loss, "features", features, "B", "D")
    check_shape(loss, "bank", bank, "N", features.shape[1])
    check_shape(loss, "index", index, len(features))


def _bank_logits(
    loss: str, features: Tensor, bank: Tensor, index: Tensor, noise_index: Tensor, temperature: float
) -> Tensor:
    """(B, 1 + K) cosines / temperature of each feature with its own and its noise vectors.

    They are picked from the cosines with the whole bank: (B, N) numbers, where picking (B, K, D) vectors first takes
    more memory for every corpus of fewer than K D images.
    """
    _check_bank(loss, features, bank, index, temperature)
    check_shape(loss, "noise_index", noise_index, len(features), "K")
    logits = cosines(unit(features), unit(bank), temperature)  # (B, N)
    return logits.gather(1, torch.cat([index.unsqueeze(1), noise_index], 1))
