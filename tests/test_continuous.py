"""Drifts against closed forms: linear fields, lines between two normals, matching, kinetic energy, the cheapest pairing."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import pofx
from pofx.domain import Domain
from pofx.errors import DataError, OptionError
from pofx.models.flows.bases import StandardNormal
from pofx.models.flows.continuous import ContinuousConfig, ContinuousFlow
from pofx.models.flows.flow import Flow
from pofx.nets.timed import TimedMLP
from pofx.objectives.assignment import assign
from pofx.objectives.matching import flow_matching, paired, stratified
from pofx.transforms.base import Compose, Inverse
from pofx.transforms.continuous import EXACT_UP_TO, PROBES, Continuous
from pofx.transforms.linear import Triangular
from pofx.transforms.ode import DormandPrince, RungeKutta
from pofx.types import Kind

A = torch.tensor([[-0.5, 2.0, 0.0], [-1.0, -0.2, 0.7], [0.3, 0.0, 0.1]], dtype=torch.float64)
FINE = DormandPrince(1e-8, 1e-8)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


class Field(torch.nn.Module):
    """A speed that is known."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, z, t, c):
        return self.f(z, t)


def net(dim=3, context=0):
    torch.manual_seed(3)
    made = TimedMLP(dim, dim, context, width=8, blocks=1)
    torch.nn.init.normal_(made.last.weight, std=0.2)
    return made


# -- the transform ---------------------------------------------------------------------------------


def test_a_linear_drift_is_the_exponential_of_its_matrix():
    T, u = Continuous(Field(lambda z, t: z @ A.T), 3, method=FINE), torch.randn(6, 3)
    x, log_det = T(u)
    assert_close(x, u @ torch.linalg.matrix_exp(A).T, rtol=1e-7, atol=1e-7)
    assert_close(log_det, A.trace().expand(6), rtol=1e-7, atol=1e-7)
    assert_close(T.inverse(x)[0], u, rtol=1e-7, atol=1e-7)


def test_the_error_follows_the_tolerance():
    u = torch.randn(6, 3)
    for tolerance in (1e-3, 1e-5, 1e-7):
        T = Continuous(net(), 3, method=DormandPrince(tolerance, tolerance))
        back, log_det_inverse = T.inverse(T(u)[0])
        assert (back - u).abs().max() < 20 * tolerance
        assert (log_det_inverse + T(u)[1]).abs().max() < 20 * tolerance


def test_the_adaptive_log_determinant_is_autograds():
    T, c = Continuous(net(context=2), 3, method=FINE), torch.randn(2)
    for u in torch.randn(1, 3):
        J = jacobian(lambda v: T(v, c)[0], u)
        assert_close(T(u, c)[1], J.slogdet().logabsdet, rtol=0, atol=1e-6)


def test_gradients_by_the_adjoint_are_the_direct_ones():
    """Of rows, of the net, and of conditions that are learned, too."""
    u, c = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    found = []
    for adjoint in (False, True):
        T = Continuous(net(context=2), 3, method=FINE, adjoint=adjoint)
        x, log_det = T.inverse(u, c)
        found.append(torch.autograd.grad((x.square().sum(-1) - 2 * log_det).mean(), [u, c, *T.parameters()]))
    for one, two in zip(*found, strict=True):
        assert_close(one, two, rtol=0, atol=1e-6)


def test_a_row_does_not_see_the_others():
    T, u = Continuous(net(), 3), torch.randn(9, 3)
    u[3] *= 30
    x, log_det = T(u)
    for i in range(9):
        alone = T(u[i])
        assert_close(alone[0], x[i], rtol=1e-9, atol=1e-9)
        assert_close(alone[1], log_det[i], rtol=1e-9, atol=1e-9)


def test_rows_that_are_not_finite_stay_and_leave_the_others():
    T, u = Continuous(net(), 3), torch.randn(4, 3)
    wrong = u.clone()
    wrong[1, 0], wrong[2, 1] = math.inf, math.nan
    x, log_det = T(wrong)
    assert torch.equal(x[1:3].nan_to_num(), wrong[1:3].nan_to_num())
    assert log_det.isfinite().all()
    assert_close(x[[0, 3]], T(u)[0][[0, 3]])


