"""A normalizing flow: a base density, carried to the data by a transform."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.models.base import Model
from pofx.transforms.base import Compose, Transform
from pofx.transforms.permutation import Permutation
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

_WIDE = 3.0  # of a widened coordinate of u, over its own width


class Flow(Model):
    """log p(x | c) = log p_base(T^-1(x; c) | c) + log|det J_T^-1(x; c)|.

    Answers log_prob, sample, encode and decode exactly; and where some variables of x are a bijection of as many of u by themselves
    (`Transform.behind`: the first ones of an autoregressive flow whose steps all have one order), their marginal, and the conditional of
    the others, of the kind of the base's. Other questions go through the generic engine. A row with an infinite
    entry has density 0. Fails where the support is torn into pieces that a continuous T can not separate: thin bridges of density
    remain between them.

    Source: Papamakarios, Nalisnick, Rezende, Mohamed and Lakshminarayanan, "Normalizing flows for probabilistic modeling and
    inference", JMLR 22(57), 2021, equation 6.

    Args:
        domain: what x is, real variables.
        transform: T.
        base: p_base, of as many real variables: any model of them; it sees c where it has a context itself.
        context: what c is, real variables, or None.
        name: what it is called in sentences.
    """

    def __init__(
        self, domain: Domain, transform: Transform, base: Model, context: Domain | None = None, name: str = "normalizing flow"
    ) -> None:
        super().__init__(domain, context)
        self.transform, self.base, self.name = transform, base, name
        self.density, self.sampling = base.density.worst(transform.kind), base.sampling

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """Of marginals and conditionals the base's answer, where the transform leads there."""
        if question not in ("marginal", "conditional"):
            return super().answers(question, seen)
        behind = self.transform.behind(tuple(sorted(seen))) if seen else None
        divides = self.context is None and self.density is Kind.EXACT  # p(x) / p(x_s): a quotient of bounds bounds nothing
        if behind is None or (question == "conditional" and not divides):
            return Kind.NONE
        return self.base.answers(question, behind)

    @property
    def noun(self) -> str:
        """Its family's."""
        return self.name

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Let the transform see the rows, and the base what it makes of them."""
        self.transform.start(x, c)
        with torch.no_grad():
            few = slice(None, None, -(-len(x) // self.rows_at_once))  # evenly apart, enough for a start
            c = c if c is None else c[few]
            self.base.initialise(self.transform.inverse(x[few], c)[0], self._of_base(c))

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        finite = x.nan_to_num(0.0, 0.0, 0.0)
        u, log_det, own = self.transform.estimated(finite, c, generator=generator)
        value, error = self.base._log_prob_and_error(u, self._of_base(c), generator)
        return torch.where((x == finite).all(-1), value + log_det, -math.inf), torch.hypot(error, own)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.transform(self.base._sample(n, self._of_base(c), generator).to(self.like), c)[0]

    def _of_base(self, c: Context | None) -> Context | None:
        return None if self.base.context is None else c

    def _marginal(self, keep: tuple[int, ...]) -> "Flow":
        first = sorted(keep)
        behind = self.transform.behind(first)
        if behind is None:
            raise self._refuse("marginal", "drop the columns of samples")
        T = Compose(self.transform.select(first), Permutation([first.index(d) for d in keep]))
        return Flow(self.domain.select(keep), T, self.base.marginal(behind), self.context, self.name).train(self.training)

    def _conditional(self, evidence: Point) -> "Given":
        if self.answers("conditional", (~evidence.isnan()).nonzero()[:, 0].tolist()) is Kind.NONE:
            raise self._refuse("conditional", "draws: `pofx.ask.generic.conditional`")
        return Given(self, evidence)

    def reparameterised(self, n: int, c: Context | None = None, *, generator: Generator = None) -> tuple[X, Nats]:
        """n draws x = T(u) and log p(x), differentiable in T's parameters; the base stands still: u is drawn without a gradient."""
        u = self.base.sample(n, generator=generator)
        x, log_det = self.transform(u, c)
        return x, self.base._log_prob(u, None, generator).detach() - log_det

    def proposed(self, n: int, hedge: float, *, generator: Generator = None) -> tuple[X, Nats]:
        """n draws of (1 - a) p + (a / D) sum_d p_d and the log-density of that mixture; p_d is p with a u_d three times as wide.

        Weights by it are at most 1 / (1 - a) of those by p; and places that p reaches in the far tail of a coordinate of u alone, such as
        the neck of a funnel, are drawn from, too.

        Cost: D densities of the base beside the pass.

        Source: Hesterberg, "Weighted average importance sampling and defensive mixture distributions", Technometrics 37, 1995.

        Args:
            n: how many.
            hedge: a.
            generator: of the draws.
        """
        u = self.base.sample(n, generator=generator)
        d = torch.randint(u.shape[1], (n,), generator=generator, device=u.device)
        wide = torch.rand(n, generator=generator, dtype=u.dtype, device=u.device) < hedge
        u[wide, d[wide]] *= _WIDE
        x, log_det = self.transform(u, None)
        return x, self._log_hedged(u, hedge, generator) - log_det

    def _log_hedged(self, u: Tensor, hedge: float, generator: Generator) -> Nats:
        """log of (1 - a) p(u) + (a / D) sum_d p(u with u_d / s) / s of the base."""
        log_p = self.base._log_prob(u, None, generator)
        if not hedge:
            return log_p
        narrowed = (u.index_copy(1, d, u[:, d] / _WIDE) for d in torch.arange(u.shape[1], device=u.device)[:, None])
        each = torch.stack([self.base._log_prob(v, None, generator) for v in narrowed])
        log_wide = each.logsumexp(0) - math.log(len(each) * _WIDE)
        return torch.logaddexp(math.log1p(-hedge) + log_p, math.log(hedge) + log_wide)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.transform.inverse(x, c)[0]

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self.transform(z.to(self.like), c)[0]

    @property
    def like(self) -> Tensor:
        """A tensor of its dtype, on its device."""
        return next(chain(self.parameters(), self.buffers()))


