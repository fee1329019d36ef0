"""Every family, one line each: name, where its options live, and what it is in one sentence.

Read by the command line, compare, the docs and the tests. Importing it loads no torch. A third party
adds families through the entry point group ``pofx.families``: each entry is a `Family`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pofx.domain import did_you_mean
from pofx.errors import OptionError

if TYPE_CHECKING:
    from pofx.models.base import FamilyConfig


@dataclass(frozen=True)
class Family:
    """One line of the registry.

    Args:
        name: what the user writes.
        where: "module:class" of its options, a FamilyConfig.
        says: the family in one sentence.
        baseline: whether every comparison includes it.
        options: those of a variant that differ from the family's own defaults.
    """

    name: str
    where: str
    says: str
    baseline: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> "type[FamilyConfig]":
        """The class of its options."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(module), name)

    def configure(self, options: Mapping[str, Any]) -> "FamilyConfig":
        """The options, checked; a variant's own are among them.

        Raises:
            OptionError: an option is unknown or out of range.
        """
        from pydantic import ValidationError

        config, options = self.config, {**dict(self.options), **options}
        for name in options.keys() - config.model_fields.keys():
            raise OptionError(f"family {self.name!r} has no option {name!r}{did_you_mean(name, config.model_fields)}")
        try:
            return config(**options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OptionError(
                f"family {self.name!r}, option {where!r}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"
            ) from None


FAMILIES = (
    Family("independent", "pofx.models.classical.independent:IndependentConfig", "the best law of each variable alone", baseline=True),
    Family("gaussian", "pofx.models.classical.gaussian:GaussianConfig", "one full-covariance normal", baseline=True),
    Family("histogram", "pofx.models.classical.histogram:HistogramConfig", "a histogram of each variable, or a grid of all", baseline=True),
    Family(
        "density_tree",
        "pofx.models.classical.density_tree:DensityTreeConfig",
        "recursive subdivision, pruned by cross-validation",
        baseline=True,
    ),
    Family("gmm", "pofx.models.classical.gmm:GaussianMixtureConfig", "a mixture of Gaussians by EM", baseline=True),
    Family(
        "latent_class",
        "pofx.models.classical.latent_class:LatentClassConfig",
        "a mixture of products of per-variable laws by EM",
        baseline=True,
    ),
    Family("kde", "pofx.models.classical.kde:KernelDensityConfig", "a Gaussian kernel on every training row", baseline=True),
    Family("chow_liu", "pofx.models.circuits.chow_liu:ChowLiuConfig", "the best Bayesian network that is a tree", baseline=True),
    Family(
        "hclt",
        "pofx.models.circuits.families:HiddenChowLiuConfig",
        "a circuit: a hidden state for each variable, along the tree of strongest dependence",
    ),
    Family("rat", "pofx.models.circuits.families:RandomTreesConfig", "a circuit: a mixture of trees that halve the variables at random"),
    Family("quad_tree", "pofx.models.circuits.families:QuadTreeConfig", "a circuit of an image, its quarters, their quarters"),
    Family("nice", "pofx.models.flows.families:AdditiveConfig", "a normalizing flow of additive couplings"),
    Family("realnvp", "pofx.models.flows.realnvp:RealNVPConfig", "a normalizing flow of affine couplings"),
    Family("glow", "pofx.models.flows.images:GlowConfig", "a normalizing flow of images: convolutional couplings, scale by scale"),
    Family("nsf", "pofx.models.flows.families:NeuralSplineConfig", "a normalizing flow of spline couplings"),
    Family("maf", "pofx.models.flows.families:MaskedAutoregressiveConfig", "an autoregressive flow of affine maps: fast densities"),
    Family(
        "iaf", "pofx.models.flows.families:InverseAutoregressiveConfig", "an inverse autoregressive flow: fast samples with their densities"
    ),
    Family("nsf-ar", "pofx.models.flows.families:NeuralSplineAutoregressiveConfig", "an autoregressive flow of splines"),
    Family("cnf", "pofx.models.flows.continuous:ContinuousConfig", "a continuous normalizing flow: rows drift, by flow matching"),
    Family("vae", "pofx.models.latent.vae:VAEConfig", "a variational auto-encoder with one law per variable"),
    Family("m2", "pofx.models.latent.semi:M2Config", "a variational auto-encoder of classes that only some rows show (semi-supervised)"),
    Family("latent", "pofx.models.composed.two_stage:LatentConfig", "a variational auto-encoder, then any family learned on its codes"),
    Family("vdvae", "pofx.models.latent.deep:DeepConfig", "a very deep variational auto-encoder of images: latents from coarse to fine"),
    Family("diffusion", "pofx.models.diffusion.families:DiffusionConfig", "a diffusion model: noise is taken away a little at a time"),
)


@cache
def families() -> dict[str, Family]:
    """Name to family: the library's, in the order of the docs, then those of other packages."""
    others = (entry.load() for entry in entry_points(group="pofx.families"))
    return {family.name: family for family in (*FAMILIES, *others)}


def name_of(config: "FamilyConfig") -> str:
    """The family's name, or the class of options that no family is registered with."""
    where = f"{type(config).__module__}:{type(config).__qualname__}"
    return next((name for name, one in families().items() if one.where == where), type(config).__qualname__)


def family(name: str) -> Family:
    """The family of that name, or a variant of it: "nsf:layers=2:dequantise=uniform".

    Raises:
        OptionError: there is none, the nearest names are listed; or what follows a colon is not NAME=VALUE.
    """
    known, *settings = name.split(":")
    if known not in families():
        raise OptionError(f"there is no family {known!r}{did_you_mean(known, families())}")
    return replace(families()[known], name=name, options=tuple(map(_setting, settings))) if settings else families()[known]


def _setting(text: str) -> tuple[str, Any]:
    option, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"a family's option is NAME=VALUE after a colon, got {text!r}")
    return option, plain(value)


def plain(text: str) -> object:
    """A number, list, true, false or null where the text is one; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
