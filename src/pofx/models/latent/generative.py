"""The generative half of a latent-variable model: prior and decoder. It knows of no encoder."""

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pofx.models.latent.decoder import Decoding
from pofx.models.latent.laws import Diagonal, Steered
from pofx.models.latent.priors import Prior
from pofx.nets.mlp import MLP
from pofx.objectives.elbo import Levels
from pofx.types import Generator


class Generative(nn.Module):
    """p(x, z | c) = p(z_L) prod_l p(z_l | z_>l) prod_d p_d(x_d | h(z, c)): one law a variable, steered by the decoder h.

    Latents are tuples with one entry for each level, bottom first. The decoder sees all levels side by side.

    Args:
        prior: p(z_L) of the top level.
        decoder: h and the laws.
        links: p(z_l | z_>l) of the others, bottom first: a network each, or all on one path.
    """

    def __init__(self, prior: Prior, decoder: Decoding, links: "Links | Sequence[Link]" = ()) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = decoder
        self.links = links if isinstance(links, Links) else Networks(links)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of each level."""
        return (*self.links.sizes, self.prior.latents)

    def prior_of(self, level: int, latents: Levels) -> "Prior | Steered":
        """p(z_l | z_>l), of the top level p(z_L)."""
        return self.prior if level == len(self.links) else self.links[level](latents[level + 1 :])

    def log_prior(self, latents: Levels) -> Levels:
        """log p of each level given those above, of the batch shape of z."""
        laws: tuple[Prior | Steered, ...] = (*self.links.laws(latents), self.prior)
        return tuple(law.log_prob(z) for law, z in zip(laws, latents, strict=True))

    def log_likelihood(self, latents: Levels, x: Tensor, c: Tensor | None = None, *, inside: bool = False) -> Tensor:
        """log p(x | z, c) for z (K, N, L), x (N, D), conditions c (N, C): (K, N). NaN cells count factor 1.

        Args:
            latents: z.
            x: rows.
            c: their conditions.
            inside: whether x is known to be whole and inside the support; see `Columns.log_prob`.
        """
        return self.decoder.columns.log_prob(self.parameters_at(latents, c), x, inside=inside).sum(-1)

    def parameters_at(self, latents: Levels, c: Tensor | None = None) -> Tensor:
        """The parameters of the laws of x, (*batch, P)."""
        parameters: Tensor = self.decoder(beside(latents), c)
        return parameters

    def draw_latents(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Levels:
        """Draws from the prior, one (*shape, L) for each level: the top first, then each given those above."""
        return self.links.draw(self.prior.sample(shape, like=like, generator=generator), generator=generator)

    def levels_of(self, z: Tensor) -> Levels:
        """The levels that stand side by side in z (*batch, sum of sizes), bottom first: what `beside` joins."""
        return z.split(self.sizes, dim=-1)

    def sample(self, latents: Levels, c: Tensor | None = None, *, generator: Generator = None) -> Tensor:
        """x ~ p(x | z, c): one draw for each z."""
        return self.decoder.columns.sample(self.parameters_at(latents, c), generator=generator)

    def marginal(self, keep: Sequence[int]) -> "Generative":
        """p of some variables: given z they are independent, so the others' heads are dropped. Exact."""
        return Generative(self.prior, self.decoder.marginal(keep), self.links)


class Link(nn.Module):
    """p(z_l | z_>l) = N(m, diag s^2), m and log s from a network that sees all levels above. It begins at N(0, I).

    Args:
        above: width of z_>l.
        latents: width of z_l.
        widths: hidden widths; () makes m and log s affine.
        dropout: share of hidden units dropped while training.
    """

    def __init__(self, above: int, latents: int, widths: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.law = Diagonal(latents)
        self.net = MLP(above, self.law.outputs, widths, dropout=dropout)

    def forward(self, above: Levels) -> Steered:
        """The law of z_l, batched like the levels above."""
        return self.law(self.net(beside(above)))


class Links(nn.Module, abc.ABC):
    """p(z_l | z_>l) of all levels below the top one."""

    @property
    @abc.abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Width of each of those levels, bottom first."""

    @abc.abstractmethod
    def __getitem__(self, level: int) -> Callable[[Levels], Steered]:
        """From the levels above one to its law."""

    @abc.abstractmethod
    def laws(self, latents: Levels) -> tuple[Steered, ...]:
        """The law of each of those levels at latents of all levels."""

    @abc.abstractmethod
    def draw(self, top: Tensor, *, generator: Generator = None) -> Levels:
        """All levels below a draw of the top one (*shape, L), and that."""

    def __len__(self) -> int:
        """How many levels there are below the top one."""
        return len(self.sizes)


class Networks(Links):
    """A network for each level.

    Args:
        links: bottom first.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        super().__init__()
        self.each: Sequence[Link] = nn.ModuleList(links)  # type: ignore[assignment]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(link.law.latents for link in self.each)

    def __getitem__(self, level: int) -> Link:
        """The network of a level."""
        return self.each[level]

    def laws(self, latents: Levels) -> tuple[Steered, ...]:
        """One by one."""
        return tuple(link(latents[level + 1 :]) for level, link in enumerate(self.each))

    def draw(self, top: Tensor, *, generator: Generator = None) -> Levels:
        """The upper ones first."""
        latents: Levels = (top,)
        for link in reversed(self.each):
            latents = (link(latents).draw(tuple(top.shape[:-1]), generator=generator).z, *latents)
        return latents


def beside(latents: Levels) -> Tensor:
    """All levels as one vector, bottom first."""
    return latents[0] if len(latents) == 1 else torch.cat(latents, dim=-1)
