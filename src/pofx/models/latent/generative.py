"""The generative half of a latent-variable model: prior and decoder. It knows of no encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from pofx.models.latent.decoder import Decoder
from pofx.models.latent.priors import Prior
from pofx.types import Generator


class Generative(nn.Module):
    """p(x, z | c) = p(z) prod_d p_d(x_d | h(z, c)): one law a variable, steered by the decoder h.

    Latents are tuples with one entry for each level of a hierarchy, bottom first; here there is one.

    Args:
        prior: p(z).
        decoder: h and the laws.
    """

    def __init__(self, prior: Prior, decoder: Decoder) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = decoder

    def log_prior(self, latents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """log p of each level, of the batch shape of z."""
        return (self.prior.log_prob(latents[0]),)

    def log_likelihood(self, latents: tuple[Tensor, ...], x: Tensor, c: Tensor | None = None, *, inside: bool = False) -> Tensor:
        """log p(x | z, c) for z (K, N, L), x (N, D), conditions c (N, C): (K, N). NaN cells count factor 1.

        Args:
            latents: z.
            x: rows.
            c: their conditions.
            inside: whether x is known to be whole and inside the support; see `Columns.log_prob`.
        """
        return self.decoder.columns.log_prob(self.parameters_at(latents, c), x, inside=inside).sum(-1)

    def parameters_at(self, latents: tuple[Tensor, ...], c: Tensor | None = None) -> Tensor:
        """The parameters of the laws of x, (*batch, P)."""
        parameters: Tensor = self.decoder(latents[0], c)
        return parameters

    def draw_latents(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> tuple[Tensor, ...]:
        """Draws from the prior, one (*shape, L) for each level."""
        return (self.prior.sample(shape, like=like, generator=generator),)

    def sample(self, latents: tuple[Tensor, ...], c: Tensor | None = None, *, generator: Generator = None) -> Tensor:
        """x ~ p(x | z, c): one draw for each z."""
        return self.decoder.columns.sample(self.parameters_at(latents, c), generator=generator)

    def marginal(self, keep: Sequence[int]) -> "Generative":
        """p of some variables: given z they are independent, so the others' heads are dropped. Exact."""
        return Generative(self.prior, self.decoder.marginal(keep))
