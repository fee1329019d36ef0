"""log p to a requested standard error, where it is known by draws."""

import torch
from torch import Tensor

from pofx.errors import OptionError
from pofx.models.base import Model
from pofx.types import Generator

AT_MOST = 1024  # evaluations of a row
_ROWS = 4096  # evaluated at once


def log_prob_within(
    model: Model, x: Tensor, c: Tensor | None = None, *, accuracy: float, generator: Generator = None
) -> tuple[Tensor, Tensor]:
    """log 1/R sum_r p_r(x) of each row and its standard error, p_r(x) evaluations with fresh draws, R = ceil((error / accuracy)^2).

    R comes from a first evaluation that is then thrown away: were it kept where its error is small, rows would be judged by the draws
    that flatter them. Where p_r is an estimate of p or below it in the mean, so is their mean: a bound stays one, and is tighter.
    Where log p_r is right in the mean and p_r is not (`Model.logs_average`), it is (1/R) sum_r log p_r. The error reaches the accuracy but
    for that of the first error, which is itself an estimate.

    Cost: up to 1024 evaluations of a row, which end it where weights are so uneven that no number would do.

    Args:
        model: p(x | c).
        x: rows (N, D).
        c: their conditions.
        accuracy: in nats.
        generator: of the draws.

    Raises:
        OptionError: the accuracy is not above 0.
    """
    if not accuracy > 0:
        raise OptionError(f"an accuracy in nats is above 0, got {accuracy}")
    value, error = model.log_prob_and_error(x, c, generator=generator)
    drawn = (error > 0).nonzero().flatten()
    repeats = (error[drawn] / accuracy).square().ceil().nan_to_num(1, AT_MOST).clamp(1, AT_MOST).long()
    for some, times in zip(*_pieces(drawn, repeats), strict=True):
        rows = some.repeat_interleave(times)
        each, its_error = model.log_prob_and_error(x[rows], None if c is None else c.expand(len(x), -1)[rows], generator=generator)
        value[some], error[some] = (_mean if model.logs_average else _log_mean)(each, its_error, times)
    return value, error


def _pieces(rows: Tensor, repeats: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Rows that are evaluated together, and how often each."""
    which = (repeats.cumsum(0) // _ROWS).diff().nonzero().flatten() + 1
    return list(rows.tensor_split(which.cpu())), list(repeats.tensor_split(which.cpu()))


def _mean(value: Tensor, error: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over each run of so many, and its error."""
    run = torch.arange(len(times), device=value.device).repeat_interleave(times)
    total, squares = (value.new_zeros(len(times)).index_add(0, run, v) for v in (value, error.square()))
    return total / times, squares.sqrt() / times


def _log_mean(value: Tensor, error: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of e^value over each run of so many, and its error by the delta method: both in the scale of the run's greatest."""
    run = torch.arange(len(times), device=value.device).repeat_interleave(times)
    nothing = value.new_full((len(times),), -torch.inf)
    top = nothing.scatter_reduce(0, run, value, "amax").clamp_min(torch.finfo(value.dtype).min)
    p = (value - top[run]).exp()
    total, squares = (torch.zeros_like(nothing).index_add(0, run, v) for v in (p, (p * error.nan_to_num(0, 0)).square()))
    return top + (total / times).log(), torch.where(total > 0, squares.sqrt() / total, 0.0)
