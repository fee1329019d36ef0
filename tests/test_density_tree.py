"""The tree finds dependence, nothing but dependence, and its boxes part the space."""

import math

import pytest
import torch

from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import FileError
from pofx.models.classical.density_tree import BoxMixture, DensityTree, DensityTreeConfig
from pofx.models.classical.histogram import HistogramConfig
from pofx.models.classical.tree_growth import Groups, best_split


def learned(x: torch.Tensor, domain: Domain, holdout: torch.Tensor | None = None, **options: int) -> DensityTree:
    model = DensityTreeConfig(**options).build(domain)
    assert isinstance(model, DensityTree)
    assert all(math.isfinite(v) for v in model.steps(x, holdout=holdout))
    return model


def checkerboard(n: int) -> torch.Tensor:
    """Uniform on the 8 dark squares of [0, 4]^2: the entropy is log 8."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3 * n, 2, generator=g) * 4
    return x[x.floor().sum(1) % 2 == 0][:n]


def levels(*cardinalities: int) -> Domain:
    return Domain(tuple(Variable(f"v{d}", K.CATEGORICAL, levels=tuple(range(c))) for d, c in enumerate(cardinalities)))


def test_independent_variables_give_one_box():
    """By five folds and by held-out rows."""
    x = torch.randn(1500, 3, generator=torch.Generator().manual_seed(0))
    assert learned(x[:800], Domain.real(3), min_leaf=40).n_boxes == 1
    assert learned(x[:1000], Domain.real(3), x[1000:]).n_boxes == 1


def test_one_box_is_a_histogram():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    tree = learned(x, Domain.real(2), max_leaves=1)
    single = tree.marginal([0]).log_prob(x[:, :1]) + tree.marginal([1]).log_prob(x[:, 1:])
    torch.testing.assert_close(tree.log_prob(x), single)


def test_dependence_is_found():
    x = checkerboard(4000)
    tree = learned(x[:1500], Domain.real(2), x[1500:2000])
    product = HistogramConfig().build(Domain.real(2))
    list(product.steps(x[:1500], holdout=x[1500:2000]))
    nats = [-float(m.log_prob(x[2000:]).mean()) for m in (tree, product)]
    assert nats[0] < nats[1] - 0.4
    assert nats[0] > math.log(8) - 0.02


def test_a_split_gains_the_mutual_information():
    """n I(s; x_1) for the split of x_0 at each level, by hand."""
    counts = torch.tensor([[30.0, 5, 1], [2, 20, 3], [4, 6, 40]])
    code = torch.cat([torch.tensor([[i + 1, j + 1]]).expand(int(counts[i, j]), 2) for i in range(3) for j in range(3)])
    groups = Groups(torch.tensor([[0, 0, 1, 2, 2, 3]] * 2), torch.tensor([True, True]), 3)

    def gain(joint: torch.Tensor, cut: int) -> float:
        p = torch.stack((joint[: cut + 1].sum(0), joint[cut + 1 :].sum(0))) / joint.sum()
        return float(torch.xlogy(p, p / (p.sum(0) * p.sum(1, keepdim=True))).sum())

    gains = {(d, cut): gain(counts.T if d else counts, cut) for d in (0, 1) for cut in (0, 1)}
    found = best_split(groups.of, code, torch.ones(len(code)), groups, min_leaf=1)
    assert found == max(gains, key=gains.__getitem__)


def test_unordered_levels_are_split_one_against_the_rest():
    """Level 1 of four fixes the other variable; no threshold on the codes would say so in one split."""
    g = torch.Generator().manual_seed(0)
    a = torch.randint(0, 4, (2000,), generator=g)
    b = torch.where(a == 1, 0, torch.randint(0, 3, (2000,), generator=g))
    tree = learned(torch.stack((a, b), 1).double(), levels(4, 3), min_leaf=50)
    root = int(tree.variable[0])
    side = tree.left[0, 1 : 1 + (4 if root == 0 else 3)]
    assert int(min(side.sum(), (~side).sum())) == 1
    p = tree.conditional(torch.tensor([1.0, math.nan])).log_prob(torch.arange(3.0)[:, None]).exp()
    assert float(p[0]) > 0.97


def test_boxes_part_the_space():
    """Walking down the tree and summing over boxes give the same density, so exactly one box has each row."""
    x = checkerboard(3000)
    tree = learned(x[:1000], Domain.real(2), x[1000:1500])
    code = tree.cells.code(torch.cat((x, tree.sample(500, generator=torch.Generator().manual_seed(0)), x + 7)))
    components = tree.log_components(code)
    assert (components.isfinite().sum(1) == 1).all()
    assert torch.equal(components.argmax(1), tree.box_of(code))
    torch.testing.assert_close(components.logsumexp(1), tree._log_cells(code))
    assert float(tree.log_weight.exp().sum()) == pytest.approx(1)
    torch.testing.assert_close(tree.log_mass.exp().sum(-1), torch.ones(tree.n_boxes, 2))


def test_conditional_is_a_tree_and_a_marginal_its_boxes():
    g = torch.Generator().manual_seed(0)
    z = torch.randint(0, 3, (3000, 1), generator=g)
    x = ((z + (torch.rand(3000, 4, generator=g) < 0.15)) % 3).double()
    tree = learned(x, levels(3, 3, 3, 3))
    every = torch.cartesian_prod(*[torch.arange(3.0)] * 3)
    for d in range(4):
        for level in range(3):
            evidence = torch.full((4,), math.nan)
            evidence[d] = level
            part = tree.conditional(evidence)
            assert isinstance(part, DensityTree)
            assert float(part.log_prob(every).exp().sum()) == pytest.approx(1)
            assert float(part.log_prob(part.mode())) == pytest.approx(float(part.log_prob(every).max()))
            whole = torch.full((27, 4), float(level))
            whole[:, [i for i in range(4) if i != d]] = every
            torch.testing.assert_close(part.log_prob(every), tree.log_prob(whole) - tree.log_prob(evidence))
    assert isinstance(tree.marginal([0, 1]), BoxMixture)
    marginal = tree.marginal([3, 1, 0])
    assert float(marginal.log_prob(marginal.mode())) <= float(marginal.log_prob(every).max())


def test_rows_with_missing_cells_teach_dependence_too():
    """30 % of the cells hidden: most of what complete rows teach is still found; independence loses 0.5 nats."""
    x = checkerboard(6000)[:, :1].expand(-1, 3) + 0.3 * torch.randn(6000, 3, generator=torch.Generator().manual_seed(1))
    holes = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.3, torch.nan, x)
    domain = Domain.real(3)
    whole, part = learned(x[:1500], domain, x[1500:2000]), learned(holes[:1500], domain, holes[1500:2000])
    one = learned(x[:1500], domain, x[1500:2000], max_leaves=1)
    nats = [-float(m.log_prob(x[2000:]).mean()) for m in (whole, part, one)]
    assert nats[0] < nats[1] < nats[2] - 0.6 * (nats[2] - nats[0])
    assert part.log_prob(holes).isfinite().all()


def test_rows_without_missing_cells_are_learned_as_before():
    """A variable that is missing in every row changes nothing for the others."""
    x = checkerboard(800)
    more = torch.cat((x, torch.full((800, 1), torch.nan)), 1)
    two, three = learned(x, Domain.real(2)), learned(more, Domain.real(3))
    torch.testing.assert_close(three.log_prob(more), two.log_prob(x))


def test_fewest_rows_and_most_boxes_are_kept():
    x = checkerboard(2000)
    tree = learned(x, Domain.real(2), min_leaf=100)
    assert torch.bincount(tree.box_of(tree.cells.code(x))).min() >= 100
    assert learned(x, Domain.real(2), max_leaves=3).n_boxes <= 3


def test_every_yield_leaves_a_whole_model():
    x = checkerboard(1500)
    model = DensityTreeConfig().build(Domain.real(2))
    grid = torch.cartesian_prod(*[(torch.arange(-100, 180) + 0.43) * 0.05] * 2)
    for value in model.steps(x[:1000], holdout=x[1000:]):
        assert value == pytest.approx(float(model.log_prob(x[:1000]).mean()))
        assert float(model.log_prob(grid).exp().sum() * 0.05**2) == pytest.approx(1, abs=0.05)


def test_a_cycle_in_a_file_neither_hangs_nor_crashes():
    x = checkerboard(1500)
    tree = learned(x[:1000], Domain.real(2), x[1000:])
    tensors = {n: t.clone() for n, t in tree.state_dict().items()}
    tensors["child"].zero_()
    blank = DensityTreeConfig().build(Domain.real(2))
    blank.load_tensors(tensors)
    assert blank.log_prob(x).shape == (1500,)
    for name, value in (("child", 10**6), ("child", -1), ("box", 10**6), ("variable", 2)):
        damaged = {n: t.clone() for n, t in tree.state_dict().items()}
        damaged[name].fill_(value)
        with pytest.raises(FileError, match="do not describe a tree"):
            DensityTreeConfig().build(Domain.real(2)).load_tensors(damaged)


@pytest.mark.slow
def test_digits_beat_independence_by_nats():
    """64 counts of 17 levels, 1000 rows: no worse than independence (106.4), in fact below 100."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data)
    domain = Domain(tuple(Variable(f"x{d}", K.COUNT, lower=0.0, upper=16.0) for d in range(64)), (8, 8))
    tree = learned(x[:1000], domain, x[1000:1350])
    assert -float(tree.log_prob(x[1350:]).mean()) < 100
