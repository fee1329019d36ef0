"""A run cut off anywhere and resumed ends in the weights, to the bit, of one that was never cut off.

Run as a script, this file starts the processes that get killed.
"""

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pofx.domain import Domain
from pofx.errors import FileError, OptionError, TrainingError
from pofx.learn import isolated, run, write_atomically
from pofx.models.base import GradientConfig, Model

ROWS, HOLDOUT, BATCH, EPOCHS = 60, 20, 7, 5  # 6 steps an epoch, the last of 5 rows


class Noisy(Model):
    """A regression on itself that draws from its generator and, through dropout, from torch's own; with a buffer that moves."""

    def __init__(self, domain):
        super().__init__(domain)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.SiLU(), nn.Linear(8, 3))
        self.cut_at, self.calls, self.pace = None, 0, 0.0

    def loss(self, x, c=None, *, generator=None):
        self.calls += self.training
        if self.cut_at is not None and self.training and self.calls > self.cut_at:
            raise PowerCut
        time.sleep(self.pace)
        noise = 0.1 * torch.randn(x.shape, generator=generator)
        return (self.net(x + noise) - x).square().sum(-1)

    def _log_prob(self, x, c, generator):
        return -self.loss(x, generator=generator)

    def _sample(self, n, c, generator):
        return torch.zeros(n, 3)


class PowerCut(Exception):
    pass


class Config(GradientConfig):
    batch_size: int = BATCH
    max_epochs: int = EPOCHS
    learning_rate: float = 0.02
    ema: float | None = 0.9
    warmup: float = 0.2

    def _build(self, domain, context=None):
        return Noisy(domain)


def data():
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def learn(checkpoint=None, *, cut_at=None, pace=0.0, config=None, **options):
    x = data()
    with isolated(0):
        model = Noisy(Domain.real(3)).double()
    model.cut_at, model.pace = cut_at, pace
    record = run(model, x[HOLDOUT:], config=config or Config(), holdout=x[:HOLDOUT], checkpoint=checkpoint, checkpoint_every=0.0, **options)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, record


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("cuts", [(0,), (1,), (4,), (5,), (6,), (29,), (3, 4, 12)], ids=str)
def test_resumed_is_uninterrupted(tmp_path, cuts):
    whole, record = learn()
    for cut in cuts:
        with pytest.raises(PowerCut):
            learn(tmp_path / "run", cut_at=cut)
    resumed, again = learn(tmp_path / "run")
    assert same(whole, resumed)
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in (record, again)]
    assert timeless[0] == timeless[1]
    assert (record.kept, record.stopped) == (again.kept, again.stopped)
    assert [row["seconds"] for row in again.history] == sorted(row["seconds"] for row in again.history)


def test_resumed_after_skipped_steps_is_uninterrupted(tmp_path):
    config = Config(skip_above=1.05)
    whole, record = learn(config=config)
    with pytest.raises(PowerCut):
        learn(tmp_path / "run", cut_at=13, config=config)
    resumed, again = learn(tmp_path / "run", config=config)
    assert same(whole, resumed)
    assert 3 < record.history[-1]["skipped"] == again.history[-1]["skipped"]


def test_a_finished_run_comes_back_at_once(tmp_path):
    whole, record = learn(tmp_path / "run")
    again, other = learn(tmp_path / "run", cut_at=0)  # a single step would raise
    assert same(whole, again)
    assert other.history == record.history


def test_more_epochs_go_on_where_fewer_ended(tmp_path):
    short, long = (Config(warmup=0.0, max_epochs=n) for n in (3, 6))
    learn(tmp_path / "run", config=short)
    assert same(learn(tmp_path / "run", config=long)[0], learn(config=long)[0])


def test_a_spent_budget_goes_on_under_a_longer_one(tmp_path):
    record = learn(tmp_path / "run", pace=0.02, budget=0.3)[1]
    assert record.stopped == "its budget of 0.3 s is spent"
    assert learn(tmp_path / "run", cut_at=0, budget=0.3)[1].stopped == "its budget of 0.3 s is spent"  # no time left for a step
    assert same(learn(tmp_path / "run")[0], learn()[0])


