"""Checks of questions about some of the variables: marginal, conditional, impute, complete, mode, mean."""

import math

import torch
from torch import Tensor

from pofx.domain import CONTINUOUS, LEVELLED
from pofx.models.base import Model
from pofx.testing.case import DELTA, Case, answered, close, gap, require, require_inside
from pofx.types import Kind


def missing_cells_are_summed_out(case: Case) -> None:
    """log p(x with NaN) = log p_marginal(x observed), and log p of nothing observed is 0."""
    if not (case.sums_out and case.unconditional):
        return
    x, _ = case.complete_rows()
    nothing = case.log_prob(torch.full_like(x[:1], torch.nan))
    require(close(case, nothing, torch.zeros_like(nothing)), f"log p of nothing observed must be 0, got {float(nothing):.4g}")
    for keep in case.splits():
        marginal = answered(case.model.marginal, keep)
        if marginal is None or marginal.density is not Kind.EXACT:
            continue
        holes = torch.full_like(x, torch.nan)
        holes[:, keep] = x[:, keep]
        whole, part = case.log_prob(holes), _log_prob(marginal, x[:, keep], case)
        require(close(case, whole, part), f"log_prob with NaN is not the marginal's: {gap(whole, part)}")


def parts_keep_their_variables(case: Case) -> None:
    """marginal(keep) has the variables of `keep`, in that order; conditional has those that are NaN, in the domain's order."""
    if not case.unconditional:
        return
    x, _ = case.complete_rows()
    for keep in case.splits():
        turned = keep[::-1]
        marginal = answered(case.model.marginal, turned)
        if marginal is not None:
            require(marginal.domain.names == case.domain.select(turned).names, f"marginal({list(turned)}) is over {marginal.domain.names}")
            require_inside(marginal.domain, marginal.sample(5, generator=case.generator), "a marginal's draws")
        part = answered(case.model.conditional, _evidence(x[0], keep))
        if part is not None:
            expected = case.domain.select(keep).names
            require(part.domain.names == expected, f"the conditional of {expected} is over {part.domain.names}")
            require_inside(part.domain, part.sample(5, generator=case.generator), "a conditional's draws")


def chain_rule_holds(case: Case) -> None:
    """log p(x) = log p(e) + log p(q | e) for every split of x into evidence e and question q."""
    if not (case.sums_out and case.unconditional):
        return
    x, _ = case.complete_rows()
    for ask in case.splits():
        for row in x[:3]:
            evidence = _evidence(row, ask)
            part = answered(case.model.conditional, evidence)
            if part is not None and part.density is Kind.EXACT:
                whole = case.log_prob(row[None])
                chained = case.log_prob(evidence[None]) + _log_prob(part, row[None, list(ask)], case)
                require(close(case, chained, whole), f"log p(e) + log p(q | e) is not log p(x): {gap(chained, whole)}")


def filling_in_keeps_what_is_observed(case: Case) -> None:
    """impute and complete change only NaN, leave none, stay in the domain, and repeat under an equal generator."""
    if not case.unconditional:
        return
    x = case.x[:8].clone()
    x[:, 0] = torch.where(torch.arange(len(x), device=x.device) % 2 == 0, torch.nan, x[:, 0])
    seen, before = ~x.isnan(), x.clone()
    for name, fill in (("impute", case.model.impute), ("complete", case.model.complete)):
        filled = [answered(fill, x, generator=torch.Generator(x.device).manual_seed(3)) for _ in range(2)]
        if filled[0] is None or filled[1] is None:
            continue
        require(filled[0].shape == x.shape, f"{name} turns shape {tuple(x.shape)} into {tuple(filled[0].shape)}")
        require(torch.equal(filled[0][seen], x[seen]), f"{name} changes observed cells")
        require(torch.equal(x[seen], before[seen]) and bool(x[~seen].isnan().all()), f"{name} writes to the rows it is given")
        require(filled[0].isfinite(), f"{name} leaves cells empty or infinite")
        require(torch.equal(filled[0], filled[1]), f"{name} under equal generators gives different cells")
        whole = torch.tensor([name == "complete" or v.kind in LEVELLED for v in case.domain.variables], device=x.device)
        chosen = whole.nonzero().flatten().tolist()
        if chosen:  # the mean of a count need not be one
            require_inside(case.domain.select(chosen), filled[0][:, chosen], f"{name}'s cells")


