"""Sequential Monte Carlo against evidences in closed form: conjugate, enumerated, and a region's probability."""

import itertools
import math

import pytest
import torch

from pofx.errors import DataError, OptionError
from pofx.samplers import Hamiltonian, Independence, RandomWalk, Sweep, smc, weight_ess
from pofx.samplers.smc import rise


def tensor(values):
    """In float64 also while the file is read, before a test sets the default."""
    return torch.tensor(values, dtype=torch.float64)


Y, NOISE = tensor([2.0, -1.0, 0.5]), 0.2


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def log_normal(x, sd=1.0):
    return (-0.5 * (x / sd).square() - math.log(sd) - 0.5 * math.log(2 * math.pi)).sum(-1)


def draw_prior(n, generator):
    return torch.randn(n, 3, generator=generator)


def log_likelihood(x):
    return log_normal(x - Y, NOISE)


EXACT = float(log_normal(Y, math.sqrt(1 + NOISE**2)))  # y ~ N(0, (1 + noise^2) I)
KERNELS = {
    "by itself": (log_normal, None),
    "hamiltonian": (log_normal, Hamiltonian(leapfrogs=3)),
    "random walk": (log_normal, RandomWalk()),
    "sweep": (log_normal, Sweep((None,) * 3)),
    "without the prior's density": (lambda x: 0 * x[:, 0], Independence(draw_prior)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_conjugate_posterior(name):
    """Of 40 islands: evidence within 5.5 errors (t with 39 degrees of freedom: once in 10^5.6); moments of x | y by the same."""
    log_prior, kernel = KERNELS[name]
    run = smc(log_prior, log_likelihood, draw_prior, particles=300, islands=40, kernel=kernel, moves=8, generator=seeded())
    value, error = run.log_evidence
    assert 0 < float(error) < 0.1
    assert abs(float(value) - EXACT) < 5.5 * float(error)
    shrink = 1 / (1 + NOISE**2)
    weight = run.log_z.softmax(0)[:, None]
    for moment, truth in ((run.x, shrink * Y), ((run.x - shrink * Y).square(), torch.full((3,), shrink * NOISE**2))):
        each = moment.mean(1)  # (islands, D)
        mean = (weight * each).sum(0)
        spread = (weight.square() * (each - mean).square()).sum(0).sqrt()
        assert ((mean - truth).abs() / spread).max() < 6
    assert run.b[-1] == 1
    assert (run.b.diff() > 0).all()
    assert run.ess.shape == (len(run.b), 40)
    assert (run.ess[:-1] / 300).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kernel", [Hamiltonian(leapfrogs=2), RandomWalk()])
def test_the_evidence_is_unbiased_and_its_error_honest(kernel):
    """60 runs of 8 islands of 100: the mean of Z / exact is 1 within 5 of its errors.

    z-scores of log Z have a variance near that of t_7, 7/5, itself known to a factor of 1.3 from 60.
    """

    def run(seed):
        return smc(log_normal, log_likelihood, draw_prior, particles=100, islands=8, kernel=kernel, moves=2, generator=seeded(seed))

    answers = torch.stack([torch.stack(run(s).log_evidence) for s in range(60)])
    ratio = (answers[:, 0] - EXACT).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 60**0.5
    z = (answers[:, 0] - EXACT) / answers[:, 1]
    assert 0.4 < float(z.var()) < 4


# -- discrete ----------------------------------------------------------------------------------------

WORLDS = tensor(list(itertools.product((0.0, 1.0), (0.0, 1.0, 2.0))))
LOG_PRIOR = tensor([0.1, 0.2, 0.05, 0.3, 0.15, 0.2]).log()
LOG_L = tensor([-1.0, -5.0, -torch.inf, -2.0, 0.5, -4.0])


def which(x):
    return (3 * x[:, 0] + x[:, 1]).long()


def draw_world(n, generator):
    return WORLDS[torch.multinomial(LOG_PRIOR.exp(), n, True, generator=generator)]


def test_an_enumerated_table():
    """Six worlds, one of likelihood 0. Z and the posterior over 60 islands within 5.5 of their errors."""
    kernel = Sweep((torch.arange(2.0), torch.arange(3.0)))
    log_prior, log_l = (lambda x: LOG_PRIOR[which(x)]), (lambda x: LOG_L[which(x)])
    run = smc(log_prior, log_l, draw_world, particles=200, islands=60, kernel=kernel, moves=2, generator=seeded())
    joint = LOG_PRIOR + LOG_L
    value, error = run.log_evidence
    assert abs(float(value) - float(joint.logsumexp(0))) < 5.5 * float(error)
    share = (run.x[:, :, None] == WORLDS).all(-1).double().mean(1)  # (islands, worlds)
    weight = run.log_z.softmax(0)[:, None]
    mean = (weight * share).sum(0)
    spread = (weight.square() * (share - mean).square()).sum(0).sqrt()
    assert ((mean - joint.softmax(0)).abs() <= 6 * spread).all()
    assert mean[2] == 0
    assert run.acceptance.isnan().all()


def test_the_probability_of_a_region():
    """L = 1 where x > 1.5: Z = 1 - Phi(1.5), reached in one rise of b."""
    run = smc(
        log_normal, lambda x: torch.where(x[:, 0] > 1.5, 0.0, -torch.inf), lambda n, g: torch.randn(n, 1, generator=g),
        particles=1000, islands=20, kernel=RandomWalk(), generator=seeded(),
    )  # fmt: skip
    value, error = run.log_evidence
    assert abs(float(value) - math.log(0.5 * math.erfc(1.5 / 2**0.5))) < 5.5 * float(error)
    assert run.b.tolist() == [1.0]
    assert (run.x > 1.5).all()


# -- parts -------------------------------------------------------------------------------------------


def test_a_rise_leaves_the_effective_size():
    log_l = 30 * torch.randn(2000)
    d = rise(log_l, 0.5, 1.0)
    assert float(weight_ess(d * log_l)) == pytest.approx(1000, rel=1e-6)
    assert rise(log_l, 0.5, d / 2) == d / 2
    half = torch.cat((log_l, torch.full((2000,), -torch.inf)))
    assert rise(half, 0.5, 1.0) == pytest.approx(d)


def test_islands_that_died_are_not_sampled():
    run = smc(log_normal, log_likelihood, draw_prior, particles=50, generator=seeded())
    log_z = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf])
    x = type(run)(run.x, log_z, run.b, run.ess, run.acceptance).sample(100, generator=seeded())
    assert torch.isin(x[:, 0], run.x[1, :, 0]).all()
    dead = type(run)(run.x, torch.full((4,), -torch.inf), run.b, run.ess, run.acceptance)
    with pytest.raises(DataError, match="no particle has a likelihood above 0"):
        dead.sample(1, generator=seeded())


