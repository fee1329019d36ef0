"""Whether draws can be trusted: R-hat, effective sample size and Pareto k-hat, functions of draws and of log-weights.

Draws come as (steps, chains, *event), log-weights as (K, *batch): what repeats stands first. An answer has one
number for each entry of the event or batch.

A constant has no R-hat and no effective size: NaN. Chains that each stand still at a point of their own have
an infinite R-hat.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.errors import DataError

Draws = Float[Tensor, "steps chains *event"]
PerEvent = Float[Tensor, "*event"]
LogWeights = Float[Tensor, "K *batch"]
PerBatch = Float[Tensor, "*batch"]

_FEWEST = 4  # steps: a half chain needs two for a variance
_TAIL = 5  # the fewest weights a Pareto tail is fitted to


def rhat(draws: Draws) -> PerEvent:
    """sqrt(var+ / W), the larger of that of the ranks and that of the ranks of |x - median|; 1 where chains agree.

    W is the variance within half chains and var+ that of all draws, both of z = Phi^-1((rank - 3/8) / (S + 1/4)), so
    neither needs to exist for x itself. Above 1.01 the chains have not mixed. It is blind to a mode that no chain has
    seen, and NaN for a constant.

    Cost: two sorts of all draws. Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization,
    folding, and localization: an improved R-hat", Bayesian Analysis 16(2), 2021, arXiv:1903.08008.

    Raises:
        DataError: under 4 steps.
    """
    _check(draws)
    folded = (draws - _quantile(draws, 0.5)).abs()
    return torch.fmax(_plain_rhat(_split(_rank_normalised(draws))), _plain_rhat(_split(_rank_normalised(folded))))


def bulk_ess(draws: Draws) -> PerEvent:
    """S / (1 + 2 sum_t rho_t) of the rank-normalised half chains: how many independent draws the bulk is worth.

    The sum over lags is Geyer's initial monotone sequence. Under 400 in all, R-hat and errors are themselves
    unsure. At most S log10(S) (antithetic chains). Cost: a sort and a Fourier transform of all draws.

    Source: as `rhat`; Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7(4), 1992.

    Raises:
        DataError: under 4 steps.
    """
    _check(draws)
    return _ess(_split(_rank_normalised(draws)))


def tail_ess(draws: Draws) -> PerEvent:
    """The smaller effective size of the indicators x <= q_0.05 and x <= q_0.95.

    Where an indicator is constant, as may be with few levels, the other one's. Source: as `rhat`.

    Raises:
        DataError: under 4 steps.
    """
    _check(draws)
    low, high = (_ess(_split((draws <= _quantile(draws, q)).to(draws))) for q in (0.05, 0.95))
    return torch.fmin(low, high)


def mean_ess(draws: Draws) -> PerEvent:
    """`bulk_ess` of the draws themselves, not of their ranks: the one that belongs to the mean; x needs a variance.

    Raises:
        DataError: under 4 steps.
    """
    _check(draws)
    return _ess(_split(draws))


def mean_error(draws: Draws) -> PerEvent:
    """sd(x) / sqrt(ESS of x): the standard error of the mean of all draws, in units of x.

    0 for a constant. It is honest only once R-hat is near 1. Source: as `rhat`.

    Raises:
        DataError: under 4 steps.
    """
    _check(draws)
    error = (_variance(draws.flatten(0, 1)) / _ess(_split(draws))).sqrt()
    return torch.where(_constant(draws), 0.0, error)


def weight_ess(log_w: LogWeights) -> PerBatch:
    """(sum w)^2 / sum w^2, from 1 (one weight has it all) to K (all equal); 0 where every weight is 0.

    Source: Kong, "A note on importance sampling using standardized weights", University of Chicago, 1992.
    """
    relative = (log_w - _greatest(log_w)).exp()
    return relative.sum(0).square() / relative.square().sum(0).clamp_min(torch.finfo(log_w.dtype).tiny)


def pareto_k(log_w: LogWeights) -> PerBatch:
    """The shape k-hat of a generalised Pareto law fitted to the largest min(K / 5, 3 sqrt K) weights.

    1 / k moments of w exist: over 0.7 a weighted mean is not to be trusted, over 1 it need not exist at all. -inf where
    the largest weights are equal (bounded weights); inf where one weight has it all, and with under 25 draws, which
    promise nothing; NaN where every weight is 0.

    Cost: a sort, and about 30 + K^(1/4) passes over the tail. Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto
    smoothed importance sampling", JMLR 25(72), 2024, arXiv:1507.02646; the fit: Zhang and Stephens, "A new and
    efficient estimation method for the generalized Pareto distribution", Technometrics 51(3), 2009, with the first
    paper's prior worth 10 weights at k = 1/2.
    """
    n = tail_length(len(log_w))
    if n < _TAIL:
        return torch.full_like(log_w[0], torch.inf)
    ordered = (log_w - _greatest(log_w)).exp().sort(0).values
    k = fit_pareto(ordered[-n:] - ordered[-n - 1])[0]
    k = torch.where(ordered[-1] == ordered[-n], -torch.inf, k)
    return torch.where((log_w == -torch.inf).all(0), torch.nan, k)


def tail_length(k: int) -> int:
    """ceil(min(K / 5, 3 sqrt K)): how many of K weights are called the tail."""
    return math.ceil(min(0.2 * k, 3 * math.sqrt(k)))


def fit_pareto(excess: LogWeights) -> tuple[PerBatch, PerBatch]:
    """k and sigma of the density (1 + k y / sigma)^(-1/k - 1) / sigma, from excesses y sorted upwards along the first axis.

    theta = -k / sigma is averaged under its profile likelihood on a grid, so nothing is searched. k is inf where a
    quarter of the excesses are 0 beside the largest. Source: as `pareto_k`.
    """
    n = len(excess)
    quartile, largest = excess[max(0, math.floor(n / 4 + 0.5) - 1)], excess[-1]
    size = 30 + math.isqrt(n)
    j = torch.arange(1, size + 1, dtype=excess.dtype, device=excess.device)
    grid = (1 - (size / (j - 0.5)).sqrt()) / 3
    theta = 1 / largest + grid.reshape(-1, *[1] * largest.ndim) / quartile
    k = torch.stack([torch.log1p(-t * excess).mean(0) for t in theta])
    log_likelihood = n * ((-theta / k).log() - k - 1)
    best = (log_likelihood.softmax(0) * theta).sum(0)
    k = torch.log1p(-best * excess).mean(0)
    shrunk = (n * k + 10 * 0.5) / (n + 10)
    return torch.where(quartile > 0, shrunk, torch.inf), -k / best


def _check(draws: Tensor) -> None:
    if len(draws) < _FEWEST:
        raise DataError(f"R-hat and effective sizes need at least {_FEWEST} steps of each chain, got {len(draws)}")


def _constant(draws: Tensor) -> Tensor:
    return (draws == draws[0, 0]).flatten(0, 1).all(0)


def _greatest(log_w: Tensor) -> Tensor:
    """The largest log-weight, 0 in place of -inf: the weights relative to it are then 0, not NaN."""
    top = log_w.amax(0)
    return torch.where(top == -torch.inf, 0.0, top)


def _split(draws: Tensor) -> Tensor:
    """Each chain's two halves as chains of their own, so that a chain that drifts disagrees with itself."""
    half = len(draws) // 2
    return torch.cat((draws[:half], draws[-half:]), dim=1)


