"""What variational inference gives: q, and weighted draws of q that correct it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pofx.ask.pofx import PofX
from pofx.data import decode
from pofx.domain import Domain
from pofx.errors import DataError, OptionError
from pofx.samplers.importance import Weighted
from pofx.types import Answer, Generator, Kind

METHODS = ("resampling", "metropolis")
CHAINS = 64
REMEDY = "more steps may help, or base='student', or objective='forward' from this start"
HEDGE = 0.1  # share of the weighted draws that q_d make: q with one coordinate of its base three times as wide
TRUSTED = 0.7  # k-hat up to which weighted means are


class Approximation:
    """q near p, known up to its constant Z, and K draws x_k with weights w_k = p(x_k) / r(x_k), r = 0.9 q + 0.1 mean_d q_d.

    `q` is a p(x) like any other, with exact draws and densities; q_d is q with coordinate d of its base three times as wide, so that what q
    nearly leaves out, as the neck of a funnel, weighs on answer, error and k-hat and is not just missed. Everything else here is of p:
    means over the weighted draws, which tend to p's whatever q is, as long as it reaches wherever p does. k-hat says when its tails are
    too thin; nothing says when a mode far off is missed.

    Args:
        q: the flow.
        draw: makes weighted draws of (1 - a) q + a mean_d q_d, in the domain's columns: how many, a generator, and a.
        draws: K.
        seed: of all that is drawn.
    """

    def __init__(self, q: PofX, draw: Callable[[int, Generator, float], Weighted], draws: int, seed: int = 0) -> None:
        self.q, self.draw, self.seed = q, draw, seed
        self.weighted = draw(draws, self._generator(seed), HEDGE)

    @property
    def domain(self) -> Domain:
        """What x is."""
        return self.q.domain

    @cached_property
    def ess(self) -> float:
        """(sum w)^2 / sum w^2: how many draws of p itself the draws are worth."""
        return float(self.weighted.ess)

    @cached_property
    def k_hat(self) -> float:
        """Pareto's k-hat: the larger of that of the weights and that of q's own, which the hedge makes no lighter."""
        return max(float(self.weighted.k_hat), float(self._alone.k_hat))

    @cached_property
    def _alone(self) -> Weighted:
        """As many weighted draws of q itself."""
        return self.draw(len(self.weighted.x), self._generator(self.seed), 0.0)

    @property
    def trusted(self) -> bool:
        """Whether k-hat lets the weighted means and their errors be believed."""
        return self.k_hat <= TRUSTED

    @property
    def how(self) -> str:
        """How its answers come about, and whether to trust them, in a clause."""
        sizes = f"{len(self.weighted.x)} weighted draws, effective size {self.ess:.0f}, k-hat {self.k_hat:.2f}"
        doubt = f" over {TRUSTED}: q's tails are too thin, so neither the numbers nor their errors are to be trusted; {REMEDY}"
        return sizes + ("" if self.trusted else doubt)

    @property
    def log_evidence(self) -> Answer:
        """log Z = log of the integral of p, by the mean weight, with its standard error."""
        return self._estimate(*self.weighted.log_evidence)

    @cached_property
    def elbo(self) -> Answer:
        """E_q [log p - log q] <= log Z, below it by KL(q || p), by as many draws of q alone; its own standard error is that of a mean."""
        log_w = self._alone.log_w
        how = f"a lower bound on log Z, the mean over {len(log_w)} draws"
        return Answer(_numpy(log_w.mean()), Kind.BOUND, _numpy(log_w.std() / len(log_w) ** 0.5), how)

    def expectation(self, f: Callable[[Any], Any]) -> Answer:
        """E_p [f(x)], the weighted mean, with its standard error.

        Args:
            f: from rows, as `sample` gives them, to one number (or one row of numbers) a row.

        Raises:
            OptionError: f gives no number a row.
            DataError: f is NaN at a draw whose weight is not 0.
        """
        values = torch.from_numpy(np.array(f(self._rows(self.weighted.x)), dtype=np.float64))
        n = len(self.weighted.x)
        if values.shape[:1] != (n,):
            raise OptionError(f"f gives one number (or row of numbers) for each of {n} rows, got shape {tuple(values.shape)}")
        bad = values.reshape(n, -1).isnan().any(1) & (self.weighted.log_w.cpu() > -torch.inf)
        if bool(bad.any()):
            raise DataError(f"f is NaN at {int(bad.sum())} of {n} rows drawn: it must be a number wherever p is positive")
        return self._estimate(*self.weighted.expectation(values.to(self.weighted.log_w.device)))

    @cached_property
    def mean(self) -> Answer:
        """E_p [x] of every column, with standard errors."""
        return self._estimate(*self.weighted.expectation(self.weighted.x))

    @cached_property
    def std(self) -> Answer:
        """The standard deviation of every column under p; its standard error by the delta method, half that of the variance over it."""
        x = self.weighted.x
        variance, error = self.weighted.expectation((x - self.weighted.expectation(x)[0]).square())
        return self._estimate(variance.sqrt(), error / (2 * variance.sqrt()))

    def quantiles(self, probabilities: Sequence[float] = (0.05, 0.5, 0.95)) -> pd.DataFrame:
        """The values under which the shares of p lie: a row for each column of x, a column for each probability.

        Raises:
            OptionError: a probability is not between 0 and 1.
        """
        if not all(0 < p < 1 for p in probabilities):
            raise OptionError(f"a probability lies between 0 and 1, got {', '.join(map(str, probabilities))}")
        at = self.weighted.quantile(torch.tensor(list(probabilities), dtype=torch.float64, device=self.weighted.x.device))
        return pd.DataFrame(_numpy(at.T), index=list(self.domain.names), columns=[f"{100 * p:g}%" for p in probabilities])

    def table(self) -> pd.DataFrame:
        """Mean and standard deviation, each with its standard error, and quantiles of every column under p."""
        moments = {"mean": self.mean, "sd": self.std}
        columns = {name: part for what, a in moments.items() for name, part in ((what, a.value), (f"± {what}", a.error))}
        return pd.concat([pd.DataFrame(columns, index=list(self.domain.names)), self.quantiles()], axis=1)

    def sample(self, n: int, *, method: str = "resampling", seed: int | None = None) -> Any:  # noqa: ANN401
        """n rows, nearly of p.

        Args:
            n: how many.
            method: "resampling" picks the weighted draws by weight, so that rows repeat where weights are uneven; "metropolis" goes along
                new draws, in 64 chains that keep the second half of their states, and repeats where it stands still.
            seed: of the draws.

        Raises:
            OptionError: there is no such method, or fewer than no rows are asked for.
        """
        generator = self._generator(self.seed if seed is None else seed)
        if method not in METHODS or n < 0:
            raise OptionError(f"0 or more rows are sampled by {' or '.join(METHODS)}, got {n} by {method!r}")
        if method == "resampling":
            return self._rows(self.weighted.resample(n, generator=generator))
        steps = 2 * -(-max(n, 1) // CHAINS)
        states = self.draw(CHAINS * steps, generator, HEDGE).metropolis(CHAINS, generator=generator)
        return self._rows(states[steps // 2 :].flatten(0, 1)[:n])

    def save(self, path: str | PathLike[str]) -> None:
        """Write q to one safetensors file, as `PofX.save`; the weighted draws are not kept."""
        self.q.save(path)

    def __str__(self) -> str:
        shown = self.table().to_string(float_format="{:.4g}".format)
        log_z = f"log evidence {float(self.log_evidence):.4f} ± {_error(self.log_evidence):.2g} (estimate)"
        elbo = f"ELBO {float(self.elbo):.4f} ± {_error(self.elbo):.2g} (bound)"
        return f"{shown}\n\n{log_z}; {elbo}; {self.how}"

    __repr__ = __str__

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(next(self.q.model.parameters()).device).manual_seed(seed)

    def _rows(self, x: Tensor) -> Any:  # noqa: ANN401
        return decode(x.cpu(), self.domain, self.q.container)

    def _estimate(self, value: Tensor, error: Tensor) -> Answer:
        return Answer(_numpy(value), Kind.ESTIMATE, _numpy(error), self.how)


def _error(answer: Answer) -> float:
    return float("nan") if answer.error is None else float(answer.error)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().to(torch.float64).numpy()
