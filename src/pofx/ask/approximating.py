"""approximate: from an unnormalised log-density to a q near it, by variational inference with a flow.

The data flow: domain -> bijection to the reals -> check the density at draws of q -> learn -> weighted draws. Everything that can be
wrong with the density or the options is found before learning starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pofx.ask.approximation import Approximation
from pofx.ask.fitting import configured
from pofx.ask.origin import Origin
from pofx.ask.pofx import PofX
from pofx.data import Container, encode, read
from pofx.data.containers import Field
from pofx.data.preparation import prepare, supported
from pofx.domain import Domain, Variable, VariableKind, did_you_mean
from pofx.errors import OptionError, TrainingError, Unavailable
from pofx.learn import Record, choose_device, isolated, run
from pofx.learn.variational import LOOK, Direction, approach
from pofx.models import composed
from pofx.models.base import FamilyConfig, GradientConfig, Model
from pofx.models.composed.completed import Completed
from pofx.models.flows.families import FlowConfig
from pofx.models.flows.flow import Flow
from pofx.models.registry import Family, families, name_of
from pofx.samplers.importance import Weighted
from pofx.transforms.elementwise import Elementwise
from pofx.types import Generator

LogDensity = Callable[[Tensor], Tensor]
Space = int | Domain | Mapping[str, str | tuple[float, float]]

FAMILY = "iaf"  # its draws and their densities cost one pass, and scales and shifts that others steer are what hierarchies are made of
SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "final_rate": 0.01, "batch_size": 256}  # unless given
TRIED = 256  # draws at which the density is looked at before learning
DRAWS_AT_ONCE = 8192


def approximate(
    log_density: LogDensity,
    domain: Space,
    family: object = FAMILY,
    *,
    steps: int = 3500,
    objective: str = "reverse",
    anneal: float = 0.0,
    start: object = None,
    draws: int = 10_000,
    seed: int = 0,
    budget: float | None = None,
    device: str = "auto",
    progress: bool | None = None,
    **options: Any,  # noqa: ANN401
) -> Approximation:
    """Fit q to a density p that is known up to its constant; the answer corrects q by importance weights.

    q starts as a standard normal on the reals, or from `start`; put the variables in units in which that is not absurd.

    Args:
        log_density: rows (N, D), a float64 tensor in the domain's columns, to log p, (N,), in nats, each row by itself. Its gradient is
            taken by autograd.
        domain: D, for reals x0, x1, ...; or column -> "real", "positive" or (lower, upper); or a `Domain` of such variables.
        family: a flow of `pofx.families()`, or its options.
        steps: of the optimiser, each on `batch_size` new draws of q.
        objective: "reverse": KL(q || p), with the gradient along the path; "reverse-score": the same with the plain
            reparameterised gradient; "forward": KL(p || q), by weighted draws of q, which covers p but begins badly far from it.
        anneal: the share of the run over which p^b becomes p: it joins modes that lie apart, but hides narrow necks, which p^b has less of.
        start: an earlier answer (or its q), or rows of something like p, which q learns by likelihood first.
        draws: weighted ones, that answer the questions.
        seed: makes the run reproducible, bit for bit on a CPU.
        budget: seconds after which learning stops.
        device: "cpu", "cuda", ...; "auto" takes an accelerator when there is one.
        progress: show a bar; None shows it on a terminal.
        **options: the named family's own, as `pofx families NAME` lists them.

    Raises:
        PofxError: a density or options that can not work, before learning starts.
        TrainingError: the density is no number where q draws while it learns.
    """
    space, config = as_domain(domain), settings(family, steps, options)
    direction = _direction(objective)
    if not 0 <= anneal < 1:
        raise OptionError(f"tempering takes a share of the run from 0 to below 1, got {anneal}")
    if draws < 1:
        raise OptionError(f"the number of weighted draws is at least 1, got {draws}")
    where = choose_device(device)
    model = _started(space, config, start, seed, budget).to(where)
    target = Target(log_density, space, _map(model))
    flow = _flow(model)
    target.check(flow, torch.Generator(where).manual_seed(seed))
    # Slopes of narrow necks overflow single precision, and their norm, to which they are clipped, sooner.
    kept, flow = next(flow.parameters()).dtype, flow.double()
    try:
        record = approach(
            flow,
            target,
            config=config,
            direction=direction,
            anneal=anneal,
            seed=seed,
            budget=budget,
            device=where,
            progress=progress,
        )
    except TrainingError as error:
        raise TrainingError(f"{error}; or the log-density is no finite number where q drew: bounds belong into the domain") from error
    return _answer(model, flow.to(kept), target, config, record, seed, draws, _container(domain, space))


# -- what is asked for -----------------------------------------------------------------------------


def as_domain(space: Space) -> Domain:
    """The domain, of continuous variables.

    Raises:
        OptionError: it has none, or a variable is not real, positive or an interval.
    """
    if isinstance(space, Mapping):
        space = Domain(tuple(_variable(name, kind) for name, kind in space.items()))
    if not isinstance(space, Domain):
        if space < 1:
            raise OptionError(f"a density is over 1 or more variables, got {space}")
        return Domain.real(space)
    for v in space.variables:
        if not v.continuous or v.resolution is not None or v.spike is not None:
            raise OptionError(f"variable {v.name!r} is {v.kind}: a density is over real, positive and interval variables, off any grid")
    return space


def _variable(name: str, kind: str | tuple[float, float]) -> Variable:
    if isinstance(kind, str):
        if kind not in (VariableKind.REAL, VariableKind.POSITIVE):
            raise OptionError(f"variable {name!r} is 'real', 'positive' or a pair (lower, upper), got {kind!r}")
        return Variable(name, kind)
    lower, upper = (float(end) for end in kind)
    return Variable(name, VariableKind.INTERVAL, lower=lower, upper=upper)


def settings(family: object, steps: int, options: Mapping[str, Any]) -> GradientConfig:
    """The flow's options: for a name, those of variational inference where nothing else is given. Nothing is dropped out: q is one map.

    Raises:
        OptionError: no step, an option is unknown, units are to be dropped out, or epochs are given where there are no rows.
        Unavailable: the family is no flow.
    """
    if steps < 1:
        raise OptionError(f"learning takes 1 or more steps, got {steps}")
    config = configured(family, options)
    if not (isinstance(config, FlowConfig) and config.approximates):
        why = "each draw solves an equation" if isinstance(config, FlowConfig) else "its draws are no function of its parameters"
        raise Unavailable("approximation of a density", name_of(config), why, families=[n for n, one in families().items() if able(one)])
    if options.get("dropout"):
        raise OptionError(
            f"dropout is {options['dropout']}: a flow that drops units is another map at every step, and has no density to descend"
        )
    if "max_epochs" in options:
        raise OptionError("there are no rows to pass over, so max_epochs means nothing here: give steps")
    if config.augment:
        raise OptionError(f"augment is {config.augment}: q's density is then a bound, and weights need the density itself")
    usual = SETTINGS if isinstance(family, str) else {}
    changed = {name: value for name, value in usual.items() if name in type(config).model_fields and name not in options}
    still = {"dropout": 0.0} if "dropout" in type(config).model_fields else {}
    return config.model_copy(update=changed | still | {"max_epochs": -(-steps // LOOK)})


def able(one: Family) -> bool:
    """Whether a family approximates densities."""
    return issubclass(one.config, FlowConfig) and one.config.approximates


def _direction(objective: str) -> Direction:
    if objective not in set(Direction):
        raise OptionError(f"there is no objective {objective!r}{did_you_mean(objective, Direction)}")
    return Direction(objective)


# -- where q starts --------------------------------------------------------------------------------


def _started(space: Domain, config: GradientConfig, start: object, seed: int, budget: float | None) -> Model:
    """The model before it has seen the density."""
    if isinstance(start, Approximation):
        start = start.q
    if isinstance(start, PofX):
        return _copied(start, space, config, seed)
    if start is None:
        return _blank(space, config, seed)
    x = encode(read(start), space)
    with isolated(seed):
        model = composed.assemble(config, space, x, prepare(space, x, config.takes))
    run(model, x, config=config, seed=seed, budget=budget, device="cpu")
    return model


def _blank(space: Domain, config: GradientConfig, seed: int) -> Model:
    empty = torch.empty(0, len(space), dtype=torch.float64)
    with isolated(seed):
        return composed.assemble(config, space, empty, supported(space, config.takes))


def _copied(start: PofX, space: Domain, config: GradientConfig, seed: int) -> Model:
    """q with another's weights."""
    model, state = _blank(space, config, seed), start.model.state_dict()
    own = {name: t.shape for name, t in model.state_dict().items()}
    if own != {name: t.shape for name, t in state.items()}:
        who = start.origin.family if start.origin else start.model.noun
        raise OptionError(f"start is {who} with other options or variables: start from its rows instead, start=q.sample(10_000)")
    model.load_tensors({name: t.clone() for name, t in state.items()})
    return model


