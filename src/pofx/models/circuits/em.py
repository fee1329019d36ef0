"""Expectation-maximisation for circuits, as an optimiser of the one gradient loop.

The backward pass of log p leaves the expected counts: F = W ⊙ d log p / dW of each sum, and of each value of an input the
mass of the units that saw it. With the counts of a batch of B rows and a step size eta,

    W ← normalise((1 - eta) P_j W_j + eta F_j / B)

for every unit j of a sum, P_j being the probability of the unit before any row is seen: a running average of counts. With
all rows in one batch and eta = 1 it is EM, which never lowers the likelihood (with the laws' own pseudo-counts: the
penalised one). Inputs are treated alike: what is averaged is the mass of each value, and the law is fitted to that.
Laws of many values take steps of Adam on the same flows.

Source: Peharz et al., "Einsum networks", ICML 2020 (stochastic EM for circuits); Cappé and Moulines, "On-line
expectation-maximization algorithm for latent data models", Journal of the Royal Statistical Society B 71(3), 2009.
"""

import torch
from torch import Tensor

from pofx.models.circuits import passes
from pofx.models.circuits.circuit import Circuit, Ledger

PACE = 4.0  # eta over the learning rate of Adam


class ExpectationMaximisation(torch.optim.AdamW):
    """Steps of EM on the sums and the tabled inputs of a circuit, of Adam on its other laws.

    Args:
        circuit: what learns; from here on it keeps the flows of every backward pass.
        rows: how many there are: the laws' pseudo-counts are rows beside that many.
        rate: of Adam, its group's "lr"; eta is `PACE` times that, and 1 at most.
    """

    def __init__(self, circuit: Circuit, rows: int, rate: float) -> None:
        super().__init__([circuit.theta], lr=rate, weight_decay=0.0)
        self.circuit, self.rows, self.ledger = circuit, rows, Ledger()
        circuit.ledger = self.ledger

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step from the gradients of the mean of -log p."""
        circuit, eta = self.circuit, min(PACE * self.param_groups[0]["lr"], 1.0)
        mixing, table = self.ledger.mixing, self.ledger.table
        if mixing is None or table is None:
            return
        prior = passes.prior(circuit.graph, mixing)
        self._laws(eta, table, prior)
        if len(circuit.inputs.others):
            super().step()
        self._sums(eta, mixing, prior)
        self.ledger.mixing = self.ledger.table = None

    def _sums(self, eta: float, mixing: passes.Mixing, prior: Tensor) -> None:
        graph, (w, root) = self.circuit.graph, mixing
        owner = prior[graph.owner[graph.sum_of]]  # (E, K)
        counts = (1 - eta) * owner[..., None] * w - eta * w * _grad(w)
        self.circuit.weight.copy_(_log(counts))
        self.circuit.root.copy_(_log((1 - eta) * root - eta * root * _grad(root)))

    def _laws(self, eta: float, table: Tensor, prior: Tensor) -> None:
        """Fit every tabled law to the running mass of its values."""
        circuit, grad = self.circuit, _grad(table)
        for group in circuit.inputs.tabled:
            span = slice(group.begin, group.begin + group.levels * len(group.blocks))
            before, seen = (t[span].unflatten(0, (len(group.blocks), group.levels)) for t in (table.exp(), -grad))
            units = prior[circuit.holder[group.blocks.to(prior.device)]][:, None]  # (n, 1, K)
            mass = (1 - eta) * units * before + eta * seen  # (n, levels, K)
            values = torch.arange(group.levels).to(mass) + group.first
            columns = values[:, None].expand(-1, len(group.blocks))
            fitted = group.law._fit(columns, torch.ones_like(columns), self.rows * mass.transpose(0, 1), None)  # (n, K, width)
            circuit.theta[:, group.at] = fitted.transpose(0, 1).flatten(1)


def _grad(t: Tensor) -> Tensor:
    return torch.zeros_like(t) if t.grad is None else t.grad


def _log(counts: Tensor) -> Tensor:
    """Log of counts, far below any other where there are none: a weight of 0 could never grow again."""
    return counts.clamp_min(torch.finfo(counts.dtype).tiny).log()
