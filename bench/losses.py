"""Losses as pure functions of tensors, so that anyone can check them against a paper.

Every vector that is compared is l2-normalised here first: temperatures divide cosines. A vector whose norm is at most
1e-12 counts as zero: it stays zero and receives no gradient. Arithmetic is float32 or better whatever the input, under
autocast too. Wrong shapes and temperatures raise `ValueError`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ZERO_NORM = 1e-12
COMPLEMENT_FLOOR = 1e-10  # of 1 - q, where a negative weight below 1 lets q reach 1; the guard of the released code
ENTROPY_GUARD = 1e-30  # inside log2, as in the released code: a saturated pixel keeps a finite gradient


def instance_discrimination(rows: Tensor, temperature: float, negative_weight: float = 1.0) -> Tensor:
    """Every pair of rows is its own class among all rows: attract the partner, repel each other row by itself.

    With e_ij = exp(cos(row_i, row_j) / temperature), p the partner of i, m the negative weight, j over the other rows:
    D_i = e_ip + m sum_j e_ij, q_ij = e_ij / D_i, loss = mean_i -[log q_ip + m sum_j log(1 - q_ij)].
    For m < 1 a negative's q may reach 1; its 1 - q is then held at 1e-10 and that one term gives no gradient.

    Keys are detached: the gradient reaches a row as query only.

    Args:
        rows: (2N, D), N >= 2; rows i and i + N are partners.
        temperature: > 0.
        negative_weight: m > 0, 1 in the papers.
    Source: Ye et al., CVPR 2019 (EmbInva), Eq. 7 to 9; Chen et al., local discrimination v2, Eq. 5 to 9.
    Departs from Eq. 5 to 9 as the released code does: both views are queries, both are negatives, mean instead of sum.
    """
    _check_temperature(temperature)
    if rows.ndim != 2 or rows.shape[0] % 2 or rows.shape[0] < 4:
        raise ValueError(f"instance_discrimination needs rows (2N, D) with N >= 2, got {tuple(rows.shape)}")
    if not 0 < negative_weight < math.inf:
        raise ValueError(f"negative_weight must be positive and finite, got {negative_weight}")
    loss: Tensor = _InstanceDiscrimination.apply(_unit(rows), temperature, negative_weight)
    return loss


def region_discrimination(regions: Tensor, temperature: float, joint: bool = False) -> Tensor:
    """Each region vector t_nc belongs to its class prototype T_c = l2(mean_n t_nc): -log P(c | t_nc), mean over (N, C).

    `joint` adds version 1's sum over c' != c of -log(1 - P(c' | t_nc)). Nothing is detached, the prototypes neither.

    Args:
        regions: (N, C, K), C >= 2.
        temperature: > 0.
    Source: Chen et al., local discrimination v2, Eq. 10 to 13 (v1: Eq. 11 and 12). Departs: mean, where the papers sum.
    """
    _check_temperature(temperature)
    if regions.ndim != 3 or regions.shape[0] < 1 or regions.shape[1] < 2:
        raise ValueError(f"region_discrimination needs regions (N, C, K) with C >= 2, got {tuple(regions.shape)}")
    images, classes, _ = regions.shape
    vectors = _unit(regions)
    prototypes = _unit(vectors.mean(0))  # (C, K)
    logits = _cosines(vectors.flatten(0, 1), prototypes, temperature).reshape(images, classes, classes)
    log_likelihood = logits.log_softmax(-1).diagonal(dim1=1, dim2=2)  # (N, C)
    if joint:
        own = torch.eye(classes, dtype=torch.bool, device=logits.device)
        log_likelihood = log_likelihood + _log_one_minus_softmax(logits).masked_fill(own, 0).sum(-1)
    return -log_likelihood.mean()


def assignment_entropy(assignment: Tensor) -> Tensor:
    """Binary entropy of every pixel's membership of every class, in bits, mean over all: 0 when decided, 1 at one half.

    Args:
        assignment: (N, C, *S), probabilities in [0, 1].
    Source: Chen et al., local discrimination v2, implementation details. Departs: log2 as the released code, not ln.
    """
    if assignment.ndim < 2 or assignment.numel() == 0:
        raise ValueError(f"assignment_entropy needs a non-empty (N, C, *S), got {tuple(assignment.shape)}")
    inside = _at_least_float32(assignment)
    outside = 1 - inside
    return -(inside * (inside + ENTROPY_GUARD).log2() + outside * (outside + ENTROPY_GUARD).log2()).mean()


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
    _check_temperature(temperature)
    _check_pair("info_nce", query, key)
    if queue.ndim != 2 or queue.shape[0] < 1 or queue.shape[1] != query.shape[1]:
        raise ValueError(f"info_nce needs a queue (Q, {query.shape[1]}) with Q >= 1, got {tuple(queue.shape)}")
    query = _unit(query)
    positive = (query * _unit(key)).sum(1) / temperature  # (N,)
    negatives = _cosines(query, _unit(queue), temperature)  # (N, Q)
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
    _check_temperature(temperature)
    _check_pair("nt_xent", view0, view1)
    vectors = _unit(torch.cat([view0, view1]))  # (2N, D)
    logits = _cosines(vectors, vectors, temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, _partners(vectors))


def soft_dice(prediction: Tensor, target: Tensor, smooth: float) -> Tensor:
    """Dice loss pooled over the whole batch: 1 - (2 sum p y + s) / (sum p + sum y + s), in [0, 1], 0 is perfect.

    An empty target asks for an empty prediction. With smooth = 0, two empty masks give NaN.

    Args:
        prediction: (N, *S), probabilities in [0, 1].
        target: same shape, 0 or 1 (any dtype).
        smooth: s >= 0, in pixels.
    Source: Chen et al., local discrimination v2. Departs: with the printed 2 (sum p y + s) a perfect match is not 0.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"soft_dice needs one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth must be finite and not negative, got {smooth}")
    prediction = _at_least_float32(prediction)
    target = target.to(prediction.dtype)
    overlap = (prediction * target).sum()
    return 1 - (2 * overlap + smooth) / (prediction.sum() + target.sum() + smooth)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _check_pair(loss: str, left: Tensor, right: Tensor) -> None:
    if left.ndim != 2 or left.shape[0] < 1 or left.shape != right.shape:
        raise ValueError(f"{loss} needs two tensors (N, D) alike, got {tuple(left.shape)} and {tuple(right.shape)}")


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _unit(vectors: Tensor) -> Tensor:
    """(..., D) -> unit vectors along the last axis; zero vectors stay zero and get no gradient."""
    vectors = _at_least_float32(vectors)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors * torch.where(norm > ZERO_NORM, norm.clamp_min(ZERO_NORM).reciprocal(), 0.0)


def _cosines(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Unit vectors (N, D) and (M, D) -> (N, M) cosines / temperature."""
    cosines: Tensor = _Product.apply(left / temperature, right.T)
    return cosines


def _product(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


class _Product(torch.autograd.Function):
    """Matrix product that autocast leaves alone, also when the backward pass runs inside it."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return _product(left, right)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        return (
            _product(upstream, right.T) if ctx.needs_input_grad[0] else None,
            _product(left.T, upstream) if ctx.needs_input_grad[1] else None,
        )


def _partners(rows: Tensor) -> Tensor:
    """(2N, D) -> (2N,) index of each row's partner."""
    return torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)


