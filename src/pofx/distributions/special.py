"""Functions of one real number that lose no digits in the tails and keep their gradients finite."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2.0)
_FAR = 50.0  # deviations beyond which a normal has nothing
_TERMS = 100_000  # of a series or a fraction, at most; it ends where terms no longer count


def log1mexp(d: Tensor) -> Tensor:
    """log(1 - e^-d) for d > 0, exact at both ends.

    Source: Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    small = d < math.log(2.0)
    near = (-torch.expm1(-torch.where(small, d, 1.0))).log()
    return torch.where(small, near, torch.log1p(-torch.exp(-torch.where(small, 1.0, d))))


def log_rising(r: Tensor, x: Tensor) -> Tensor:
    """log[Gamma(r + x) / Gamma(r)] for r > 0, x >= 0; by Stirling's series where both are large and would cancel."""
    large = r > 30
    s = torch.where(large, r, 31.0)
    series = (s - 0.5) * torch.log1p(x / s) + x * (s + x).log() - x + _stirling(s + x) - _stirling(s)
    q = torch.where(large, 31.0, r)
    return torch.where(large, series, torch.lgamma(q + x) - torch.lgamma(q))


def _stirling(z: Tensor) -> Tensor:
    """The correction log Gamma(z) - [(z - 1/2) log z - z + log(2 pi) / 2]; for z > 30 to 1e-13."""
    return 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)


def normal_log_mass(m: Tensor, h: Tensor) -> Tensor:
    """log[Phi(m + h/2) - Phi(m - h/2)], m any number, h > 0, to rounding error everywhere; derivatives of any order in closed form.

    Three forms: the density times a series in h where the cell is narrow; a sum of two error functions where it
    holds 0; else, in the tail, with Phi(-z) = e^(-z^2/2) erfcx(z/sqrt 2) / 2.
    """
    value: Tensor = _NormalLogMass.apply(*torch.broadcast_tensors(m, h))
    return value


