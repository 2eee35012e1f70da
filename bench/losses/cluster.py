"""Losses on assignments to clusters: codes shared between views, columns as classes, prototypes as keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.losses.contrast import nt_xent
from bench.losses.vectors import at_least_float32, check_shape, check_temperature, cosines, unit

LOG_GUARD = 1e-30  # inside log and below a sum: an empty cluster keeps a finite gradient
LEAST_CONCENTRATION = 0.1  # of the temperature


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes that use every prototype equally: (B, P) scores -> (B, P) rows that sum to 1; no gradient.

    From exp(scores / epsilon), each iteration scales the columns to equal sums, then the rows. In logarithms, so that
    no score is too large: lightly's `sinkhorn` overflows where score / epsilon passes 88.

    Args:
        scores: (B, P), cosines of samples and prototypes.
        epsilon: > 0, smoothness of the codes.
        iterations: >= 1.
    Source: Caron et al., NeurIPS 2020 (SwAV), Eq. 3 to 5; Cuturi, NeurIPS 2013.
    """
    check_shape("sinkhorn", "scores", scores, "B", "P")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    log_codes = at_least_float32(scores) / epsilon
    for _ in range(iterations):
        log_codes = log_codes - log_codes.logsumexp(0, keepdim=True)
        log_codes = log_codes.log_softmax(1)
    return log_codes.exp()


def swapped_prediction(
    scores: Tensor,
    code_views: int | Sequence[int],
    temperature: float,
    epsilon: float,
    iterations: int,
    queue_scores: Tensor | None = None,
) -> Tensor:
    """Predict the code of one view from every other: cross-entropy with softmax(scores / temperature).

    Mean over the code views, the other views of each, and the batch. Codes are `sinkhorn`'s and have no gradient.

    Args:
        scores: (V, B, P) cosines of V >= 2 views with P prototypes, taken as they are.
        code_views: the views that codes are made for: places in V, or a number n for the first n.
        temperature: > 0.
        epsilon: > 0, for `sinkhorn`.
        iterations: >= 1, for `sinkhorn`.
        queue_scores: (Q, P) scores of past samples that share in the codes, or (C, Q, P) for each of the C code views
            its own.
    Source: Caron et al., NeurIPS 2020 (SwAV), Eq. 1, 2 and 6.
    """
    check_temperature(temperature)
    check_shape("swapped_prediction", "scores", scores, "V", "B", "P")
    views, batch, prototypes = scores.shape
    coded = tuple(range(code_views)) if isinstance(code_views, int) else tuple(code_views)
    if views < 2 or not coded or len(set(coded)) < len(coded) or not set(coded) <= set(range(views)):
        raise ValueError(f"swapped_prediction needs V >= 2 and code_views among them, got V = {views} and {code_views}")
    past: Sequence[Tensor] = [scores.new_empty(0, prototypes)] * len(coded)
    if queue_scores is not None:
        shape: tuple[str | int, ...] = ("Q", prototypes) if queue_scores.ndim == 2 else (len(coded), "Q", prototypes)
        check_shape("swapped_prediction", "queue_scores", queue_scores, *shape)
        past = queue_scores.expand(len(coded), *queue_scores.shape[-2:]).unbind()
    log_share = (at_least_float32(scores) / temperature).log_softmax(2)
    total = log_share.new_zeros(())
    for view, queue in zip(coded, past, strict=True):
        code = sinkhorn(torch.cat([queue.to(scores.dtype), scores[view]]), epsilon, iterations)[-batch:]  # (B, P)
        agreement = (code * log_share).sum(2).mean(1)  # (V,)
        total = total - (agreement.sum() - agreement[view])
    return total / (len(coded) * (views - 1))


def cluster_contrast(assignment0: Tensor, assignment1: Tensor, temperature: float) -> Tensor:
    """Each cluster's column of memberships finds its column in the other view; clusters are kept equally full.

    `nt_xent` over the 2C columns, plus log C minus the entropy of the mean assignment for either view: 0 where all
    clusters are equally full, log C where one holds everything. Nothing is detached.

    Args:
        assignment0: (B, C) memberships >= 0 of C >= 2 clusters, rows that sum to 1.
        assignment1: (B, C), row i is the other view of assignment0's row i.
        temperature: > 0; 1 in the paper.
    Source: Li et al., AAAI 2021 (Contrastive Clustering).
    """
    check_shape("cluster_contrast", "assignment0", assignment0, "B", "C")
    check_shape("cluster_contrast", "assignment1", assignment1, *assignment0.shape)
    if assignment0.shape[1] < 2:
        raise ValueError(f"cluster_contrast needs assignments (B, C) with C >= 2, got {tuple(assignment0.shape)}")
    contrast = nt_xent(assignment0.T, assignment1.T, temperature)
    return contrast + _imbalance(assignment0) + _imbalance(assignment1)


