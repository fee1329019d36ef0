"""Numbers and lists as a reader meets them; the remarks that a table alone does not make."""

from collections.abc import Sequence

from pofx.types import Kind

NOTHING = "–"  # where there is no number


def at_most(kind: Kind) -> str:
    """The sign before a -log p of that kind: a lower bound on log p is an upper bound on -log p."""
    return {Kind.BOUND: "≤ ", Kind.ESTIMATE: "≈ "}.get(kind, "")


def duration(seconds: float) -> str:
    """Seconds with as many digits as matter.

    >>> duration(0.0123), duration(7.36), duration(372)
    ('12 ms', '7.4 s', '6 min 12 s')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "< 1 ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def listed(names: Sequence[str]) -> str:
    """Names as a reader lists them.

    >>> listed(["gmm", "kde", "vae"])
    'gmm, kde and vae'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def count(number: int) -> str:
    """A count with as many digits as matter.

    >>> count(64), count(35_210), count(1_234_567)
    ('64', '35.2 k', '1.23 M')
    """
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.3g} k" if number < 999_500 else f"{number / 1e6:.3g} M"
