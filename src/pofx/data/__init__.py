"""What we observe: readers, the domain inferred from a table, built-in sets, preparation. Blind to models.

Names are looked up when first used, so that listing the sets loads neither torch nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PLACES = {
    "DATASETS": "catalogue",
    "names_a_set": "catalogue",
    "Container": "containers",
    "DataSet": "builtin",
    "as_csv": "writers",
    "check_training": "checks",
    "container_of": "containers",
    "decode": "containers",
    "encode": "encoding",
    "infer_domain": "inference",
    "like": "containers",
    "load": "builtin",
    "read": "readers",
    "split": "checks",
    "write": "writers",
}
__all__ = [
    "DATASETS",
    "Container",
    "DataSet",
    "as_csv",
    "check_training",
    "container_of",
    "decode",
    "encode",
    "infer_domain",
    "like",
    "load",
    "names_a_set",
    "read",
    "split",
    "write",
]

if TYPE_CHECKING:
    from pofx.data.builtin import DataSet, load
    from pofx.data.catalogue import DATASETS, names_a_set
    from pofx.data.checks import check_training, split
    from pofx.data.containers import Container, container_of, decode, like
    from pofx.data.encoding import encode
    from pofx.data.inference import infer_domain
    from pofx.data.readers import read
    from pofx.data.writers import as_csv, write


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _PLACES:
        raise AttributeError(f"module 'pofx.data' has no attribute {name!r}")
    return getattr(import_module(f"pofx.data.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
