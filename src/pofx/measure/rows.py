"""Rows of any domain as points of one space, so that distances between them make sense."""

import torch
from torch import Tensor

from pofx.domain import Domain
from pofx.nets.features import Features
from pofx.types import Generator


def features(x: Tensor, domain: Domain, like: Tensor) -> Tensor:
    """Rows (N, D) as features (N, W): standardised numbers, one-hot levels, missing cells at the mean.

    Means and scales are those of the rows `like`, usually the training rows. The entries of an image share
    one scale: a pixel that is almost always 0 must not weigh more than the others.
    """
    see = Features(domain, mask=False).fit(like)
    if not domain.is_table:
        see.scale.fill_(float((like - like.nanmean(0)).square().nanmean().sqrt()) or 1.0)
    return see(x)


def with_the_holes_of(samples: Tensor, rows: Tensor, *, generator: Generator) -> Tensor:
    """Samples with the missing cells of rows drawn at random, so that the holes tell nothing apart.

    Right when cells are missing completely at random; nothing is changed when no cell of `rows` is.
    """
    holes = rows.isnan()
    if not bool(holes.any()):
        return samples
    drawn = torch.randint(len(rows), (len(samples),), generator=generator, device=rows.device)
    return samples.masked_fill(holes[drawn], torch.nan)