class _NormalLogMass(torch.autograd.Function):
    """With a = phi(|m| - h/2) / mass and t = e^(-|m| h) - 1, the derivatives are sign(m) a t and a (2 + t) / 2: nothing cancels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, h: Tensor) -> Tensor:
        m = m.abs()  # the law is symmetric: every cell is seen from the right
        narrow, holds_zero = h * (1 + m) < 0.05, m <= h / 2
        return torch.where(narrow, _narrow(m, h), torch.where(holds_zero, _central(m, h), _tail(m, h)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        m, h, log_mass = ctx.saved_tensors
        left = m < 0
        m = torch.where(left, -m, m)  # differentiating abs twice would import torch._dynamo
        a = grad * (-0.5 * (m - h / 2).square() - LOG_SQRT_2PI - log_mass).exp()
        t = torch.expm1(-m * h)
        slope = a * t
        return torch.where(left, -slope, slope), a + 0.5 * slope


def _narrow(m: Tensor, h: Tensor) -> Tensor:
    """phi(m) h times the mean over the cell of e^(-m t - t^2/2), to the order h^4 (the next term is below 1e-13)."""
    m2, h2 = m.square(), h.square()
    series = h2 / 24 * (m2 - 1) + h2.square() / 1920 * (m2.square() - 6 * m2 + 3)
    return -0.5 * m2 - LOG_SQRT_2PI + h.log() + torch.log1p(series)


def _central(m: Tensor, h: Tensor) -> Tensor:
    return (0.5 * (torch.erf((h / 2 + m) / _SQRT_2) + torch.erf((h / 2 - m) / _SQRT_2))).log()


def _tail(m: Tensor, h: Tensor) -> Tensor:
    near, far = m - h / 2, m + h / 2
    scaled = torch.special.erfcx(near / _SQRT_2) - torch.exp(-m * h) * torch.special.erfcx(far / _SQRT_2)  # (far^2 - near^2) / 2 = m h
    return -0.5 * near.square() + (0.5 * scaled).log()
    log_near = _log_erfcx(near / _SQRT_2)
    d = h * m + log_near - _log_erfcx(far / _SQRT_2)  # (far^2 - near^2) / 2 = h m
    return -0.5 * near.square() + log_near - math.log(2.0) + log1mexp(d)


def normal_log_between(a: Tensor, b: Tensor) -> Tensor:
    """log[Phi(b) - Phi(a)], a < b, ends infinite or not, to rounding error everywhere; -inf where a >= b."""
    a, b = torch.broadcast_tensors(a, b)
    # Seen from the right, so that the nearer end counts; what lies _FAR beyond it adds nothing.
    turned = a + b < 0
    near, far = torch.where(turned, -b, a), torch.where(turned, -a, b)
    near = near.clamp_min(-_FAR)
    far = torch.minimum(far, near.clamp_min(0.0) + _FAR)
    inside = near < far
    near, far = torch.where(inside, near, 0.0), torch.where(inside, far, 1.0)
    return torch.where(inside, normal_log_mass((near + far) / 2, far - near), -torch.inf)


def log_beta_tails(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """log I_x(a, b) and log(1 - I_x(a, b)), the regularised incomplete beta function, y = 1 - x; the smaller one to rounding error.

    Source: NIST Digital Library of Mathematical Functions, 8.17.22, by the modified algorithm of Lentz.
    """
    a, b, x, y = torch.broadcast_tensors(a, b, x, y)
    turned = x > (a + 1) / (a + b + 2)
    p, q, u, v = (torch.where(turned, one, other) for one, other in ((b, a), (a, b), (y, x), (x, y)))
    front = torch.xlogy(p, u) + torch.xlogy(q, v) - (torch.lgamma(p) + torch.lgamma(q) - torch.lgamma(p + q)) - p.log()

    def term(i: int) -> Tensor:
        m = i // 2
        if i % 2:
            return -(p + m) * (p + q + m) * u / ((p + 2 * m) * (p + 2 * m + 1))
        return m * (q - m) * u / ((p + 2 * m - 1) * (p + 2 * m))

    less = front - _fraction(torch.ones_like(u), lambda i: (term(i), torch.ones_like(u)))
    less = torch.where(u <= 0, -torch.inf, less).clamp_max(0.0)
    more = _log_rest(less)
    return torch.where(turned, more, less), torch.where(turned, less, more)


def log_gamma_tails(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log P(a, x) and log Q(a, x), the regularised incomplete gamma functions; the smaller one to rounding error.

    Source: NIST Digital Library of Mathematical Functions, 8.7.1 (a series, below a + 1) and 8.9.2 (a fraction, above).
    """
    a, x = torch.broadcast_tensors(a, x)
    low = x < a + 1
    front = torch.xlogy(a, x) - x - torch.lgamma(a)
    # Each form sees only numbers of its own, and others of which it is quick.
    left, size, right = torch.where(low, x, 0.0), torch.where(low, 1.0, a), torch.where(low, 3.0, x)
    term = total = torch.ones_like(a)
    for n in range(1, _TERMS):
        term = term * left / (a + n)
        total = total + term
        if not bool((term > torch.finfo(a.dtype).eps * total).any()):
            break
    series = front - a.log() + total.log()
    fraction = front - _fraction(right + 1 - size, lambda n: (-n * (n - size), right + 2 * n + 1 - size))
    less = torch.where(low, series, fraction).clamp_max(0.0)
    more = _log_rest(less)
    return torch.where(low, less, more), torch.where(low, more, less)


def _fraction(first: Tensor, term: Callable[[int], tuple[Tensor, Tensor]]) -> Tensor:
    """log of the continued fraction first + n_1 / (d_1 + n_2 / (d_2 + ...)), term(i) = (n_i, d_i)."""
    tiny = torch.finfo(first.dtype).tiny
    value = c = _off_zero(first, tiny)
    d = torch.zeros_like(first)
    for i in range(1, _TERMS):
        above, below = term(i)
        d = 1 / _off_zero(below + above * d, tiny)
        c = _off_zero(below + above / c, tiny)
        value = value * (c * d)
        if not bool(((c * d - 1).abs() > 4 * torch.finfo(first.dtype).eps).any()):
            break
    return value.log()


def _off_zero(x: Tensor, tiny: float) -> Tensor:
    return torch.where(x.abs() < tiny, tiny, x)


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 - p)."""
    certain = log_p >= 0
    return torch.where(certain, -torch.inf, log1mexp(torch.where(certain, 1.0, -log_p)))


def _log_erfcx(x: Tensor) -> Tensor:
    return torch.special.erfcx(x).log()
