"""The probability-flow ODE as a bijection: log-densities, codes and the way back.

dy / d ln s = y - D(y, s) carries the rows of p_s to those of any other level and back. Its density is that of a model of its own:
with a D that is no exact denoiser, p_ODE is neither the law of the stochastic solvers nor what the variational bound bounds.

Steps are taken of x = y cos(a) along the angle a = atan(s), see `denoising.turning`. With Runge's method of order 4, on mixtures
of deviation 0.2 and 0.04 (of a whole of 1), that was worth twice the steps of ln s up to s = 10, and more up to 80. Rows are centred and
have about unit variance.

Source: Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021, arXiv:2011.13456. The
coordinates of the steps are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from pofx.samplers.denoising import Denoise, Rows, turning
from pofx.samplers.densities import check_count
from pofx.samplers.levels import TURN, check_range
from pofx.transforms.ode import Method, Solution, Trace, carry, integrate
from pofx.types import Generator


@dataclass(frozen=True)
class FlowLogProb:
    """A log-density by the probability-flow ODE.

    Args:
        value: log p, in nats.
        error: standard error over the probes of the trace; 0 where it is exact. The solver's error is not in it.
        evaluations: of D, for each row; each comes with E vector-Jacobian products, or one a probe.
    """

    value: Float[Tensor, " N"]
    error: Float[Tensor, " N"]
    evaluations: Int[Tensor, " N"]


def ode_log_prob(
    denoise: Denoise,
    x: Rows,
    *,
    s_min: float,
    s_max: float,
    log_prior: Callable[[Tensor], Tensor],
    trace: Trace = "exact",
    method: Method | None = None,
    generator: Generator = None,
) -> FlowLogProb:
    """log p(x) = log prior(y(s_max)) + integral of (E - tr dD/dy) d ln s from s_min to s_max, with y(s_min) = x.

    It is the log-density of the noised data at s_min, which is that of the data where s_min is small against every scale of them.
    At s_max the prior must be what the data have become: N(m, C + s_max^2 I) with their mean m and covariance C. N(0, s_max^2 I) in its
    place costs some rows about 3 |m| / s_max nats: centre the data.

    Args:
        denoise: D, which torch can differentiate in y.
        x: (N, E).
        s_min: where the data are taken to be, above 0.
        s_max: where the prior is.
        log_prior: log-density of rows at s_max, in nats.
        trace: "exact", E vector-Jacobian products each evaluation, for E up to about 64; or a number of probes, at least 2.
        method: None: `DormandPrince` at its own tolerances, `RungeKutta(64)` for a cost known beforehand.
        generator: of the probes.

    Raises:
        OptionError: no 0 < s_min < s_max, or fewer than 2 probes, whose spread is the standard error.
        DataError: see the method.
    """
    check_range(s_min, s_max)
    if trace != "exact":
        check_count("probes", trace, 2)
    first, last = math.atan(s_min), math.atan(s_max)
    start = x * math.cos(first)
    carried = carry(turning(denoise), start, _place(first), _place(last), trace=trace, method=method, generator=generator)
    log_det = carried.log_det + x.shape[1] * math.log(math.cos(first) / math.cos(last))
    return FlowLogProb(log_prior(carried.y / math.cos(last)) + log_det, carried.error, carried.evaluations)


def encode(denoise: Denoise, x: Rows, *, s_min: float, s_max: float, method: Method | None = None) -> Solution:
    """y(s_max) of y(s_min) = x: the code of each row, about N(0, s_max^2 I) where s_max is far above the spread of centred data.

    Args:
        denoise: D.
        x: (N, E).
        s_min: where the data are taken to be, above 0.
        s_max: where the codes are.
        method: None: `DormandPrince` at its own tolerances.

    Raises:
        OptionError: no 0 < s_min < s_max.
        DataError: see the method.
    """
    check_range(s_min, s_max)
    return _moved(denoise, x, s_min, s_max, method)


def decode(denoise: Denoise, y: Rows, *, s_min: float, s_max: float, method: Method | None = None) -> Solution:
    """y(s_min) of y(s_max) = y: undoes `encode`, to the tolerance of the method. Arguments and errors as there."""
    check_range(s_min, s_max)
    return _moved(denoise, y, s_max, s_min, method)


def _moved(denoise: Denoise, y: Rows, s: float, t: float, method: Method | None) -> Solution:
    first, last = math.atan(s), math.atan(t)
    found = integrate(turning(denoise), y * math.cos(first), _place(first), _place(last), method=method)
    return replace(found, y=found.y / math.cos(last))


def _place(a: float) -> float:
    return math.asinh(a / TURN)
