"""What must hold for every transform and surjection: each class has a line below, and every invariant runs on every line."""

import inspect
import math
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.testing import assert_close

import pofx.transforms
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import OptionError, Unavailable
from pofx.nets.convolutional import ResidualCNN
from pofx.nets.residual import ResidualMLP
from pofx.nets.waves import Waves
from pofx.transforms.autoregressive import Autoregressive
from pofx.transforms.base import Compose, Inverse, PerVariable, Stack, Surjection, Transform
from pofx.transforms.continuous import Continuous
from pofx.transforms.convolutional import ChannelCouplings, ChannelNorm, CheckerboardCouplings, InvertibleConvolution
from pofx.transforms.coupling import Couplings
from pofx.transforms.dequantise import Cells, NormalScores, on_grid, smoothed
from pofx.transforms.elementwise import Elementwise, Scale
from pofx.transforms.linear import LU, Orthogonal, Triangular
from pofx.transforms.monotone import Affine, RationalQuadratic, Shift
from pofx.transforms.ode import DORMAND_PRINCE, RungeKutta
from pofx.transforms.permutation import Permutation
from pofx.transforms.plan import image, plan
from pofx.transforms.planar import Planar, Radial
from pofx.transforms.pointwise import ActNorm, Pointwise
from pofx.transforms.spatial import FactorOut, Spatial, Squeeze, Tower
from pofx.transforms.spline import Form, inverse_spline, spline


def elementwise():
    T = Elementwise([Scale.IDENTITY, Scale.LOG, Scale.LOGIT])
    T.lower.copy_(torch.tensor([0.0, -1.0, 2.0]))
    T.width.copy_(torch.tensor([1.0, 1.0, 5.0]))
    T.shift.copy_(torch.tensor([3.0, 0.5, -0.3]))
    T.scale.copy_(torch.tensor([0.1, 2.0, 1.5]))
    return T


small = partial(ResidualCNN, width=4)


def two_scales(context=0):
    """A tiny image through all that a family of images is made of."""
    rest = partial(ChannelCouplings, layers=2, monotone=Affine(), context=context, net=small)
    mixed = ChannelNorm((4, 1, 2)), InvertibleConvolution((4, 1, 2))
    colours = ChannelCouplings((4, 1, 2), 2, RationalQuadratic(4, 3.0), first=[0, 3], context=context, net=small)
    return Tower(FactorOut((4, 1, 2), rest), colours, *mixed, Squeeze((1, 2, 4)))


class Slowly(torch.nn.Module):
    """tanh(W (z, t, c)) / 10."""

    def __init__(self, context):
        super().__init__()
        self.linear = torch.nn.Linear(4 + context, 3)

    def forward(self, z, t, c):
        return torch.tanh(self.linear(torch.cat((z, t) if c is None else (z, t, c), 1))) / 10


def drifting(context=0):
    """Equal steps, as the adaptive solver waits for the device; of a slow drift a few of them are right to 1e-9."""
    return Continuous(Slowly(context), 3, method=RungeKutta(6, DORMAND_PRINCE))