def _parts(model: Model) -> list[Model]:
    """The model, what it wraps, and so on."""
    base = getattr(model, "base", None)
    return [model, *_parts(base)] if isinstance(base, Model) else [model]


def _flow(model: Model) -> Flow:
    return next(part for part in _parts(model) if isinstance(part, Flow))


def _map(model: Model) -> Elementwise:
    return cast("Elementwise", model.get_submodule("transform"))


# -- the density -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """log p(T(u)) + log|det J_T(u)|: the user's density on the reals, where q is learned.

    Args:
        log_p: the user's, of rows (N, D) in float64.
        domain: what x is.
        transform: T.
    """

    log_p: LogDensity
    domain: Domain
    transform: Elementwise

    def __call__(self, u: Tensor) -> Tensor:
        """Of rows u (N, D), in float64."""
        x, log_det = self.transform(u.double())
        return self.log_p(x) + log_det

    def check(self, q: Flow, generator: Generator) -> None:
        """Look at the density at draws of q.

        Raises:
            OptionError: it fails, gives anything but one number a row, has no gradient, is NaN or infinite, or a row's number
                depends on other rows.
        """
        x = self.transform(q.sample(TRIED, generator=generator).double())[0].requires_grad_()
        value = self._asked(x)
        self._refuse(~value.isfinite(), value, x, "the log-density is")
        slope = torch.autograd.grad(value.sum(), x, allow_unused=True)[0] if value.requires_grad else None
        if slope is None:
            raise OptionError("the log-density has no gradient: compute it from the rows by torch, without .detach(), .item() or NumPy")
        self._refuse(~slope.isfinite().all(1), slope.sum(1), x, "the log-density's gradient is")
        few = self._asked(x[: TRIED // 2].detach())
        if not torch.allclose(few, value[: TRIED // 2], rtol=1e-6, atol=1e-6):
            raise OptionError(
                "the log-density of a row changes with the rows beside it, or from call to call: it must depend on the row alone"
            )

    def _asked(self, x: Tensor) -> Tensor:
        try:
            value = self.log_p(x)
        except Exception as error:
            raise OptionError(f"the log-density fails on rows {tuple(x.shape)} of float64: {type(error).__name__}: {error}") from error
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise OptionError(f"the log-density gives one number for each of {len(x)} rows, a tensor of shape ({len(x)},), got {got}")
        return value

    def _refuse(self, bad: Tensor, value: Tensor, x: Tensor, what: str) -> None:
        if not bool(bad.any()):
            return
        first = int(bad.nonzero()[0])
        where = ", ".join(f"{name} = {v:.4g}" for name, v in zip(self.domain.names[:6], x[first].tolist(), strict=False))
        raise OptionError(
            f"{what} {float(value[first].detach())} at {int(bad.sum())} of {len(x)} rows drawn from the start, the first at {where}: "
            "it must be a finite number inside the domain, which holds the bounds"
        )


# -- the answer ------------------------------------------------------------------------------------


def _answer(
    model: Model, flow: Flow, target: Target, config: FamilyConfig, record: Record, seed: int, draws: int, container: Container
) -> Approximation:
    model.eval()

    def draw(n: int, generator: Generator, hedge: float) -> Weighted:
        with torch.no_grad():
            parts = [_weighted(flow, target, min(DRAWS_AT_ONCE, n - at), generator, hedge) for at in range(0, n, DRAWS_AT_ONCE)]
        x, log_w = (torch.cat(column) for column in zip(*parts, strict=True))
        return Weighted(x, log_w)

    for part in _parts(model):
        if isinstance(part, Completed):  # what proposes missing cells has seen no rows yet
            part.propose(flow.sample(DRAWS_AT_ONCE, generator=torch.Generator(target.transform.shift.device).manual_seed(seed)))
    origin = Origin(record.family, config, target.domain, record, incomplete=False)
    return Approximation(PofX(model, container, seed=seed, origin=origin), draw, draws, seed)


def _weighted(flow: Flow, target: Target, n: int, generator: Generator, hedge: float) -> tuple[Tensor, Tensor]:
    u, log_q = flow.proposed(n, hedge, generator=generator)
    return target.transform(u.double())[0], target(u) - log_q.double()


def _container(space: Space, domain: Domain) -> Container:
    """An array for a number of variables, a table for named ones."""
    if isinstance(space, int):
        return Container("numpy", dtype="float64", shape=(len(domain),))
    return Container("pandas", tuple(Field(name, "float64") for name in domain.names))
