"""Histograms: of each variable alone (product form), or of all of them jointly (grid form, in `grid`).

    p(x) = prod_d P_d(k_d) f_d(x_d | k_d),    P_d(k) = (n_k + a_k) / sum_j (n_j + a_j),

with k_d the cell of x_d, f its law inside the cell (`cells`), n_k the rows counted there and a_k = alpha for a bin or
an atom, 1 for a tail: one more row lies beyond the greatest of N exchangeable rows with probability 1 / (N + 1).
So log p is finite wherever the domain allows x, and p integrates to one over all of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.axis import Rule
from pofx.distributions.cells import Cells, choose_cells, normalise
from pofx.domain import Domain
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes
from pofx.models.classical.cell_mixture import CellMixture
from pofx.models.classical.grid import GridHistogram, bins_per_axis
from pofx.types import Generator, Point

WIDTHS = tuple(Rule("width", scale) for scale in (2.0, 1.0, 0.5))
MASSES = tuple(Rule("mass", scale) for scale in (2.0, 1.0, 0.5))
RULES = {"freedman_diaconis": (Rule("width", 1.0),), "quantile": (Rule("mass", 1.0),), "auto": (*WIDTHS, Rule("grid", 1.0), *MASSES)}
ALPHAS = (1.0, 0.5, 0.1, 0.02)


class Histogram(CellMixture, FullBatch):
    """p(x) = prod_d P_d(k_d) f_d(x_d | k_d): a histogram of each variable, independent of the others.

    Which bins and which alpha: for each variable those with the greatest held-out likelihood; without held-out
    rows, of every fifth row under the histogram of the others. Then all rows are counted.

    Cost: a few sorts of each column.

    Args:
        domain: what x is.
        cells: the cells, when they are known.
        rules: candidate ways to cut an axis, the plainest first.
        alphas: candidate pseudo-counts of a bin.
        max_bins: most bins a variable.
    """

    def __init__(
        self,
        domain: Domain,
        cells: Cells | None = None,
        *,
        rules: Sequence[Rule] = RULES["auto"],
        alphas: Sequence[float] = ALPHAS,
        max_bins: int = 256,
    ) -> None:
        super().__init__(domain, cells)
        self.rules, self.alphas, self.max_bins = rules, alphas, max_bins

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Count rows x (N, D); one step, without draws."""
        self.cells, pseudo = choose_cells(self.domain, x, holdout, self.rules, self.alphas, self.max_bins)
        counts = self.cells.counts(self.cells.code(x))
        self.set_masses(counts.new_zeros(1), normalise(counts + pseudo).log()[None])
        yield float(self.log_prob(x).mean())

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        part = Histogram(self.domain.select(keep), self.cells.select(keep))
        part.set_masses(self.log_weight, self.log_mass[:, list(keep)])
        return part

    def _restrict(self, conditions: Mapping[int, Condition]) -> tuple[Model, float]:
        part = Histogram(self.domain, self.cells.restricted(conditions))
        return part, self._restricted(part)

    def _entropy(self) -> Tensor:
        mass = self.log_mass[0].exp()
        return torch.special.entr(mass).sum() + (mass * self.cells.entropies()).sum()

    def _conditional(self, evidence: Point) -> Model:
        self._posterior_log_weight(evidence)  # refuses impossible evidence; possible evidence changes nothing
        return self._marginal(tuple(evidence.isnan().nonzero()[:, 0].tolist()))


class HistogramConfig(FamilyConfig):
    """Options of a histogram."""

    takes = Takes.EVERYTHING
    cites = (
        "@article{freedman1981histogram, title={On the histogram as a density estimator: {$L_2$} theory}, "
        "author={Freedman, David and Diaconis, Persi}, "
        'journal={Zeitschrift f{\\"u}r Wahrscheinlichkeitstheorie und Verwandte Gebiete}, volume={57}, pages={453--476}, year={1981}}',
        "@article{scott1979optimal, title={On optimal and data-based histograms}, author={Scott, David W.}, "
        "journal={Biometrika}, volume={66}, pages={605--610}, year={1979}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"rule": ("freedman_diaconis", "quantile", "auto")}

    form: Literal["product", "grid"] = Field("product", description="a histogram of each variable, or one over the joint grid")
    rule: Literal["auto", "freedman_diaconis", "quantile"] = Field("auto", description="how bins are cut; auto: by held-out rows")
    max_bins: int = Field(256, ge=2, description="most bins a variable")
    alpha: float | None = Field(None, gt=0, description="rows added to every bin; None: by held-out rows (product) or 0.5 (grid)")

    def _build(self, domain: Domain, context: Domain | None) -> Model:
        """The untrained histogram.

        Raises:
            OptionError: the joint grid would be too large.
        """
        rules = RULES[self.rule]
        if self.form == "grid":
            most = bins_per_axis(domain.variables, self.max_bins)
            return GridHistogram(domain, rules=rules, alpha=self.alpha or 0.5, max_bins=most)
        return Histogram(domain, rules=rules, alphas=ALPHAS if self.alpha is None else (self.alpha,), max_bins=self.max_bins)
