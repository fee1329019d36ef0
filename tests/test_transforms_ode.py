"""ODEs against closed forms: order, error control a row, gradients both ways, and divergences."""

import itertools
import math

import pytest
import torch

from pofx.errors import DataError, OptionError
from pofx.transforms.ode import (
    DORMAND_PRINCE,
    EULER,
    MIDPOINT,
    RK4,
    THREE_EIGHTHS,
    DormandPrince,
    RungeKutta,
    carry,
    divergence,
    hutchinson,
    integrate,
    rademacher,
)

A = torch.tensor([[-0.5, 2.0, 0.0], [-1.0, -0.2, 0.7], [0.3, 0.0, 0.1]], dtype=torch.float64)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def linear(t, y):
    """y(t) = e^(A sin t) y(0)."""
    return t.cos() * (y @ A.mT)


def moved(y, t0, t1):
    return y @ torch.linalg.matrix_exp(A * (math.sin(t1) - math.sin(t0))).mT


def bumpy(t, y):
    """Nonlinear, and stiffer the larger a row: its rows need different steps."""
    return -y * y.square().sum(-1, keepdim=True) + (3 * t).cos()


METHODS = {"adaptive": DormandPrince(1e-9, 1e-9), "rk4": RungeKutta(100)}


# -- the solver ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (MIDPOINT, 2), (RK4, 4), (THREE_EIGHTHS, 4), (DORMAND_PRINCE, 5)])
def test_order(tableau, order):
    y = torch.randn(5, 3, generator=seeded())
    errors = [(RungeKutta(n, tableau)(linear, y, 0.2, 2.5).y - moved(y, 0.2, 2.5)).norm() for n in (40, 80)]
    assert float((errors[0] / errors[1]).log2()) == pytest.approx(order, abs=0.3)
    assert sum(tableau.b) == pytest.approx(1, abs=1e-14)
    assert [sum(row) for row in tableau.a] == pytest.approx(list(tableau.c[1:]), abs=1e-14)
    assert sum(tableau.error) == pytest.approx(0, abs=1e-14)


def test_the_error_follows_the_tolerance():
    y = torch.randn(5, 3, generator=seeded())
    spent = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9, 1e-11):
        solution = DormandPrince(tolerance, tolerance)(linear, y, 0.0, 3.0)
        assert (solution.y - moved(y, 0.0, 3.0)).abs().max() < 20 * tolerance
        spent.append(int(solution.evaluations.max()))
    # A method of order 5 spends 100^(1/5) = 2.5 times as much for a hundredth of the error.
    assert 1.8 < (spent[4] / spent[2]) ** 0.5 < 3.2


@pytest.mark.parametrize("name", METHODS)
def test_there_and_back_and_times_of_their_own(name):
    y, method = torch.randn(4, 3, generator=seeded()), METHODS[name]
    there = integrate(linear, y, 0.3, 2.0, method=method).y
    assert torch.allclose(there, moved(y, 0.3, 2.0), atol=1e-6)
    assert torch.allclose(integrate(linear, there, 2.0, 0.3, method=method).y, y, atol=1e-6)
    t0, t1 = torch.tensor([[0.3], [2.0], [1.0], [-1.0]]), torch.tensor([[2.0], [0.3], [1.0], [0.5]])
    own = integrate(linear, y, t0, t1, method=method).y
    for i in range(4):
        assert torch.allclose(own[i], moved(y[i], float(t0[i]), float(t1[i])), atol=1e-6)
    assert torch.equal(own[2], y[2])


def test_a_row_is_the_same_alone_and_among_others():
    """Rows, counts and gradients; the rows differ in what they cost."""
    y = torch.randn(6, 3, generator=seeded()) * torch.tensor([0.1, 0.5, 1.0, 3.0, 10.0, 30.0])[:, None]
    together = DormandPrince()(bumpy, y, 0.0, 2.0)
    alone = [DormandPrince()(bumpy, row[None], 0.0, 2.0) for row in y]
    assert torch.allclose(together.y, torch.cat([a.y for a in alone]), rtol=1e-12)
    assert torch.equal(together.evaluations, torch.cat([a.evaluations for a in alone]))
    assert together.evaluations.max() > 2 * together.evaluations.min()


def test_a_row_that_is_done_costs_no_more_and_nothing_takes_no_steps():
    calls = []
    solution = DormandPrince()(lambda t, y: (calls.append(1), linear(t, y))[1], torch.ones(3, 3), 0.0, torch.tensor([[0.1], [4.0], [0.0]]))
    assert len(calls) == int(solution.evaluations.max()) == int(solution.evaluations[1])
    assert solution.evaluations[0] < solution.evaluations[1]
    assert solution.evaluations[2] == 2
    assert integrate(linear, torch.zeros(0, 3), 0.0, 1.0).y.shape == (0, 3)
    still = integrate(lambda t, y: 0 * y, torch.zeros(2, 3), 0.0, 1.0)
    assert torch.equal(still.y, torch.zeros(2, 3))