def _imbalance(assignment: Tensor) -> Tensor:
    """(B, C) -> log C + sum p log p, p the clusters' shares of all memberships."""
    held = at_least_float32(assignment).sum(0)
    share = held / held.sum().clamp_min(LOG_GUARD)
    return math.log(len(share)) + (share * (share + LOG_GUARD).log()).sum()


def proto_nce(
    query: Tensor,
    prototypes: Sequence[Tensor],
    assignment: Sequence[Tensor],
    density: Sequence[Tensor],
    negatives: Sequence[Tensor],
) -> Tensor:
    """A query finds the prototype of its cluster; mean over the batch and over the clusterings.

    For one clustering the candidates are the prototypes of all queries of the batch and of the sampled negatives, the
    logit of a candidate is its cosine with the query divided by the candidate's density, and the right answer is the
    query's own place. Two queries of one cluster are each other's negatives, as in the released code. Nothing is
    detached.

    Args:
        query: (B, D).
        prototypes: per clustering (K, D).
        assignment: per clustering (B,) int64, the query's cluster.
        density: per clustering (K,) > 0, its temperature (`concentration`).
        negatives: per clustering (R,) int64, R >= 0 further clusters.
    Source: Li et al., ICLR 2021 (PCL), Eq. 11, its prototype term.
    """
    check_shape("proto_nce", "query", query, "B", "D")
    if not len(prototypes) == len(assignment) == len(density) == len(negatives) > 0:
        given = [len(each) for each in (prototypes, assignment, density, negatives)]
        raise ValueError(f"proto_nce needs four lists as long as there are clusterings, got lengths {given}")
    vectors, own = unit(query), torch.arange(len(query), device=query.device)
    terms = []
    for centres, cluster, spread, others in zip(prototypes, assignment, density, negatives, strict=True):
        check_shape("proto_nce", "prototypes", centres, "K", query.shape[1])
        check_shape("proto_nce", "assignment", cluster, len(query))
        check_shape("proto_nce", "density", spread, len(centres))
        if others.ndim != 1:
            raise ValueError(f"proto_nce needs negatives (R), got {tuple(others.shape)}")
        candidates = torch.cat([cluster, others])  # (B + R,)
        logits = cosines(vectors, unit(centres[candidates]), 1.0) / spread[candidates].to(vectors)
        terms.append(F.cross_entropy(logits, own))
    return torch.stack(terms).mean()


@torch.no_grad()
def concentration(squared_distances: Tensor, assignment: Tensor, clusters: int, temperature: float) -> Tensor:
    """How wide each cluster is, as its temperature: (K,), mean `temperature`, larger for a loose cluster.

    The mean distance of the n members to their centre over log(n + 10); a cluster of fewer than two takes the largest
    value; all are clipped to the 10th and 90th percentile and scaled to the mean `temperature`.

    Args:
        squared_distances: (N,), or (N, 1) as search indices return it; to the own centre.
        assignment: (N,) int64, the own cluster.
        clusters: K >= 1.
        temperature: > 0; 0.2 in the paper.
    Source: Li et al., ICLR 2021 (PCL), Eq. 12, and its released code for singletons and percentiles. Departs: none is
    below a tenth of the temperature, so that a cluster of identical images divides no logit by zero.
    """
    check_temperature(temperature)
    check_shape("concentration", "assignment", assignment, "N")
    if squared_distances.shape not in (assignment.shape, (len(assignment), 1)):
        raise ValueError(f"concentration needs squared_distances (N), got {tuple(squared_distances.shape)}")
    members = assignment.bincount(minlength=clusters)
    if len(members) > clusters:
        raise ValueError(f"concentration needs an assignment below {clusters}, got {len(members) - 1}")
    distances = squared_distances.flatten().double().clamp_min(0).sqrt()
    total = distances.new_zeros(clusters).index_add(0, assignment, distances)
    spread = total / members.clamp_min(1) / (members.double() + 10).log()
    spread = torch.where(members > 1, spread, torch.where(members > 1, spread, 0.0).max())
    spread = spread.clamp(spread.quantile(0.1), spread.quantile(0.9))
    relative = torch.where(spread.mean() > 0, spread / spread.mean(), 1.0)
    return (temperature * relative).clamp_min(LEAST_CONCENTRATION * temperature).to(at_least_float32(squared_distances))
