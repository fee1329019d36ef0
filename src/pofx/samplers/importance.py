"""Importance sampling: draws of q, weighted by w = p / q, stand for p; p may lack its constant.

Log-weights are (K, *batch): K draws for each entry of the batch. The mean of w is an unbiased estimate of the
constant, Z = integral of p; every other answer is a ratio, biased by O(1 / K).

Source: Robert and Casella, "Monte Carlo statistical methods", Springer, 2nd ed. 2004, chapter 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pofx.errors import DataError
from pofx.samplers.diagnostics import LogWeights, PerBatch, fit_pareto, pareto_k, tail_length, weight_ess
from pofx.types import Generator

Values = Float[Tensor, "K *event"]
Shares = Float[Tensor, " Q"]
Quantiles = Float[Tensor, "Q *event"]
Positions = Int[Tensor, "N *batch"]


@dataclass(frozen=True)
class Weighted:
    """K draws x_k and their log-weights log p(x_k) - log q(x_k), in nats.

    Args:
        x: draws of q, (K, *event).
        log_w: (K,); -inf is a weight of 0.

    Raises:
        DataError: no draw, another number of weights, a weight that is NaN or infinite, or all of them 0.
    """

    x: Values
    log_w: Float[Tensor, " W"]

    def __post_init__(self) -> None:
        if not len(self.x) or len(self.x) != len(self.log_w):
            raise DataError(f"importance sampling needs a log-weight a draw, got {len(self.x)} draws and {len(self.log_w)} weights")
        _check_weights(self.log_w)

    @property
    def log_evidence(self) -> tuple[Tensor, Tensor]:
        """log Z and its standard error, as `log_mean`."""
        return log_mean(self.log_w)

    @property
    def ess(self) -> Tensor:
        """(sum w)^2 / sum w^2, from 1 to K."""
        return weight_ess(self.log_w)

    @property
    def k_hat(self) -> Tensor:
        """Pareto's k-hat; over 0.7 nothing here is to be trusted."""
        return pareto_k(self.log_w)

    def expectation(self, f: Values) -> tuple[Tensor, Tensor]:
        """E_p f = sum_k W_k f_k with W = w / sum w, and its standard error sqrt(sum_k W_k^2 (f_k - mean)^2).

        Args:
            f: values at the draws, (K, *event).
        """
        share = self.log_w.softmax(0).reshape(-1, *[1] * (f.ndim - 1))
        mean = (share * f).sum(0)
        return mean, (share * (f - mean)).square().sum(0).sqrt()

    def resample(self, n: int, *, generator: Generator) -> Values:
        """n draws, nearly of p (sampling-importance-resampling): each x_k turns up n W_k times on average.

        They repeat one another where weights are uneven: worth about `ess` independent draws. In no order.

        Source: Rubin, "Using the SIR algorithm to simulate posterior distributions", Bayesian Statistics 3, 1988.
        """
        which = systematic(self.log_w, n, generator=generator)
        return self.x[which[torch.randperm(n, generator=generator, device=which.device)]]

    def quantile(self, probabilities: Shares) -> Quantiles:
        """The least x_k, entry by entry, at which the weights of the draws up to it reach each share."""
        x, place = self.x.sort(0)
        upto = self.log_w.softmax(0)[place].cumsum(0)
        at = (upto < probabilities.reshape(-1, 1, *[1] * (x.ndim - 1)) * upto[-1]).sum(1).clamp_max(len(x) - 1)
        return x.gather(0, at)

    def metropolis(self, chains: int, *, generator: Generator) -> Values:
        """Independence Metropolis-Hastings: chains that go along K / chains draws of their own, (steps, chains, *event).

        From its state, of weight w, a chain goes to its next draw with probability min(1, w_k / w): in the long run its states are of p. It
        starts at a draw of q, so the first steps are not; it stands still for as long as it is at a weight that q has no match for.

        Source: Tierney, "Markov chains for exploring posterior distributions", Annals of Statistics 22(4), 1994.
        """
        along = torch.arange(len(self.x) // chains * chains, device=self.x.device).reshape(-1, chains)
        log_u = torch.rand(along.shape, generator=generator, dtype=self.log_w.dtype, device=self.x.device).log()
        path = [along[0]]
        for proposal, chance in zip(along[1:], log_u[1:], strict=True):
            moves = chance < self.log_w[proposal] - self.log_w[path[-1]]
            path.append(torch.where(moves, proposal, path[-1]))
        return self.x[torch.stack(path)]


def importance(
    log_p: Callable[[Tensor], Tensor],
    draw_q: Callable[[int, Generator], Tensor],
    log_q: Callable[[Tensor], Tensor],
    n: int,
    *,
    generator: Generator,
) -> Weighted:
    """n draws x of q with log-weights log p(x) - log q(x).

    q has to reach wherever p does; k-hat says when its tails are too thin, and nothing says when it misses a mode.

    Args:
        log_p: log-density of rows in nats, with or without its constant.
        draw_q: n and a generator to n rows.
        log_q: log-density of those rows under q.
        n: how many draws.
        generator: of the draws.

    Raises:
        DataError: as `Weighted`.
    """
    x = draw_q(n, generator)
    return Weighted(x, log_p(x) - log_q(x))


def from_islands(
    x: Float[Tensor, "islands particles D"], log_z: Float[Tensor, " islands"], n: int, *, generator: Generator
) -> Float[Tensor, "N D"]:
    """n particles in no order, each island as often as its estimate Z of the evidence says.

    Args:
        x: particles of independent islands; all of an island weigh the same.
        log_z: of each island.
        n: how many.
        generator: of the choice.
    """
    which = systematic(log_z.repeat_interleave(x.shape[1]), n, generator=generator)
    return x.flatten(0, 1)[which[torch.randperm(n, generator=generator, device=which.device)]]


def log_mean(log_w: LogWeights) -> tuple[PerBatch, PerBatch]:
    """log (1/K) sum_k w_k and its standard error by the delta method, sd(w) / (mean(w) sqrt K).

    The mean is unbiased, so its logarithm lies below the truth by about error^2 / 2. The error of one draw is
    infinite, and so is that of weights that are all 0. It is itself too small where k-hat is over 0.7.
    """
    k = len(log_w)
    value = log_w.logsumexp(0) - math.log(k)
    if k < 2:
        return value, torch.full_like(value, torch.inf)
    error = (log_w - log_w.logsumexp(0)).exp().std(0) * math.sqrt(k)
    return value, torch.where(value == -torch.inf, torch.inf, error)


def systematic(log_w: LogWeights, n: int, *, generator: Generator) -> Positions:
    """n positions, position k floor(n W_k) or ceil(n W_k) times, n W_k on average; uniform where every weight is 0.

    One uniform number u for each entry of the batch: the positions are where u + i, i = 0 ... n - 1, fall among
    the cumulated n W. They come sorted. Cost: K + n log K.

    Source: Carpenter, Clifford and Fearnhead, "Improved particle filter for nonlinear problems", IEE Proceedings
    Radar, Sonar and Navigation 146(1), 1999.
    """
    k, batch = len(log_w), log_w.shape[1:]
    dead = (log_w == -torch.inf).all(0)
    upto = torch.where(dead, 0.0, log_w).softmax(0).reshape(k, -1).T.cumsum(-1).contiguous()  # (batch, K)
    comb = torch.arange(n, dtype=upto.dtype, device=upto.device)
    u = torch.rand(len(upto), 1, generator=generator, dtype=upto.dtype, device=upto.device)
    which = torch.searchsorted(upto, (comb + u) / n * upto[:, -1:], right=True).clamp_max(k - 1)
    return which.T.reshape(n, *batch)


def smoothed(log_w: LogWeights) -> tuple[LogWeights, PerBatch]:
    """Pareto-smoothed log-weights and k-hat: the tail's weights become the quantiles of the law fitted to them.

    None grows beyond the largest raw weight. Means get a little bias and lose much of their variance; left as they are
    where k-hat is not finite. Source: as `pareto_k`.
    """
    k_hat, n = pareto_k(log_w), tail_length(len(log_w))
    if n < 1 or not bool(k_hat.isfinite().any()):
        return log_w, k_hat
    top = log_w.amax(0)
    ordered, place = (log_w - top).sort(0)
    cut = ordered[-n - 1].exp()
    k, sigma = fit_pareto(ordered[-n:].exp() - cut)
    p = (torch.arange(1, n + 1, dtype=log_w.dtype, device=log_w.device) - 0.5) / n
    log_survival = torch.log1p(-p).reshape(-1, *[1] * (log_w.ndim - 1))
    tail = (cut + sigma * torch.expm1(-k * log_survival) / k).log().clamp_max(0)
    smooth = torch.cat((ordered[:-n], torch.where(k_hat.isfinite(), tail, ordered[-n:])))
    return torch.empty_like(log_w).scatter(0, place, smooth) + top, k_hat


def _check_weights(log_w: Tensor) -> None:
    bad = (log_w.isnan() | (log_w == torch.inf)).nonzero()
    if len(bad):
        raise DataError(f"log-weight {int(bad[0])} is {float(log_w[bad[0]])}: log p and log q must be numbers wherever q draws")
    if bool((log_w == -torch.inf).all()):
        raise DataError("every weight is 0: no draw of q falls where p is positive; draw more, or from a wider q")
