"""Up and down a circuit: densities, expected flows, draws.

Messages are kept in linear space, each node's vector scaled to sum to 1 for each row and the log of the scale carried
beside it, so that a level costs batched matrix products and no transcendentals but one logarithm a node and row.
Shapes: N nodes, S sums, E edges, I inputs, B rows, K units. With the names of `graph`:

    up      v_n = prod f_i prod m_s          m_s = sum_c v_c W_scᵀ          p = sum_rk pi_rk v_r[k]
    down    gamma_r = v_r ⊙ pi_r / p         g_s = gamma_owner(s) / m_s
            F_sc = W_sc ⊙ (g_sᵀ v_c)         gamma_c += v_c ⊙ (g_s W_sc)

gamma_n[k] is the probability, given the row, that the unit takes part: for a hidden tree p(z_n = k | x). F, summed over
rows, is how often each edge is expected to be taken, and F = W ⊙ d log p / dW.

Source: Darwiche, "A differential approach to inference in Bayesian networks", Journal of the ACM 50(3), 2003.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pofx.models.circuits.graph import Graph, Index, Level
from pofx.types import Generator

_LEAST = 1e8  # units smaller than that, over the least normal number, are 0: arithmetic on denormal numbers is many times slower


class Mixing(NamedTuple):
    """The weights of all sums."""

    weight: Tensor  # (E, K, K): W[e, j, k] from unit k of the child to unit j of the sum
    root: Tensor  # (R, K)


class Leaves(NamedTuple):
    """The inputs at some rows: f_i(x | k) is value times e^scale."""

    value: Tensor  # (I, B, K)
    scale: Tensor | None = None  # (I, B); None: 0


class Ascent(NamedTuple):
    """What the up pass leaves behind."""

    log_p: Tensor  # (B,)
    nodes: Tensor  # v: (N, B, K), each row's sum 1, or 0 where nothing is possible
    scales: Tensor  # the log of what it was divided by: (N, B)
    sums: Tensor  # m: (S, B, K), in the scale of the child (the likeliest child's, of several)
    shares: Tensor | None  # of each edge: the child's scale over that of its sum, (E, B); None: 1 everywhere
    total: Tensor  # sum_rk pi_rk v_r[k] e^(scale - greatest scale): (B,)


def up(graph: Graph, mixing: Mixing, leaves: Leaves) -> Ascent:
    """One pass from the inputs to the root. Cost: B K^2 for each edge."""
    f = leaves.value
    _, batch, k = f.shape
    v = f.new_empty(graph.size, batch, k)
    scales = f.new_zeros(graph.size, batch)
    m = f.new_empty(len(graph.owner), batch, k)
    several = any(level.sum_of is not None for level in graph.levels)
    shares = f.new_ones(len(graph.child), batch) if several else None
    for level in reversed(graph.levels):
        sum_scales = _mix(level, mixing.weight, v, scales, m, shares)
        _multiply(level, leaves, v[level.nodes], scales[level.nodes], m, sum_scales)
    return _root(graph, mixing, v, scales, m, shares)


def _mix(level: Level, weight: Tensor, v: Tensor, scales: Tensor, m: Tensor, shares: Tensor | None) -> Tensor:
    """The sums of a level, into m; their scales (S of the level, B)."""
    if not _count(level.owned):
        return scales[:0]
    w, below = weight[level.edges], scales[level.child]
    if level.sum_of is None:
        torch.bmm(v[level.child], w.mT, out=m[level.owned])
        return below
    out = torch.bmm(v[level.child], w.mT)
    index = level.sum_of
    top = greatest(below, index, _count(level.owned))
    top = torch.where(top.isneginf(), 0.0, top)
    share = (below - top[index]).exp()
    if shares is not None:
        shares[level.edges] = share
    m[level.owned] = torch.zeros_like(m[level.owned]).index_add_(0, index, out * share[..., None])
    return top


def _multiply(level: Level, leaves: Leaves, v: Tensor, scale: Tensor, m: Tensor, sum_scales: Tensor) -> None:
    """The products of a level, into v (views of all nodes), and their scales."""
    inputs = level.inputs
    if inputs and inputs[0].nodes == slice(0, len(v)):  # every node has an input: no ones are needed to begin with
        v.copy_(leaves.value[inputs[0].factors])
        _rescale(v, scale, None if leaves.scale is None else leaves.scale[inputs[0].factors])
        inputs = inputs[1:]
    else:
        v.fill_(1.0)
    for nodes, factors in inputs:
        _scale_into(v, scale, nodes, leaves.value[factors], None if leaves.scale is None else leaves.scale[factors])
    first = level.owned.start
    for nodes, factors in level.sums:
        local = slice(factors.start - first, factors.stop - first) if isinstance(factors, slice) else factors - first
        _scale_into(v, scale, nodes, m[factors], sum_scales[local])


def _scale_into(v: Tensor, scale: Tensor, nodes: Index, factor: Tensor, factor_scale: Tensor | None) -> None:
    """Multiply some nodes by one factor each, and scale them to sum 1 again."""
    product, carried = v[nodes], scale[nodes]  # views, or copies
    product.mul_(factor)
    _rescale(product, carried, factor_scale)
    if not isinstance(nodes, slice):
        v[nodes], scale[nodes] = product, carried


def _rescale(v: Tensor, scale: Tensor, more: Tensor | None) -> None:
    """Divide by the sum over units, in place, and carry its log; a row that is 0 stays so."""
    total = v.sum(-1)
    v.div_(torch.where(total > 0, total, 1.0)[..., None])
    torch.threshold_(v, _LEAST * torch.finfo(v.dtype).tiny, 0.0)
    scale.add_(total.log_())
    if more is not None:
        scale.add_(more)


def _root(graph: Graph, mixing: Mixing, v: Tensor, scales: Tensor, m: Tensor, shares: Tensor | None) -> Ascent:
    top = scales[: graph.roots].amax(0)
    safe = torch.where(top.isneginf(), 0.0, top)
    at_root = torch.einsum("rbk,rk->rb", v[: graph.roots], mixing.root)
    total = (at_root * (scales[: graph.roots] - safe).exp()).sum(0)
    return Ascent(total.log() + safe, v, scales, m, shares, total)


def repeated(ascent: Ascent, n: int) -> Ascent:
    """A single row's ascent, as if for n equal rows (views)."""
    log_p, v, scales, m, shares, total = ascent
    shares = None if shares is None else shares.expand(-1, n)
    return Ascent(log_p.expand(n), v.expand(-1, n, -1), scales.expand(-1, n), m.expand(-1, n, -1), shares, total.expand(n))