def test_probes_are_an_estimate_that_says_so():
    """Unbiased over 2000 draws of 2 probes, 6 of its standard errors: once in 10^8; the mean of the squared errors is the variance."""
    exact, T = (Continuous(net(), 3, trace=trace, method=RungeKutta(4)) for trace in ("exact", 2))
    x = torch.randn(1, 3).expand(2000, 3)
    made = T.estimated(x, generator=generator())
    off = made[1] - exact.inverse(x[:1])[1]
    assert off.mean().abs() < 6 * off.std() / math.sqrt(2000)
    assert made[2].square().mean().item() == pytest.approx(off.var().item(), rel=0.5)
    assert torch.equal(made[1], T.estimated(x, generator=generator())[1])
    assert T.kind is Inverse(T).kind is Compose(Triangular(3), T).kind is Kind.ESTIMATE
    assert exact.kind is Triangular(3).kind is Kind.EXACT
    flow = Flow(Domain.real(3), Compose(Triangular(3), T), StandardNormal(3))
    assert flow.density is Kind.ESTIMATE
    assert (flow.log_prob_and_error(x[:4], generator=generator())[1] > 0).all()


def test_the_trace_is_exact_up_to_some_width():
    assert Continuous(Field(None), EXACT_UP_TO).trace == "exact"
    assert Continuous(Field(None), EXACT_UP_TO + 1).trace == PROBES
    with pytest.raises(OptionError, match="at least 2, or the trace is exact; got 1"):
        Continuous(Field(None), 3, trace=1)


# -- between two normals ---------------------------------------------------------------------------

MEAN, SCALE = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


def best(z, t):
    """E[x - u | z_t = z] of independent u ~ N(0, I) and x ~ N(m, s^2), axis by axis: a regression."""
    variance = (1 - t).square() + (t * SCALE).square()
    return MEAN + (t * SCALE.square() - (1 - t)) / variance * (z - t * MEAN)


def straight(z, t):
    """x - u of the best plan, x = m + s u: each row goes along its line at one speed."""
    u = (z - t * MEAN) / (1 - t + t * SCALE)
    return MEAN + (SCALE - 1) * u


@pytest.mark.parametrize("field", [best, straight])
def test_it_carries_one_normal_into_the_other(field):
    T = Compose(Continuous(Field(field), 2, method=FINE), Triangular(2))
    flow, law = Flow(Domain.real(2), T, StandardNormal(2)), MultivariateNormal(MEAN, SCALE.square().diag())
    x = law.sample((7,))
    assert_close(flow.log_prob(x), law.log_prob(x), rtol=1e-6, atol=1e-6)
    u = torch.randn(7, 2)
    assert_close(flow.decode(u), MEAN + SCALE * u, rtol=1e-6, atol=1e-6)  # on an axis, the map that rises is the only one


def normals(n):
    u, z = torch.randn(2, n, 2, generator=generator())
    return u, MEAN + SCALE * z, stratified(u, generator=generator(5))


def test_matching_has_its_least_at_the_best_speed():
    """The gradient in any a + b z + d t of the speed is 0 in expectation; 6 standard errors, failure rate below 1e-7 with 8 numbers."""
    u, x, t = normals(40_000)
    nudge = torch.zeros(4, 2, requires_grad=True)

    def speed(t, z):
        return best(z, t) + torch.stack((torch.ones_like(z), z, t.expand_as(z), z.sin()), 1).mul(nudge).sum(1)

    (slope,) = torch.autograd.grad(flow_matching(speed, u, x, t).mean(), nudge)
    z = torch.lerp(u, x, t)
    residual = best(z, t) - (x - u)
    each = 2 * torch.stack((torch.ones_like(z), z, t.expand_as(z), z.sin()), 1) * residual[:, None]
    assert_close(slope, each.mean(0))
    assert (slope.abs() < 6 * each.std(0) / math.sqrt(len(u))).all()
    assert flow_matching(lambda t, z: best(z, t) + 0.1, u, x, t).mean() > flow_matching(lambda t, z: best(z, t), u, x, t).mean()


def test_times_are_one_in_each_part():
    t = stratified(torch.zeros(50, 2), generator=generator())
    assert torch.equal((50 * t[:, 0]).floor().sort().values, torch.arange(50.0))


def model_of(field, **options):
    return ContinuousFlow(
        Flow(Domain.real(2), Compose(Continuous(Field(field), 2, method=FINE), Triangular(2)), StandardNormal(2)), **options
    )


def test_the_energy_of_straight_paths_is_that_of_their_lines():
    """And the same map by crooked paths costs more; E |m + (s - 1) u|^2 / 2 is known."""
    u = torch.randn(9, 2)
    line = (MEAN + (SCALE - 1) * u).square().sum(-1) / 2
    assert_close(model_of(straight).path_energy(u), line, rtol=1e-6, atol=1e-6)
    assert (model_of(best).path_energy(u) > line).all()


def test_training_by_likelihood_adds_the_energy():
    u = torch.randn(9, 2)
    line = (MEAN + (SCALE - 1) * u).square().sum(-1) / 2
    model = model_of(straight, learn="likelihood", kinetic=0.3).train()
    x = MEAN + SCALE * u
    assert_close(model.loss(x), -model.log_prob(x) + 0.3 * line, rtol=1e-6, atol=1e-6)
    assert_close(model.eval().loss(x), -model.log_prob(x))


