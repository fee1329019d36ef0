"""Self-normalised importance weighting, one weighted draw of many rows at a time."""

import torch
from torch import Tensor

from pofx.types import Generator


class WeightedMean:
    """sum_s w_s v_s / sum_s w_s for each row, with weights given by their logs; two draws are in memory, not all.

    Rows whose weights are all 0 get the plain mean.
    """

    def __init__(self) -> None:
        self._top: Tensor | None = None
        self._sum = self._total = torch.zeros(())

    def add(self, value: Tensor, log_weight: Tensor) -> None:
        """Count values (N, ...) with log-weights (N,)."""
        log_weight = log_weight.double().clamp(min=-1e30)
        if self._top is None:
            self._top = log_weight
            self._sum, self._total = value.double(), torch.ones_like(log_weight)
            return
        top = torch.maximum(self._top, log_weight)
        old, new = (self._top - top).exp(), (log_weight - top).exp()
        self._sum = self._sum * _over(old, value) + value * _over(new, value)
        self._total = self._total * old + new
        self._top = top

    @property
    def value(self) -> Tensor:
        """The mean so far."""
        return self._sum / _over(self._total, self._sum)


class WeightedPick:
    """One of the draws of each row, with probability in proportion to its weight (Gumbel's maximum).

    Args:
        generator: of the choice.
    """

    def __init__(self, generator: Generator = None) -> None:
        self.generator = generator
        self._best: Tensor | None = None
        self.value = torch.zeros(())

    def add(self, value: Tensor, log_weight: Tensor) -> None:
        """Count values (N, ...) with log-weights (N,)."""
        uniform = torch.rand(log_weight.shape, generator=self.generator, dtype=torch.float64, device=log_weight.device)
        score = log_weight.double().clamp(min=-1e30) - (-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
        if self._best is None:
            self._best, self.value = score, value
            return
        self.value = torch.where(_over(score > self._best, value), value, self.value)
        self._best = torch.maximum(self._best, score)


def _over(rows: Tensor, like: Tensor) -> Tensor:
    """One number per row, shaped to multiply values (N, ...)."""
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
