"""Bayes' rule with the model as the prior: p(x | y) = p(x) L(x) / E_p[L], for a likelihood L of the user's."""

from collections.abc import Callable

import torch
from torch import Tensor

from pofx.ask.generic.draws import Draws, Islands
from pofx.ask.generic.space import LogDensity, Unconstrained, coordinates, draws_of, repeatable
from pofx.ask.generic.twisting import led
from pofx.errors import DataError, OptionError
from pofx.events import Event
from pofx.models.base import Model
from pofx.samplers import Hamiltonian, Independence, Kernel, Sweep, smc
from pofx.samplers.densities import differentiable
from pofx.types import Generator, Kind

ISLANDS = 20  # independent runs: the errors come from their spread
_MOVES = 4

LogLikelihood = Callable[[Tensor], Tensor]


def posterior(model: Model, log_likelihood: LogLikelihood, *, method: str | None = None, draws: int = 4000, generator: Generator) -> Draws:
    """Draws of p(x) L(x) / Z and log Z = log E_p[L], by tempered sequential Monte Carlo from draws of the model.

    Or, with method="twisted", by a diffusion model's own way from noise: see `twisting.led`.

    Moves are Hamiltonian, in unconstrained coordinates, where every variable is continuous (no grid, no spike) and prior
    and likelihood have gradients; sweeps of Gibbs where the others have a few values; else proposals from the model
    itself, which need no density of it. 20 islands run apart, so that errors (of log Z and of means) come from their
    spread. Fails where the posterior has a mode that no draw of the prior is near.

    Cost: about 84 (21 runs of 4 moves) times draws / 20 moves a temperature; as many temperatures as nats of KL(posterior || prior).

    Args:
        model: the prior p(x).
        log_likelihood: rows (N, D) to log L, (N,), in nats; -inf where L is 0.
        method: None, or "smc": tempered; or "twisted".
        draws: how many.
        generator: of all draws.

    Raises:
        OptionError: an unknown method, no draw asked for, a model of p(x | c), or a likelihood that gives no number a row.
        DataError: the likelihood is NaN or inf at a draw, or 0 at all of them.
    """
    if model.context is not None:
        raise OptionError(f"{model.noun} is p(x | c): a prior is a p(x)")
    if draws < 1:
        raise OptionError(f"the number of draws is at least 1, got {draws}")
    if method not in (None, "smc", "twisted"):
        raise OptionError(f"method is one of smc, twisted, got {method!r}")
    if method == "twisted":
        return led(model, log_likelihood, draws, generator=generator)
    problem = _Problem.of(model, log_likelihood, generator)
    particles = max(100, -(-draws // ISLANDS))
    run = smc(
        problem.log_prior,
        problem.log_likelihood,
        problem.draw,
        particles=particles,
        islands=ISLANDS,
        kernel=problem.kernel,
        moves=_MOVES,
        generator=generator,
    )
    x = problem.map(run.x.flatten(0, 1))[0].unflatten(0, run.x.shape[:2])
    islands, (log_z, error) = Islands(x, run.log_z), run.log_evidence
    ess = float(run.ess[-1].mean()) / particles * islands.ess()
    rows = problem.map(run.sample(draws, generator=generator))[0]
    how = f"{ISLANDS} runs of {particles} particles through {len(run.b)} temperatures, {problem.who}: effective size about {ess:.0f}"
    return Draws(rows, Kind.ESTIMATE, "smc", ess, how, islands, log_evidence=float(log_z), log_evidence_error=float(error))


class _Problem:
    """Prior, likelihood and moves, in the coordinates that the moves need."""

    def __init__(self, log_prior: LogDensity, log_likelihood: LogDensity, unconstrained: Unconstrained, model: Model) -> None:
        self.log_prior, self.map, self.model = log_prior, unconstrained, model
        self._likelihood = log_likelihood
        self.kernel: Kernel = Hamiltonian()
        self.who = "Hamiltonian moves"

    @classmethod
    def of(cls, model: Model, log_likelihood: LogLikelihood, generator: Generator) -> "_Problem":
        """The best moves there are."""
        moving = coordinates(Event(model.domain, {}))
        unconstrained = Unconstrained(moving)
        problem = cls(unconstrained.log_density(lambda x: model.log_prob(x).double()), log_likelihood, unconstrained, model)
        listed = all(m.smooth or m.values is not None for m in moving)
        if not repeatable(model) or not listed:
            return problem._by_prior()
        u = problem.draw(2, generator)
        smooth = differentiable(problem.log_prior, u) and differentiable(problem.log_likelihood, u)
        if not all(m.smooth for m in moving):
            values: list[Tensor | None] = [None] * len(model.domain)
            for m in moving:
                values[m.index] = m.values
            block = Hamiltonian() if smooth and any(m.smooth for m in moving) else None
            problem.kernel, problem.who = Sweep(tuple(values), block=block), "sweeps"
            return problem
        return problem if smooth else problem._by_prior()

    def _by_prior(self) -> "_Problem":
        """Proposals from the model: they need the likelihood alone."""
        self.map, self.log_prior = Unconstrained([]), lambda x: torch.zeros_like(x[:, 0])
        self.kernel, self.who = Independence(self.draw), "moves proposed by the model"
        return self

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws of the prior."""
        return self.map.inverse(draws_of(self.model, n, generator=generator))

    def log_likelihood(self, u: Tensor) -> Tensor:
        """The user's, in nats."""
        x = self.map(u)[0]
        value = torch.as_tensor(self._likelihood(x))
        if value.shape != x.shape[:1]:
            raise DataError(f"the log-likelihood gives a number for each of {len(x)} rows, got shape {tuple(value.shape)}")
        return value.double()
