"""Circuits against all worlds: enumeration, autograd, EM's promise, and draws, for every structure."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

import pofx
from pofx.distributions.discrete import Categorical
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, FileError, OptionError, Unavailable
from pofx.models.circuits import passes
from pofx.models.circuits.chow_liu import ChowLiuConfig
from pofx.models.circuits.circuit import Circuit
from pofx.models.circuits.em import PACE, ExpectationMaximisation
from pofx.models.circuits.families import HiddenChowLiuConfig, QuadTreeConfig, RandomTreesConfig
from pofx.models.circuits.graph import Graph, Node
from pofx.models.circuits.structure import dependence, mixture, mutual_information, quad_tree, random_trees, spanning_tree, tree
from pofx.models.circuits.units import Input, Product, Sum, circuit_of
from pofx.models.composed import as_circuit
from pofx.types import Kind

NAN = math.nan
DISCRETE = Domain(
    (
        Variable("a", VariableKind.BINARY, levels=("n", "y")),
        Variable("b", VariableKind.CATEGORICAL, levels=("r", "g", "b")),
        Variable("c", VariableKind.COUNT, lower=1.0, upper=3.0),
        Variable("d", VariableKind.ORDINAL, levels=("low", "mid", "high")),
    )
)
BITS = Domain(tuple(Variable(f"x{d}", VariableKind.BINARY, levels=(0, 1)) for d in range(12)))
WORLDS = torch.tensor(list(itertools.product((0, 1), (0, 1, 2), (1, 2, 3), (0, 1, 2)))).double()
SHARED = [  # two sums choose between children, and one node has two parents
    Node((), ((1, 2), (3,))),
    Node((0,), ((4,),)),
    Node((0,), ((4,),)),
    Node((2, 3)),
    Node((1,)),
]
PARTITIONS = [  # two roots; regions with several partitions
    Node((), ((2, 3), (4,))),
    Node((), ((5, 6), (7, 8))),
    Node((0, 1)),
    Node((1,), ((9,),)),
    Node((2, 3)),
    Node((0, 1)),
    Node((0,), ((10,),)),
    Node((2, 3)),
    Node((2,), ((11,),)),
    Node((0,)),
    Node((1,)),
    Node((3,)),
]
STRUCTURES = {
    "tree": tree([-1, 0, 0, 2]),
    "chain": tree([-1, 0, 1, 2]),
    "mixture": mixture(4),
    "random": random_trees(4, 3, 2),
    "quad": quad_tree((2, 2)),
    "shared": SHARED,
    "partitions": PARTITIONS,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def circuit(nodes, units=3, domain=DISCRETE, seed=0):
    """A circuit with random parameters, no learning."""
    model = Circuit(domain, units)
    model.take(Graph.of(nodes, len(domain)))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(2 * torch.randn(p.shape, generator=generator(seed)))
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(params=STRUCTURES)
def model(request):
    return circuit(STRUCTURES[request.param])


def holes(seed, rows=40):
    x = WORLDS[torch.randint(len(WORLDS), (rows,), generator=generator(seed))]
    return torch.where(torch.rand(x.shape, generator=generator(seed + 1)) < 0.3, NAN, x)


def p_of(model):
    with torch.no_grad():
        return model.log_prob(WORLDS).exp()


def agrees(rows, row):
    """Which worlds have the observed cells of a row."""
    return (row.isnan() | (rows == row)).all(-1)


# -- against all worlds ----------------------------------------------------------------------------


def test_every_structure_is_smooth_and_decomposable(model):
    assert model.graph.smooth
    assert model.graph.decomposable


def test_all_worlds_sum_to_one(model):
    torch.testing.assert_close(p_of(model).sum(), torch.tensor(1.0), rtol=0, atol=1e-12)


def test_every_pattern_of_missing_cells(model):
    p = p_of(model)
    for mask in itertools.product((True, False), repeat=4):
        x = torch.where(torch.tensor(mask), NAN, WORLDS)
        expected = torch.stack([p[agrees(WORLDS, row)].sum() for row in x])
        torch.testing.assert_close(model.log_prob(x).exp(), expected, rtol=1e-12, atol=1e-12)


def test_leave_one_out_of_every_cell(model):
    p, x = p_of(model), torch.cat((WORLDS, holes(0)))
    found = model.leave_one_out(x)
    for row, scores in zip(x, found, strict=True):
        for d in range(4):
            rest = row.clone()
            rest[d] = NAN
            expected = 0.0 if row[d].isnan() else float((p[agrees(WORLDS, row)].sum() / p[agrees(WORLDS, rest)].sum()).log())
            assert float(scores[d]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("keep", [[0], [2, 1], [3, 0, 2], [0, 1, 2, 3]], ids=str)
def test_marginals(model, keep):
    p = p_of(model)
    marginal = model.marginal(keep)
    assert marginal.domain == DISCRETE.select(keep)
    values, which = WORLDS[:, keep].unique(dim=0, return_inverse=True)
    expected = torch.zeros(len(values)).index_add_(0, which, p)
    torch.testing.assert_close(marginal.log_prob(values).exp(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("evidence", [[1, NAN, 2, NAN], [NAN, NAN, NAN, 0], [0, 2, 3, NAN], [NAN] * 4], ids=str)
def test_conditionals_and_their_conditionals(model, evidence):
    p, row = p_of(model), torch.tensor(evidence)
    here, free = agrees(WORLDS, row), row.isnan()
    given = model.conditional(row)
    torch.testing.assert_close(given.log_prob(WORLDS[here][:, free]).exp(), p[here] / p[here].sum(), rtol=1e-11, atol=1e-12)
    if int(free.sum()) > 1:
        first = torch.full((int(free.sum()),), NAN)
        first[0] = WORLDS[here][0, free][0]
        again = agrees(WORLDS[here][:, free], first)
        expected = (p[here] / p[here][again].sum())[again]
        torch.testing.assert_close(given.conditional(first).log_prob(WORLDS[here][again][:, free][:, 1:]).exp(), expected)


def test_means_imputations_and_levels(model):
    p, x = p_of(model), holes(3)
    torch.testing.assert_close(model.mean(), p @ WORLDS, rtol=1e-12, atol=1e-12)
    for row, filled in zip(x, model.impute(x), strict=True):
        q = p * agrees(WORLDS, row)
        if row[2].isnan():
            assert float(filled[2]) == pytest.approx(float(q @ WORLDS[:, 2] / q.sum()), abs=1e-11)
        for d in (0, 1, 3):
            chances = torch.zeros(3).index_add_(0, WORLDS[:, d].long(), q)
            assert row[d] == filled[d] or (row[d].isnan() and int(filled[d]) == int(chances.argmax()))


def test_covariances_and_products(model):
    p = p_of(model)
    centred = WORLDS - p @ WORLDS
    torch.testing.assert_close(model.covariance(), centred.T @ (p[:, None] * centred), rtol=1e-10, atol=1e-11)


def chi_square(counts, expected):
    """The probability of counts that far off or farther (Wilson and Hilferty's normal approximation)."""
    keep = expected > 0
    assert counts[~keep].sum() == 0
    statistic, df = float(((counts - expected)[keep].square() / expected[keep]).sum()), int(keep.sum()) - 1
    z = ((statistic / df) ** (1 / 3) - 1 + 2 / (9 * df)) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


def world_of(x):
    return ((x - torch.tensor([0.0, 0, 1, 0])) @ torch.tensor([27.0, 9, 3, 1])).long()


def test_draws(model):
    n, p = 100_000, p_of(model)
    counts = world_of(model.sample(n, generator=generator())).bincount(minlength=54).double()
    assert chi_square(counts, n * p) > 1e-6


def test_conditional_draws(model):
    n, p, row = 50_000, p_of(model), torch.tensor([1, NAN, 2, NAN])
    q = p * agrees(WORLDS, row)
    counts = world_of(model.complete(row.expand(n, 4), generator=generator())).bincount(minlength=54).double()
    assert chi_square(counts, n * q / q.sum()) > 1e-6


def test_a_mode_is_a_bound_that_keeps_the_evidence(model):
    p = p_of(model)
    for row in holes(5, 12):
        mode = model.mode(row)
        assert bool(agrees(mode, row))
        truth = p[agrees(WORLDS, row)].max()
        assert float(model.log_prob(mode[None]).exp()) <= float(truth) + 1e-12
        way = passes.best(model.graph, model.mixing, torch.zeros(len(model.variable), 1, 3))
        assert way.state.shape == (model.graph.size, 1)


def test_the_climb_finds_the_mode_of_small_circuits():
    """Where every single change can be tried the climb from many starts ends at the maximum (no proof: a measurement)."""
    found = 0
    for seed in range(20):
        model = circuit(STRUCTURES["tree"], seed=seed)
        found += float(model.log_prob(model.mode()[None]).exp()) >= float(p_of(model).max()) - 1e-12
    assert found >= 19


# -- twelve bits ------------------------------------------------------------------------------------


TWELVE = {
    "tree": tree([-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
    "random": random_trees(12, 4, 3),
    "quad": quad_tree((3, 4)),
    "mixture": mixture(12),
}


@pytest.mark.parametrize("name", TWELVE)
def test_twelve_bits(name):
    worlds = torch.tensor(list(itertools.product((0.0, 1.0), repeat=12)))
    model = circuit(TWELVE[name], 4, BITS)
    p = model.log_prob(worlds).exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.mean(), p @ worlds, rtol=0, atol=1e-12)
    centred = worlds - p @ worlds
    torch.testing.assert_close(model.covariance(), centred.T @ (p[:, None] * centred), rtol=0, atol=1e-12)
    row = torch.tensor([1, NAN, NAN, 0, NAN, 1, NAN, NAN, 0, NAN, NAN, 1])
    here = agrees(worlds, row)
    torch.testing.assert_close(model.log_prob(row[None]).exp()[0], p[here].sum(), rtol=1e-12, atol=0)
    given = model.conditional(row)
    torch.testing.assert_close(given.log_prob(worlds[here][:, row.isnan()]).exp(), p[here] / p[here].sum(), rtol=0, atol=1e-12)
    assert float(model.log_prob(model.mode(row)[None]).exp()) <= float(p[here].max()) + 1e-12


# -- special cases ----------------------------------------------------------------------------------


def test_nothing_observed_is_certain(model):
    torch.testing.assert_close(model.log_prob(torch.full((1, 4), NAN)), torch.zeros(1), rtol=0, atol=1e-12)


def test_one_unit_is_the_independent_model():
    model = circuit(tree([-1, 0, 1, 1]), 1)
    alone = sum(model.marginal([d]).log_prob(WORLDS[:, [d]]) for d in range(4))
    torch.testing.assert_close(model.log_prob(WORLDS), alone, rtol=0, atol=1e-12)


def test_a_mixture_is_a_latent_class_model():
    model = circuit(mixture(4))
    columns = model.inputs.columns
    expected = (columns.log_prob(model.theta, WORLDS[:, None]).sum(-1) + model.root[0].log_softmax(0)).logsumexp(-1)
    torch.testing.assert_close(model.log_prob(WORLDS), expected, rtol=1e-12, atol=1e-12)


def test_a_mixture_of_normals_is_a_diagonal_gaussian_mixture():
    model = circuit(mixture(3), 2, Domain.real(3))
    x = torch.randn(50, 3, generator=generator())
    m, s = (t[..., 0] for t in model.theta.unflatten(1, (3, 2)).split(1, dim=-1))
    scale = functional.softplus(s) + model.inputs.laws[0].floor
    mix = torch.distributions.Categorical(logits=model.root[0])
    components = torch.distributions.Independent(torch.distributions.Normal(m, scale), 1)
    torch.testing.assert_close(model.log_prob(x), torch.distributions.MixtureSameFamily(mix, components).log_prob(x))


def test_permuting_columns_changes_nothing():
    """A tree learned from permuted columns has the same edges, so the same information is kept."""
    x = torch.randint(0, 2, (500, 6), generator=generator()).double()
    x[:, 3], x[:, 5] = x[:, 0], 1 - x[:, 1]
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    one, other = dependence(x), dependence(x[:, order])
    torch.testing.assert_close(one[order][:, order], other)
    total = [sum(float(i[v, p]) for v, p in enumerate(spanning_tree(i)) if p >= 0) for i in (one, other)]
    assert total[0] == pytest.approx(total[1])


def test_a_far_cell_stays_finite():
    """A Gaussian leaf a hundred deviations from every state."""
    model = circuit(tree([-1, 0, 0]), 3, Domain.real(3))
    with torch.no_grad():
        model.theta.zero_()
    x = torch.tensor([[100.0, -100.0, 0.0], [1e4, 0.0, 0.0]])
    normal = torch.distributions.Normal(0.0, math.log(2) + model.inputs.laws[0].floor)
    torch.testing.assert_close(model.log_prob(x), normal.log_prob(x).sum(-1))


def test_an_impossible_row_has_density_0():
    model = circuit(tree([-1, 0, 0, 1]))
    with torch.no_grad():
        model.theta[:, :] = model.theta
    x = torch.tensor([[0.0, 1.0, 7.0, 0.0], [0.5, 1.0, 1.0, 0.0]])
    assert torch.equal(model.log_prob(x), torch.full((2,), -math.inf))


# -- learning ---------------------------------------------------------------------------------------


def test_gradients_are_those_of_plain_autograd(model):
    """The down pass against autograd through the log-space recursion of the formulas."""
    x = holes(7)
    model.requires_grad_()
    found = torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters()), materialize_grads=True)
    expected = torch.autograd.grad(plain(model, x).sum(), list(model.parameters()), materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def plain(model, x):
    """log p by the definition, node by node, in log space."""
    graph, mixing = model.graph, model.mixing
    log_f = model.inputs.columns.log_prob(model.theta, x[:, None, graph.variable])  # (B, K, I)
    value = [None] * graph.size
    for n in reversed(range(graph.size)):
        value[n] = sum((log_f[..., i] for i in (graph.holder == n).nonzero()[:, 0]), torch.zeros(len(x), model.units))
        for s in (graph.owner == n).nonzero()[:, 0]:
            edges = (graph.sum_of == s).nonzero()[:, 0]
            terms = [value[graph.child[e]][:, None] + mixing.weight[e].log() for e in edges]  # (B, j, k)
            value[n] = value[n] + torch.cat(terms, -1).logsumexp(-1)
    roots = torch.stack(value[: graph.roots], 1) + mixing.root.log()
    return roots.flatten(1).logsumexp(-1)


def test_log_p_is_that_of_log_space(model):
    x = holes(9)
    torch.testing.assert_close(model.log_prob(x), plain(model, x), rtol=1e-12, atol=1e-12)


def test_flows_are_weights_times_gradients(model):
    """F = W ⊙ d log p / dW sums to how often the unit above takes part."""
    asked = model.polynomial
    run = asked.ascent(holes(11))
    flows = passes.down(asked.graph, asked.mixing, run)
    counts = (asked.mixing.weight * flows.edges).sum(-1)  # (E, K)
    of_sums = torch.zeros(len(asked.graph.owner), model.units).index_add_(0, asked.graph.sum_of, counts)
    torch.testing.assert_close(of_sums, flows.units[asked.graph.owner].sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((asked.mixing.root * flows.root).sum(), torch.tensor(40.0))


def test_the_prior_is_the_down_pass_of_nothing(model):
    asked = model.polynomial
    torch.testing.assert_close(passes.prior(asked.graph, asked.mixing), asked.of_nothing.flows.units[:, 0])


def test_em_never_decreases(model):
    x = holes(13, 300)
    model.requires_grad_()
    optimiser = ExpectationMaximisation(model, len(x), 1 / PACE)
    path = []
    for _ in range(40):
        loss = -model.log_prob(x).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            path.append(float(model.log_prob(x).mean() + model.inputs.columns.log_prior(model.theta).sum() / len(x)))
    assert min(b - a for a, b in itertools.pairwise(path)) > -1e-12
    assert path[-1] > path[0]


# -- Chow and Liu -----------------------------------------------------------------------------------


def test_mutual_information_of_a_table():
    """Against the sum over the joint table, with one added to each count."""
    x = torch.randint(0, 3, (200, 2), generator=generator())
    x[:100, 1] = x[:100, 0]
    joint = torch.ones(3, 3).index_put_((x[:, 0], x[:, 1]), torch.ones(200), accumulate=True) / 209
    expected = (joint * (joint / joint.sum(1, keepdim=True) / joint.sum(0)).log()).sum()
    found = mutual_information([x[:, 0], x[:, 1]], [3, 3])
    torch.testing.assert_close(found, torch.tensor([[0.0, expected], [expected, 0.0]]))


def test_the_spanning_tree_is_the_best_of_all():
    weight = torch.rand(5, 5, generator=generator())
    weight = weight + weight.T
    pairs = list(itertools.combinations(range(5), 2))
    best = max(sum(float(weight[a, b]) for a, b in edges) for edges in itertools.combinations(pairs, 4) if connected(edges))
    parents = spanning_tree(weight)
    assert sum(float(weight[v, p]) for v, p in enumerate(parents) if p >= 0) == pytest.approx(best)


def connected(edges):
    reached = {0}
    for _ in edges:
        reached |= {v for e in edges if reached & set(e) for v in e}
    return len(reached) == 5


def chow_liu(x, domain, **options):
    model = ChowLiuConfig(**options).build(domain)
    path = list(model.steps(x, generator=generator()))
    return model, path


@pytest.fixture(scope="module")
def tree_data():
    """Rows of a Markov chain a - b - c and a lone d."""
    g = generator(4)
    n = 4000
    a = torch.randint(0, 2, (n,), generator=g)
    b = torch.where(torch.rand(n, generator=g) < 0.8, a, torch.randint(0, 3, (n,), generator=g))
    c = torch.where(torch.rand(n, generator=g) < 0.7, b, torch.randint(0, 3, (n,), generator=g)) + 1
    return torch.stack((a, b, c, torch.randint(0, 3, (n,), generator=g)), 1).double()


def test_chow_liu_is_its_closed_form(tree_data):
    model, path = chow_liu(tree_data, DISCRETE, alpha=1.0)
    assert len(path) == 1
    pairs = [tuple(model.codes.variable[[parent, child]].tolist()) for parent, child in edges_of(model.codes)]
    assert {frozenset((0, 1)), frozenset((1, 2))} <= {frozenset(pair) for pair in pairs}
    sizes, first = (2, 3, 3, 3), torch.tensor([0, 0, 1, 0])
    root = int(model.codes.variable[0])
    code, worlds = (tree_data - first).long(), (WORLDS - first).long()
    log_p = torch.log((code[:, root].bincount(minlength=sizes[root]) + 1) / (len(code) + sizes[root]))[worlds[:, root]]
    for parent, child in pairs:
        at = (code[:, parent], code[:, child])
        joint = torch.ones(sizes[parent], sizes[child]).index_put_(at, torch.ones(len(code)), accumulate=True)
        log_p = log_p + (joint / joint.sum(1, keepdim=True)).log()[worlds[:, parent], worlds[:, child]]
    torch.testing.assert_close(model.log_prob(WORLDS), log_p, rtol=1e-12, atol=1e-12)


def edges_of(codes):
    return zip(codes.owner[codes.sum_of].tolist(), codes.child.tolist(), strict=True)


def test_the_mode_of_a_chow_liu_tree_is_exact(tree_data):
    model, _ = chow_liu(tree_data, DISCRETE, alpha=0.1)
    p = model.log_prob(WORLDS)
    for row in holes(17, 20):
        assert float(model.log_prob(model.mode(row)[None])) == pytest.approx(float(p[agrees(WORLDS, row)].max()), abs=1e-12)


def test_em_fills_the_holes_of_a_chow_liu_tree(tree_data):
    x = torch.where(torch.rand(tree_data.shape, generator=generator(1)) < 0.4, NAN, tree_data)
    whole, _ = chow_liu(tree_data, DISCRETE, alpha=1.0)
    model, path = chow_liu(x, DISCRETE, alpha=1e-6)
    assert min(b - a for a, b in itertools.pairwise(path)) > -1e-6
    assert float(model.log_prob(tree_data).mean()) > float(whole.log_prob(tree_data).mean()) - 0.01


def test_a_chow_liu_tree_over_codes_is_deterministic(tree_data):
    model, _ = chow_liu(tree_data, DISCRETE, alpha=1.0)
    assert model.codes.polynomial.deterministic
    assert not circuit(STRUCTURES["tree"]).polynomial.deterministic


def test_a_column_of_many_values_has_too_large_tables():
    levels = tuple(range(20_000))
    domain = Domain((Variable("id", VariableKind.CATEGORICAL, levels=levels), Variable("b", VariableKind.BINARY, levels=(0, 1))))
    with pytest.raises(OptionError, match="column 'id' has 20000 values; leave it out"):
        chow_liu(torch.stack((torch.arange(100.0), torch.arange(100.0) % 2), 1), domain)


# -- bad input --------------------------------------------------------------------------------------


def test_evidence_of_probability_0():
    model = Circuit(DISCRETE, 2, laws=[Categorical(2), Categorical(3), Categorical(3, first=1), Categorical(3)])
    with torch.no_grad():
        model.theta[:, 0] = -math.inf
    with pytest.raises(Unavailable, match="the evidence has probability 0"):
        model.conditional(torch.tensor([0.0, NAN, NAN, NAN]))


def test_conditioning_on_everything():
    with pytest.raises(OptionError, match="fixes every variable"):
        circuit(mixture(4)).conditional(torch.tensor([0.0, 1.0, 2.0, 0.0]))


def test_a_cycle_is_no_circuit():
    with pytest.raises(DataError, match="its own descendant"):
        Graph.of([Node((0,), ((1,),)), Node((1,), ((0,),))], 2)


def test_a_quad_tree_needs_an_image():
    with pytest.raises(Unavailable, match=r"it learns images \(H, W\) or \(C, H, W\), got shape \(4,\)"):
        QuadTreeConfig().build(DISCRETE)
    with pytest.raises(OptionError, match=r"over images \(H, W\) or \(C, H, W\), got shape \(3,\)"):
        quad_tree((3,))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("child", torch.tensor([0, 2, 3]), "children after their parents"),
        ("child", torch.tensor([-1, 2, 3]), "a circuit has a child outside 0 ... 3"),
        ("owner", torch.tensor([3, 3, 3]), "damaged"),
        ("variable", torch.tensor([0, 0, 1, 2]), "not smooth and decomposable"),
        ("holder", torch.tensor([3, 2, 1, 0]), "in the order of what they belong to"),
        ("weight", torch.zeros(3, 2, 3), "expected shape"),
        ("theta", torch.zeros(3, 1), "expected shape"),
    ],
)
def test_damaged_files(name, value, says):
    model = circuit(tree([-1, 0, 0, 0]))
    tensors = {k: v.clone() for k, v in model.state_dict().items()} | {name: value}
    with pytest.raises(FileError, match=says):
        Circuit(DISCRETE, 3).load_tensors(tensors)


