"""pofx: learn p(x), ask it anything.

>>> import pofx
>>> p = pofx.fit("iris", "gaussian")  # doctest: +SKIP
>>> p.conditional(species="setosa").sample(5)  # doctest: +SKIP

Importing it loads no torch; the first call that needs it does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "approximate": "pofx.ask.approximating",
    "fit": "pofx.ask",
    "open": "pofx.ask",
    "search": "pofx.ask",
    "outliers": "pofx.ask.outlying",
    "PofX": "pofx.ask",
    "load": "pofx.data",
    "infer_domain": "pofx.data",
    "compare": "pofx.comparison",
    "impute": "pofx.comparison.imputing",
    "families": "pofx.models.registry",
    "Answer": "pofx.types",
    "Between": "pofx.events",
    "Kind": "pofx.types",
    "Model": "pofx.models.base",
    "Domain": "pofx.domain",
    "Variable": "pofx.domain",
    "PofxError": "pofx.errors",
    "Unavailable": "pofx.errors",
}
__all__ = [
    "Answer",
    "Between",
    "Domain",
    "Kind",
    "Model",
    "PofX",
    "PofxError",
    "Unavailable",
    "Variable",
    "approximate",
    "compare",
    "families",
    "fit",
    "impute",
    "infer_domain",
    "load",
    "open",
    "outliers",
    "search",
]

if TYPE_CHECKING:
    from pofx.ask import PofX, fit, open, search
    from pofx.ask.approximating import approximate
    from pofx.ask.outlying import outliers
    from pofx.comparison import compare
    from pofx.comparison.imputing import impute
    from pofx.data import infer_domain, load
    from pofx.domain import Domain, Variable
    from pofx.errors import PofxError, Unavailable
    from pofx.events import Between
    from pofx.models.base import Model
    from pofx.models.registry import families
    from pofx.types import Answer, Kind


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _PLACES:
        raise AttributeError(f"module 'pofx' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
