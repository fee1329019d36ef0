"""A continuous normalizing flow: a base density that drifts into the data's, with a speed that a net gives.

log p(x) = log p_base(z(0)) - integral of tr dv/dz dt from 0 to 1, where dz/dt = v(z, t, c) and z(1) = x, whitened. It is exact up to the
solver's tolerance while the trace is exact (up to 64 variables where nothing else is asked for), above an estimate with a standard error.

It learns in one of two ways. *Matching*: v is regressed on the straight lines between draws of the base and rows; a step is one pass of the
net, and no equation is solved. *Likelihood*: -log p, through the solver, with the path's energy against crooked paths.
"""

import math
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.base import GradientConfig, Model
from pofx.models.flows.families import FlowConfig
from pofx.models.flows.flow import Flow
from pofx.nets.timed import TimedMLP
from pofx.nets.waves import Waves
from pofx.objectives.matching import flow_matching, paired, stratified
from pofx.transforms.base import Compose, Transform
from pofx.transforms.continuous import Continuous
from pofx.transforms.linear import Triangular
from pofx.transforms.ode import DormandPrince, Method, RungeKutta, Trace
from pofx.types import Context, Generator, Kind, Latent, Nats, X

FEW, _WAVES = 3, 4
_FAR = 1e3  # deviations of whitened rows, to which the net's input is clipped
_CAREFUL = 0.1  # of the digits that a code must give back
_EARLY = 0.02  # of the clock: without it, time would have no beginning and no end
_JUDGED = 4  # times a held-out row is matched: the noise of one would hide what a pass has learned
_WORK = 2**17  # numbers of a batch of log_prob: each variable has a vector-Jacobian product of its own
_BOUND = 2.5  # of waves, in deviations
_STEPS = {"matching": 6000, "likelihood": 1000}  # of a run


class Drift(nn.Module):
    """v(z, t, c) = net(z, log((t + e) / (1 - t + e)), c): a clock that runs fast where rows leave the base, and where they arrive.

    Args:
        net: of rows, the clock and conditions.
    """

    def __init__(self, net: TimedMLP) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """Z (N, D), t (N, 1), c (N, C) -> (N, D)."""
        slope: Tensor = self.net(z.clamp(-_FAR, _FAR), ((t + _EARLY) / (1 - t + _EARLY)).log(), c)
        return slope