TRANSFORMS = {  # bijections of three variables, or of an image; the name says "context" when there is a condition of width 2
    "elementwise": elementwise,
    "elementwise, blank": lambda: Elementwise.blank(3),
    "permutation": lambda: Permutation([2, 0, 1]),
    "riffle": lambda: Permutation.riffle(3),
    "triangular": lambda: Triangular(3),
    "lu": lambda: LU(3),
    "orthogonal": lambda: Orthogonal(3),
    "actnorm": lambda: ActNorm(3),
    "planar": lambda: Planar(3),
    "radial": lambda: Radial(3),
    "scales": lambda: Pointwise(3, Affine()),
    "splines": lambda: Pointwise(3, RationalQuadratic()),
    "angles": lambda: Pointwise(3, RationalQuadratic(bound=math.pi, circular=True)),
    "shift couplings": lambda: Couplings(3, 3, Shift()),
    "affine couplings, context": lambda: Couplings(3, 3, Affine(), first=[2], context=2),
    "spline couplings": lambda: Couplings(3, 3, RationalQuadratic(4, 3.0)),
    "spline couplings, waves": lambda: Couplings(3, 2, RationalQuadratic(4), net=partial(ResidualMLP, width=8, waves=Waves(2))),
    "spline coupling, context": lambda: Couplings(3, 1, RationalQuadratic(), context=2),
    "autoregressive": lambda: Autoregressive(3, widths=(16, 16)),
    "autoregressive, context": lambda: Autoregressive(3, widths=(16,), context=2, backwards=True),
    "autoregressive splines": lambda: Autoregressive(3, RationalQuadratic(), widths=(16, 16, 16), residual=True),
    "inverse autoregressive": lambda: Inverse(Autoregressive(3, widths=(16, 16))),
    "squeeze": lambda: Squeeze((2, 2, 4)),
    "channel couplings": lambda: ChannelCouplings((3, 2, 1), 3, Affine(), net=small),
    "channel couplings, context": lambda: ChannelCouplings((3, 1, 2), 2, Shift(), first=[1], context=2, net=small),
    "checkerboards": lambda: CheckerboardCouplings((2, 1, 3), 3, Affine(), net=small),
    "checkerboards of splines, context": lambda: CheckerboardCouplings((1, 3, 1), 2, RationalQuadratic(4, 3.0), context=2, net=small),
    "invertible convolution": lambda: InvertibleConvolution((3, 1, 2)),
    "channel norm": lambda: ChannelNorm((2, 3, 1)),
    "factor out": lambda: FactorOut((3, 1, 1), ChannelNorm),
    "two scales": two_scales,
    "two scales, context": lambda: two_scales(context=2),
    "continuous": drifting,
    "continuous, context": lambda: drifting(context=2),
    "stack": lambda: Stack(Couplings(3, 2, RationalQuadratic()), LU(3), Autoregressive(3)),
    "compose": lambda: Compose(Couplings(3, 1, Affine()), Permutation.riffle(3), Couplings(3, 1, Affine(), first=[2]), Triangular(3)),
}
DIE = Variable("die", VariableKind.COUNT, lower=1.0, upper=6.0)
GRADE = Variable("grade", VariableKind.ORDINAL, levels=("low", "mid", "high"))
ENDLESS = Variable("n", VariableKind.COUNT, lower=2.0)
ROUNDED = Variable("r", VariableKind.REAL, resolution=0.5)
SPIKED = Variable("s", VariableKind.REAL, spike=1.0)
BOTH = Variable("b", VariableKind.REAL, resolution=0.5, spike=1.0)
RAIN = Variable("rain", VariableKind.POSITIVE, spike=0.0)


def draws(variable, n=400):
    """Values of one variable, as data would have them."""
    g = torch.Generator().manual_seed(3)
    normal, coin = torch.randn(n, generator=g), torch.rand(n, generator=g)
    if variable.kind == "count":
        return variable.lower + torch.randint(0, 6, (n,), generator=g).double()
    if variable.levels:
        return torch.randint(0, len(variable.levels), (n,), generator=g).double()
    x = normal.exp() if variable.kind == "positive" else normal
    x = x if variable.resolution is None else (x / variable.resolution).round() * variable.resolution
    return x if variable.spike is None else torch.where(coin < 0.3, variable.spike, x)


def columns(variables):
    return torch.stack([draws(v) for v in variables], dim=1)


def lift(codes="scores"):
    domain = Domain((DIE, Variable("free", VariableKind.REAL), ROUNDED, GRADE, SPIKED))
    lifted, _ = plan(domain, "reals", codes)
    return lifted.fit(columns(domain.variables)), domain.variables


SURJECTIONS = {  # maps of each variable by itself, fitted, with their variables; those that share noise have test_surjections.py
    "normal scores": lambda: (NormalScores([DIE, GRADE]).fit(columns([DIE, GRADE])), (DIE, GRADE)),
    "cells": lambda: (Cells(CELLED).fit(columns(CELLED)), CELLED),
    "lift": lift,
    "lift, uniform": lambda: lift("uniform"),
}
CELLED = (ENDLESS, ROUNDED, SPIKED, BOTH, RAIN, DIE, GRADE)


def away_from_identity(T):
    for p in T.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for m in T.modules():
        if hasattr(m, "mask"):
            m.theta.data.mul_(m.mask)
    return T


@pytest.fixture(params=TRANSFORMS)
def case(request):
    T = away_from_identity(TRANSFORMS[request.param]())
    dim = math.prod(T.shape) if isinstance(T, Spatial) else 3
    return T, torch.randn(5, dim), torch.randn(5, 2) if "context" in request.param else None


