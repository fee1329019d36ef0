"""From a family's options and a domain to the Model that learns it: preparation, context, missing cells."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pofx.domain import Domain
from pofx.models.base import FamilyConfig, Model, Takes
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.composed.completed import Completed
from pofx.models.composed.prepared import kind_over
from pofx.nets.features import Features
from pofx.transforms.dequantise import Lift
from pofx.transforms.elementwise import Elementwise
from pofx.transforms.noise import Shares
from pofx.transforms.plan import image, plan
from pofx.types import Kind


@runtime_checkable
class Maps(Protocol):
    """What `data.prepare` gives: the maps and the domain they lead to."""

    @property
    def lift(self) -> Lift | None:
        """The surjection that comes first."""

    @property
    def transform(self) -> Elementwise | None:
        """The bijection that comes next."""

    @property
    def domain(self) -> Domain:
        """What the family is built on."""


MANY = 128  # variables; above it a proposal for missing cells, D^2 numbers, is only kept when rows did have some


def assemble(
    config: FamilyConfig, domain: Domain, x: Tensor, preparation: Maps, context: Domain | None = None, c: Tensor | None = None
) -> Model:
    """The untrained model of rows x (N, D), ready to learn.

    Args:
        config: the family's options.
        domain: what x is.
        x: training rows.
        preparation: the maps fitted to them.
        context: what c is, or None.
        c: the conditions of the rows, or None.
    """
    features = None if context is None or c is None else Features(context).fit(c.double())
    builder = Builder(config, features, bool(x.isnan().any()))
    return wrap(builder, domain, preparation.lift, preparation.transform, preparation.domain, context)


def blank(config: FamilyConfig, domain: Domain, context: Domain | None = None, incomplete: bool = False) -> Model:
    """The same model without numbers, for the tensors of a file.

    Args:
        config: the family's options.
        domain: what x is.
        context: what c is, or None.
        incomplete: whether there were missing cells in the rows it learned from.
    """
    lift, transform = plan(domain, config.takes, config.lifting.codes)
    seen = image(domain, lift, transform, [1.0] * len(domain))
    builder = Builder(config, None if context is None else Features(context), incomplete)
    return wrap(builder, domain, lift, transform, seen, context)


@dataclass(frozen=True)
class Builder:
    """Makes the base on the domain it sees; with missing cells integrated out where the family can not do so itself.

    Args:
        config: the family's options.
        features: what the base sees of c, or None without c.
        incomplete: whether there are missing cells in the rows it learns from.
    """

    config: FamilyConfig
    features: Features | None
    incomplete: bool

    def __call__(self, seen: Domain) -> Model:
        """The untrained base."""
        base = self.config.build(seen, None if self.features is None else Domain.real(self.features.width))
        completes = self.config.takes is Takes.REALS and (self.incomplete or len(seen) <= MANY)
        if base.missing is not Kind.NONE or not completes:
            return base
        return Completed(base, GaussianConfig().build(seen))

    def noise(self, seen: Domain, lift: Lift | None) -> Shares | None:
        """What learns where in its cell a lifted value is put; None where that is not learned, or nothing is lifted."""
        if lift is None or not self.config.lifting.learned:
            return None
        steering = len(seen) + len(lift.lifted) + (0 if self.features is None else self.features.width)
        return Shares(len(seen), lift.lifted, steering)


def wrap(
    builder: Builder, domain: Domain, lift: Lift | None, transform: Elementwise | None, seen: Domain, context: Domain | None = None
) -> Model:
    """A family behind the maps that lead to the domain it sees; the family itself where there is nothing between."""
    base = builder(seen)
    if lift is None and transform is None and context is None:
        return base
    return kind_over(base)(
        base,
        lift,
        transform,
        domain,
        context_features=builder.features,
        context=context,
        lifting=builder.config.lifting,
        noise=builder.noise(seen, lift),
        build=builder,
    )
