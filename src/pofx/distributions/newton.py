"""Weighted maximum likelihood for laws without a closed form: Newton's method on a few parameters, many at once."""

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from pofx.distributions.base import Law

Objective = Callable[[Tensor], Tensor]  # parameters (*batch, P) to one number each (*batch)

_FIRST_STEPS = 100  # from scratch
_MORE_STEPS = 2  # from a start that is already good, as inside EM
_TRIES = 8  # of one step, each damped ten times as much
_FEW = 64  # values that are not worth sorting
_SETTLED = 1e-12  # promised gain, in nats a row, at which a batch entry is done


class NewtonFit(Law):
    """A law whose `fit` climbs sum_n w_n log p(x_n) by Newton's method.

    Equal values of a column are met once, with their weights added: a rounded or counted column of a million
    rows costs as much as its distinct values.
    """

    @abc.abstractmethod
    def _start(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        """Where to begin, from moments: (D, K, width)."""

    def _bounds(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The least and greatest parameters (D, 1, width): what keeps a scale off its floor."""
        least = x.new_full((x.shape[1], 1, self.width), -torch.inf)
        return least, -least

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        values, w = distinct(x, seen, weights)
        share = w / w.sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)

        def log_likelihood(parameters: Tensor) -> Tensor:
            return (share * self._log_prob(parameters[:, :, None], values[:, None])).sum(-1)

        begin, steps = (self._start(x, seen, weights), _FIRST_STEPS) if start is None else (start, _MORE_STEPS)
        return maximise(log_likelihood, begin, self._bounds(x, seen), steps)


def distinct(x: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of each column (D, U) and their total weights (D, K, U); a few values are left as they are.

    Args:
        x: (N, D).
        seen: (N, D), 0 where the value does not count.
        weights: (N, K), or (N, D, K) where they differ by column.
    """
    if len(x) <= _FEW:
        own = seen[..., None] * (weights[:, None] if weights.ndim == 2 else weights)
        return x.mT, own.permute(1, 2, 0)
    values, totals = [], []
    for d in range(x.shape[1]):
        v, where = torch.unique(x[:, d], return_inverse=True)
        own = (weights if weights.ndim == 2 else weights[:, d]) * seen[:, d, None]
        values.append(v)
        totals.append(own.new_zeros(len(v), own.shape[1]).index_add_(0, where, own))
    longest = max(len(v) for v in values)
    # Padding repeats the first value, with weight 0.
    padded = torch.stack([torch.cat((v, v[:1].expand(longest - len(v)))) for v in values])
    return padded, torch.stack([torch.cat((w, w.new_zeros(longest - len(w), w.shape[1]))) for w in totals]).mT


def maximise(objective: Objective, start: Tensor, bounds: tuple[Tensor, Tensor], steps: int) -> Tensor:
    """argmax f_b(theta_b) of many small problems at once, by damped Newton steps inside a box.

    A step is taken only where f rises, so no entry ends below its start. Negative curvature is met by the
    absolute values of the Hessian's eigenvalues, damping by Levenberg and Marquardt's rule.

    Args:
        objective: f, of parameters (*batch, P), entry by entry.
        start: (*batch, P).
        bounds: least and greatest parameters, broadcast against start.
        steps: at most.
    """
    theta = start.detach().clamp(*bounds)
    damping = theta.new_full(theta.shape[:-1], 1e-3)
    for _ in range(steps):
        value, gradient, hessian = _derivatives(objective, theta)
        ascent = _Ascent(*_held(theta, gradient, hessian, bounds))
        rising = (gradient * ascent(damping)).sum(-1) > _SETTLED
        for _ in range(_TRIES):
            proposal = torch.where(rising[..., None], (theta + ascent(damping)).clamp(*bounds), theta)
            better = objective(proposal) > value
            theta = torch.where(better[..., None], proposal, theta)
            damping = torch.where(better, damping / 10, damping * 10).clamp_min(1e-9)
            rising = rising & ~better
            if not rising.any():
                break
        if not better.any():
            break
    return theta


def _derivatives(objective: Objective, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value (*batch), gradient (*batch, P) and Hessian (*batch, P, P) of every entry; entries do not mix."""
    with torch.enable_grad():
        theta = theta.requires_grad_()
        value = objective(theta)
        (gradient,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
        rows = [torch.autograd.grad(g.sum(), theta, retain_graph=True)[0] for g in gradient.unbind(-1)]
    theta.requires_grad_(False)
    return value.detach(), gradient.detach().nan_to_num(), torch.stack(rows, dim=-2).nan_to_num()


def _held(theta: Tensor, gradient: Tensor, hessian: Tensor, bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The derivatives with the coordinates that push against a bound taken out of the problem."""
    least, greatest = bounds
    free = ~(((theta <= least) & (gradient < 0)) | ((theta >= greatest) & (gradient > 0)))
    both = free[..., None] & free[..., None, :]
    return torch.where(free, gradient, 0.0), torch.where(both, hessian, -torch.eye(theta.shape[-1]).to(hessian))


class _Ascent:
    """(|H| + damping)^-1 g, with the parameters scaled so that their own units do not matter."""

    def __init__(self, gradient: Tensor, hessian: Tensor) -> None:
        self.unit = hessian.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-30).rsqrt()
        e, self.v = torch.linalg.eigh(self.unit[..., None] * hessian * self.unit[..., None, :])
        self.curvature, self.along = e.abs(), (self.v.mT @ (self.unit * gradient)[..., None])[..., 0]

    def __call__(self, damping: Tensor) -> Tensor:
        along = self.along / (self.curvature + damping[..., None]).clamp_min(1e-12)
        return self.unit * (self.v @ along[..., None])[..., 0]
