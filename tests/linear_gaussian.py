"""x = W z + mu + sigma e with z, e standard normal: a model with latents whose every answer has a closed form."""

import torch
from torch.distributions import MultivariateNormal

from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.generative import Generative
from pofx.models.latent.priors import StandardNormal

D, L, SIGMA, NAN = 5, 2, 0.7, torch.nan
W = torch.tensor([[1.2, 0.3], [-0.5, 0.9], [0.1, -1.1], [0.8, 0.8], [0.0, 0.4]], dtype=torch.float64)
MU = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3], dtype=torch.float64)
COVARIANCE = W @ W.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)


def linear_gaussian(w=W, mu=MU, sigma=SIGMA):
    model = Generative(StandardNormal(w.shape[1]), Decoder(w.shape[1], Columns([Normal()] * len(w)), widths=()))
    heads = model.decoder.heads
    with torch.no_grad():
        heads.weight[0::2], heads.weight[1::2] = w, 0.0
        heads.bias[0::2], heads.bias[1::2] = mu, inverse_positive(torch.tensor(sigma))
    return model.requires_grad_(False)


def rows(n, sigma=SIGMA):
    return MU + torch.randn(n, L) @ W.T + sigma * torch.randn(n, D)


def exact_log_p(x):
    """log p of the observed cells of each row."""
    values = []
    for row in x:
        seen = ~row.isnan()
        values.append(MultivariateNormal(MU[seen], COVARIANCE[seen][:, seen]).log_prob(row[seen]) if seen.any() else torch.tensor(0.0))
    return torch.stack(values)


def exact_posterior(row):
    seen = ~row.isnan()
    precision = torch.eye(L) + W[seen].T @ W[seen] / SIGMA**2
    mean = torch.linalg.solve(precision, W[seen].T @ (row[seen] - MU[seen]) / SIGMA**2)
    return MultivariateNormal(mean, precision_matrix=precision)