def test_another_runs_checkpoint_is_refused(tmp_path):
    learn(tmp_path / "run")
    with pytest.raises(OptionError, match=r"checkpoint of another run: its options learning_rate is 0.02, this run's is 0.5"):
        learn(tmp_path / "run", config=Config(learning_rate=0.5))
    with pytest.raises(OptionError, match="its seed is 0, this run's is 1"):
        learn(tmp_path / "run", seed=1)
    with pytest.raises(OptionError, match="its data is '"):
        run(Noisy(Domain.real(3)), data(), config=Config(), checkpoint=tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run"
    learn(path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], b"\xff" * 100, whole[:8] + b" " * header + whole[8 + header :]):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="is no checkpoint of pofx, or a damaged one"):
            learn(path)
    save_file(load_file_of(whole, tmp_path), path, {"pofx.checkpoint": json.dumps({"format": 99})})
    with pytest.raises(FileError, match="format 99, expected 1"):
        learn(path)


def load_file_of(content, folder):
    (folder / "copy").write_bytes(content)
    return load_file(folder / "copy")


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "run"
    learn(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for name in ("shuffle", "player.model.net.0.weight", "kept.model.net.0.weight", "average.model.0", "optimiser.model.0.exp_avg"):
        save_file({k: v for k, v in tensors.items() if k != name}, path, metadata)
        with pytest.raises(FileError, match="the checkpoint is not one of this run"):
            learn(path)


def test_a_breaking_loss_leaves_the_last_good_state_in_the_file(tmp_path):
    class Breaks(Noisy):
        def loss(self, x, c=None, *, generator=None):
            return super().loss(x, generator=generator) * (float("nan") if self.calls > 20 else 1.0)

    x = data()
    model = Breaks(Domain.real(3))
    with pytest.raises(TrainingError, match=f"the last good state of the run is in {tmp_path / 'run'}"):
        run(model, x, config=Config(), checkpoint=tmp_path / "run", checkpoint_every=0.0)
    saved = load_file(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert saved["optimiser.model.0.step"] == 20


def test_a_folder_that_is_not_there_is_told_before_learning(tmp_path):
    with pytest.raises(FileError, match="can not write"):
        learn(tmp_path / "missing" / "run", cut_at=0)


def test_writing_is_atomic_and_minds_the_umask(tmp_path):
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        write_atomically(path, b"old")
        write_atomically(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path):
    """20 kills of a real process, at moments spread over its run of about half a second; several may hit one run.

    The run that is never killed is a process of the same server: other processes may compute with other numbers of threads.
    """
    moments, kills, runs = random.Random(0), 0, 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert attempt(server, tmp_path / "whole_run", tmp_path / "whole") == 0
        whole = load_file(tmp_path / "whole")
        while kills < 20:
            runs, status = runs + 1, None
            while status != 0:
                status = attempt(server, tmp_path / f"run{runs}", tmp_path / f"out{runs}", moments.uniform(0.0, 0.5))
                assert status in (0, -signal.SIGKILL)
                kills += status != 0
            assert same(load_file(tmp_path / f"out{runs}"), whole)
        server.stdin.close()


def attempt(server, checkpoint, out, kill_after=None):
    """How a process that learns ended, killed after some seconds if it was not done before."""
    print(checkpoint, out, file=server.stdin, flush=True)
    process = int(server.stdout.readline())
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):  # it was done before
            os.kill(process, signal.SIGKILL)
    return int(server.stdout.readline())


def serve():
    """Learn in a process of its own for every line "CHECKPOINT OUT": tell its number, then how it ended."""
    torch.set_default_dtype(torch.float64)
    learn()  # loads what the first optimiser of a process loads
    for line in sys.stdin:
        checkpoint, out = line.split()
        process = os.fork()
        if process == 0:
            save_file(learn(checkpoint, pace=0.01)[0], out)
            os._exit(0)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