class Given(Model):
    """p(x_r | x_s) = p(x_s, x_r) / p(x_s) of a flow where x_s = T_s(u_s): x_r = T(u_s, u_r)_r with u_r ~ p_base(u_r | u_s).

    Cost: that of the flow.

    Args:
        flow: p, without a context.
        evidence: x_s, NaN where unobserved.

    Raises:
        Unavailable: there is no T_s, the base has no such conditional, or p(x_s) = 0.
    """

    evidence: Tensor
    code: Tensor
    log_p: Tensor

    def __init__(self, flow: Flow, evidence: Point) -> None:
        seen, free = (mask.nonzero()[:, 0].tolist() for mask in (~evidence.isnan(), evidence.isnan()))
        super().__init__(flow.domain.select(free))
        self.flow, self.seen, self.free = flow, seen, free
        self.density, self.sampling = flow.density, flow.sampling
        known, first = evidence.to(flow.like)[seen], flow.marginal(seen)
        self.register_buffer("log_p", first.log_prob(known).detach())
        if self.log_p == -math.inf:
            raise Unavailable("conditional", flow.noun, "the evidence lies where p is 0")
        code = torch.full_like(evidence, torch.nan, dtype=known.dtype)
        code[list(flow.transform.behind(seen) or ())] = first.encode(known)
        self.register_buffer("evidence", evidence.to(known))
        self.register_buffer("code", code)
        self.base = flow.base.conditional(code)

    @property
    def noun(self) -> str:
        """The flow's."""
        return self.flow.noun

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """Of marginals and conditionals the flow's answer, the evidence among what is seen."""
        if question not in ("marginal", "conditional"):
            return super().answers(question, seen)
        return self.flow.answers(question, self._with_evidence(seen)) if seen else Kind.NONE

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self.flow._log_prob(_filled(self.evidence, x), c, generator) - self.log_p

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._decode(self.base.sample(n, generator=generator), c)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.flow._encode(_filled(self.evidence, x), c)[:, self.code.isnan()]

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self.flow._decode(_filled(self.code, z), c)[..., self.free]

    def _marginal(self, keep: tuple[int, ...]) -> "Given":
        both = self._with_evidence(keep)
        return Given(cast("Flow", self.flow.marginal(both)), self.evidence[both])

    def _conditional(self, evidence: Point) -> "Given":
        return Given(self.flow, _filled(self.evidence, evidence))

    def _with_evidence(self, variables: Sequence[int]) -> list[int]:
        """The flow's, the evidence first."""
        return [*self.seen, *(self.free[d] for d in variables)]


def _filled(known: Tensor, rest: Tensor) -> Tensor:
    """Rows that have `rest` where the known values are NaN."""
    rows = known.expand(*rest.shape[:-1], -1).clone()
    rows[..., known.isnan()] = rest.to(rows)
    return rows
