"""The built-in sets, one line each. Importing it loads neither torch nor pandas."""

from dataclasses import dataclass
from typing import Literal

SetKind = Literal["table", "image", "toy"]


@dataclass(frozen=True)
class SetLine:
    """What there is to know of a set before loading it.

    Args:
        name: what the user writes.
        kind: a table of named columns, images, or a toy of two real variables with a known density.
        rows: of all parts together.
        columns: variables of one row.
        split: how training, held-out and test rows are chosen.
        licence: as its source states it.
        source: where it comes from.
        says: the set in one sentence.
    """

    name: str
    kind: SetKind
    rows: int
    columns: int
    split: str
    licence: str
    source: str
    says: str

    @property
    def remote(self) -> bool:
        """Whether it is downloaded, or read from POFX_DATA, and not shipped or made."""
        return self.name in {"mnist", "fashion_mnist", "cifar10"}


_SHUFFLED = "70 / 15 / 15 % of the rows in a fixed random order"
_DRAWN = "5000 / 1000 / 5000 draws from a fixed seed"
_LAST = "first five sixths / last sixth of the original training images / the original test images"
_COPY = "scikit-learn's copy of the UCI Machine Learning Repository's set"
_UCI = "CC BY 4.0 (UCI), copy BSD-3-Clause (scikit-learn)"

_LINES = (
    SetLine(
        "digits",
        "image",
        1797,
        64,
        "rows 0-999 / 1000-1349 / 1350-1796, in the order of the copy",
        _UCI,
        f"E. Alpaydin and C. Kaynak, 1998; {_COPY} (its test part)",
        "Handwritten digits of 8 × 8 pixels in 17 greys.",
    ),
    SetLine(
        "iris",
        "table",
        150,
        5,
        _SHUFFLED,
        _UCI,
        f"R. A. Fisher, 1936; {_COPY}",
        "Four lengths of iris flowers, rounded to a millimetre, and the species.",
    ),
    SetLine("wine", "table", 178, 14, _SHUFFLED, _UCI, f"M. Forina, 1991; {_COPY}", "Thirteen measurements of wines, and the cultivar."),
    SetLine(
        "breast_cancer",
        "table",
        569,
        31,
        _SHUFFLED,
        _UCI,
        f"W. Wolberg, N. Street and O. Mangasarian, 1995; {_COPY}",
        "Thirty measurements of cell nuclei in images of tumours, and the diagnosis.",
    ),
    SetLine(
        "penguins",
        "table",
        344,
        8,
        _SHUFFLED,
        "CC0-1.0",
        "K. Gorman, T. Williams and W. Fraser, 2014; the palmerpenguins package of A. Horst, A. Hill and K. Gorman, 2020",
        "Penguins of three species: text, rounded lengths and weights, a year, missing cells.",
    ),
    SetLine("moons", "toy", 11000, 2, _DRAWN, "Apache-2.0", "made by pofx", "Two interlocking half circles, blurred."),
    SetLine("rings", "toy", 11000, 2, _DRAWN, "Apache-2.0", "made by pofx", "Three circles around one centre, blurred."),
    SetLine("checkerboard", "toy", 11000, 2, _DRAWN, "Apache-2.0", "made by pofx", "Eight squares of equal density, nothing between."),
    SetLine("pinwheel", "toy", 11000, 2, _DRAWN, "Apache-2.0", "made by pofx", "Five bent arms."),
    SetLine("eight_gaussians", "toy", 11000, 2, _DRAWN, "Apache-2.0", "made by pofx", "Eight narrow normals on a circle."),
    SetLine(
        "mnist",
        "image",
        70000,
        784,
        _LAST,
        "none stated; commonly given as CC BY-SA 3.0",
        "Y. LeCun, C. Cortes and C. Burges; downloaded, or read from POFX_DATA/mnist",
        "Handwritten digits of 28 × 28 grey pixels.",
    ),
    SetLine(
        "fashion_mnist",
        "image",
        70000,
        784,
        _LAST,
        "MIT",
        "H. Xiao, K. Rasul and R. Vollgraf, 2017; downloaded, or read from POFX_DATA/fashion_mnist",
        "Pieces of clothing of 28 × 28 grey pixels.",
    ),
    SetLine(
        "cifar10",
        "image",
        60000,
        3072,
        _LAST,
        "none stated",
        "A. Krizhevsky, 2009; downloaded, or read from POFX_DATA/cifar10",
        "Photographs of ten kinds of things, 32 × 32 pixels in colour.",
    ),
)
DATASETS: dict[str, SetLine] = {line.name: line for line in _LINES}


def names_a_set(text: str) -> bool:
    """Whether this is the name of a built-in set."""
    return text in DATASETS