def prior(graph: Graph, mixing: Mixing) -> Tensor:
    """The probability of each unit before anything is seen, (N, K): the down pass of a row without any cell."""
    p = mixing.root.new_zeros(graph.size, mixing.root.shape[1])
    p[: graph.roots] = mixing.root
    for level in graph.levels:
        if _count(level.owned):
            above = p[level.nodes][level.owner]
            above = above if level.sum_of is None else above[level.sum_of]
            poured = torch.bmm(above[:, None], mixing.weight[level.edges])[:, 0]
            if level.tree:
                p[level.child] = poured
            else:
                p.index_add_(0, torch.arange(len(p), device=p.device)[level.child], poured)
    return p


class Flows(NamedTuple):
    """Where the rows went."""

    units: Tensor  # gamma: (N, B, K)
    edges: Tensor | None  # d/dW of the weighted sum of log p, (E, K, K): times W it is F
    root: Tensor | None  # the same of the root, (R, K)


def down(graph: Graph, mixing: Mixing, ascent: Ascent, row_weight: Tensor | None = None, *, edges: bool = True) -> Flows:
    """One pass from the root to the inputs.

    Args:
        graph: the circuit.
        mixing: its weights.
        ascent: what `up` gave.
        row_weight: of each row's log p, (B,); None: 1.
        edges: whether flows along edges are wanted, too.
    """
    v, scales = ascent.nodes, ascent.scales
    gamma = torch.zeros_like(v) if any(not level.tree for level in graph.levels) else torch.empty_like(v)
    slope = v.new_empty(mixing.weight.shape) if edges else None
    roots = slice(0, graph.roots)
    share = _share(scales[roots], ascent.log_p, ascent.total)
    share = share if row_weight is None else share * row_weight
    gamma[roots] = v[roots] * mixing.root[:, None] * share[..., None]
    for level in graph.levels:
        if _count(level.owned):
            _pour(level, mixing.weight, ascent, gamma, slope)
    return Flows(gamma, slope, torch.einsum("rbk,rb->rk", v[roots], share) if edges else None)


def _share(scale: Tensor, log_p: Tensor, total: Tensor) -> Tensor:
    """E^(scale of the root) / p, (R, B): 0 where p is."""
    return torch.where(total > 0, (scale - log_p).exp(), 0.0)


