"""A family behind preparation: p(x) in the user's variables from a base p(u) over what the family takes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.special import ndtr

from pofx.distributions.wrapped import cells_of
from pofx.domain import LEVELLED, Domain
from pofx.errors import Unavailable
from pofx.events import NEVER, Among, Between, Condition
from pofx.models.base import Diagnosis, FamilyConfig, FullBatch, Lifting, Model, Particles, Staged, evaluated
from pofx.models.composed.mixture import MixtureOfModels
from pofx.models.composed.weighted import WeightedMean, WeightedPick
from pofx.nets.features import Features
from pofx.objectives.bounds import bound_and_error
from pofx.transforms.coupling import FAR
from pofx.transforms.dequantise import Lift, on_grid, uniform_shares
from pofx.transforms.elementwise import Elementwise
from pofx.transforms.noise import Own, Shares, refined
from pofx.transforms.plan import image
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

Place = Callable[[], tuple[Tensor, Tensor | float]]  # gives the shares of a draw, and -log q
UNIFORM = Lifting()
CANDIDATES = 128  # draws of lift and missing cells that an imputed row is the weighted mean of
ROWS = 4096  # of the base, of one pass
CELL_POINTS = 32  # points at which an integral over the cell of lifted evidence is taken
_DRAWS = 4  # of a step that fits noise to a row
STEEP = 20.0  # nats a deviation; a slope beyond it says no more than which way is up
THROUGH = {  # question: what is left of an exact answer behind a lift, and behind a bijection that is not affine
    "conditional": (Kind.ESTIMATE, Kind.EXACT),
    "mean": (Kind.NONE, Kind.NONE),
    "mode": (Kind.ESTIMATE, Kind.NONE),
    "impute": (Kind.ESTIMATE, Kind.ESTIMATE),
    "complete": (Kind.ESTIMATE, Kind.EXACT),
    "cluster": (Kind.ESTIMATE, Kind.EXACT),
}


class Prepared(Model):
    """p(x | c) = p_u(T^-1(x) | h(c)) |det J|, or with a lift the bound E_q(y|x) [log p_y(y | c) - log q(y | x)] on its log.

    Exact where the base is and nothing is lifted. With a lift, log_prob is the mean of the bound over some
    draws of y, with its standard error (or the tighter log of their mean weight); the loss is the bound at one draw.
    Every variable has its own map, so marginals pass through; evidence on a lifted variable is an event, over which
    the answer averages. Learned noise serves whole rows; marginals and the cells of evidence are drawn evenly.

    Args:
        base: the family, on `image(domain, lift, transform)`.
        lift: the surjection x = S(y) of some variables, or None.
        transform: the bijection y = T(u), or None.
        domain: what x is.
        context_features: h, what the base sees of c, or None without c.
        context: what c is, or None.
        lifting: how many draws of the lift log_prob takes, and what it makes of them.
        noise: where in its cell a value is put, learned; None: anywhere alike.
        build: makes the base again when a file's tensors show a grid of another width; None: the base stays.
    """

    grid: Tensor
    context_counts: Tensor

    def __init__(
        self,
        base: Model,
        lift: Lift | None,
        transform: Elementwise | None,
        domain: Domain,
        *,
        context_features: Features | None = None,
        context: Domain | None = None,
        lifting: Lifting = UNIFORM,
        noise: Shares | None = None,
        build: Callable[[Domain], Model] | None = None,
    ) -> None:
        super().__init__(domain, context)
        self.base, self.lift, self.transform = base, lift, transform
        self.context_features, self.lifting, self.noise, self.build = context_features, lifting, noise, build
        lifted = Kind.EXACT if lift is None else Kind.BOUND
        self.density = base.density.worst(lifted)
        self.sampling = base.sampling
        self.missing = base.missing.worst(lifted)
        self.logs_average = base.logs_average
        grid = [v.resolution or 0.0 for v in domain.variables]
        self.register_buffer("grid", torch.tensor(grid, dtype=torch.float64), persistent=False)
        if context is not None:  # how many training rows had each level of each condition
            self.register_buffer("context_counts", torch.zeros(sum(map(len, _levels(context))), dtype=torch.float64))

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """The base's loss at one draw of the lift, in the user's units."""
        u, log_weight = self._to_base(x, c, generator)
        return self.base.loss(u, self._features(c), generator=generator) - log_weight

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Pass on to the base what it sees of the data, and count the levels of the conditions."""
        if c is not None and self.context is not None:
            each = [(c[:, j] == code).sum() for j, levels in enumerate(_levels(self.context)) for code in range(len(levels))]
            self.context_counts.copy_(torch.stack(each) if each else self.context_counts)
        self.base.initialise(self._spread(x)[0], self._features(c))

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        if self.lift is None:
            return self._bound(x, c, generator)
        place = self._placing(x, c, generator, self.lifting.refine)
        return bound_and_error(lambda: self._bound(x, c, generator, place), self.lifting.draws, tight=self.lifting.tight)

    def _bound(self, x: Tensor, c: Tensor | None, generator: Generator, place: Place | None = None) -> tuple[Tensor, Tensor]:
        """log p_u(u | c) - log q(u | x) at one u, and the base's own error; -inf outside the support."""
        u, log_weight = self._to_base(x, c, generator, place)
        outside = u.isinf()
        value, error = self.base.log_prob_and_error(torch.where(outside, 0.0, u), self._features(c), generator=generator)
        value = torch.where(outside.any(-1), -math.inf, value.double() + log_weight)
        return value, torch.where(outside.any(-1), 0.0, error.double())

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._to_user(self.base._sample(n, self._features(c), generator))

    def frequencies(self, j: int) -> Tensor:
        """Those of the training rows."""
        counts = self.context_counts.split([len(levels) for levels in _levels(self.context)])[j] if self.context else torch.zeros(0)
        return counts / counts.sum() if counts.any() else super().frequencies(j)

    @property
    def approximation(self) -> str:
        """How the base stands for an integral, in one sentence; empty where it does not."""
        return getattr(self.base, "approximation", "")

    # -- the way to the base and back --------------------------------------------------------------

    def _to_base(self, x: Tensor, c: Tensor | None, generator: Generator, place: Place | None = None) -> tuple[Tensor, Tensor]:
        """u ~ q(u | x) and -log q(u | x), the bijection's slope included."""
        if self.lift is None:
            return self._inverse(x.double(), 0.0)
        share, log_weight = (place or self._placing(x, c, generator))()
        y, own = self.lift.place(x, share)
        return self._inverse(y, own + log_weight)

    def _placing(self, x: Tensor, c: Tensor | None, generator: Generator, refine: int = 0) -> Place:
        """Says where in its cell each value is put, and -log q of that, drawn anew each time; fitted to the rows in so many steps."""
        if self.noise is None:
            return lambda: (uniform_shares(x, generator), 0.0)
        noise = partial(self.noise, self._steering(x, c, generator), generator=generator)
        if not refine:
            return noise

        def bound(own: Own) -> Tensor:
            return torch.stack([self._bound(x, c, generator, partial(noise, own))[0] for _ in range(_DRAWS)]).mean(0)

        return partial(noise, refined(bound, len(x), self.noise.noise.dim, refine, x.device))

    def _steering(self, x: Tensor, c: Tensor | None, generator: Generator) -> Tensor:
        """What learned noise sees of a row: the middles of its cells, as the base sees them, which way p rises there, and its condition."""
        seen, slope, features = self._centre(x), self._slope(x, c, generator), self._features(c)
        return torch.cat((seen, slope.to(seen)) if features is None else (seen, slope.to(seen), features), -1)

    def _slope(self, x: Tensor, c: Tensor | None, generator: Generator) -> Tensor:
        """d/dz of log p_y(y | c) - log q(y | x), q uniform, of the lifted variables' normal scores z at z = 0, the middle of each cell.

        That of the base as it is asked, nothing dropped; a missing cell counts as one whose u is 0. Noise that sees it need not
        learn by heart where in its cells each row is likely. Cost: a pass of the base and its gradient.

        Source: Marino, Yue and Mandt, "Iterative amortized inference", ICML 2018, arXiv:1807.09356, for inference that sees gradients.
        """
        with torch.enable_grad(), evaluated(self.base):
            z = torch.zeros(x.shape, dtype=torch.float64, device=x.device, requires_grad=True)
            y, own = cast("Lift", self.lift).place(x, ndtr(z))
            u, log_weight = self._inverse(y, own)
            loss = self.base.loss(u.nan_to_num(0.0, FAR, -FAR), self._features(c), generator=generator)
            slope = torch.autograd.grad((log_weight - loss).sum(), z)[0]
        return slope.index_select(-1, cast("Shares", self.noise).lifted).clamp(-STEEP, STEEP)

    def _spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same at quasi-random points, equal for equal rows."""
        y, log_weight = (x.double(), 0.0) if self.lift is None else self.lift.spread(x)
        return self._inverse(y, log_weight)

    def _centre(self, x: Tensor) -> Tensor:
        """The u at the middle of every cell."""
        return self._inverse(x.double() if self.lift is None else self.lift.centre(x), 0.0)[0]

    def _inverse(self, y: Tensor, log_weight: Tensor | float) -> tuple[Tensor, Tensor]:
        if self.transform is None:
            return y.to(dtype_of(self.base)), y.new_zeros(y.shape[:-1]) + log_weight
        u, log_det = self.transform.inverse(y)
        return u.to(dtype_of(self.base)), log_det + log_weight

    def _to_user(self, u: Tensor) -> Tensor:
        y = u.double() if self.transform is None else self.transform(u.double())[0]
        return on_grid(y if self.lift is None else self.lift(y), self.grid)

    def _features(self, c: Tensor | None) -> Tensor | None:
        return c if c is None or self.context_features is None else self.context_features(c.double()).to(dtype_of(self.base))

    # -- questions ---------------------------------------------------------------------------------

    @property
    def noun(self) -> str:
        """The family's."""
        return self.base.noun

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """The base's answer, seen through the maps."""
        lifted, bent = THROUGH.get(question, (Kind.EXACT, Kind.EXACT))
        kind = self.base.answers(question, seen)
        if question in ("restrict", "log_chance", "log_expectation"):
            return Kind.NONE if self._lifted_among(seen) else kind
        if question == "entropy":
            plain = self.lift is None and all(self._affine()) and all(v.spike is None for v in self.domain.variables)
            return kind if plain else Kind.NONE
        kind = kind if self.lift is None else kind.worst(lifted)
        return kind.worst(bent) if self._bent(seen) else kind

    def _over(self, base: Model, keep: Sequence[int]) -> "Prepared":
        """Another base over some of the variables, behind their maps."""
        lift = None if self.lift is None or not set(keep) & set(self.lift.lifted) else self.lift.select(keep)
        transform = None if self.transform is None else self.transform.select(keep)
        features = self.context_features if base.context is not None else None
        context = self.context if base.context is not None else None
        return Prepared(base, lift, transform, self.domain.select(keep), context_features=features, context=context, lifting=self.lifting)

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        return self._over(self.base.marginal(keep), keep)

    def _conditional(self, evidence: Point) -> Model:
        seen = (~evidence.isnan()).nonzero().flatten().tolist()
        missing = evidence.isnan().nonzero().flatten().tolist()
        if not self._lifted_among(seen):
            u = self._centre(evidence)
            self._check_possible(u)
            return self._over(self.base.conditional(u), missing)
        u, log_weight = self._spread(evidence.expand(CELL_POINTS, -1))
        self._check_possible(u)
        given = [self.base.conditional(point) for point in u]
        likelihood = self.base.marginal(seen).log_prob(u[:, seen])
        return self._over(MixtureOfModels(given, log_weight + likelihood), missing)

    def _particles(self, evidence: Point, each: int, islands: int, generator: Generator) -> Particles:
        """The base's; p(evidence) is in the user's units."""
        seen = (~evidence.isnan()).nonzero().flatten().tolist()
        if self._lifted_among(seen):
            name = self.domain.names[next(d for d in seen if self._lifted_among([d]))]
            raise Unavailable("particles led to evidence", self.noun, f"{name!r} is lifted: its value is an event, a cell")
        u = self._centre(evidence)
        self._check_possible(u)
        found = self.base._particles(u, each, islands, generator)
        log_det = 0.0 if self.transform is None else self.transform.select(seen).inverse(evidence[seen].double())[1]
        x = torch.where(evidence.isnan(), self._to_user(found.x), evidence.to(found.x.device, torch.float64))
        return Particles(x, found.log_z.double() + log_det, found.ess)

    def _led(self, log_likelihood: Callable[[Tensor], Tensor], each: int, islands: int, generator: Generator) -> Particles:
        found = self.base._led(lambda u: log_likelihood(self._to_user(u)), each, islands, generator)
        return replace(found, x=self._to_user(found.x))

    def _over_latents(self) -> Model:
        return self._over(self.base.over_latents(), range(len(self.domain)))

    def _restrict(self, conditions: Mapping[int, Condition]) -> tuple[Model, float]:
        """The base's, of the conditions as it sees them."""
        base, log_p = self.base._restrict(self._conditions(conditions))
        return self._over(base, range(len(self.domain))), log_p

    def _log_chance(self, conditions: Mapping[int, Condition]) -> float:
        return self.base._log_chance(self._conditions(conditions))

    def _conditions(self, conditions: Mapping[int, Condition]) -> dict[int, Condition]:
        """As the base sees them: every map rises."""
        for d in (d for d in conditions if self._lifted_among([d])):
            why = f"{self.domain.names[d]!r} is lifted: its law is known up to a bound"
            raise Unavailable("restriction to sets and intervals", self.noun, why, instead="draws: `pofx.ask.generic.conditional`")
        return {d: self._carried(d, condition) for d, condition in conditions.items()}

    def _carried(self, d: int, condition: Condition) -> Condition:
        """A condition of the user's units in the base's; on a grid an interval goes to the edges of its cells."""
        variable = self.domain.variables[d]
        if not isinstance(condition, Between):
            return Among(tuple(self._carried_values(d, condition.values if isinstance(condition, Among) else (condition.value,))))
        if variable.resolution is None:
            return self._carried_interval(d, (condition.lower, condition.upper), condition.closed)
        cells = cells_of(condition, variable.resolution, 0.0)
        return self._carried_interval(d, cells[0]) if cells else NEVER

    def _carried_interval(self, d: int, ends: tuple[float, float], closed: tuple[bool, bool] = (True, True)) -> Between:
        lower, upper = self._carried_values(d, ends)
        return Between(lower, upper, closed)

    def _carried_values(self, d: int, values: Sequence[float]) -> list[float]:
        u = torch.tensor(values, dtype=torch.float64)[:, None]
        return (u if self.transform is None else self.transform.select([d]).cpu().inverse(u)[0])[:, 0].tolist()

    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """The base's, at the values that it sees, whose measures there differ by the slope of the map."""
        seen = {}
        for d, (values, log_w) in factors.items():
            u, slope = values[:, None].double(), torch.zeros(len(values), dtype=torch.float64)
            if self.transform is not None:
                u, slope = self.transform.select([d]).cpu().inverse(u)
            seen[d] = u[:, 0], log_w + slope
        return self.base.log_expectation(seen)

    def _entropy(self) -> float:
        """The base's, and the mean log-slope of the maps, which are affine."""
        slope = 0.0 if self.transform is None else float((self.transform.width * self.transform.scale).log().sum())
        return self.base.entropy() + slope

    def _check_possible(self, u: Tensor) -> None:
        if bool(u.isinf().any()):
            raise Unavailable("conditional", self.noun, "the evidence lies outside the domain, where p is 0")

    def _mean(self) -> Point:
        if not all(self._straight()):
            raise Unavailable("mean", self.noun, "a variable is on another scale or lifted", instead="the mean of samples")
        return self._to_user(self.base.mean())

    def _mode(self, evidence: Point) -> Point:
        """Exact for affine maps; for a lifted variable the value whose cell the base's mode is in."""
        bent = self._bent((~evidence.isnan()).nonzero().flatten().tolist())
        if bent:
            name = self.domain.names[bent[0]]
            raise Unavailable("mode", self.noun, f"{name!r} is on another scale", instead="the sample with the largest log_prob")
        return torch.where(evidence.isnan(), self._to_user(self.base.mode(self._centre(evidence))), evidence)

    def _leave_one_out(self, x: X, generator: Generator) -> Tensor:
        """The base's, each cell with the slope of its own map; cells of a lift are left out in turn."""
        if self.lift is not None or self.base.missing is Kind.NONE:
            return super()._leave_one_out(x, generator)
        columns = range(x.shape[1])
        maps = [None if self.transform is None else self.transform.select([d]) for d in columns]
        slopes = [torch.zeros(len(x)).to(x) if m is None else m.inverse(x[:, [d]].double())[1] for d, m in enumerate(maps)]
        u = self._to_base(x, None, generator)[0]
        inner = self.base.leave_one_out(torch.where(u.isinf(), 0.0, u), generator=generator).double()
        return torch.where(u.isinf(), -math.inf, inner + torch.stack(slopes, dim=1))

    def _impute(self, x: X, generator: Generator) -> X:
        """Exact when every map is affine; else averages over draws of lifts and completions."""
        straight = torch.tensor(self._straight(), device=x.device)
        if bool(straight.all()):
            return torch.where(x.isnan(), self._to_user(self.base.impute(self._to_base(x, None, generator)[0], generator=generator)), x)
        levels = Levels(self.domain, x.device)
        mean = WeightedMean()
        for draw, expected, log_weight in self._candidates(x, generator):
            mean.add(levels.with_votes(torch.where(straight, expected, draw)), log_weight)
        return torch.where(x.isnan(), levels.elected(mean.value), x)

    def _complete(self, x: X, generator: Generator) -> X:
        """Exact without a lift; else one of several draws of lift and missing cells, by its weight."""
        if self.lift is None:
            return torch.where(x.isnan(), self._to_user(self.base.complete(self._to_base(x, None, generator)[0], generator=generator)), x)
        pick = WeightedPick(generator)
        for draw, _, log_weight in self._candidates(x, generator):
            pick.add(draw, log_weight)
        return torch.where(x.isnan(), pick.value, x)

    def _candidates(self, x: X, generator: Generator) -> Iterator[tuple[X, X, Nats]]:
        """Several draws of each row, as `_weighed` gives them, many at once: rows with the same cells missing are cheap together."""
        at_once = max(1, min(CANDIDATES, ROWS // len(x)))
        for _ in range(-(-CANDIDATES // at_once)):
            parts = self._weighed(x.repeat(at_once, 1), generator)
            yield from zip(*(part.unflatten(0, (at_once, -1)) for part in parts), strict=True)

    def _weighed(self, x: X, generator: Generator) -> tuple[X, X, Nats]:
        """The base's, of one draw of the lift."""
        u, log_weight = self._to_base(x, None, generator)
        outside = u.isinf()
        draw, expected, own = self.base._weighed(torch.where(outside, 0.0, u), generator)
        return self._to_user(draw), self._to_user(expected), torch.where(outside.any(-1), -math.inf, log_weight + own)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.base.encode(self._centre(x), self._features(c))

    def _cluster(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        """The base's, at the middle of every cell."""
        return self.base.cluster(self._centre(x), self._features(c), generator=generator)

    def _diagnose(self, x: X, c: Context | None, generator: Generator) -> Diagnosis:
        """The base's, at the middle of every cell."""
        return self.base.diagnose(self._centre(x), self._features(c), generator=generator).to_units(self._to_user)

    def _classify(self, x: X, d: int, generator: Generator) -> Tensor:
        """The base's, where nothing is lifted: the slopes of the other variables' maps are the same under every level."""
        if self.lift is not None:
            return super()._classify(x, d, generator)
        u = self._to_base(x, None, generator)[0]
        outside = u.isinf()
        p = self.base.classify(torch.where(outside, 0.0, u), d, generator=generator)
        return torch.where(outside.any(-1, keepdim=True), math.nan, p.double())

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self._to_user(self.base.decode(z, self._features(c)))

    def _affine(self) -> tuple[bool, ...]:
        return (True,) * len(self.domain) if self.transform is None else self.transform.affine

    def _bent(self, seen: Sequence[int]) -> list[int]:
        """The unseen variables whose map is not affine."""
        return [d for d, affine in enumerate(self._affine()) if not affine and d not in seen]

    def _straight(self) -> list[bool]:
        """Which variables' expectations pass through their maps."""
        return [affine and not self._lifted_among([d]) for d, affine in enumerate(self._affine())]

    def _lifted_among(self, variables: Sequence[int]) -> bool:
        return self.lift is not None and bool(set(self.lift.lifted) & set(variables))

    # -- state -------------------------------------------------------------------------------------

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave; a base whose grid depends on it is built again.

        Raises:
            FileError: a name, type or shape is not the model's.
        """
        super().load_tensors(tensors)
        domain = image(self.domain, self.lift, self.transform)
        if self.build is not None and domain != self.base.domain:
            self.base = self.build(domain)
            super().load_tensors(tensors)


class PreparedFullBatch(Prepared, FullBatch):
    """The same over a base that learns from all rows at once."""

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """The base's steps on one draw of the lift; yields the mean bound of the rows in the user's units."""
        u, log_weight = self._to_base(x, None, generator)
        held = None if holdout is None else self._to_base(holdout, None, generator)[0]
        for value in cast("FullBatch", self.base).steps(u, holdout=held, generator=generator):
            yield value + float(log_weight.mean())


class PreparedStaged(Prepared, Staged):
    """The same over a base whose parts learn one after the other."""

    def stages(self) -> Iterator[tuple[Model, FamilyConfig]]:
        """The base's, behind the same maps."""
        for part, config in cast("Staged", self.base).stages():
            yield kind_over(part)(part, self.lift, self.transform, self.domain, lifting=self.lifting), config


def kind_over(base: Model) -> type[Prepared]:
    """The class that learns as the base does."""
    return PreparedFullBatch if isinstance(base, FullBatch) else PreparedStaged if isinstance(base, Staged) else Prepared


class Levels:
    """Values of rows, with a vote for the level each levelled variable takes.

    Args:
        domain: what the rows are.
        device: where they are.
    """

    def __init__(self, domain: Domain, device: torch.device) -> None:
        self.sizes = {d: len(v.levels) for d, v in enumerate(domain.variables) if v.kind in LEVELLED}
        self.dim = len(domain)
        pairs = [(d, k) for d, size in self.sizes.items() for k in range(size)]
        self.variable = torch.tensor([d for d, _ in pairs], dtype=torch.long, device=device)
        self.code = torch.tensor([k for _, k in pairs], dtype=torch.float64, device=device)

    def with_votes(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D + levels): 1 at the level each row has."""
        return torch.cat((x, (x[:, self.variable] == self.code).double()), dim=1)

    def elected(self, averaged: Tensor) -> Tensor:
        """(N, D + levels) -> (N, D): the mean of numbers, the level with the most votes."""
        x = averaged[:, : self.dim].clone()
        if self.sizes:
            votes = averaged[:, self.dim :].split(list(self.sizes.values()), dim=1)
            x[:, list(self.sizes)] = torch.stack([v.argmax(1).double() for v in votes], dim=1)
        return x


def _levels(context: Domain) -> list[tuple[object, ...]]:
    """Of each condition, none of a number."""
    return [tuple(v.levels) for v in context.variables]


def dtype_of(model: Model) -> torch.dtype:
    """That of the model's numbers: its parameters', or else its buffers'."""
    for tensors in (model.parameters(), model.buffers()):
        for t in tensors:
            if t.is_floating_point():
                return t.dtype
    return torch.float64
