"""Density estimation trees: space cut into boxes, an independent histogram of every variable inside each box.

    p(x) = sum_l w_l prod_d P_ld(k_d) f_d(x_d | k_d),    boxes disjoint: P_ld = 0 outside box l,

with k_d the cell of x_d and f its law inside the cell (`cells`). At full observation one term is not 0, found by
walking down the tree; marginals, conditionals, moments and the mode are sums and maxima over boxes: exact. It is a
deterministic, decomposable probabilistic circuit.

Ram and Gray's leaf is uniform, of density n_l / (N V_l); ours is a product of histograms, shrunk towards the
parent's with the weight of kappa rows,

    P_l(k) = (n_lk + kappa P_parent(k | box)) / (n_l + kappa),    w_left = w_parent P_parent(left),

so a split pays only for dependence: its gain is n times the sum, over the other variables, of their mutual
information with the side of the split. A variable with ordered cells is split at a threshold, an unordered one
into one level against the rest. Pruning by cost complexity: the subtree with the greatest log-likelihood minus
lambda a leaf; lambda and kappa by held-out likelihood, or five-fold cross-validation without held-out rows.
Then independent data give one leaf.

A row with a missing cell follows both branches with fractional weights, in learning by the sides' shares, in log p
exactly, as the sum over boxes says.

Source: Ram and Gray, "Density estimation trees", KDD 2011. Histogram leaves, shrinking and fractions are ours.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.axis import Rule
from pofx.distributions.cells import Cells, choose_cells, normalise
from pofx.domain import Domain, VariableKind
from pofx.errors import FileError
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes, labelled
from pofx.models.classical.cell_mixture import CellMixture
from pofx.models.classical.histogram import ALPHAS
from pofx.models.classical.tree_growth import Groups, Node, grow, prune, tables
from pofx.types import Generator, Kind, Point

SCALES = (1.0, 0.5)  # of the bins: boxes in few variables want finer edges than a histogram
KAPPAS = (128.0, 32.0, 8.0, 2.0)  # the firmest first: among equals it wins
PENALTIES = (torch.inf, *(2.0**k for k in range(12, -3, -1)), 0.0)  # nats a leaf, the smallest tree first
FOLDS = 5


class BoxMixture(CellMixture):
    """p(x) = sum_l w_l prod_d P_ld(k_d) f_d(x_d | k_d), boxes that may overlap: the marginal of a density tree.

    Args:
        domain: what x is.
        cells: the cells; None: room for a file's tensors.
    """

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        return self._part(list(keep), self.log_weight)

    def _conditional(self, evidence: Point) -> Model:
        return self._part(evidence.isnan().nonzero()[:, 0].tolist(), self._posterior_log_weight(evidence))

    def _restrict(self, conditions: Mapping[int, Condition]) -> tuple[Model, float]:
        part = BoxMixture(self.domain, self.cells.restricted(conditions))
        return part, self._restricted(part)

    def _part(self, keep: list[int], log_weight: Tensor) -> Model:
        part = BoxMixture(self.domain.select(keep), self.cells.select(keep))
        part.set_masses(log_weight, self.log_mass[:, keep])
        return part

    @labelled(Kind.BOUND)
    def _mode(self, evidence: Point) -> Point:
        """The best of the boxes' own modes: log p there is at most the maximum's."""
        x = self._component_modes(evidence)[1]
        return x[self._log_prob(x, None, None).argmax()]


class DensityTree(CellMixture, FullBatch):
    """p(x) = sum_l w_l prod_d P_ld(k_d) f_d(x_d | k_d) over the disjoint boxes l of a tree.

    State beside the boxes' masses: for each node the variable it splits (-1: a leaf), which codes go left, its
    children, and a leaf's box.

    Cost: O(N (D T)^2) a level to learn, T groups of cells a variable ((D T) about 1024); O(N (D + depth)) for log p
    of complete rows, O(N D L) with missing cells, L boxes.
    Fails: where no single variable tells anything of another but pairs do (exclusive or), no split gains.

    Args:
        domain: what x is.
        cells: the cells; None: room for a file's tensors.
        min_leaf: fewest rows in a box.
        max_leaves: most boxes.
        max_bins: most bins a variable.
    """

    grows: ClassVar[frozenset[str]] = CellMixture.grows | {"variable", "left", "child", "box"}
    variable: Tensor  # (M,)
    left: Tensor  # (M, C)
    child: Tensor  # (M, 2)
    box: Tensor  # (M,)

    def __init__(
        self, domain: Domain, cells: Cells | None = None, *, min_leaf: int = 10, max_leaves: int = 128, max_bins: int = 64
    ) -> None:
        super().__init__(domain, cells)
        self.min_leaf, self.max_leaves, self.max_bins = min_leaf, max_leaves, max_bins
        self.register_buffer("variable", torch.tensor([-1]))
        self.register_buffer("left", torch.zeros(1, self.cells.size, dtype=torch.bool))
        self.register_buffer("child", torch.zeros(1, 2, dtype=torch.long))
        self.register_buffer("box", torch.zeros(1, dtype=torch.long))

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Grow from rows x (N, D) level by level, pruned anew after each; without draws."""
        best = -torch.inf
        for scale in SCALES[: 1 + any(v.continuous for v in self.domain.variables)]:
            rules = [Rule(by, scale) for by in ("width", "grid", "mass")]
            cells, pseudo = choose_cells(self.domain, x, holdout, rules, ALPHAS, self.max_bins)
            for nodes, scores in self._grown(cells, pseudo, x, holdout):
                if scores.max() >= best:
                    best, at = float(scores.max()), int(scores.argmax())
                    self.cells = cells
                    self._prune(nodes, pseudo, KAPPAS[at // len(PENALTIES)], PENALTIES[at % len(PENALTIES)])
                yield float(self.log_prob(x).mean())

    def _grown(self, cells: Cells, pseudo: Tensor, x: Tensor, holdout: Tensor | None) -> Iterator[tuple[list[Node], Tensor]]:
        """The tree after each level, and its held-out or cross-validated scores."""
        code = cells.code(x)
        groups = self._groups(normalise(cells.counts(code) + pseudo))
        if holdout is not None and len(holdout):
            held = cells.code(holdout)
            inner = cells.log_density(holdout, held).sum()
            for nodes in self._grow(code, held, groups):
                yield nodes, self._scores(nodes, pseudo) + inner
        else:
            scores = self._cross_validated(code, pseudo, groups) + cells.log_density(x, code).sum()
            for nodes in self._grow(code, code[:0], groups):
                yield nodes, scores

    def _groups(self, mass: Tensor) -> Groups:
        ordered = [v.kind is not VariableKind.CATEGORICAL for v in self.domain.variables]
        most = min(max(1024 // len(ordered), 4), 64)
        return Groups.by_mass(mass, torch.tensor(ordered, device=mass.device), most)

    def _grow(self, code: Tensor, held: Tensor, groups: Groups) -> Iterator[list[Node]]:
        return grow(code, held, groups, min_leaf=self.min_leaf, max_leaves=self.max_leaves)

    def _scores(self, nodes: list[Node], pseudo: Tensor) -> Tensor:
        """Held-out log-likelihood of the best subtree for every kappa and lambda."""
        penalties = pseudo.new_tensor(PENALTIES)
        return torch.stack([prune(nodes, *tables(nodes, pseudo, kappa), penalties)[0] for kappa in KAPPAS])

    def _cross_validated(self, code: Tensor, pseudo: Tensor, groups: Groups) -> Tensor:
        """The scores summed over folds, each judging the tree of the other folds."""
        fold = torch.arange(len(code), device=code.device) % FOLDS
        total = pseudo.new_zeros(len(KAPPAS), len(PENALTIES))
        for f in range(FOLDS):
            for nodes in self._grow(code[fold != f], code[fold == f], groups):
                grown = nodes
            total += self._scores(grown, pseudo)
        return total

    def _prune(self, nodes: list[Node], pseudo: Tensor, kappa: float, penalty: float) -> None:
        """Take the best subtree under a penalty a leaf, and its boxes' masses."""
        log_weight, mass = tables(nodes, pseudo, kappa)
        splits = prune(nodes, log_weight, mass, pseudo.new_tensor([penalty]))[1][:, 0].tolist()
        kept = _reachable(nodes, splits)
        leaves = [i for i in kept if not splits[i]]
        place = {old: new for new, old in enumerate(kept)}
        device = pseudo.device
        nothing = torch.zeros(self.cells.size, dtype=torch.bool, device=device)
        self.variable = torch.tensor([nodes[i].variable if splits[i] else -1 for i in kept], device=device)
        self.left = torch.stack([nodes[i].left if splits[i] else nothing for i in kept])
        self.child = torch.tensor([[place[j] for j in nodes[i].children or ()] if splits[i] else [0, 0] for i in kept], device=device)
        self.box = torch.tensor([0 if splits[i] else leaves.index(i) for i in kept], device=device)
        self.set_masses(log_weight[leaves], mass[leaves].log())

    # -- questions ---------------------------------------------------------------------------------

    @property
    def n_boxes(self) -> int:
        """L, how many boxes the tree has."""
        return len(self.log_weight)

    def box_of(self, code: Tensor) -> Tensor:
        """The box that each row of codes (N, D) without the unobserved one falls in, (N,)."""
        node = torch.zeros_like(code[:, 0])
        for _ in range(len(self.variable)):
            at = self.variable[node]
            if (at < 0).all():
                break
            k = code.gather(1, at.clamp(min=0)[:, None])[:, 0]
            side = torch.where(self.left[node, k], 0, 1)
            node = torch.where(at < 0, node, self.child[node, side])
        return self.box[node]

    def _log_cells(self, code: Tensor) -> Tensor:
        complete = (code < self.cells.size).all(1)
        value = self.log_weight.new_zeros(len(code))
        value[~complete] = super()._log_cells(code[~complete])
        box = self.box_of(code[complete])
        variables = torch.arange(code.shape[1], device=code.device)
        value[complete] = self.log_weight[box] + self.log_mass[box[:, None], variables, code[complete]].sum(1)
        return value

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        part = BoxMixture(self.domain.select(keep), self.cells.select(keep))
        part.set_masses(self.log_weight, self.log_mass[:, list(keep)])
        return part

    def _restrict(self, conditions: Mapping[int, Condition]) -> tuple[Model, float]:
        """The boxes with what the conditions keep of them, which are boxes again."""
        part = BoxMixture(self.domain, self.cells.restricted(conditions))
        return part, self._restricted(part)

    def _entropy(self) -> Tensor:
        """Boxes are disjoint: H of which box, and the mean of the entropies inside."""
        mass = self.log_mass.exp()
        inside = (torch.special.entr(mass) + mass * self.cells.entropies()).sum((1, 2))
        weight = self.log_weight.exp()
        return torch.special.entr(weight).sum() + (weight * inside).sum()

    def _conditional(self, evidence: Point) -> Model:
        """The tree with its splits on observed variables already taken; boxes that the evidence excludes have weight 0."""
        keep = evidence.isnan().nonzero()[:, 0].tolist()
        part = DensityTree(self.domain.select(keep), self.cells.select(keep))
        part.set_masses(self._posterior_log_weight(evidence), self.log_mass[:, keep])
        place = torch.full((len(evidence) + 1,), -1, device=self.variable.device)  # the last is a leaf's -1
        place[keep] = torch.arange(len(keep), device=place.device)
        decided = self._decided(evidence)
        order = torch.cat((decided[:1], decided.new_tensor([i for i in range(len(decided)) if i != decided[0]])))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        part.variable = place[self.variable][order]
        part.left, part.box = self.left[order], self.box[order]
        part.child = back[decided[self.child]][order]
        return part

    def _decided(self, evidence: Tensor) -> Tensor:
        """The node that each node leads to by splits on observed variables alone, (M,)."""
        at = self.variable.clamp(min=0)
        k = self.cells.code(evidence[None])[0][at]
        seen = (self.variable >= 0) & (k < self.cells.size)
        nodes = torch.arange(len(at), device=at.device)
        side = torch.where(self.left[nodes, k.clamp(max=self.cells.size - 1)], 0, 1)
        step = torch.where(seen, self.child[nodes, side], nodes)
        for _ in range(len(at)):  # at most so deep
            further = step[step]
            if torch.equal(further, step):
                break
            step = further
        return step

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave.

        Raises:
            FileError: the tensors do not describe a tree.
        """
        super().load_tensors(tensors)
        m, size = len(self.variable), self.cells.size
        fits = self.left.shape == (m, size) and self.child.shape == (m, 2) and self.box.shape == (m,) and m > 0
        inside = fits and bool(
            ((self.variable >= -1) & (self.variable < len(self.domain))).all()
            and ((self.child >= 0) & (self.child < m)).all()
            and ((self.box >= 0) & (self.box < self.n_boxes)).all()
        )
        if not inside:
            raise FileError("the tensors of the density tree do not describe a tree: the file is damaged")


def _reachable(nodes: list[Node], splits: list[bool]) -> list[int]:
    """The nodes of the subtree that splits those named, parents first."""
    kept = [0]
    for i in kept:
        kept += (nodes[i].children or ()) if splits[i] else ()
    return kept


class DensityTreeConfig(FamilyConfig):
    """Options of a density tree."""

    takes = Takes.EVERYTHING
    cites = (
        "@inproceedings{ram2011density, title={Density estimation trees}, author={Ram, Parikshit and Gray, Alexander G.}, "
        "booktitle={Proceedings of the 17th ACM SIGKDD International Conference on Knowledge Discovery and Data Mining}, "
        "pages={627--635}, year={2011}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"min_leaf": (10, 20, 5, 40)}

    min_leaf: int = Field(10, ge=1, description="fewest rows in a box")
    max_leaves: int = Field(128, ge=1, description="most boxes")
    max_bins: int = Field(64, ge=2, description="most bins a variable")

    def _build(self, domain: Domain, context: Domain | None) -> Model:
        """The untrained tree: one box."""
        return DensityTree(domain, min_leaf=self.min_leaf, max_leaves=self.max_leaves, max_bins=self.max_bins)
