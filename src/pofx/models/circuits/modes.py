"""The most probable x: exact in a deterministic circuit, elsewhere a climb whose end is a lower bound on the maximum."""

import torch
from torch import Tensor

from pofx.domain import Domain
from pofx.models.circuits import passes
from pofx.models.circuits.polynomial import Polynomial

STARTS = 16  # draws from which a climb begins, beside the likeliest way through the circuit
_STEPS = 1000
_VALUES = 1024  # of a variable, up to which all are tried
_GAIN = 1e-9  # nats; less is rounding


def mode(p: Polynomial, evidence: Tensor, domain: Domain) -> Tensor:
    """An x of great probability, the evidence kept.

    The likeliest way through the circuit, every sum replaced by its greatest term, is the maximum where at most one term
    of any sum is positive. Elsewhere it is where one of several climbs begins; see `climb`.
    Finding the maximum is NP-hard in general (Conaty, Mauá and de Campos, "Approximation complexity of maximum a posteriori
    inference in sum-product networks", UAI 2017).
    """
    row = evidence[None]
    way = likeliest_way(p, row)
    if p.deterministic or not bool(row.isnan().any()):
        return way[0]
    generator = torch.Generator(row.device).manual_seed(0)  # the same question has the same answer
    draws = p.draw(p.ascent(row.expand(STARTS, -1)), generator=generator)
    starts = torch.where(row.isnan(), torch.cat((way, draws)), row)
    ends = climb(p, starts, row.isnan()[0], candidates(p, domain))
    return ends[p.log_prob(ends).argmax()]


def likeliest_way(p: Polynomial, rows: Tensor) -> Tensor:
    """Rows completed by the modes of the units of the induced tree of greatest probability."""
    columns, variable = p.inputs.columns, p.graph.variable
    at_mode = columns.mode(p.theta)  # (K, I)
    cells = rows[:, variable]  # (B, I)
    log_f = torch.where(cells.isnan()[:, None], columns.log_prob(p.theta, at_mode), columns.log_prob(p.theta, cells[:, None]))
    state = passes.best(p.graph, p.mixing, log_f.permute(2, 0, 1)).state[p.graph.holder]  # (I, B)
    chosen = at_mode.T.gather(1, state.clamp_min(0))
    return torch.where(rows.isnan(), p.gathered(torch.where(state < 0, 0.0, chosen)).T, rows)


def candidates(p: Polynomial, domain: Domain) -> Tensor:
    """The values that each variable tries, (D, C), padded with NaN: all of a finite one, else the modes of its units."""
    at_mode = p.inputs.columns.mode(p.theta).T  # (I, K)
    found = []
    for d, v in enumerate(domain.variables):
        few = v.cardinality is not None and v.cardinality <= _VALUES
        all_ = torch.arange(v.cardinality or 0).to(at_mode) + (0.0 if v.levels else v.lower)
        found.append(all_ if few else at_mode[p.graph.variable == d].flatten().unique())
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=torch.nan)


def climb(p: Polynomial, x: Tensor, free: Tensor, values: Tensor) -> Tensor:
    """Change one cell at a time, each time the change that raises log p most, until none does.

    One pass up and down scores every value of every cell: with all others fixed, p(x_d = a, rest) is linear in f_d(a | k).
    All improving changes are tried at once, too, and taken where that is better still. No step lowers log p.

    Args:
        p: what is climbed.
        x: where climbs begin, (S, D).
        free: which cells may change, (D,).
        values: that they may take, (D, C).
    """
    rows, log_p = torch.arange(len(x), device=x.device), p.log_prob(x)
    for _ in range(_STEPS):
        gain, new = _best_changes(p, x, values)
        up = free & (gain > _GAIN)
        alone = x.clone()
        first = torch.where(up, gain, 0.0).argmax(1)
        alone[rows, first] = torch.where(up[rows, first], new[rows, first], x[rows, first])
        every = torch.where(up, new, x)
        tried = torch.stack((log_p, p.log_prob(alone), p.log_prob(every)))
        best = tried.argmax(0)
        x, before, log_p = torch.stack((x, alone, every))[best, rows], log_p, tried.amax(0)
        if bool((log_p - before <= _GAIN).all()):
            break
    return x


def _best_changes(p: Polynomial, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the best change of each cell adds to log p, and the value that it changes to, (S, D) each."""
    run, variable = p.run(x), p.graph.variable
    ratio = p.at_inputs(run) / run.leaves.value.clamp_min(torch.finfo(x.dtype).tiny)  # (I, S, K)
    at = values.T[:, variable]  # (C, I)
    log_f = p.inputs.columns.log_prob(p.theta[:, None], at)  # (K, C, I)
    log_f = torch.where(at.isnan(), -torch.inf, log_f).permute(2, 1, 0)
    top = log_f.amax((1, 2), keepdim=True)
    log_odds = torch.einsum("isk,ick->isc", ratio, (log_f - top).exp()).log() + top
    if run.leaves.scale is not None:
        log_odds = log_odds - run.leaves.scale[..., None]
    gain, choice = p.gathered(log_odds.exp()).max(-1)  # (D, S)
    return gain.log().T, values.gather(1, choice).T
