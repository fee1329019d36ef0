"""Deep latent variable models: p(x) = integral of p(x | z) p(z) dz."""