# -- the cheapest pairing --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_the_assignment_is_the_best_of_all(n):
    for seed in range(12):
        cost = torch.randn(n, n, generator=generator(seed))
        cost = cost.round() if seed % 3 == 0 else cost  # ties
        chosen = assign(cost)
        least = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(n)))
        assert sorted(chosen.tolist()) == list(range(n))
        assert_close(cost[torch.arange(n), chosen].sum(), torch.as_tensor(least))


def test_on_a_line_the_cheapest_pairing_keeps_the_order():
    u, x = torch.randn(2, 90, 1, generator=generator())
    made = paired(u, x)
    for part in (slice(0, 64), slice(64, 90)):
        assert torch.equal(made[part][x[part, 0].argsort()], u[part].sort(0).values)


@pytest.mark.parametrize("cost", [torch.zeros(2, 3), torch.tensor([[math.nan]]), torch.zeros(3)])
def test_costs_that_pair_nothing_are_refused(cost):
    with pytest.raises(DataError, match=r"finite costs \(N, N\)"):
        assign(cost)


def test_nothing_is_paired_with_nothing():
    assert assign(torch.zeros(0, 0)).shape == (0,)


# -- the family ------------------------------------------------------------------------------------


def bent(dim, context=None, **options):
    flow = ContinuousConfig(**{"width": 16, "blocks": 1, **options}).build(Domain.real(dim), context).eval()
    torch.manual_seed(2)
    for p in flow.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.15)
    return flow


def test_initialised_it_is_the_normal_of_the_rows():
    x = torch.randn(400, 3) @ torch.randn(3, 3) + 2
    flow = ContinuousConfig(shrink=0.0, width=16).build(Domain.real(3))
    flow.initialise(x)
    law = MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    assert_close(flow.log_prob(x), law.log_prob(x), rtol=1e-4, atol=1e-4)


def test_density_integrates_to_one():
    flow, grid = bent(2, tolerance=1e-3), torch.linspace(-10, 10, 141)
    with torch.no_grad():
        p = flow.log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert (p.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=3e-3)


def test_draws_follow_the_density():
    """E[1 / p(x)] over draws inside a box is its area; failure rate below 1e-6: 6 standard errors."""
    flow = bent(2, steps=None, tolerance=1e-3)
    x = flow.sample(10_000, generator=generator())
    with torch.no_grad():
        weight = torch.where((x.abs() < 1).all(-1), (-flow.log_prob(x)).exp(), 0.0)
    assert (weight.mean() - 4.0).abs() < 6 * weight.std() / math.sqrt(len(x))
    assert flow.sampling is Kind.EXACT
    assert bent(2).sampling is Kind.ESTIMATE


def test_twenty_evaluations_a_draw():
    flow, seen = bent(2), []
    flow.drift.speed.register_forward_hook(lambda *_: seen.append(1))
    few = flow.sample(500, generator=generator())
    assert len(seen) == 20
    many = bent(2, steps=None).sample(500, generator=generator())
    assert_close(few, many, rtol=0, atol=1e-2)


def test_encode_and_decode_undo_each_other():
    flow, x, c = bent(5, Domain.real(2)), torch.randn(6, 5), torch.randn(6, 2)
    z = flow.encode(x, c)
    assert_close(flow.decode(z, c), x, rtol=1e-7, atol=1e-7)
    assert_close(flow.log_prob(x, c), flow.base.log_prob(x, c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_and_infinities_are_never_nan(dtype):
    x = torch.tensor([[1e30, -1e30, 1e18, 0.0], [1e4, 1e5, -1e6, 1e7], [0.0, math.inf, 0.0, 0.0]], dtype=dtype)
    log_p = bent(4).to(dtype).log_prob(x)
    assert log_p.dtype is dtype
    assert not log_p.isnan().any()
    assert (log_p < -1000).all()
    assert log_p[2] == -math.inf


def test_float32_draws_and_codes():
    flow, x = bent(3).float(), torch.randn(50, 3).float()
    assert flow.sample(3).dtype is torch.float32
    assert_close(flow.decode(flow.encode(x)), x, rtol=1e-3, atol=1e-3)


def test_above_the_exact_trace_it_is_an_estimate_with_its_error():
    exact, probed = bent(4), bent(4, trace=16)
    x = torch.randn(30, 4)
    with torch.no_grad():
        value, error = probed.log_prob_and_error(x, generator=generator())
        off = (value - exact.log_prob(x)) / error
    assert probed.density is Kind.ESTIMATE
    assert ContinuousConfig(width=8).build(Domain.real(EXACT_UP_TO + 1)).density is Kind.ESTIMATE
    # Errors of 16 probes follow about Student's t_15, whose mean square is 15/13: of 30, below 5 but for once in 10^6.
    assert off.square().mean() < 5


LOSSES = [{}, {"coupling": "ot"}, {"learn": "likelihood"}, {"learn": "likelihood", "trace": 2, "kinetic": 0.1, "adjoint": True}]


@pytest.mark.parametrize("options", LOSSES)
def test_losses_are_one_number_a_row_with_gradients(options):
    flow, x = bent(3, **options).train(), torch.randn(8, 3)
    loss = flow.loss(x, generator=generator())
    assert loss.shape == (8,)
    assert torch.equal(loss, flow.loss(x, generator=generator()))
    loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.requires_grad)
    assert flow.whitening.mean.requires_grad is (options.get("learn") == "likelihood")


def test_the_adjoint_of_the_family_is_the_direct_gradient():
    x, grads = torch.randn(8, 2), []
    for adjoint in (False, True):
        flow = bent(2, learn="likelihood", adjoint=adjoint, learning_steps=40).train()
        grads.append(torch.autograd.grad(flow.loss(x).mean(), list(flow.parameters())))
    for one, two in zip(*grads, strict=True):
        assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"coupling": "ot"}, {"learn": "likelihood", "learning_steps": 4}])
