"""A bijection without steps: rows that drift with a speed, from the base at time 0 to the data at time 1."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pofx.errors import OptionError
from pofx.transforms.base import Transform
from pofx.transforms.ode import Along, Carried, DormandPrince, Field, Method, Trace, carry, integrate
from pofx.types import Context, Generator, Kind, Nats, X

EXACT_UP_TO = 64  # variables; above, a vector-Jacobian product for each costs more than an estimate's noise
PROBES = 16


@runtime_checkable
class Speed(Protocol):
    """A net that is told the time."""

    def __call__(self, z: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """Z (N, D), t (N, 1), c (N, C) -> (N, D)."""


class Continuous(Transform):
    """x = z(1) where dz/dt = v(z, t, c) and z(0) = u; log|det J_T| = integral of tr dv/dz dt from 0 to 1.

    The way back is the same equation from 1 to 0, so any v will do that is Lipschitz in z, and both ways cost the same: as many
    evaluations of v as the method takes, each with D vector-Jacobian products for the log-determinant, or one a probe.

    Holds up to the solver's error: inverse and forward undo each other, and log-determinants are the map's, to about the
    tolerance. With the adaptive method a row's answer does not depend on the others, but each step waits for the device. A row with an
    entry that is not finite stays where it is. Fails (DataError) where v is so steep that no step is short enough.

    Sources: Chen, Rubanova, Bettencourt and Duvenaud, "Neural ordinary differential equations", NeurIPS 2018, arXiv:1806.07366;
    Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud, "FFJORD", ICLR 2019, arXiv:1810.01367.

    Args:
        speed: v, a module.
        dim: number D of variables.
        trace: "exact", or a number of probes, at least 2, whose mean estimates the trace; drawn anew each time, from torch's own generator
            where none is given. None: exact up to 64 variables, 16 probes above.
        method: of the solver; None: adaptive, of order 5, to 1e-5.
        adjoint: whether gradients solve the adjoint equation, in the memory of one step, instead of going back through the steps.

    Raises:
        OptionError: fewer than 2 probes, whose spread is the standard error.
    """

    def __init__(
        self, speed: nn.Module, dim: int, *, trace: Trace | None = None, method: Method | None = None, adjoint: bool = False
    ) -> None:
        super().__init__()
        if isinstance(trace, int) and trace < 2:
            raise OptionError(f"probes are at least 2, or the trace is exact; got {trace}")
        self.speed, self.adjoint = speed, adjoint
        self.trace: Trace = trace or ("exact" if dim <= EXACT_UP_TO else PROBES)
        self.method: Method = method or DormandPrince()

    @property
    def kind(self) -> Kind:
        """Exact, or the estimate of probes."""
        return Kind.EXACT if self.trace == "exact" else Kind.ESTIMATE

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data."""
        return self._both(u, c, 0.0, 1.0)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base."""
        return self._both(x, c, 1.0, 0.0)

    def estimated(self, x: X, c: Context | None = None, *, generator: Generator = None) -> tuple[X, Nats, Nats]:
        """Data to base, with the standard error over the probes."""
        made = self.carried(x, c, 1.0, 0.0, generator=generator)
        return made.y.reshape(x.shape), made.log_det.reshape(x.shape[:-1]), made.error.reshape(x.shape[:-1])

    def _both(self, v: Tensor, c: Tensor | None, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        made = self.carried(v, c, t0, t1)
        return made.y.reshape(v.shape), made.log_det.reshape(v.shape[:-1])

    def carried(
        self,
        v: X,
        c: Context | None,
        t0: float,
        t1: float,
        *,
        trace: Trace | None = None,
        method: Method | None = None,
        along: Along | None = None,
        generator: Generator = None,
    ) -> Carried:
        """Rows (N, D) from one time to the other, the log-determinant with its standard error, and integrals along the way.

        Args:
            v: z(t0), (*batch, D).
            c: conditions.
            t0: where v is.
            t1: where it goes to.
            trace: another one than the transform's own.
            method: another one, too.
            along: as of `carry`.
            generator: of the probes.
        """
        rows, k = _flat(v, c)
        finite = rows.isfinite().all(-1, keepdim=True)
        start = torch.where(finite, rows, 0.0)
        field, parameters = self._field(k), self._parameters_of(k)
        made = carry(
            field,
            start,
            t0,
            t1,
            trace=trace or self.trace,
            method=method or self.method,
            adjoint=self.adjoint,
            parameters=parameters,
            along=along,
            generator=generator,
        )
        return Carried(torch.where(finite, made.y, rows), made.log_det, made.error, made.evaluations, made.along)

    def moved(self, v: X, c: Context | None, t0: float, t1: float, *, method: Method | None = None) -> X:
        """Rows alone, without the log-determinant, for one evaluation of the net each."""
        rows, k = _flat(v, c)
        finite = rows.isfinite().all(-1, keepdim=True)
        end = integrate(self._field(k), torch.where(finite, rows, 0.0), t0, t1, method=method or self.method).y
        return torch.where(finite, end, rows).reshape(v.shape)

    def _field(self, c: Tensor | None) -> Field:
        def field(t: Tensor, z: Tensor) -> Tensor:
            slope: Tensor = self.speed(z, t, c)
            return slope

        return field

    def _parameters_of(self, c: Tensor | None) -> list[Tensor]:
        """What the adjoint's gradients are wanted of: a condition may be learned, too."""
        if not self.adjoint:
            return []
        given = [c] if c is not None and c.requires_grad else []
        return [*self.speed.parameters(), *given]


def _flat(v: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows (N, D) and their conditions (N, C)."""
    if c is not None:
        c = c.expand(*v.shape[:-1], c.shape[-1]).reshape(-1, c.shape[-1])
    return v.reshape(-1, v.shape[-1]), c
