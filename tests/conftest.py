"""Every test runs in float64, from a fixed seed, and leaves torch's globals as it found them."""

import os

# Workers and the processes that tests start share two cores: a thread each is quickest. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import checking
import jaxtyping
import pytest
import torch

jaxtyping.jaxtyped = checking.sparing(jaxtyping.jaxtyped)  # what the import hook decorates every function with


@pytest.fixture(autouse=True)
def float64_seeded():
    before = torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    checking.calls.clear()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    assert torch.get_default_dtype() is torch.float64, "the default dtype was changed"
    torch.set_default_dtype(before[0])
    assert torch.distributions.Distribution._validate_args is before[1], "torch's argument checking was changed"
    assert torch.get_num_threads() == before[2], "the number of threads was changed"