def test_it_learns_a_shifted_scaled_normal(options):
    """Whitening left aside: the drift alone finds N(m, s^2) to 0.05 nats."""
    torch.manual_seed(0)
    steps = 150 if options.get("learn") else 600
    law = MultivariateNormal(MEAN / 2, torch.tensor([0.5, 1.5]).square().diag())
    x, held = law.sample((1000,)), law.sample((300,))
    flow = ContinuousConfig(width=32, blocks=1, **options).build(Domain.real(2))
    for p in flow.whitening.parameters():
        p.requires_grad_(False)
    before = (law.log_prob(held) - flow.eval().log_prob(held)).mean()
    adam = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr=5e-3)
    falling = torch.optim.lr_scheduler.ExponentialLR(adam, 0.02 ** (1 / steps))
    flow.train()
    for _ in range(steps):
        batch = x[torch.randint(len(x), (64,))]
        adam.zero_grad()
        flow.loss(batch).mean().backward()
        adam.step()
        falling.step()
    with torch.no_grad():
        after = (law.log_prob(held) - flow.eval().log_prob(held)).mean()
    assert before > 0.3
    assert after < 0.05


REFUSED = {
    "pairs rows of a batch": {"coupling": "ot", "learn": "likelihood"},
    "learns no base": {"base": "student"},
    "learns no noise": {"augment": 1},
    "solves no equation": {"kinetic": 0.1},
    "another speed": {"learn": "likelihood", "dropout": 0.1},
    "probes are at least 2": {"trace": 1},
}


@pytest.mark.parametrize("match", REFUSED)
def test_options_that_do_not_fit_are_refused(match):
    with pytest.raises(OptionError, match=match):
        ContinuousConfig(**REFUSED[match]).build(Domain.real(2))


def test_pairing_knows_no_condition():
    with pytest.raises(OptionError, match="whatever their condition"):
        ContinuousConfig(coupling="ot").build(Domain.real(2), Domain.real(1))


def test_a_flow_of_other_parts_is_refused():
    with pytest.raises(OptionError, match="a drift, then whitening; got another"):
        ContinuousFlow(Flow(Domain.real(2), Triangular(2), StandardNormal(2)))


def test_the_length_of_a_run_follows_the_rows():
    for config in (partial(ContinuousConfig, learn=learn) for learn in ("matching", "likelihood")):
        steps = [config().for_rows(n).max_epochs * -(-n // config().batch_size) for n in (100, 5000, 10**6)]
        assert steps[2] <= 2 * steps[0]
        assert config(max_epochs=7).for_rows(5000).max_epochs == 7


def test_it_is_fitted():
    x = torch.randn(200, 2, generator=generator()).numpy()
    p = pofx.fit(x, ContinuousConfig(width=8, blocks=1, max_epochs=2))
    assert p.log_prob(x[:5]).kind is Kind.EXACT
    assert p.sample(3).shape == (3, 2)


@pytest.mark.parametrize("options", [{"learn": "likelihood", "augment": 1}, {"learn": "likelihood", "base": "mixture"}])
def test_what_needs_likelihood_learns_by_it(options):
    flow, x = ContinuousConfig(width=8, blocks=1, learning_steps=2, tolerance=1e-2, **options).build(Domain.real(2)), torch.randn(20, 2)
    flow.initialise(x)
    flow.train().loss(x).mean().backward()
    assert flow.eval().log_prob(x).isfinite().all()