def _pour(level: Level, weight: Tensor, ascent: Ascent, gamma: Tensor, slope: Tensor | None) -> None:
    """What reached the nodes of a level goes on to their children."""
    g = _ratio(gamma[level.nodes][level.owner], ascent.sums[level.owned])
    if level.sum_of is not None:
        g = g[level.sum_of]
        if ascent.shares is not None:
            g = g * ascent.shares[level.edges][..., None]
    below = ascent.nodes[level.child]
    if slope is not None:
        torch.bmm(g.mT, below, out=slope[level.edges])
    poured = torch.bmm(g, weight[level.edges]).mul_(below)
    if level.tree:
        gamma[level.child] = poured
    else:
        child = torch.arange(len(gamma), device=gamma.device)[level.child]
        gamma.index_add_(0, child, poured)


def _ratio(gamma: Tensor, m: Tensor) -> Tensor:
    """Gamma / m. Where m is 0 nothing arrives: gamma has it as a factor."""
    return gamma / m.clamp_min(torch.finfo(m.dtype).tiny)


def _count(at: slice) -> int:
    return at.stop - at.start


def draw(graph: Graph, mixing: Mixing, ascent: Ascent, *, generator: Generator = None) -> Tensor:
    """Which unit of each node takes part, drawn from its law given each row: (N, B), -1 where none does.

    From the root down each sum chooses one unit below it with probability W[j, k] v_c[k] / m[j].
    """
    v = ascent.nodes
    state = torch.full(v.shape[:2], -1, dtype=torch.long, device=v.device)
    roots = slice(0, graph.roots)
    scale = ascent.scales[roots] - ascent.scales[roots].amax(0)
    at_root = v[roots] * mixing.root[:, None] * scale.nan_to_num(0.0).exp()[..., None]
    state[roots] = _chosen(at_root, generator)
    for level in graph.levels:
        if _count(level.owned):
            _descend(level, mixing.weight, ascent, state, generator)
    return state


def _descend(level: Level, weight: Tensor, ascent: Ascent, state: Tensor, generator: Generator) -> None:
    above = state[level.nodes][level.owner]  # (S, B)
    if level.sum_of is not None:
        above = above[level.sum_of]
    w = weight[level.edges]
    at = above.clamp_min(0)[..., None].expand(-1, -1, w.shape[2])
    units = w.gather(1, at) * ascent.nodes[level.child]
    if level.sum_of is None:
        taken = _inverse_cdf(units, generator)
    else:
        if ascent.shares is not None:
            units = units * ascent.shares[level.edges][..., None]
        taken = _chosen_of_sums(units, level.sum_of, _count(level.owned), generator)
    _settle(state, level, torch.where(above < 0, -1, taken))


def _settle(state: Tensor, level: Level, taken: Tensor) -> None:
    """The units of a level's children: one parent at most reaches a node, as the factors of a product share no variable."""
    if level.tree:
        state[level.child] = taken
    else:
        child = torch.arange(len(state), device=state.device)[level.child]
        state.scatter_reduce_(0, child[:, None].expand_as(taken), taken, "amax")