def test_a_file_brings_its_structure():
    model = circuit(SHARED)
    other = Circuit(DISCRETE, 5)
    other.load_tensors(model.state_dict())
    assert torch.equal(other.log_prob(WORLDS), model.log_prob(WORLDS))


def test_learning_needs_only_a_few_rows():
    for config in (HiddenChowLiuConfig(units=2, max_epochs=3), RandomTreesConfig(units=2, max_epochs=3)):
        model = config.build(DISCRETE)
        model.initialise(WORLDS[:2])
        assert bool(model.log_prob(WORLDS[:2]).isfinite().all())


# -- written out ------------------------------------------------------------------------------------

MACHINE = Domain(
    (
        Variable("works", VariableKind.BINARY, levels=("yes", "no")),
        Variable("beans", VariableKind.BINARY, levels=("full", "empty")),
        Variable("coffee", VariableKind.CATEGORICAL, levels=("good", "weak", "none")),
    )
)


def machine():
    broken = Product((Input("works", {"no": 1.0}), Input("beans", {"full": 0.5, "empty": 0.5}), Input("coffee", {"none": 1.0})))
    full = Product((Input("beans", {"full": 1.0}), Input("coffee", {"good": 0.7, "weak": 0.3})))
    empty = Product((Input("beans", {"empty": 1.0}), Input("coffee", {"none": 1.0})))
    works = Product((Input("works", {"yes": 1.0}), Sum(((0.8, full), (0.2, empty)))))
    return Sum(((0.9, works), (0.1, broken)))