def test_equal_generators_give_equal_runs_of_the_priors_type():
    def run(seed):
        return smc(
            log_normal, lambda x: log_normal(x - 1), lambda n, g: torch.randn(n, 2, generator=g, dtype=torch.float32),
            particles=50, generator=seeded(seed),
        )  # fmt: skip

    assert run(0).x.dtype == torch.float32
    assert torch.equal(run(0).x, run(0).x)
    assert not torch.equal(run(0).x, run(1).x)


BAD = {
    "three islands": ({"islands": 3}, OptionError, "islands is at least 4, got 3"),
    "one particle": ({"particles": 1}, OptionError, "particles is at least 2, got 1"),
    "no moves": ({"moves": 0}, OptionError, "moves is at least 1, got 0"),
    "a target of one": ({"target": 1.0}, OptionError, "a share of the particles between 0 and 1, got 1.0"),
    "too far": ({"most_stages": 2}, DataError, "the posterior is 2 temperatures away and more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    options, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence):
        smc(log_normal, log_likelihood, draw_prior, generator=seeded(), **options)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(torch.nan, "particle 0 is nan"), (torch.inf, "particle 0 is inf"), (-torch.inf, "the likelihood is 0 at all 1000 draws")],
)
def test_bad_likelihoods_are_refused(value, sentence):
    with pytest.raises(DataError, match=sentence):
        smc(log_normal, lambda x: torch.full((len(x),), value), draw_prior, kernel=RandomWalk(), generator=seeded())