@pytest.fixture(params=SURJECTIONS)
def surjection(request):
    S, variables = SURJECTIONS[request.param]()
    return S, columns(variables)


def test_every_class_has_a_line_above():
    modules = [import_module(f"pofx.transforms.{m.name}") for m in iter_modules(pofx.transforms.__path__)]
    modules = [m for m in modules if not m.__name__.endswith(("inverse_cdf", "surjections"))]  # have files of tests of their own
    written = {t for m in modules for t in vars(m).values() if isinstance(t, type) and issubclass(t, (Transform, PerVariable, Surjection))}
    tested = {type(make()) for make in TRANSFORMS.values()} | {type(make()[0]) for make in SURJECTIONS.values()}
    assert {t for t in written if not inspect.isabstract(t)} == tested


# -- bijections ------------------------------------------------------------------------------------


def test_inverse_undoes_forward(case):
    T, u, c = case
    x, log_det = T(u, c)
    back, log_det_inverse = T.inverse(x, c)
    assert_close(back, u, rtol=1e-9, atol=1e-9)
    assert_close(log_det_inverse, -log_det, rtol=1e-9, atol=1e-9)


def test_inverse_undoes_forward_in_float32(case):
    T, u, c = case
    c = None if c is None else c.float()
    u = u.float()
    back = T.float().inverse(T(u, c)[0], c)[0]
    assert back.dtype is torch.float32
    assert_close(back, u, rtol=1e-3, atol=1e-3)


def test_log_det_is_autograds(case):
    T, u, c = case
    for i, u_i in enumerate(u):
        J = jacobian(partial(lambda c_i, v: T(v, c_i)[0], None if c is None else c[i]), u_i)
        assert_close(T(u, c)[1][i], torch.linalg.slogdet(J).logabsdet)


def test_inverse_log_det_is_autograds(case):
    T, u, c = case
    x = T(u, c)[0].detach()
    J = jacobian(partial(lambda c_i, v: T.inverse(v, c_i)[0], None if c is None else c[0]), x[0])
    assert_close(T.inverse(x, c)[1][0], torch.linalg.slogdet(J).logabsdet)


def test_selected_variables_are_a_bijection_of_their_own(case):
    """x_keep of u_behind(keep) alone, with the log-determinant of autograd's Jacobian of the whole; or a refusal."""
    T, u, c = case
    row, k = u[0], None if c is None else c[0]
    J, x = jacobian(lambda v: T(v, k)[0], row), T(row, k)[0]
    for keep in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        behind = T.behind(keep)
        if behind is None:
            with pytest.raises(Unavailable, match="alone"):
                T.select(keep)
            continue
        part = T.select(keep)
        others = [d for d in range(3) if d not in behind]
        assert (J[keep][:, others] == 0).all()
        y, log_det = part(row[behind], k)
        assert_close(y, x[keep])
        assert_close(log_det, J[keep][:, behind].slogdet().logabsdet)
        assert_close(part.inverse(y, k)[0], row[behind])


@pytest.mark.parametrize(
    "name", ["autoregressive", "autoregressive, context", "autoregressive splines", "inverse autoregressive", "triangular"]
)
def test_the_first_variables_have_a_map_of_their_own(name):
    keep = [1, 2] if "context" in name else [0, 1]
    assert TRANSFORMS[name]().behind(keep) == keep


def test_batches_of_any_shape_and_the_callers_tensor_stays(case):
    T, u, c = case
    if c is not None:
        return
    before = u.clone()
    x, log_det = T(u)
    assert_close(T(u[:, None])[0][:, 0], x)
    assert_close(T.inverse(x[0])[1], -log_det[0])
    assert torch.equal(u, before)


@pytest.mark.parametrize("T", [Triangular(4), Elementwise.blank(4)])
def test_an_untrained_transform_is_the_identity(T):
    u = torch.randn(6, 4)
    x, log_det = T.double()(u)
    assert_close(x, u)
    assert_close(log_det, torch.zeros(6))


def test_nothing_synchronises_or_indexes_by_booleans(case):
    T, u, c = case
    with Synchronisations() as seen:
        T.inverse(T(u, c)[0], c)
    assert not seen.names