def _log_one_minus_softmax(logits: Tensor) -> Tensor:
    """log(1 - softmax(logits)) over the last axis (>= 2 long), exact also where the softmax rounds to 1.

    Only the largest entry can exceed one half, so only it needs the sum of the others instead of 1 - p.
    """
    top_value, top = logits.max(-1, keepdim=True)
    others = logits.scatter(-1, top, -math.inf)
    log_others = others.logsumexp(-1, keepdim=True)
    log_total = torch.logaddexp(log_others, top_value)
    return torch.log1p(-(others - log_total).exp()).scatter(-1, top, log_others - log_total)


class _InstanceDiscrimination(torch.autograd.Function):
    """`instance_discrimination` on unit rows (2N, D), with its gradient in closed form.

    Detached keys make the rows independent, so value and gradient come block by block from slices of the (2N, 2N)
    cosines, and no such matrix is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: float, negative_weight: float) -> Tensor:
        partner = _partners(rows)
        block = max(1, (1 << 19 if rows.device.type == "cpu" else 1 << 24) // len(rows))
        total, gradients = rows.new_zeros(()), []
        for start in range(0, len(rows), block):
            own = torch.arange(start, min(start + block, len(rows)), device=rows.device).unsqueeze(1)  # (B, 1)
            logits = _product(rows[start : start + block] / temperature, rows.T).scatter_(1, own, -math.inf)  # (B, 2N)
            losses, slope = _instance_block(logits, partner[start : start + block].unsqueeze(1), negative_weight)
            total += losses.sum()
            if ctx.needs_input_grad[0]:
                gradients.append(_product(slope, rows))  # (B, D)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients) / (temperature * len(rows)))
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * upstream, None, None


def _instance_block(logits: Tensor, partner: Tensor, m: float) -> tuple[Tensor, Tensor]:
    """Losses (B, 1) and their derivatives by the logits (B, R), for B queries whose logit with themselves is -inf.

    Let s be the weighted shares, s_p = e_p / D and s_j = m e_j / D = m q_j. Only the row's largest share, `top`, can
    exceed one half. It is kept apart and described by `ratio` = (all other shares) / (top share), in logs: no
    subtraction then loses digits however close q comes to 1, and no exponential overflows at any temperature.
    With odds u_j = q_j / (1 - q_j): d loss / d logit_k = s_k (1 - m sum_j u_j) - [k is partner] + [k is not] m u_k.
    `logits` is overwritten.
    """
    floor = math.log(COMPLEMENT_FLOOR) if m < 1 else -math.inf
    positive = logits.gather(1, partner)
    if m != 1:
        logits.add_(math.log(m)).scatter_(1, partner, positive)
    top_logit, top = logits.max(1, keepdim=True)
    logits.scatter_(1, top, -math.inf)
    second = logits.max(1, keepdim=True).values
    others = logits.sub_(second).exp_()  # (B, R), 0 at top and at the query itself
    mass = others.sum(1, keepdim=True)
    others.div_(mass)
    log_ratio = mass.log() + second - top_logit
    log_share_top = -F.softplus(log_ratio)
    share_top, share_others = log_share_top.exp(), log_ratio.sigmoid()

    q = (others * (share_others / m)).scatter_(1, partner, 0)
    complement = 1 - q
    odds = q / complement
    if m < 1:
        odds.masked_fill_(complement <= COMPLEMENT_FLOOR, 0)
    odds_sum = odds.sum(1, keepdim=True)
    log_complement = q.clamp_(max=1).neg_().log1p_().clamp_(min=floor).sum(1, keepdim=True)

    top_is_partner = top == partner
    log_margin = log_ratio if m == 1 else (log_ratio.exp() + (1 - 1 / m)).clamp_min(0).log()  # log((1 - q_top) / s_top)
    log_complement_top = log_margin + log_share_top
    counted = ~top_is_partner & (log_complement_top > floor)
    pull_top = torch.where(counted, (F.logsigmoid(log_ratio) - log_margin).exp(), 0)  # m u_top (1 - s_top)
    log_complement = log_complement + torch.where(top_is_partner, 0, log_complement_top.clamp_min(floor))
    losses = top_logit - positive - log_share_top - m * log_complement

    slope = others.mul_(share_others * (1 - m * odds_sum) - pull_top).add_(odds, alpha=m)
    slope.scatter_add_(1, partner, torch.where(top_is_partner, 0.0, -1.0).to(slope))
    slope.scatter_(1, top, torch.where(top_is_partner, -share_others, share_top + pull_top) - m * odds_sum * share_top)
    return losses, slope