def test_rows_decide_the_type():
    y = torch.randn(2, 3, generator=seeded(), dtype=torch.float32)
    for method in (DormandPrince(), DormandPrince(1e-7, 1e-7), RungeKutta(20)):
        end = integrate(lambda t, v: -v * t, y, 0.0, 1.0, method=method).y
        assert end.dtype == torch.float32
        assert torch.allclose(end, y * math.exp(-0.5), rtol=1e-4)


def test_what_can_not_be_solved_is_refused_with_the_row():
    y = torch.tensor([[0.0], [1.0]])
    with pytest.raises(DataError, match=r"row 1 is at t = .* on its way to 10 after \d+ evaluations: allow more, or loosen"):
        DormandPrince(most=200)(lambda t, v: (torch.tensor([[0.1], [20.0]]) * t).cos() * (1 + v), y, 0.0, 10.0)
    with pytest.raises(DataError, match=r"the slope of row 1 near t = 1 is not finite, or not smooth"):
        DormandPrince(atol=1e-300)(lambda t, v: v**2, y, 0.0, 2.0)  # explodes at t = 1
    with pytest.raises(DataError, match=r"the slope of row 0 near t = 0 is not finite"):
        DormandPrince()(lambda t, v: torch.where(v < 1, torch.nan, v), y, 0.0, 2.0)


