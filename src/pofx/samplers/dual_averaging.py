"""A step size that brings the acceptance to its target, by dual averaging."""

import math


class DualAveraging:
    """log eps_t+1 = mu - (sqrt t / gamma) (1 / (t + t_0)) sum_i (delta - alpha_i), and an average that forgets as t^-kappa.

    delta is the target, alpha_i the acceptance of step i, mu = log(10 eps_1): large steps are tried first, because
    they are cheap. Constants: gamma 0.05, t_0 10, kappa 0.75, as in the paper.

    Source: Hoffman and Gelman, "The no-U-turn sampler", JMLR 15, 2014, arXiv:1111.4246, Eq. 6; Nesterov,
    "Primal-dual subgradient methods for convex problems", Mathematical Programming 120, 2009.

    Args:
        step: eps_1.
        target: delta.
    """

    def __init__(self, step: float, target: float) -> None:
        self.target = target
        self.now = step  # explores
        self.average = step  # is kept
        self._mu = math.log(10 * step)
        self._short = 0.0  # sum of delta - alpha
        self._t = 0

    def update(self, acceptance: float) -> None:
        """Take in the acceptance of the last step, made with `now`."""
        self._t += 1
        self._short += self.target - acceptance
        log_step = self._mu - math.sqrt(self._t) / 0.05 / (self._t + 10) * self._short
        forget = self._t**-0.75
        self.average = math.exp(forget * log_step + (1 - forget) * math.log(self.average))
        self.now = math.exp(log_step)