def _rank_normalised(draws: Tensor) -> Tensor:
    """Phi^-1((rank - 3/8) / (S + 1/4)) over all steps and chains; ties share their mean rank; NaN stays NaN."""
    flat = draws.reshape(draws.shape[0] * draws.shape[1], -1).T.contiguous()  # (events, S)
    ordered = flat.sort(-1).values
    below, upto = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    rank = (below + upto + 1).to(draws) / 2
    z = torch.special.ndtri((rank - 3 / 8) / (flat.shape[-1] + 1 / 4))
    return torch.where(flat.isfinite().all(-1, keepdim=True), z, torch.nan).T.reshape(draws.shape)


def _quantile(draws: Tensor, q: float) -> Tensor:
    """The q-quantile of all steps and chains, interpolated; torch.quantile takes 2^24 numbers at most."""
    ordered = draws.flatten(0, 1).sort(0).values
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place - math.floor(place)) * (high - low)


def _variance(x: Tensor) -> Tensor:
    """The variance along the first axis; of equal numbers exactly 0, which rounding of their mean would spoil."""
    return (x - x[:1]).var(0)


def _means(chains: Tensor) -> Tensor:
    return chains[0] + (chains - chains[:1]).mean(0)


def _plain_rhat(chains: Tensor) -> Tensor:
    n, within = len(chains), _variance(chains).mean(0)
    return ((n - 1) / n + _variance(_means(chains)) / within).sqrt()


def _ess(chains: Tensor) -> Tensor:
    """S / tau, with tau = -1 + 2 sum of the pairs rho_2k + rho_2k+1 while positive, made monotone; S log10 S at most."""
    n, m = chains.shape[:2]
    rho = _autocorrelation(chains)
    pairs = rho[0 : n - 1 : 2] + rho[1:n:2]  # Geyer: positive and falling for a reversible chain
    alive = (pairs > 0).cumprod(0)
    count = alive.sum(0)
    # What is left of the first pair that fell to 0 or below: its even lag, if positive; lowers the variance for antithetic chains.
    even = rho[::2].gather(0, count.clamp_max(len(pairs) - 1)[None])[0]
    left = torch.where(count < len(pairs), even.clamp_min(0), 0.0)
    tau = -1 + 2 * (pairs.cummin(0).values * alive).sum(0) + left
    return torch.where(rho[0].isfinite(), n * m / tau.clamp_min(1 / math.log10(n * m)), torch.nan)


def _autocorrelation(chains: Tensor) -> Tensor:
    """rho_t = 1 - (W - mean over chains of the autocovariance at lag t) / var+; NaN where nothing moves."""
    n = len(chains)
    centred = chains - chains[:1]
    centred = centred - centred.mean(0)
    power = torch.fft.rfft(centred, 2 * n, dim=0).abs().square().mean(1)  # padded: no wrapping round
    covariance = torch.fft.irfft(power, 2 * n, dim=0)[:n] / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + _variance(_means(chains))
    rho = 1 - (within - covariance) / torch.where(total > 0, total, torch.nan)
    rho[0] = torch.where(total > 0, 1.0, torch.nan)
    return rho
