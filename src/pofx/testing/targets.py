"""Unnormalised densities whose moments are known: what variational inference and samplers are held against.

Each is log p up to a constant that is left out as users leave it out, with E_p[f] of some functions f, and log Z.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Moment = tuple[float, float]  # mean and standard deviation
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class KnownTarget:
    """A density and what is known of it.

    Args:
        log_density: rows (N, D) to log p + constant, (N,).
        space: its domain, as `pofx.approximate` takes it.
        log_z: log of the integral.
        features: rows (N, D) to the functions f whose moments are known, (N, F).
        exact: name of each f to its mean and standard deviation under p.
    """

    log_density: Callable[[Tensor], Tensor]
    space: int | Mapping[str, str | tuple[float, float]]
    log_z: float
    features: Callable[[Tensor], Tensor]
    exact: Mapping[str, Moment]


def banana() -> KnownTarget:
    """x0 ~ N(0, 2²), x1 ~ N((x0² - 4) / 2, 1): E x1 = 0 and Var x1 = Var(x0²) / 4 + 1 = 9."""

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * ((x[:, 0] / 2).square() + (x[:, 1] - 0.5 * (x[:, 0].square() - 4)).square())

    return KnownTarget(log_density, 2, LOG_2PI + math.log(2), lambda x: x, {"x0": (0.0, 2.0), "x1": (0.0, 3.0)})


def gaussian(dim: int = 10) -> KnownTarget:
    """N(μ, Σ) with μ_i = i - 4, standard deviations from 1/2 to 3 and correlations 0.9^|i - j|."""
    i = torch.arange(dim, dtype=torch.float64)
    mu, sd = i - 4, torch.linspace(0.5, 3.0, dim, dtype=torch.float64)
    covariance = sd[:, None] * sd * 0.9 ** (i[:, None] - i).abs()
    precision = torch.linalg.inv(covariance)

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (((x - mu) @ precision) * (x - mu)).sum(-1)

    exact = {f"x{d}": (float(m), float(s)) for d, (m, s) in enumerate(zip(mu, sd, strict=True))}
    return KnownTarget(log_density, dim, 0.5 * (dim * LOG_2PI + float(torch.logdet(covariance))), lambda x: x, exact)


def funnel(dim: int = 10) -> KnownTarget:
    """v ~ N(0, 3²), x_i ~ N(0, e^v): the scale of the others goes from 0.01 to 90.

    x_i² has the mean e^4.5 and a variance of 3 e^18: no number of draws that fits into a memory tells it. log|x_i| has moments that can be
    told: v / 2 + log|n| with n normal, whose logarithm has the mean -(γ + log 2) / 2 and the variance π² / 8.

    Source: Neal, "Slice sampling", Annals of Statistics 31(3), 2003.
    """

    def log_density(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return -0.5 * ((v / 3).square() + (rest.square() * (-v).exp()[:, None]).sum(-1) + (dim - 1) * v)

    euler = 0.5772156649015329
    log_size = (-(euler + math.log(2)) / 2, math.sqrt(9 / 4 + math.pi**2 / 8))
    exact = {"v": (0.0, 3.0)} | {f"log|x{d}|": log_size for d in range(1, dim)}
    return KnownTarget(log_density, dim, 0.5 * dim * LOG_2PI + math.log(3), lambda x: torch.cat((x[:, :1], x[:, 1:].abs().log()), 1), exact)


EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


def eight_schools() -> KnownTarget:
    """mu ~ N(0, 5²), tau ~ half-Cauchy(5), theta_j ~ N(mu, tau²), y_j ~ N(theta_j, sigma_j²): the posterior, not re-parameterised.

    Given tau all else is normal, so the exact moments are integrals over tau alone; see `_schools`.

    Source: Rubin, "Estimation in parallel randomized experiments", Journal of Educational Statistics 6(4), 1981; the priors: Gelman,
    "Prior distributions for variance parameters in hierarchical models", Bayesian Analysis 1(3), 2006, with 5 for 25.
    """

    def log_density(x: Tensor) -> Tensor:
        mu, tau, theta = x[:, 0], x[:, 1], x[:, 2:]
        prior = -0.5 * (mu / 5).square() - torch.log1p((tau / 5).square())
        spread = -0.5 * ((theta - mu[:, None]) / tau[:, None]).square().sum(-1) - 8 * tau.log()
        return prior + spread - 0.5 * ((EFFECT.to(x) - theta) / ERROR.to(x)).square().sum(-1)

    log_z, exact = _schools()
    space = {"mu": "real", "tau": "positive"} | {f"theta{j}": "real" for j in range(1, 9)}
    return KnownTarget(log_density, space, log_z, lambda x: x, exact)


def _schools() -> tuple[float, dict[str, Moment]]:
    """log Z and the moments, by the trapezoidal rule over t = log tau.

    y_j | mu, tau ~ N(mu, s_j²) with s_j² = sigma_j² + tau², so mu | tau, y ~ N(m, 1 / V), V = 1 / 25 + sum 1 / s_j²,
    m = sum (y_j / s_j²) / V. theta_j | mu, tau, y ~ N(mu + b_j (y_j - mu), b_j sigma_j²) with b_j = tau² / s_j²: over mu its mean is
    m + b_j (y_j - m), its variance b_j sigma_j² + (1 - b_j)² / V. The integrand falls off geometrically in t both ways, so the
    rule's error is negligible.
    """
    t = torch.linspace(-40.0, 15.0, 20_001, dtype=torch.float64)[:, None]
    tau = t.exp()
    s2 = ERROR.square() + tau.square()
    V = 1 / 25 + (1 / s2).sum(1, keepdim=True)
    m = (EFFECT / s2).sum(1, keepdim=True) / V
    # The density's pair of normals for theta_j lacks both 1 / sqrt(2π) and 1 / sigma_j: it integrates to sqrt(2π) sigma_j / s_j exp(...).
    fit = -0.5 * ((EFFECT.square() / s2).sum(1, keepdim=True) - m.square() * V) + 0.5 * (2 * math.pi / V).log()
    gauss = 0.5 * (2 * math.pi * ERROR.square() / s2).log().sum(1, keepdim=True)
    log_f = fit + gauss - torch.log1p((tau / 5).square()) + t
    w = log_f.softmax(0)
    log_z = float(log_f.logsumexp(0) + (t[1] - t[0]).log())
    b = tau.square() / s2
    means = {"mu": m, "tau": tau} | {f"theta{j + 1}": (m + b * (EFFECT - m))[:, j : j + 1] for j in range(8)}
    spreads = {"mu": 1 / V, "tau": torch.zeros_like(tau)}
    spreads |= {f"theta{j + 1}": (b * ERROR.square() + (1 - b).square() / V)[:, j : j + 1] for j in range(8)}
    return log_z, {name: _moment(w, means[name], spreads[name]) for name in means}


def _moment(w: Tensor, mean: Tensor, variance: Tensor) -> Moment:
    """Of a mixture over tau, by the laws of total expectation and variance."""
    whole = float((w * mean).sum())
    return whole, math.sqrt(float((w * (variance + (mean - whole).square())).sum()))


TARGETS = {"gaussian": gaussian, "banana": banana, "funnel": funnel, "eight schools": eight_schools}