def greatest(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The greatest of each group along the first axis: (G, ...)."""
    index = group.view(-1, *(1,) * (values.ndim - 1)).expand_as(values)
    return values.new_full((groups, *values.shape[1:]), -torch.inf).scatter_reduce_(0, index, values, "amax")


def _chosen(units: Tensor, generator: Generator) -> Tensor:
    """One unit of several blocks (C, B, K) for each row: its place within its block, (C, B), and -1 in the others."""
    return _chosen_of_sums(units, torch.zeros(len(units), dtype=torch.long, device=units.device), 1, generator)


def _chosen_of_sums(units: Tensor, sum_of: Tensor, sums: int, generator: Generator) -> Tensor:
    """One unit of the children of each sum: first the child, then the unit within it."""
    mass = units.sum(-1)  # (E, B)
    upto = mass.cumsum(0, dtype=torch.float64)
    first = torch.searchsorted(sum_of, torch.arange(sums, device=sum_of.device))
    last = torch.cat((first[1:], first.new_tensor([len(sum_of)]))) - 1
    start = upto[first] - mass[first]
    u = torch.rand(sums, mass.shape[1], generator=generator, dtype=upto.dtype, device=upto.device)
    cut = start + u * (upto[last] - start)  # (S, B)
    left = torch.where((torch.arange(len(sum_of), device=sum_of.device) == first[sum_of])[:, None], start[sum_of], upto.roll(1, 0))
    here = (left <= cut[sum_of]) & (cut[sum_of] < upto) & (mass > 0)
    return torch.where(here, _inverse_cdf(units, generator), -1)


def _inverse_cdf(weights: Tensor, generator: Generator) -> Tensor:
    """A place along the last axis, with probability proportional to the weight there."""
    upto = weights.cumsum(-1)
    u = torch.rand(upto.shape[:-1], generator=generator, dtype=upto.dtype, device=upto.device)[..., None] * upto[..., -1:]
    return (upto <= u).sum(-1).clamp_max(upto.shape[-1] - 1)


class Best(NamedTuple):
    """The likeliest way through a circuit."""

    log_p: Tensor  # of it, (B,)
    state: Tensor  # which unit of each node takes part, -1 where none does: (N, B)


def best(graph: Graph, mixing: Mixing, log_f: Tensor) -> Best:
    """Every sum replaced by the greatest of its terms: the induced tree of greatest probability.

    Cost: B K^2 for each edge, in logs and not as a matrix product.

    Args:
        graph: the circuit.
        mixing: its weights.
        log_f: of each input, (I, B, K); of an unobserved variable, at the mode of each unit.
    """
    _, batch, k = log_f.shape
    log_v = log_f.new_zeros(graph.size, batch, k).index_add_(0, graph.holder, log_f)
    log_e = log_f.new_empty(len(graph.child), batch, k)  # the greatest term below each edge
    log_m = log_f.new_empty(len(graph.owner), batch, k)
    taken = torch.empty(log_e.shape, dtype=torch.long, device=log_f.device)  # and its unit
    for level in reversed(graph.levels):
        if _count(level.owned):
            terms = log_v[level.child][:, :, None] + mixing.weight[level.edges].log()[:, None]  # (E, B, j, k)
            torch.max(terms, -1, out=(log_e[level.edges], taken[level.edges]))
            sum_of = graph.sum_of[level.edges] - level.owned.start
            log_m[level.owned] = greatest(log_e[level.edges], sum_of, _count(level.owned))
            log_v.index_add_(0, graph.owner[level.owned], log_m[level.owned])
    state = torch.full((graph.size, batch), -1, dtype=torch.long, device=log_f.device)
    at_root = (log_v[: graph.roots] + mixing.root.log()[:, None]).transpose(0, 1).flatten(1)  # (B, R K)
    log_p, place = at_root.max(-1)
    state[place // k, torch.arange(batch, device=place.device)] = place % k
    for level in graph.levels:
        if _count(level.owned):
            _trace(graph, level, Trace(log_e, log_m, taken), state)
    return Best(log_p, state)


class Trace(NamedTuple):
    """What `best` remembers on the way up."""

    log_e: Tensor
    log_m: Tensor
    taken: Tensor


def _trace(graph: Graph, level: Level, trace: Trace, state: Tensor) -> None:
    """From the units of a level's nodes to the best units below them."""
    sum_of = graph.sum_of[level.edges]
    above = state[graph.owner[sum_of]]  # (E, B)
    at = above.clamp_min(0)[..., None]
    taken = trace.taken[level.edges].gather(2, at)[..., 0]
    wins = (above >= 0) & (trace.log_e[level.edges].gather(2, at) == trace.log_m[sum_of].gather(2, at))[..., 0]
    if level.sum_of is not None:  # of equals the first
        upto = wins.cumsum(0)
        first = torch.searchsorted(sum_of, sum_of)
        wins &= upto - upto[first] + wins[first].long() == 1
    _settle(state, level, torch.where(wins, taken, -1))


def posterior_weights(graph: Graph, mixing: Mixing, ascent: Ascent) -> Mixing:
    """The weights of the circuit that is p(. | one row): W[j, k] v_c[k] / m[j], and pi_rk v_r[k] / p at the root."""
    v = ascent.nodes[:, 0]
    share = 1.0 if ascent.shares is None else ascent.shares[:, 0, None, None]
    m = ascent.sums[graph.sum_of, 0][..., None]
    weight = mixing.weight * v[graph.child][:, None] * share / torch.where(m > 0, m, 1.0)
    scale = ascent.scales[: graph.roots] - ascent.scales[: graph.roots].amax(0)
    root = mixing.root * v[: graph.roots] * scale.exp()
    # A unit that the row rules out is never reached: it keeps its weights, which must sum to 1 all the same.
    return Mixing(torch.where(m > 0, weight, mixing.weight), root / root.sum())
