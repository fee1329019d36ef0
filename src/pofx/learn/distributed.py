"""Several processes that learn one model: every rank takes its rows of each batch, gradients are averaged.

Started by ``torchrun --nproc-per-node=2 script.py``, the same call of the same loop joins torch's
process group and lets DistributedDataParallel average the gradients while they are computed. A
global batch of B rows is dealt to W ranks, row i to rank i mod W; rank r descends the mean over ranks
of (W / B) Σ_{its rows} loss, which is the loss of one process with the whole batch. A loss that draws
noise draws other noise on every rank, so its weights agree with one process's in law, not to the bit.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pofx.errors import OptionError


@dataclass(frozen=True)
class Ranks:
    """The processes that learn together. One process alone is a group of one, for which every method is the identity.

    Args:
        rank: this process's number; rank 0 writes and prints.
        size: how many there are.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def part(self, index: Tensor) -> Tensor:
        """This rank's rows of a global batch."""
        return index if self.size == 1 else index[self.rank :: self.size]

    def least(self, values: Sequence[float]) -> list[float]:
        """Each number's least value over the ranks: what all of them act on."""
        return self._reduced(values, dist.ReduceOp.MIN) if self.size > 1 else list(values)

    def mean(self, value: float) -> float:
        """The mean over the ranks."""
        return self._reduced([value], dist.ReduceOp.SUM)[0] / self.size if self.size > 1 else value

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()

    def stacked(self, own: Tensor) -> Tensor:
        """Every rank's tensor of one shape, stacked by rank on the CPU."""
        if self.size == 1:
            return own[None].cpu()
        here = own.to(self.device)
        parts = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(parts, here)
        return torch.stack(parts).cpu()

    def averaging(self, parameters: Sequence[nn.Parameter]) -> Callable[[Tensor], Tensor]:
        """A function to pass a loss through before its backward: these parameters' gradients then arrive averaged over ranks.

        Buffers stay each rank's own, so running statistics are those of rank 0's rows.
        """
        return DistributedDataParallel(_Backward(parameters)) if self.size > 1 else _unchanged


class _Backward(nn.Module):
    """Hands the loss through. DDP readies its reducers in `forward`; what they watch is the backward that follows."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parameters_of_player = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def _unchanged(loss: Tensor) -> Tensor:
    return loss


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The group that torchrun started, or a group of one; a group entered here is left at the end."""
    launched = dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())
    if not launched:
        yield Ranks(device=device)
        return
    entered = not dist.is_initialized()
    if entered:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
        if entered:
            dist.barrier()  # nobody leaves while another still talks
    finally:
        if entered:
            dist.destroy_process_group()


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; "auto" or None takes a CUDA device when there is one, else the CPU.

    Under torchrun each process takes the CUDA device of its own number. Apple's "mps" has no float64,
    which preparation needs, so it is taken only when it is named.

    Raises:
        OptionError: there is no such device here.
    """
    if name is None or name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise OptionError(f"there is no device {name!r} here: {str(error).split('. ')[0]}") from error