def test_the_coffee_machine():
    """No coffee: broken, or without beans? By Bayes' rule on paper: 0.1 / (0.1 + 0.9 * 0.2)."""
    model = circuit_of(machine(), MACHINE)
    given = model.conditional(torch.tensor([NAN, NAN, 2.0]))
    torch.testing.assert_close(given.marginal([0]).log_prob(torch.tensor([[1.0]])).exp(), torch.tensor([0.1 / 0.28]))
    assert model.polynomial.deterministic
    assert model.answers("mode") is Kind.EXACT
    torch.testing.assert_close(model.mode(), torch.tensor([0.0, 0.0, 0.0]))
    torch.testing.assert_close(model.log_prob(torch.tensor([[0.0, 1.0, 0.0]])), torch.tensor([-math.inf]))


def test_a_shared_unit_is_one_node():
    coin = Input("beans", {"full": 0.5, "empty": 0.5})
    cup = Sum(((0.5, Product((coin, Input("coffee", {"good": 1.0})))), (0.5, Product((coin, Input("coffee", {"none": 1.0}))))))
    root = Sum(((0.3, Product((Input("works", {"yes": 1.0}), cup))), (0.7, Product((Input("works", {"no": 1.0}), cup)))))
    model = circuit_of(root, MACHINE)
    worlds = torch.tensor(list(itertools.product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0, 2.0))))
    torch.testing.assert_close(model.log_prob(worlds).exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(model.log_prob(torch.tensor([[1.0, 0.0, 2.0]])).exp(), torch.tensor([0.7 * 0.5 * 0.5]))


@pytest.mark.parametrize(
    ("unit", "error", "says"),
    [
        (lambda: Product((Input("works", {"yes": 1.0}), Input("works", {"no": 1.0}))), DataError, "not decomposable"),
        (lambda: Sum(((0.5, Input("works", {"yes": 1.0})), (0.5, Input("beans", {"full": 1.0})))), DataError, "not smooth"),
        (lambda: Input("works", {"yes": 1.0}), DataError, "leaves out 'beans', 'coffee'"),
        (lambda: Input("works", {"perhaps": 1.0}), OptionError, "column 'works' has no value 'perhaps'; it has yes, no"),
        (lambda: Input("works", {"yes": 0.6}), OptionError, r"the chances of 'works' are 0 or more and sum to 1, got \[0.6\]"),
        (lambda: Sum(((0.5, Input("works", {"yes": 1.0})),)), OptionError, "the weights of a sum are 0 or more and sum to 1"),
    ],
    ids=["decomposable", "smooth", "whole", "value", "chances", "weights"],
)
def test_circuits_that_are_none(unit, error, says):
    with pytest.raises(error, match=says):
        circuit_of(unit(), MACHINE)


def test_a_circuit_written_out_has_no_continuous_inputs():
    with pytest.raises(OptionError, match="takes levels and bounded counts, got 'x', which is real"):
        circuit_of(Input("x", {0: 1.0}), Domain((Variable("x", VariableKind.REAL),)))


# -- mixtures of products are circuits -------------------------------------------------------------

SHALLOW = {
    "latent_class": {"components": 3},
    "independent": {},
    "gmm, diagonal": {"components": 3, "covariance": "diagonal"},
    "gmm, spherical": {"components": 2, "covariance": "spherical"},
}


@pytest.mark.parametrize("name", SHALLOW)
def test_a_mixture_of_products_is_the_circuit_that_it_is(name):
    rows = np.random.default_rng(0).normal(size=(300, 3)) @ np.array([[1.0, 0.4, 0.0], [0.0, 1.0, -0.5], [0.0, 0.0, 2.0]])
    p = pofx.fit(rows, name.split(",")[0], schema=Domain.real(3), **SHALLOW[name])
    circuit = as_circuit(p.model)
    x = torch.tensor(rows[:20])
    x[::3, 1] = torch.nan
    torch.testing.assert_close(circuit.log_prob(x), p.model.log_prob(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(circuit.leave_one_out(x), p.model.leave_one_out(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(circuit.mean(), p.model.mean(), rtol=1e-9, atol=1e-9)
    inner = circuit.base if hasattr(circuit, "base") else circuit
    draws = inner.sample(40_000, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(inner.covariance().double(), draws.T.cov(), rtol=0.1, atol=0.1)


def test_what_is_no_mixture_of_products_is_no_shallow_circuit():
    rows = np.random.default_rng(0).normal(size=(50, 2))
    for family, options in (("gaussian", {}), ("gmm", {"components": 2, "covariance": "full"})):
        with pytest.raises(Unavailable, match="shallow circuit"):
            as_circuit(pofx.fit(rows, family, schema=Domain.real(2), **options).model)
