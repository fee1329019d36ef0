"""Two processes with half of every batch each end where one process with the whole batch does.

Run as a script under torchrun, this file is one of the processes: `python test_learn_distributed.py OUT CHECKPOINT EPOCHS`.
"""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pofx.domain import Domain
from pofx.learn import isolated, run
from pofx.learn.distributed import Ranks
from pofx.models.base import GradientConfig, Model

ROWS, BATCH = 41, 8  # batches of 8 and one of 1: a rank then has no row at all


class Regression(Model):
    """A loss without draws, so that one process and two do the same arithmetic."""

    def __init__(self, domain):
        super().__init__(domain)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))

    def loss(self, x, c=None, *, generator=None):
        return (self.net(x) - x.flip(-1)).square().sum(-1)

    def _log_prob(self, x, c, generator):
        return -self.loss(x)

    def _sample(self, n, c, generator):
        return torch.zeros(n, 3)


class Config(GradientConfig):
    batch_size: int = BATCH
    learning_rate: float = 0.01
    clip_norm: float | None = 0.5
    ema: float | None = 0.9

    def _build(self, domain, context=None):
        return Regression(domain)


def learn(epochs, checkpoint=None, tracker=None):
    x = torch.randn(ROWS + 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with isolated(0):
        model = Regression(Domain.real(3)).double()
    config = Config(max_epochs=epochs)
    record = run(model, x[:ROWS], config=config, holdout=x[ROWS:], checkpoint=checkpoint, checkpoint_every=0.0, tracker=tracker)
    history = torch.tensor([[row["step"], row["train"], row["holdout"]] for row in record.history], dtype=torch.float64)
    return {"history": history, "kept": torch.tensor(record.kept), **{k: v.clone() for k, v in model.state_dict().items()}}


def learn_together(folder, epochs):
    """By two processes under torchrun: what each of them ended with."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    arguments = [folder / "out", folder / "run", str(epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"out{rank}") for rank in (0, 1)], done.stdout.splitlines()


@pytest.mark.slow
def test_two_processes_end_where_one_does_and_resume_from_one_file(tmp_path):
    for epochs, told in ((2, ["epoch 1", "epoch 2"]), (4, ["epoch 3", "epoch 4"])):
        (first, second), lines = learn_together(tmp_path, epochs)
        for name, tensor in learn(epochs).items():
            torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-10)
            assert torch.equal(first[name], second[name])
        assert lines == told  # by one rank alone
    assert load_file(tmp_path / "run")["stream.noise"].shape[0] == 2  # the generators of both


def test_a_batch_is_dealt_out_whole():
    index = torch.randperm(11)
    parts = [Ranks(rank, 3).part(index) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_a_group_of_one():
    alone = Ranks()
    assert alone.first
    assert alone.least([3.0, 1.0]) == [3.0, 1.0]
    assert alone.mean(2.0) == 2.0
    assert torch.equal(alone.stacked(torch.arange(3)), torch.arange(3)[None])


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    tensors = learn(int(sys.argv[3]), sys.argv[2], tracker=lambda row: print("epoch", row["epoch"], flush=True))
    save_file(tensors, f"{sys.argv[1]}{os.environ['RANK']}")
