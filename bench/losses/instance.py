"""Every image, or patch, is a class of its own among the rows of the batch.

Three losses of one family, which differ in who counts as partner of a row; keys are detached in all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.losses.vectors import (
    check_temperature,
    cosines,
    log_one_minus_softmax,
    product,
    unit,
)

COMPLEMENT_FLOOR = 1e-10  # of 1 - q, where a negative weight below 1 lets q reach 1; the guard of the released code


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
    check_temperature(temperature)
    if rows.ndim != 2 or rows.shape[0] % 2 or rows.shape[0] < 4:
        raise ValueError(f"instance_discrimination needs rows (2N, D) with N >= 2, got {tuple(rows.shape)}")
    if not 0 < negative_weight < math.inf:
        raise ValueError(f"negative_weight must be positive and finite, got {negative_weight}")
    loss: Tensor = _InstanceDiscrimination.apply(unit(rows), temperature, negative_weight)
    return loss


def rotation_instance(rows: Tensor, temperature: float) -> Tensor:
    """Instance discrimination under rotation: any of the four rotations of the other view may be a row's partner.

    q_ij = softmax over j != i of cos(row_i, row_j) / temperature; the loss is the mean over the rows i and their four
    partners p of -[log q_ip + sum over j != i, p of log(1 - q_ij)]. The row's own view at other rotations repels.

    Keys are detached: the gradient reaches a row as query only.

    Args:
        rows: (8B, D): the first view, then the second; in each view image by image its four rotations.
        temperature: > 0.
    Source: Li et al., Rotation-oriented collaborative self-supervised learning, TMI 2021. Departs as the released code:
    mean over rows and partners.
    """
    check_temperature(temperature)
    if rows.ndim != 2 or rows.shape[0] % 8 or rows.shape[0] < 8:
        raise ValueError(f"rotation_instance needs rows (8B, D), got {tuple(rows.shape)}")
    index = torch.arange(len(rows), device=rows.device)
    first = index.roll(len(rows) // 2) // 4 * 4  # the partners' first
    partners = first.unsqueeze(1) + torch.arange(4, device=rows.device)  # (8B, 4)
    loss: Tensor = _PartnerDiscrimination.apply(unit(rows), partners, index.unsqueeze(1), temperature)
    return loss


def multimodal_instance(rows: Tensor, temperature: float) -> Tensor:
    """Instance discrimination across two modalities: partners are the other view of the image in either modality.

    q_ij = softmax of cos(row_i, row_j) / temperature over j other than i and i's own picture in the other modality,
    which takes no part in row i. The loss is the mean over the rows i of the sum over both partners p of
    -[log q_ip + sum over j != p of log(1 - q_ij)].

    Keys are detached: the gradient reaches a row as query only.

    Args:
        rows: (4B, D): the first view, then the second; in each view the modalities alternate, rows 2i and 2i + 1
            show image i.
        temperature: > 0.
    Source: Li et al., Self-supervised feature learning via exploiting multi-modal data, TMI 2020. Departs as the
    released code: mean over rows, sum over partners.
    """
    check_temperature(temperature)
    if rows.ndim != 2 or rows.shape[0] % 4 or rows.shape[0] < 4:
        raise ValueError(f"multimodal_instance needs rows (4B, D), got {tuple(rows.shape)}")
    index = torch.arange(len(rows), device=rows.device)
    other = index.roll(len(rows) // 2)
    partners = torch.stack([other, other ^ 1], 1)  # (4B, 2)
    excluded = torch.stack([index, index ^ 1], 1)  # (4B, 2)
    loss: Tensor = _PartnerDiscrimination.apply(unit(rows), partners, excluded, temperature)
    return 2 * loss


class _PartnerDiscrimination(torch.autograd.Function):
    """Mean over unit rows (R, D) and their partners (R, P) of the instance loss, with its gradient.

    `excluded` (R, E) columns take no part in a row. Detached keys make the rows independent, so value and gradient come
    block by block, and no (R, R) cosines are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, partners: Tensor, excluded: Tensor, temperature: float) -> Tensor:
        keys, block = rows.detach(), _block(rows)
        total, gradients = rows.new_zeros(()), list[Tensor]()
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                queries = keys[part].clone().requires_grad_(ctx.needs_input_grad[0])
                loss = _partner_losses(queries, keys, partners[part], excluded[part], temperature).sum()
            total += loss.detach()
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, queries)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients) / len(rows))
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * upstream, None, None, None


def _partner_losses(queries: Tensor, keys: Tensor, partners: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    """Queries (B, D) against keys (R, D) -> (B,) losses, mean over the partners (B, P)."""
    logits = cosines(queries, keys, temperature).scatter(1, excluded, -math.inf)  # (B, R)
    attraction = logits.log_softmax(1).gather(1, partners).mean(1)
    repels = torch.ones_like(logits).scatter(1, partners, 1 - 1 / partners.shape[1])  # in what share of the choices
    return -(attraction + (log_one_minus_softmax(logits) * repels).sum(1))


def _block(rows: Tensor) -> int:
    """How many rows to compare with all at a time."""
    return max(1, (1 << 19 if rows.device.type == "cpu" else 1 << 24) // len(rows))


def _partners(rows: Tensor) -> Tensor:
    """(2N, D) -> (2N,) index of each row's partner."""
    return torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)


class _InstanceDiscrimination(torch.autograd.Function):
    """`instance_discrimination` on unit rows (2N, D), with its gradient in closed form.

    Detached keys make the rows independent, so value and gradient come block by block from slices of the (2N, 2N)
    cosines, and no such matrix is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: float, negative_weight: float) -> Tensor:
        partner = _partners(rows)
        block = _block(rows)
        total, gradients = rows.new_zeros(()), []
        for start in range(0, len(rows), block):
            own = torch.arange(start, min(start + block, len(rows)), device=rows.device).unsqueeze(1)  # (B, 1)
            logits = product(rows[start : start + block] / temperature, rows.T).scatter_(1, own, -math.inf)  # (B, 2N)
            losses, slope = _instance_block(logits, partner[start : start + block].unsqueeze(1), negative_weight)
            total += losses.sum()
            if ctx.needs_input_grad[0]:
                gradients.append(product(slope, rows))  # (B, D)
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
