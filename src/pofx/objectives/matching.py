"""Flow matching: learning a speed that carries one law into another, without solving an ODE."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.objectives.assignment import assign
from pofx.types import Generator

_TOGETHER = 64  # the cost grows with the cube of it

Rows = Float[Tensor, "N D"]
Column = Float[Tensor, "N 1"]
Speed = Callable[[Tensor, Tensor], Tensor]  # t (N, 1), z (N, D) -> (N, D)


def flow_matching(speed: Speed, u: Rows, x: Rows, t: Column) -> Float[Tensor, " N"]:
    """|v(t, z_t) - (x - u)|^2 with z_t = (1 - t) u + t x: one number a pair.

    Over pairs and times its least is at v(t, z) = E[x - u | z_t = z], the speed that carries the law of u at t = 0 into that of x at
    t = 1. There it is the mean of Var[x - u | z_t], not 0: of the distance from the best speed the number alone says nothing.

    Cost: one evaluation of v, a row.

    Source: Lipman, Chen, Ben-Hamu, Nickel and Le, "Flow matching for generative modeling", ICLR 2023, arXiv:2210.02747.

    Args:
        speed: v.
        u: of the base.
        x: data, a row for each of u.
        t: from 0 to 1.
    """
    return (speed(t, torch.lerp(u, x, t)) - (x - u)).square().sum(-1)


def stratified(x: Rows, *, generator: Generator = None) -> Column:
    """A time for each row, uniform on (0, 1), one in each of N equal parts, in random order: the mean over them varies less."""
    n = len(x)
    part = torch.randperm(n, generator=generator, device=x.device)
    within = torch.rand(n, generator=generator, dtype=x.dtype, device=x.device)
    return ((part + within) / n)[:, None]


def paired(u: Rows, x: Rows) -> Rows:
    """The rows of u in an order in which sum |u_i - x_i|^2 is least within every 64 rows: the plan of optimal transport of a small batch.

    Straightens the paths that matching learns, so that fewer steps follow them. With few rows it is between the independent pairing and
    the plan between the two laws. It knows no condition: rows of p(x | c) must not be paired over different c.

    Cost: that of `assign`, 7 ms for each 64 rows: several times that of a small net's step.

    Source: Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport", TMLR 2024,
    arXiv:2302.00482.
    """
    parts = zip(u.split(_TOGETHER), x.split(_TOGETHER), strict=True)
    return torch.cat([v[assign(torch.cdist(w, v).square())] for v, w in parts])
