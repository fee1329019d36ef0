"""Preparation: from the user's variables to what a family takes, one variable at a time.

x --lift--> y --elementwise--> u: dequantise where the family needs it, then log, logit or nothing, then
standardise. Each variable has its own map, so a question about some of them passes through; the maps are part
of the model, so their log-determinant (or bound) is in every number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.domain import Domain, Variable, VariableKind
from pofx.nets.features import location_and_scale
from pofx.transforms import plan
from pofx.transforms.dequantise import Lift, ends, on_grid, resolution
from pofx.transforms.elementwise import Elementwise, Scale


@dataclass(frozen=True)
class Preparation:
    """The maps and where they lead.

    Args:
        lift: the surjection that comes first, or None.
        transform: the bijection that comes next, or None.
        domain: what the family is built on.
    """

    lift: Lift | None
    transform: Elementwise | None
    domain: Domain


def prepare(domain: Domain, x: Tensor, takes: str, codes: str = plan.CODES[0]) -> Preparation:
    """The maps for rows x (N, D), fitted to them; NaN cells are left out.

    Args:
        domain: what x is.
        x: training rows.
        takes: everything, scaled, discrete or reals; see `pofx.transforms.plan`.
        codes: how codes become reals; see there, too.
    """
    lift, transform = plan.plan(domain, takes, codes)
    if lift is not None:
        lift.fit(x.double())
    if transform is not None:
        y = x.double() if lift is None else lift.spread(x)[0]
        _set_support(transform, domain, lift, y)
        _standardise(transform, domain, lift, y)
    return Preparation(lift, transform, plan.image(domain, lift, transform))


def blank(domain: Domain, takes: str) -> Preparation:
    """The same maps without numbers: a file's tensors bring them."""
    lift, transform = plan.plan(domain, takes)
    return Preparation(lift, transform, plan.image(domain, lift, transform, [1.0] * len(domain)))


def supported(domain: Domain, takes: str) -> Preparation:
    """The same maps where there are no rows: supports are the domain's, and nothing is standardised."""
    lift, transform = plan.plan(domain, takes)
    if transform is not None:
        _set_support(transform, domain, lift, torch.empty(0, len(domain), dtype=torch.float64))
    return Preparation(lift, transform, plan.image(domain, lift, transform))


def _set_support(transform: Elementwise, domain: Domain, lift: Lift | None, y: Tensor) -> None:
    """Lower end and width of each variable, after the lift made room for cells and slabs."""
    for d, variable in enumerate(domain.variables):
        if transform.scales[d] is Scale.IDENTITY:
            continue
        celled = lift is not None and d in lift.celled
        half = resolution(variable) / 2 if celled else 0.0
        gap = float(lift.cells.gap[lift.celled.index(d)]) if celled and lift is not None else 0.0
        transform.lower[d] = _lower(variable, transform.scales[d], half, y[:, d])
        if transform.scales[d] is Scale.LOGIT:
            transform.width[d] = ends(variable)[1] + half + gap - float(transform.lower[d])


def _lower(variable: Variable, scale: Scale, half: float, y: Tensor) -> float:
    if variable.kind is VariableKind.POSITIVE:
        return -half
    if scale is Scale.LOGIT:
        return ends(variable)[0] - half
    # A count without end: log(y - first + median) is near linear for small counts and tames a heavy tail.
    middle = y[y.isfinite()].median().item() - variable.lower + half if y.isfinite().any() else 1.0
    return variable.lower - half - middle


def _standardise(transform: Elementwise, domain: Domain, lift: Lift | None, y: Tensor) -> None:
    """Mean 0 and deviation 1; a carried-along atom goes to 0, a carried-along grid keeps 0 on it."""
    v = transform.inverse(y)[0]  # shift 0 and scale 1 so far
    shift, scale = location_and_scale(v)
    scored = () if lift is None else lift.coded
    for d, variable in enumerate(domain.variables):
        if d in scored or not (variable.continuous or (lift is not None and d in lift.celled)):
            shift[d], scale[d] = 0.0, 1.0
        elif lift is not None and d in lift.celled:
            continue
        elif transform.scales[d] is Scale.IDENTITY and variable.kind is not VariableKind.REAL:
            shift[d], scale[d] = 0.0, _unit(variable, v[:, d : d + 1])
        elif variable.spike is not None:
            shift[d], scale[d] = variable.spike, location_and_scale(v[v[:, d] != variable.spike][:, d : d + 1])[1][0]
        elif variable.resolution is not None:
            shift[d] = on_grid(shift[d], torch.tensor(variable.resolution, dtype=torch.float64, device=shift.device))
    transform.shift.copy_(shift)
    transform.scale.copy_(scale)


def _unit(variable: Variable, v: Tensor) -> float:
    """What a positive variable is divided by: an atom then lies at 0 or 1, whatever the dtype behind. An interval stays."""
    if variable.kind is VariableKind.INTERVAL:
        return 1.0
    if variable.spike:
        return abs(variable.spike)
    return float(location_and_scale(v[v[:, 0] != variable.spike])[1][0])