class Synchronisations(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of the operators that would make a GPU wait."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.name() in {"aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select", "aten::index.Tensor"}:
            self.names.append(op.name())
        return op(*args, **(kwargs or {}))


def test_the_steering_half_passes_unchanged():
    u = torch.randn(6, 5)
    x = away_from_identity(Couplings(5, 1, Affine(), first=[1, 4]))(u)[0]
    assert torch.equal(x[:, [1, 4]], u[:, [1, 4]])
    assert (x != u)[:, [0, 2, 3]].all()


@pytest.mark.parametrize("dim", range(2, 40))
def test_riffles_part_any_two_variables(dim):
    T, half, together = Permutation.riffle(dim), dim // 2, torch.ones(dim, dim, dtype=torch.bool)
    at = torch.arange(dim)
    for _ in range(math.ceil(math.log2(dim)) + 1):
        side = torch.empty(dim, dtype=torch.bool)
        side[at] = torch.arange(dim) < half
        together &= side[:, None] == side
        at = T(at[None].double())[0][0].long()
    assert torch.equal(together, torch.eye(dim, dtype=torch.bool))


def test_no_permutation_is_refused():
    with pytest.raises(OptionError, match=r"each of 0 \.\.\. 2 once"):
        Permutation([0, 0, 2])


def test_whitened_rows_have_mean_0_and_covariance_1():
    x = torch.randn(500, 3) @ torch.randn(3, 3) + 5
    T = Triangular(3)
    T.whiten(x, shrink=0.0)
    u = T.inverse(x)[0].detach()
    assert_close(u.mean(0), torch.zeros(3), atol=1e-9, rtol=0)
    assert_close(u.T.cov(correction=0), torch.eye(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("x", [torch.full((1, 3), 2.0), torch.zeros(10, 3), torch.randn(2, 3)])
def test_whitening_survives_few_or_constant_rows(x):
    T = Triangular(3)
    T.whiten(x, shrink=0.1)
    assert all(p.isfinite().all() for p in T.parameters())


# -- elementwise -----------------------------------------------------------------------------------


def test_nan_stays_nan_and_counts_nothing():
    T = elementwise()
    x = T(torch.randn(3))[0]
    for d in range(3):
        holed = x.clone()
        holed[d] = torch.nan
        u, log_det = T.inverse(holed)
        assert u.isnan().tolist() == [i == d for i in range(3)]
        rest = [i for i in range(3) if i != d]
        assert_close(log_det, T.select(rest).inverse(x[rest])[1])


def test_outside_the_support_goes_to_infinity():
    u, log_det = elementwise().inverse(torch.tensor([[math.inf, -1.0, 2.0], [-math.inf, -7.0, 9.0]]))
    assert_close(u, torch.tensor([[math.inf, -math.inf, -math.inf], [-math.inf, -math.inf, math.inf]]))
    assert log_det.isfinite().all()


def test_draws_stay_inside_the_support():
    T = elementwise()
    x = T(torch.tensor([[0.0, -1e4, -1e4], [0.0, 1e4, 1e4]]))[0]
    assert x.isfinite().all()
    assert ((x[:, 1] >= -1) & (x[:, 2] > 2) & (x[:, 2] < 7)).all()


def test_an_atom_has_no_slope():
    T = Elementwise([Scale.IDENTITY], [2.0])
    T.shift.fill_(2.0)
    T.scale.fill_(4.0)
    u, log_det = T.inverse(torch.tensor([[2.0], [3.0]]))
    assert u[0] == 0.0
    assert_close(log_det, torch.tensor([0.0, -math.log(4)]))


def test_selected_maps_are_the_same_maps():
    T, u = elementwise(), torch.randn(4, 3)
    assert_close(T.select([2, 0])(u[:, [2, 0]])[0], T(u)[0][:, [2, 0]])


# -- surjections -----------------------------------------------------------------------------------


def test_a_lift_lands_in_the_cell_it_came_from(surjection):
    S, x = surjection
    for seed in range(3):
        y, log_weight = S.lift(x, generator=torch.Generator().manual_seed(seed))
        assert y.isfinite().all()
        assert log_weight.shape == x.shape[:1]
        assert_close(S(y), x, rtol=1e-12, atol=1e-12)


def test_equal_generators_give_equal_lifts(surjection):
    S, x = surjection
    a, b = (S.lift(x, generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(a, b)


def test_any_real_number_is_a_valid_x(surjection):
    S, x = surjection
    y = torch.linspace(-50, 50, 301)[:, None].expand(-1, x.shape[1])
    back = S(y)
    assert_close(S(S.lift(back)[0]), back)


def test_forward_is_monotone(surjection):
    S, x = surjection
    y = torch.linspace(-9, 9, 2001)[:, None].expand(-1, x.shape[1])
    assert (S(y).diff(dim=0) >= 0).all()


def test_missing_cells_pass(surjection):
    S, x = surjection
    holed = x.clone()
    holed[0, 0] = torch.nan
    y, log_weight = S.lift(holed)
    assert y.isnan().sum() == 1
    assert S(y).isnan().sum() == 1
    assert log_weight.isfinite().all()


def test_selected_surjections_are_the_same(surjection):
    S, x = surjection
    keep = [x.shape[1] - 1, 0]
    share = torch.rand(x.shape)
    y = S.place(x, share)[0]
    part = S.select(keep)
    assert_close(part.place(x[:, keep], share[:, keep])[0], y[:, keep])
    assert_close(part(y[:, keep]), x[:, keep])


def log_normal(y):
    return -0.5 * (y.square() + math.log(2 * math.pi))


def normal_mass(a, b):
    return torch.special.ndtr(b) - torch.special.ndtr(a)


def test_normal_scores_of_a_normal_base_are_exact():
    """Sum over codes of exp(bound) = 1, and each is the cell's mass, without noise."""
    S = NormalScores([DIE]).fit(columns([DIE]))
    x = torch.arange(1.0, 7)[:, None]
    y, log_weight = S.lift(x)
    p = (log_normal(y).sum(-1) + log_weight).exp()
    assert_close(p.sum(), torch.tensor(1.0))
    assert_close(p, S.cumulative[0].diff())


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (0.7, 0.3), (-2.0, 3.0)])
def test_bound_lies_below_the_exact_probability_of_a_code(mean, scale):
    S = NormalScores([DIE]).fit(columns([DIE]))
    x = torch.arange(1.0, 7)[:, None]
    edges = torch.special.ndtri(S.cumulative[0])
    exact = normal_mass((edges[:-1] - mean) / scale, (edges[1:] - mean) / scale)
    shares = (torch.arange(4000) + 0.5) / 4000
    y, log_weight = S.place(x.expand(6, 4000)[..., None], shares[:, None].expand(6, 4000, 1))
    ratio = log_normal((y[..., 0] - mean) / scale) - math.log(scale) + log_weight
    assert_close(exact.sum(), torch.tensor(1.0))
    assert (ratio.mean(1) <= exact.log() + 1e-9).all()
    if scale <= 1:  # else the weights of the open cells are unbounded, and points say little about their mean
        assert_close(ratio.exp().mean(1), exact, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("variable", CELLED, ids=lambda v: v.name)
def test_the_exact_pushforward_is_normalised_and_the_bound_below_it(variable):
    """Mass of the atom plus the density (or the cells) elsewhere, under the normal of the lifted values' moments."""
    S = Cells([variable]).fit(columns([variable]))
    lifted = S.lift(columns([variable]))[0]
    mean, scale = lifted.mean(), lifted.std()
    grid = torch.linspace(-20, 25, 20001)
    p = (log_normal((grid - mean) / scale) - math.log(scale)).exp()
    x, inverse = S(grid[:, None])[:, 0].unique(return_inverse=True)
    exact = torch.zeros(len(x)).index_add(0, inverse, p * (grid[1] - grid[0]))  # probability of each value the grid meets
    assert_close(exact.sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    shares = (torch.arange(100) + 0.5) / 100
    y, log_weight = S.place(x[:, None, None].expand(-1, 100, 1), shares[:, None].expand(len(x), 100, 1))
    bound = (log_normal((y[..., 0] - mean) / scale) - math.log(scale) + log_weight).mean(1)
    step = S.resolution[0] if S.resolution[0] > 0 else grid[1] - grid[0]
    counted = torch.where(x == S.atom[0], 0.0, step.log())  # a probability at the atom, a density times a width elsewhere
    likely = exact > 1e-6
    assert (bound + counted <= exact.log() + 1e-2)[likely].all()
    assert ((bound + counted).exp().sum() - 1).abs() < 0.2  # and not far below


@pytest.mark.parametrize("surjection", [NormalScores, Cells])
def test_values_that_are_no_code_have_no_density(surjection):
    S = surjection([DIE]).fit(columns([DIE]))
    y, _ = S.lift(torch.tensor([[0.0], [7.0], [math.inf]]))
    assert y.isinf().all()


def test_frequencies_are_smoothed_and_sum_to_one():
    counts = torch.tensor([[50.0, 0, 0, 3, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    p = smoothed(counts, valid)
    assert_close(p.sum(1), torch.ones(3))
    assert torch.equal(p > 0, valid)


@pytest.mark.parametrize("r", [0.1, 0.05, 0.25, 2.0, 1.0])
def test_grids_read_as_decimals(r):
    k = torch.arange(-50.0, 51)
    snapped = on_grid(k * r + 0.3 * r, torch.tensor(r))
    assert snapped.tolist() == [round(float(i) * r, 10) for i in k]


def test_a_rounded_interval_keeps_draws_within_its_ends():
    S = Cells([Variable("p", VariableKind.INTERVAL, lower=0.0, upper=1.0, resolution=0.1)])
    assert_close(S(torch.tensor([[-3.0], [0.0], [0.52], [1.0], [4.0]])), torch.tensor([[0.0], [0.0], [0.5], [1.0], [1.0]]))


# -- the plan --------------------------------------------------------------------------------------

EVERY = Domain(
    (
        DIE,
        GRADE,
        ENDLESS,
        ROUNDED,
        SPIKED,
        BOTH,
        RAIN,
        Variable("w", VariableKind.POSITIVE),
        Variable("q", VariableKind.INTERVAL, lower=0.0, upper=1.0),
    )
)


def test_everything_needs_no_maps():
    assert plan(EVERY, "everything") == (None, None)
    assert image(EVERY, None, None) is EVERY


@pytest.mark.parametrize("codes", ["scores", "uniform"])
def test_reals_leave_only_plain_reals(codes):
    seen = image(EVERY, *plan(EVERY, "reals", codes))
    assert seen.names == EVERY.names
    assert {(v.kind, v.resolution, v.spike) for v in seen.variables} == {("real", None, None)}


def test_discrete_keeps_codes_and_carries_grid_and_atom_of_reals():
    maps = plan(EVERY, "discrete")
    maps[1].scale.fill_(0.25)
    seen = image(EVERY, *maps)
    assert [v.kind for v in seen.variables] == ["count", "ordinal", "count"] + ["real"] * 6
    assert seen["r"].resolution == 2.0
    assert (seen["b"].resolution, seen["b"].spike, seen["s"].spike) == (2.0, 0.0, 0.0)
    assert seen["rain"].spike is None


def test_codes_alone_need_no_bijection():
    assert plan(Domain((DIE, GRADE)), "discrete") == (None, None)
    assert plan(Domain((DIE, GRADE)), "reals")[1] is None


def test_an_unknown_taker_is_refused():
    with pytest.raises(OptionError, match="everything, scaled, discrete, finite, reals"):
        plan(EVERY, "integers")
    with pytest.raises(OptionError, match="scores or uniform, got 'logit'"):
        plan(EVERY, "reals", "logit")


# -- splines ---------------------------------------------------------------------------------------

FORMS = [Form(4, 3.0), Form(8, 5.0), Form(5, math.pi, circular=True)]


def raw(form, d, n, scale=1.0):
    return scale * torch.randn(form.parameters, d, n)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ask", [spline, inverse_spline])
def test_derivatives_of_a_spline_are_those_of_differences(ask, form):
    x = (2 * torch.randn(2, 7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: ask(x, p, form), (x, raw(form, 2, 7).requires_grad_()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_a_spline_comes_back_however_stiff(form, dtype, bar):
    u, p = (form.bound * (2 * torch.rand(20, 5000) - 1)).to(dtype), raw(form, 20, 5000, 10.0).to(dtype)
    x, log_slope = inverse_spline(u, p, form)
    back, log_back = spline(x, p, form)
    assert (back - u).abs().max() < bar
    assert (log_slope + log_back).abs().max() < 10 * bar


@pytest.mark.parametrize("form", FORMS)
def test_the_log_slope_is_autograds(form):
    x = (form.bound * (2 * torch.rand(3, 50) - 1)).requires_grad_()
    y, log_slope = spline(x, raw(form, 3, 50), form)
    assert_close(torch.autograd.grad(y.sum(), x)[0].log(), log_slope)


@pytest.mark.parametrize("ask", [spline, inverse_spline])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_edges_infinities_and_extremes_are_never_nan(ask, dtype):
    form = FORMS[0]
    edges = [0.0, 3.0, -3.0, math.nextafter(3.0, 4), 1e6, -1e6, math.inf, -math.inf]
    x = torch.tensor([edges], dtype=dtype).requires_grad_()
    for scale in (1.0, 100.0, 1e6):
        y, log_slope = ask(x, raw(form, 1, len(edges), scale).to(dtype), form)
        assert not y.isnan().any()
        assert log_slope.isfinite().all()
        assert torch.equal(y[0, 4:], x[0, 4:])
        assert_close(y[0, 1:3], x[0, 1:3])
        y.clamp(-10, 10).sum().backward()
        assert not x.grad.isnan().any()


def test_an_angle_may_move_its_own_zero_smoothly():
    """At -B and B, the same point, the slopes are equal, whatever the raw numbers."""
    form = FORMS[2]
    p = raw(form, 1, 1).expand(-1, -1, 2)
    _, log_slope = spline(torch.tensor([[-math.pi, math.pi]]), p, form)
    assert_close(log_slope[0, 0], log_slope[0, 1])


@pytest.mark.parametrize(
    ("options", "sentence"), [({"bins": 1}, "2 to 499 bins"), ({"bins": 500}, "2 to 499 bins"), ({"bound": 0.0}, "bound")]
)
def test_a_spline_that_can_not_be_is_refused(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        RationalQuadratic(**options)


@pytest.mark.parametrize("first", [[], [0, 1, 2]])
def test_a_half_without_variables_is_refused(first):
    with pytest.raises(OptionError, match="both halves"):
        Couplings(3, 2, Affine(), first=first)


def test_a_condition_alone_steers_one_variable():
    T, u, c = away_from_identity(Couplings(1, 2, Affine(), context=2)), torch.randn(3, 1), torch.randn(3, 2)
    x, log_det = T(u, c)
    assert_close(T.inverse(x, c)[0], u)
    assert (log_det != 0).all()


def test_actnorm_starts_where_rows_are_standard_and_constants_keep_their_scale():
    x = torch.randn(500, 3) * torch.tensor([2.0, 0.1, 0.0]) + 3
    T = Stack(ActNorm(3), LU(3))
    T.start(x)
    u = T.inverse(x)[0].detach()
    assert_close(u.mean(0), torch.zeros(3), atol=1e-9, rtol=0)
    assert_close(u.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


# -- autoregressive --------------------------------------------------------------------------------


@pytest.mark.parametrize("monotone", [Shift(), Affine(), RationalQuadratic(4, 3.0)], ids=["shift", "affine", "spline"])
@pytest.mark.parametrize("options", [{}, {"backwards": True, "context": 2}, {"residual": True, "widths": (6, 6, 6)}, {"widths": (7,)}])
def test_gradients_of_the_unrolled_way_are_those_of_one_pass_a_variable(options, monotone):
    T = away_from_identity(Autoregressive(4, monotone, **{"widths": (6, 5), **options}))
    u, c = torch.randn(4, 3).requires_grad_(), torch.randn(2, 3).requires_grad_() if "context" in options else None
    weights = (torch.randn(4, 3), torch.randn(3))
    inputs = [u, *([] if c is None else [c]), *T.parameters()]

    def gradients(x, log_det):
        return torch.autograd.grad((weights[0] * x).sum() + (weights[1] * log_det).sum(), inputs)

    x, log_slope = torch.zeros_like(u), torch.zeros_like(u)
    for _ in range(4):  # after i passes, i variables are right
        x, log_slope = monotone.to_data(u, T.net(x, c))
    unrolled = T.to_data(u, c)
    assert_close(unrolled, (x, log_slope.sum(0)))
    for ours, theirs in zip(gradients(*unrolled), gradients(x, log_slope.sum(0)), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
