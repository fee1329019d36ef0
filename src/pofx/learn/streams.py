"""Randomness of a run: one seed, three streams, and torch's own generator left as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from pofx.errors import OptionError


class Stream(IntEnum):
    """What draws: each from a stream of its own, so that more draws of one do not move another."""

    SHUFFLE = 0  # the order of the rows: equal on every rank
    NOISE = 1  # what a loss draws: each rank its own
    TORCH = 2  # what asks torch's global generator, as dropout does: each rank its own
    HOLDOUT = 3  # what the loss of held-out rows draws: equal in every epoch


def seed_of(seed: int, stream: Stream, rank: int = 0) -> int:
    """A seed for the stream, far from those of other seeds, streams and ranks.

    Raises:
        OptionError: the seed is negative.
    """
    if seed < 0:
        raise OptionError(f"a seed is an integer from 0 up, got {seed}")
    return int(np.random.SeedSequence((seed, stream, rank)).generate_state(1, np.uint64)[0])


@contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Within: torch's global generators start from the seed. Afterwards: as they were before.

    The global state belongs to the process, so two runs in threads of one process share it: run them in processes.
    """
    on_cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class Streams:
    """The streams of one run on one rank; their state is saved and restored with a checkpoint.

    Args:
        seed: of the run.
        rank: of the process among those that learn together.
        device: where the loss draws.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.device = device
        self.shuffle = torch.Generator().manual_seed(seed_of(seed, Stream.SHUFFLE))
        self.noise = torch.Generator(device).manual_seed(seed_of(seed, Stream.NOISE, rank))
        self._holdout_seed = seed_of(seed, Stream.HOLDOUT)

    def for_holdout(self) -> torch.Generator:
        """A generator that starts at the same point every time, so that held-out numbers of two epochs compare."""
        return torch.Generator(self.device).manual_seed(self._holdout_seed)

    def state(self) -> dict[str, Tensor]:
        """The generators' states, bytes on the CPU. Only this process's: the shuffle is every rank's."""
        own = {"noise": self.noise.get_state(), "torch": torch.get_rng_state()}
        return own | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.noise.set_state(state["noise"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