class ContinuousFlow(Model):
    """p(x | c) of a flow that is a drift, then whitening; it learns by matching or by likelihood.

    log_prob is the flow's: exact up to the solver's tolerance, or an estimate by probes, with its standard error. Codes are solved to a
    tenth of the square root of the type's precision where that is less than the tolerance: decode undoes encode. Draws take equal
    steps, with an error that nobody checks, and are called an estimate for it; or, with none given, what the tolerance asks for.

    Cost: about 60 to 150 evaluations of the net a log_prob, each with D vector-Jacobian products, or one a probe; a draw takes 4 a step.

    Sources: see `Continuous`, `flow_matching` and `paired`; kinetic: Finlay et al., "How to train your neural
    ODE: the world of Jacobian and kinetic regularization", ICML 2020, arXiv:2002.02798.

    Args:
        base: the flow: its transform a `Continuous`, then a `Triangular`.
        learn: "matching" or "likelihood".
        optimal: matching pairs draws and rows by optimal transport within a batch.
        kinetic: likelihood adds so many times the integral of |v|^2 / 2 dt.
        learning: the solver of learning by likelihood; None: the transform's own, as of held-out rows.
        drawing: the solver of draws; None: the transform's own.

    Raises:
        OptionError: the flow is of other parts.
    """

    def __init__(
        self,
        base: Flow,
        *,
        learn: str = "matching",
        optimal: bool = False,
        kinetic: float = 0.0,
        learning: Method | None = None,
        drawing: Method | None = None,
    ) -> None:
        super().__init__(base.domain, base.context)
        self.base, self.learn, self.optimal, self.kinetic = base, learn, optimal, kinetic
        self.learning, self.drawing = learning, drawing
        parts = list(base.transform.parts) if isinstance(base.transform, Compose) else []
        if [type(part) for part in parts] != [Continuous, Triangular]:
            raise OptionError(
                f"a continuous flow is a drift, then whitening; got {', '.join(type(p).__name__ for p in parts) or 'another'}"
            )
        if learn == "matching":  # a scale could only cheat: matching shrinks with it
            parts[1].requires_grad_(False)
        self.density = base.density
        self.sampling = base.sampling if drawing is None else base.sampling.worst(Kind.ESTIMATE)
        self.rows_at_once = max(16, min(type(self).rows_at_once, _WORK // len(base.domain) ** 2))

    @property
    def noun(self) -> str:
        """Its family's."""
        return self.base.noun

    @property
    def drift(self) -> Continuous:
        """From the base to the whitened data."""
        return cast("Continuous", cast("Compose", self.base.transform).parts[0])

    @property
    def whitening(self) -> Triangular:
        """From the whitened data to the data."""
        return cast("Triangular", cast("Compose", self.base.transform).parts[1])

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Whiten the rows; the base sees some of them whitened, as the drift stands still."""
        self.whitening.start(x, c)
        few = slice(None, None, -(-len(x) // self.rows_at_once))  # evenly apart
        with torch.no_grad():
            self.base.base.initialise(self.whitening.inverse(x[few])[0], self.base._of_base(c if c is None else c[few]))

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """The squared error of the speed, which is not in nats; or -log p: in training by few steps, and with the energy's share."""
        if self.learn == "matching":
            return self._matching(x, c, generator)
        return self._rough(x, c, generator) if self.training else self.base.loss(x, c, generator=generator)

    def _matching(self, x: Tensor, c: Tensor | None, generator: Generator) -> Tensor:
        """In training at one time, else at several."""
        times = 1 if self.training else _JUDGED
        y = self.whitening.inverse(x)[0].repeat(times, 1)
        k = None if c is None else c.repeat(times, 1)
        u = self.base.base._sample(len(y), self.base._of_base(k), generator).to(y)
        u = paired(u, y) if self.optimal else u
        each = flow_matching(lambda t, z: self.drift.speed(z, t, k), u, y, stratified(y, generator=generator))
        return each.unflatten(0, (times, -1)).mean(0)

    def _rough(self, x: Tensor, c: Tensor | None, generator: Generator) -> Tensor:
        """With one probe where the trace is estimated: of the gradient, more would be no better than more rows."""
        y, log_det = self.whitening.inverse(x)
        trace: Trace = "exact" if self.drift.trace == "exact" else 1
        along = _energy if self.kinetic else None
        made = self.drift.carried(y, c, 1.0, 0.0, trace=trace, method=self.learning, along=along, generator=generator)
        log_p = self.base.base._log_prob(made.y, self.base._of_base(c), generator) + made.log_det + log_det
        return -log_p - self.kinetic * made.along.sum(1)  # the integral runs backwards

    def path_energy(self, u: X, c: Context | None = None) -> Nats:
        """The integral of |v|^2 / 2 dt along the path of each row of the base; of a straight one |x - u|^2 / 2, and never less."""
        return self.drift.carried(u, c, 0.0, 1.0, trace=1, along=_energy).along[:, 0]

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        return self.base._log_prob_and_error(x, c, generator)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        u = self.base.base._sample(n, self.base._of_base(c), generator).to(self.base.like)
        return self.whitening(self.drift.moved(u, c, 0.0, 1.0, method=self.drawing))[0]

    def _encode(self, x: X, c: Context | None) -> Latent:
        y = self.whitening.inverse(x)[0]
        return self.drift.moved(y, c, 1.0, 0.0, method=self._careful(y))

    def _decode(self, z: Latent, c: Context | None) -> X:
        u = z.to(self.base.like)
        return self.whitening(self.drift.moved(u, c, 0.0, 1.0, method=self._careful(u)))[0]

    def _careful(self, v: Tensor) -> Method:
        own, least = self.drift.method, _CAREFUL * math.sqrt(torch.finfo(v.dtype).eps)
        return DormandPrince(min(own.rtol, least), min(own.atol, least)) if isinstance(own, DormandPrince) else own


def _energy(t: Tensor, z: Tensor, slope: Tensor) -> Tensor:
    return 0.5 * slope.square().sum(1, keepdim=True)


class ContinuousConfig(FlowConfig):
    """Options of `cnf`."""

    approximates = False
    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{chen2018neural, title={Neural ordinary differential equations}, "
        "author={Chen, Ricky T. Q. and Rubanova, Yulia and Bettencourt, Jesse and Duvenaud, David}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2018}}",
        "@inproceedings{grathwohl2019ffjord, title={{FFJORD}: free-form continuous dynamics for scalable reversible generative models}, "
        "author={Grathwohl, Will and Chen, Ricky T. Q. and Bettencourt, Jesse and Sutskever, Ilya and Duvenaud, David}, "
        "booktitle={International Conference on Learning Representations}, year={2019}}",
        "@inproceedings{lipman2023flow, title={Flow matching for generative modeling}, "
        "author={Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt}, "
        "booktitle={International Conference on Learning Representations}, year={2023}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "width": (64, 128, 256),
        "blocks": (2, 3, 4),
        "waves": (None, 0, 3, 6),
        "dropout": (0.0, 0.1),
    }

    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(512, ge=1)
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the run over which the learning rate rises from 0")
    final_rate: float = Field(0.02, gt=0, le=1, description="the last learning rate over the first; it falls geometrically over the run")
    ema: float | None = Field(0.998, gt=0, lt=1, description="decay of the weights' moving average; None: no average")

    learn: Literal["matching", "likelihood"] = Field(
        "matching", description="the speed by regression on straight lines from base to data, or by -log p through the solver"
    )
    coupling: Literal["independent", "ot"] = Field(
        "independent", description="matching: which draw of the base goes to which row; ot: the cheapest assignment in a batch"
    )
    kinetic: float = Field(0.0, ge=0, description="likelihood: weight of the paths' energy, the integral of |v|^2 / 2")
    adjoint: bool = Field(False, description="likelihood: gradients by the adjoint equation, in the memory of one step")
    width: int = Field(128, ge=1, le=2**14, description="hidden units of the net's layers")
    blocks: int = Field(3, ge=1, le=64, description="residual blocks of the net")
    waves: int | None = Field(
        None,
        ge=0,
        le=12,
        description=f"sines and cosines of the rows, an octave each, for sharp edges; None: 4 up to {FEW} variables, 0 above",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden units dropped while matching")
    tolerance: float = Field(1e-5, gt=0, le=0.1, description="of the solver, in deviations and nats: a step's error")
    trace: Literal["exact"] | int | None = Field(
        None, description="of dv/dz: exact, or by so many probes, at least 2; None: exact up to 64 variables, 16 probes above"
    )
    learning_steps: int | None = Field(8, ge=1, le=1000, description="likelihood: steps of order 4 while learning; None: adaptive")
    steps: int | None = Field(5, ge=1, le=1000, description="of a draw, of order 4, so 4 evaluations of the net each; None: adaptive")
    shrink: float = Field(0.1, ge=0, description="rows, per variable, that the whitening's start believes uncorrelated")

    @property
    def surrogate(self) -> bool:
        """With the paths' energy beside -log p."""
        return self.learn == "likelihood" and self.kinetic > 0

    @property
    def compiles(self) -> bool:
        """Not through a solver, nor an assignment on the CPU."""
        return self.learn == "matching" and self.coupling == "independent"

    def for_rows(self, n: int) -> GradientConfig:
        """The length of the run, where it was not given."""
        steps = -(-n // self.batch_size)  # a pass
        return self if "max_epochs" in self.model_fields_set else self.model_copy(update={"max_epochs": -(-_STEPS[self.learn] // steps)})

    def flow(self, domain: Domain, context: Domain | None) -> Model:
        """The untrained flow, once the options are found to fit each other."""
        self._check(context)
        learning, drawing = (None if n is None else RungeKutta(n) for n in (self.learning_steps, self.steps))
        bent = cast("Flow", super().flow(domain, context))
        optimal = self.coupling == "ot"
        return ContinuousFlow(bent, learn=self.learn, optimal=optimal, kinetic=self.kinetic, learning=learning, drawing=drawing)

    def transform(self, domain: Domain, context: int) -> Transform:
        """A drift, and whitening at the data."""
        dim, method = len(domain), DormandPrince(self.tolerance, self.tolerance)
        waves = Waves((_WAVES if dim <= FEW else 0) if self.waves is None else self.waves, _BOUND)
        net = TimedMLP(dim, dim, context, width=self.width, blocks=self.blocks, dropout=self.dropout, waves=waves)
        drift = Continuous(Drift(net), dim, trace=self.trace, method=method, adjoint=self.adjoint)
        return Compose(drift, Triangular(dim, self.shrink))

    def _check(self, context: Domain | None) -> None:
        matching = self.learn == "matching"
        if self.coupling == "ot" and not (matching and context is None):
            raise OptionError(
                "coupling='ot' pairs rows of a batch whatever their condition: it needs learn='matching', and p(x) without one"
            )
        if matching and self.base != "normal":
            raise OptionError(f"matching learns no base: base={self.base!r} needs learn='likelihood'")
        if matching and (self.augment or self.noise == "variational"):
            raise OptionError("matching learns no noise: augment and noise='variational' need learn='likelihood'")
        if matching and (self.kinetic or self.adjoint):
            raise OptionError("kinetic and adjoint are of learn='likelihood': matching solves no equation")
        if not matching and self.dropout:
            raise OptionError("dropout would make each step of the solver another speed: it is of learn='matching'")