def mode_is_a_maximum(case: Case) -> None:
    """An exact mode has at least the density of every row seen or drawn, and keeps the evidence."""
    if not case.unconditional:
        return
    mode = answered(case.model.mode)
    if mode is None:
        return
    require(mode.shape == (len(case.domain),), f"mode has shape {tuple(mode.shape)}")
    x, _ = case.complete_rows()
    if case.exact and case.model.answers("mode") is Kind.EXACT:
        at = case.log_prob(mode[None])
        best = case.log_prob(torch.cat((x, case.sample(500).to(x)))).max()
        require(
            float(at) >= float(best) - case.rounding * (1 + abs(float(best))), f"log p(mode) = {float(at):.6g}, but a row has {best:.6g}"
        )
    for ask in case.splits():
        evidence = _evidence(x[0], ask)
        given = answered(case.model.mode, evidence)
        seen = ~evidence.isnan()
        require(given is None or torch.equal(given[seen].to(evidence), evidence[seen]), "mode changes the evidence")


def mean_is_that_of_draws(case: Case) -> None:
    """E[x] lies within Hoeffding's distance of the mean of draws for bounded variables.

    For the others within 8 standard errors where the draws' kurtosis is that of a light tail (below 10).
    """
    mean = answered(case.model.mean) if case.unconditional and case.model.sampling is Kind.EXACT else None
    if mean is None or case.model.answers("mean") is not Kind.EXACT:
        return
    require(mean.shape == (len(case.domain),), f"mean has shape {tuple(mean.shape)}")
    s = case.sample(case.draws).double()
    for d, variable in enumerate(case.domain.variables):
        column = s[:, d]
        span = (variable.cardinality - 1) if variable.cardinality else variable.upper - variable.lower
        if math.isfinite(span):
            allowed = span * math.sqrt(math.log(2 / DELTA) / 2 / len(s)) + 1e-9
        else:
            z = (column - column.mean()) / column.std().clamp(min=1e-300)
            allowed = 8 * float(column.std()) / math.sqrt(len(s)) + 1e-9 if float(z.pow(4).mean()) < 10 else math.inf
        off = abs(float(mean[d]) - float(column.mean()))
        require(off <= allowed, f"mean of {variable.name!r} is {float(mean[d]):.4g}, that of {len(s)} draws {float(column.mean()):.4g}")


def completions_follow_the_conditional(case: Case) -> None:
    """Draws of one missing cell lie below the median of the conditional's own draws half of the time (Hoeffding)."""
    if not (case.unconditional and len(case.domain) > 1 and case.model.answers("complete") is Kind.EXACT):
        return
    x, _ = case.complete_rows()
    d = next((i for i, v in enumerate(case.domain.variables) if v.kind in CONTINUOUS), 0)
    evidence = _evidence(x[0], (d,))
    part = answered(case.model.conditional, evidence)
    filled = answered(case.model.complete, evidence.expand(case.draws, -1), generator=case.generator)
    if part is None or filled is None:
        return
    drawn, filled = part.sample(case.draws, generator=case.generator)[:, 0].double(), filled[:, d].double()
    allowed = 2 * math.sqrt(math.log(4 / DELTA) / 2 / case.draws)
    for q in (0.25, 0.5, 0.75):
        at = drawn.quantile(q, interpolation="lower")
        off = float((drawn <= at).double().mean() - (filled <= at).double().mean())
        require(abs(off) <= allowed, f"complete and conditional differ at {case.domain.names[d]!r} <= {float(at):.4g} by {off:.3f}")


def _evidence(row: Tensor, ask: tuple[int, ...]) -> Tensor:
    evidence = row.clone()
    evidence[list(ask)] = torch.nan
    return evidence


def _log_prob(model: Model, x: Tensor, case: Case) -> Tensor:
    with torch.no_grad():
        return model.log_prob(x, generator=case.generator)
