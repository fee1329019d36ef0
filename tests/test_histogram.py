"""Where bins stand, how masses are smoothed, and when a joint grid is refused."""

import itertools
import math

import pytest
import torch

from pofx.distributions.axis import Rule, axis
from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import OptionError
from pofx.models.classical.grid import bins_per_axis
from pofx.models.classical.histogram import Histogram, HistogramConfig

REAL = Variable("a", K.REAL)


def normal(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def pixels(shape: tuple[int, ...], levels: int) -> Domain:
    like = (Variable(f"x{d}", K.COUNT, lower=0.0, upper=levels - 1.0) for d in range(math.prod(shape)))
    return Domain(tuple(like), shape)


def learned(config: HistogramConfig, domain: Domain, x: torch.Tensor, holdout: torch.Tensor | None = None):
    model = config.build(domain)
    assert len(list(model.steps(x, holdout=holdout))) >= 1
    return model


def test_freedman_and_diaconis_width():
    x = normal(1000).sort().values
    edges = axis(REAL, x, Rule("width", 1.0), max_bins=256).edges
    h = 2 * float(x[749] - x[250]) * 1000 ** (-1 / 3)
    assert len(edges) - 1 == math.ceil(float(x[-1] - x[0]) / h)
    torch.testing.assert_close(edges.diff(), edges.diff()[:1].expand(len(edges) - 1))


def test_scott_where_half_the_rows_are_equal():
    x = torch.cat((torch.zeros(700), normal(300)))
    edges = axis(REAL, x, Rule("width", 1.0), max_bins=256).edges
    h = 3.49 * float(x.std(correction=0)) * 1000 ** (-1 / 3)
    assert len(edges) - 1 == math.ceil(float(x.max() - x.min()) / h)


def test_bins_of_equal_mass():
    x = normal(1000)
    edges = axis(REAL, x, Rule("mass", 1.0), max_bins=256).edges
    counts = torch.histogram(x, edges)[0]
    assert len(counts) == 20
    assert (counts - 50).abs().max() <= 1


def test_number_of_bins_is_capped():
    x = torch.cat((normal(1000), torch.tensor([1e9])))
    assert len(axis(REAL, x, Rule("width", 1.0), max_bins=50).edges) == 51


@pytest.mark.parametrize("rule", [Rule("width", 1.0), Rule("width", 0.3), Rule("mass", 1.0), Rule("grid", 1.0)])
def test_edges_of_rounded_values_stand_between_grid_points(rule):
    x = (normal(500) * 10).round() / 10
    cells = axis(Variable("a", K.REAL, resolution=0.1), x, rule, max_bins=256).edges / 0.1 - 0.5
    torch.testing.assert_close(cells, cells.round(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("by", ["width", "mass"])
def test_bounded_axes_end_at_their_bounds(by):
    x = normal(300).sigmoid()
    interval = axis(Variable("a", K.INTERVAL, lower=0.0, upper=1.0), x, Rule(by, 1.0), max_bins=256)
    assert (interval.edges[0], interval.edges[-1], interval.tails) == (0.0, 1.0, (0.0, 0.0))
    positive = axis(Variable("a", K.POSITIVE), x, Rule(by, 1.0), max_bins=256)
    assert positive.edges[0] == 0
    assert positive.tails[0] == 0 < positive.tails[1]
    rounded = axis(Variable("a", K.INTERVAL, lower=0.0, upper=1.0, resolution=0.1), (x * 10).round() / 10, Rule(by, 1.0), max_bins=256)
    torch.testing.assert_close(rounded.edges[[0, -1]], torch.tensor([-0.05, 1.05]))  # 0.04 is recorded as 0


def test_tail_has_the_mean_excess_of_the_outer_tenth():
    x = -torch.rand(20_000, generator=torch.Generator().manual_seed(0)).log()
    assert axis(REAL, x, Rule("width", 1.0), max_bins=256).tails[1] == pytest.approx(1, abs=0.1)


def test_masses_are_smoothed_counts():
    domain = Domain((Variable("a", K.CATEGORICAL, levels=("x", "y", "z")),))
    model = learned(HistogramConfig(alpha=0.5), domain, torch.tensor([0.0, 0, 0, 1, math.nan])[:, None])
    expected = torch.tensor([3.5, 1.5, 0.5]) / 5.5
    torch.testing.assert_close(model.log_prob(torch.arange(3.0)[:, None]).exp(), expected)


def test_tails_weigh_one_row_each():
    """P(x beyond the greatest) = 1 / (N + 2 + alpha B), and the tail is exponential."""
    x = normal(100)
    model = learned(HistogramConfig(rule="freedman_diaconis", alpha=1.0), Domain.real(1), x[:, None])
    bins = len(axis(REAL, x, Rule("width", 1.0), max_bins=256).edges) - 1
    above = float(x.max()) + torch.tensor([1e-9, 1.0, 2.0])
    log_p = model.log_prob(above[:, None])
    s = float(model.cells.tails[0, 1])
    assert float(log_p[0]) == pytest.approx(math.log(1 / (100 + 2 + bins)) - math.log(s), abs=1e-6)
    torch.testing.assert_close(log_p.diff(), torch.tensor([-1 / s, -1 / s]), atol=1e-6, rtol=1e-6)


def test_open_counts_have_a_geometric_tail():
    domain = Domain((Variable("a", K.COUNT, lower=0.0),))
    model = learned(HistogramConfig(), domain, torch.arange(50.0)[:, None] % 7)
    log_p = model.log_prob(torch.arange(7.0, 20.0)[:, None])
    torch.testing.assert_close(log_p.diff(), log_p.diff()[:1].expand(12))
    assert log_p.diff()[0] < 0


def test_rule_is_chosen_by_held_out_rows():
    """Heavy tails: equal width puts nearly all rows in one bin, held-out rows see it."""
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(1500, 1, generator=g) * 2.5).exp()
    domain = Domain((Variable("a", K.POSITIVE),))
    scores = {
        rule: float(learned(HistogramConfig(rule=rule), domain, x[:800], x[800:1000]).log_prob(x[1000:]).mean())
        for rule in ("auto", "freedman_diaconis", "quantile")
    }
    assert scores["quantile"] > scores["freedman_diaconis"] + 0.3
    assert scores["auto"] > scores["freedman_diaconis"] + 0.3


def test_density_nears_the_truth():
    """KL from a standard normal falls as N grows, to below 0.02 nats at 20,000 rows (n^(-2/3) = 0.0014 up to constants)."""
    x, fresh = normal(20_000)[:, None], torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    truth = -0.5 * (fresh.square() + math.log(2 * math.pi)).squeeze(1)
    gaps = [float((truth - learned(HistogramConfig(), Domain.real(1), x[:n]).log_prob(fresh)).mean()) for n in (50, 500, 20_000)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert 0 < gaps[2] < 0.02


def test_order_of_the_variables_does_not_matter():
    x = torch.stack((normal(300), normal(300).exp()), 1)
    here = learned(HistogramConfig(), Domain.real(2), x)
    there = learned(HistogramConfig(), Domain.real(2), x.flip(1))
    torch.testing.assert_close(here.log_prob(x), there.log_prob(x.flip(1)))


def test_units_move_the_density_by_their_jacobian():
    x = torch.stack((normal(300), normal(300).exp()), 1)
    here, there = (learned(HistogramConfig(), Domain.real(2), s * x) for s in (1.0, 1024.0))
    torch.testing.assert_close(there.log_prob(1024 * x), here.log_prob(x) - 2 * math.log(1024))


def test_grid_sees_dependence_that_the_product_does_not():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=g) @ torch.tensor([[1.0, 0.95], [0.0, 0.3]])
    product, grid = (learned(HistogramConfig(form=form), Domain.real(2), x[:1000], x[1000:1300]) for form in ("product", "grid"))
    assert float(grid.log_prob(x[1300:]).mean()) > float(product.log_prob(x[1300:]).mean()) + 0.5


def test_em_of_the_grid_never_decreases_the_likelihood_with_its_prior():
    """The posterior objective log p(x) + kappa sum Q log P rises at every step."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (300, 3), generator=g).double()
    x[:, 1] = (x[:, 0] + (torch.rand(300, generator=g) < 0.2)) % 3
    x = torch.where(torch.rand(300, 3, generator=g) < 0.4, torch.nan, x)
    model = HistogramConfig(form="grid").build(pixels((3,), 3))
    values = []
    for _ in model._em(x, Rule("grid", 1.0), 4.0, iterations=30):
        prior = learned(HistogramConfig(alpha=0.5), model.domain, x).log_mass[0][model.cells.allowed()].reshape(3, 3).exp()
        q = prior[0][:, None, None] * prior[1][:, None] * prior[2]
        values.append(float(model.log_prob(x).sum() + 4.0 * torch.xlogy(q, model.mass).sum()))
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0] + 1


def test_large_grids_are_refused_before_training():
    with pytest.raises(OptionError, match=r"joint grid of these 20 variables has at least .* choose form='product'"):
        HistogramConfig(form="grid").build(Domain.real(20))
    levels = tuple(range(300))
    three = Domain(tuple(Variable(n, K.CATEGORICAL, levels=levels) for n in "abc"))
    with pytest.raises(OptionError, match="density_tree"):
        HistogramConfig(form="grid").build(three)
    assert bins_per_axis(Domain.real(2).variables, 256) == 256
    assert (bins_per_axis(Domain.real(4).variables, 256) + 5) ** 4 <= 10**6


def test_product_of_many_equal_pixels_is_smoothed_everywhere():
    x = torch.zeros(50, 784)
    model = learned(HistogramConfig(), pixels((28, 28), 256), x)
    assert isinstance(model, Histogram)
    assert model.log_prob(torch.full((784,), 255.0)).isfinite()
