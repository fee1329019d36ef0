"""The probability-flow ODE as a bijection: log-densities, codes and the way back.

dy / d ln s = y - D(y, s) carries the rows of p_s to those of any other level and back. Its density is that of a model of its own:
with a D that is no exact denoiser, p_ODE is neither the law of the stochastic solvers nor what the variational bound bounds.

Source: Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021, arXiv:2011.13456.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from pofx.samplers.denoising import Denoise, Rows, probability_flow
from pofx.samplers.densities import check_count
from pofx.samplers.levels import check_range
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
    carried = carry(probability_flow(denoise), x, math.log(s_min), math.log(s_max), trace=trace, method=method, generator=generator)
    return FlowLogProb(log_prior(carried.y) + carried.log_det, carried.error, carried.evaluations)


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
    return integrate(probability_flow(denoise), x, math.log(s_min), math.log(s_max), method=method)


def decode(denoise: Denoise, y: Rows, *, s_min: float, s_max: float, method: Method | None = None) -> Solution:
    """y(s_min) of y(s_max) = y: undoes `encode`, to the tolerance of the method. Arguments and errors as there."""
    check_range(s_min, s_max)
    return integrate(probability_flow(denoise), y, math.log(s_max), math.log(s_min), method=method)