BAD = {
    "no steps": (lambda: RungeKutta(0), "steps is at least 1, got 0"),
    "no tolerance": (lambda: DormandPrince(0.0, 0.0), "not both 0, got rtol=0.0 and atol=0.0"),
    "a negative one": (lambda: DormandPrince(-1.0, 1.0), "got rtol=-1.0 and atol=1.0"),
    "no evaluations": (lambda: DormandPrince(most=3), "most is at least 8, got 3"),
    "no probes": (lambda: rademacher(torch.zeros(2, 2), 0), "probes is at least 1, got 0"),
    "parameters": (lambda: integrate(linear, torch.zeros(1, 3), 0.0, 1.0, parameters=[A]), "named for the adjoint alone"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name):
    make, sentence = BAD[name]
    with pytest.raises(OptionError, match=sentence):
        make()


# -- gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [DormandPrince(1e-11, 1e-11), RungeKutta(100)])
@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_a_closed_form(method, adjoint):
    """y(t) = y0 e^(rate (t - t0)): dy/dy0 and dy/drate are known, for rows with times and rates of their own."""
    y = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    rate = torch.tensor([[0.7], [-1.5]], requires_grad=True)
    t1 = torch.tensor([[1.2], [2.0]])
    end = integrate(lambda t, v: rate * v, y, 0.2, t1, method=method, adjoint=adjoint, parameters=[rate] if adjoint else []).y
    grads = torch.autograd.grad(end.sum(), (y, rate))
    growth = (rate * (t1 - 0.2)).exp().detach()
    assert torch.allclose(grads[0], growth.expand(2, 2), atol=1e-7)
    assert torch.allclose(grads[1], (t1 - 0.2) * (y * growth).sum(-1, keepdim=True), atol=1e-7)


def test_gradients_are_those_of_finite_differences_where_steps_are_refused():
    """A row whose first steps are refused, one that overflows when a step is too long: gradients stay numbers, and right."""
    y = torch.tensor([[0.1, -0.2], [30.0, 5.0], [1.0, 2.0]], requires_grad=True)

    def f(t, v):
        return bumpy(t, v) - 0.01 * v.sinh()

    refused = []
    with torch.no_grad():
        DormandPrince(1e-9, 1e-9)(f, y[1:2], 0.0, 1.0, watch=lambda t, v, weight: refused.append(bool(weight == 0)))
        direct = DormandPrince(1e-9, 1e-9)(f, y, 0.0, 1.0)
    assert any(refused)
    kept = DormandPrince(1e-9, 1e-9)(f, y, 0.0, 1.0)
    assert torch.allclose(kept.y, direct.y, rtol=1e-12)
    assert torch.equal(kept.evaluations - 2, 2 * (direct.evaluations - 2))
    (grad,) = torch.autograd.grad(kept.y.sum(), y)
    h = 1e-5 * torch.eye(2)[:, None]  # (2, 1, 2): rows to either side of each, along each coordinate
    with torch.no_grad():
        ends = [DormandPrince(1e-11, 1e-11)(f, (y + way * h).flatten(0, 1), 0.0, 1.0).y.sum(-1) for way in (1, -1)]
    assert torch.allclose(grad, ((ends[0] - ends[1]) / 2e-5).unflatten(0, (2, 3)).mT, atol=2e-6)


class Net(torch.nn.Module):
    def __init__(self, e=3):
        super().__init__()
        self.first, self.last = torch.nn.Linear(e + 1, 16), torch.nn.Linear(16, e)

    def forward(self, t, y):
        return self.last(torch.tanh(self.first(torch.cat((y, t), 1))))


@pytest.mark.parametrize("trace", ["exact", 3])
@pytest.mark.parametrize("method", [DormandPrince(1e-9, 1e-9), RungeKutta(60)])
def test_the_adjoint_is_the_direct_gradient(method, trace):
    """Of a flow's likelihood: of rows, log-determinant and parameters, one of which is of no use."""
    torch.manual_seed(1)
    net, y = Net(), torch.randn(4, 3, requires_grad=True)
    idle = torch.zeros(2, requires_grad=True)
    weights = [*net.parameters()]

    def loss(adjoint):
        named = [*weights, idle] if adjoint else []
        made = carry(net, y, 0.0, 1.0, trace=trace, method=method, adjoint=adjoint, parameters=named, generator=seeded())
        return (made.y.square().sum(-1) - 2 * made.log_det).mean()

    direct, through = loss(False), loss(True)
    assert torch.allclose(direct, through, rtol=1e-12)
    one = torch.autograd.grad(direct, [y, *weights])
    two = torch.autograd.grad(through, [y, *weights, idle])
    for a, b in zip(one, two[:-1], strict=True):
        assert torch.allclose(a, b, atol=2e-7)
    assert torch.equal(two[-1], torch.zeros(2))


def test_the_adjoint_keeps_no_graph_and_leaves_fixed_parameters_alone():
    net, y = Net(), torch.randn(4, 3)
    net.first.weight.requires_grad_(False)
    end = integrate(net, y, 0.0, 1.0, method=RungeKutta(30), adjoint=True, parameters=[*net.parameters()]).y
    assert not end.grad_fn.next_functions[0][0]  # y wants no gradient
    end.sum().backward()
    assert net.first.weight.grad is None
    assert net.last.weight.grad.abs().sum() > 0


# -- divergence ----------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """An operation that can not be batched."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y**3

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        if grad.abs().max() < 0:  # needs a number, which a batch of cotangents does not have
            return grad
        return 3 * y**2 * grad


FIELDS = {
    "linear": linear,
    "bumpy": bumpy,
    "net": Net(),
    "not to be batched": lambda t, y: Cube.apply(y @ A.mT),
    "constant": lambda t, y: torch.ones_like(y),
    "of t alone": lambda t, y: (t * torch.ones(3, requires_grad=True)).expand_as(y),
}


@pytest.mark.parametrize("name", FIELDS)
def test_divergence_is_the_trace_of_the_jacobian(name):
    f = FIELDS[name].double() if name == "net" else FIELDS[name]
    t, y = torch.rand(5, 1, generator=seeded()), torch.randn(5, 3, generator=seeded())
    slope, trace = divergence(f, t, y)
    jacobians = [torch.autograd.functional.jacobian(lambda v, i=i: f(t[i : i + 1], v[None])[0], y[i]) for i in range(5)]
    assert torch.allclose(slope, f(t, y))
    assert torch.allclose(trace, torch.stack([j.trace() for j in jacobians]))
    with torch.no_grad():
        assert torch.allclose(divergence(f, t, y)[1], trace)
        assert not divergence(f, t, y)[1].requires_grad


def test_probes_are_unbiased_and_their_variance_is_the_formula():
    """All 2^3 probes: the mean is the trace, the variance 2 sum_(i != j) J_ij^2 of the symmetric part J."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    t, y = torch.rand(5, 1, generator=seeded()), torch.randn(5, 3, generator=seeded())
    _, estimates = hutchinson(bumpy, t, y, signs[:, None].expand(8, 5, 3))
    assert torch.allclose(estimates.mean(0), divergence(bumpy, t, y)[1])
    for i in range(5):
        j = torch.autograd.functional.jacobian(lambda v, i=i: bumpy(t[i : i + 1], v[None])[0], y[i])
        off = (0.5 * (j + j.mT)).fill_diagonal_(0.0)
        assert torch.allclose(estimates[:, i].var(correction=0), 2 * off.square().sum())


def test_a_rows_probes_do_not_depend_on_those_that_follow():
    few, many = (rademacher(torch.zeros(n, 5), 7, generator=seeded()) for n in (3, 50))
    assert few.shape == (7, 3, 5)
    assert torch.equal(few, many[:, :3])
    assert set(many.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(many.mean())) < 6 / math.sqrt(many.numel())  # once in 10^8


@pytest.mark.parametrize("name", METHODS)
def test_the_log_determinant_is_autograds(name):
    y, method = torch.randn(4, 3, generator=seeded()), METHODS[name]
    made = carry(bumpy, y, 0.0, 0.8, method=method)
    assert not made.log_det.requires_grad
    start = y.requires_grad_()
    end = integrate(bumpy, start, 0.0, 0.8, method=method).y
    jacobian = torch.stack([torch.autograd.grad(end[:, i].sum(), start, retain_graph=True)[0] for i in range(3)], 1)
    assert torch.allclose(made.log_det, jacobian.slogdet()[1], atol=1e-6)
    back = carry(bumpy, made.y, 0.8, 0.0, method=method)
    assert torch.allclose(back.log_det, -made.log_det, atol=1e-5)
    y = y.detach()
    assert torch.equal(made.error, torch.zeros(4))
    assert carry(linear, y, 0.0, 1.0, trace=1, method=method, generator=seeded()).error.isnan().all()
