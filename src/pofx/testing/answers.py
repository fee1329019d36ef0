"""Checks of log_prob, loss, codes and state: equations that hold row by row."""

import copy
from collections.abc import Callable
from functools import partial

import torch

from pofx.ask.questions import kinds
from pofx.errors import DataError, FileError, OptionError, PofxError, Unavailable
from pofx.models.base import Model
from pofx.testing.case import Case, answered, close, gap, require
from pofx.types import Kind


def kinds_are_declared(case: Case) -> None:
    """Every question has a kind, and a density of no kind is refused."""
    for question, kind in kinds(case.model).items():
        require(kind in set(Kind), f"the kind of {question!r} is none of {[str(k) for k in Kind]}")
    if case.model.density is Kind.NONE:
        x, c = case.complete_rows()
        require(answered(case.log_prob, x, c) is None, "density is NONE, but log_prob answers")


def log_prob_is_one_number_a_row(case: Case) -> None:
    """Finite on rows of the data, of the rows' batch shape, also for a batch of batches and for no rows."""
    if case.model.density is Kind.NONE:
        return
    x, c = case.complete_rows()
    value = case.log_prob(x, c)
    require(value.shape == (len(x),), f"log_prob of {len(x)} rows has shape {tuple(value.shape)}")
    require(value.is_floating_point() and not value.requires_grad, f"log_prob has dtype {value.dtype}")
    require(value.isfinite(), f"log_prob of row {(~value.isfinite()).nonzero().flatten()[:1].tolist()} is not finite")
    batched = case.log_prob(x[None], None if c is None else c[None])
    require(batched.shape == (1, len(x)), f"log_prob of a batch (1, {len(x)}, D) has shape {tuple(batched.shape)}")
    none = case.log_prob(x[:0], None if c is None else c[:0])
    require(none.shape == (0,), f"log_prob of no rows has shape {tuple(none.shape)}")


def errors_fit_the_kind(case: Case) -> None:
    """An exact number has error 0; no error is negative; equal generators give equal numbers."""
    if case.model.density is Kind.NONE:
        return
    x, c = case.complete_rows()
    with torch.no_grad():
        first, again = (case.model.log_prob_and_error(x, c, generator=torch.Generator(x.device).manual_seed(1)) for _ in range(2))
    require(torch.equal(first[0], again[0]), f"equal generators give different log_prob: {gap(first[0], again[0])}")
    require((first[1] >= 0) & first[1].isfinite(), "a standard error is negative or not finite")
    require(not case.exact or bool((first[1] == 0).all()), "log_prob is exact, but has a standard error")


def rows_do_not_see_each_other(case: Case) -> None:
    """log p of a row is the same in another order, in pieces and alone."""
    if not case.exact:
        return
    x, c = case.complete_rows()
    whole = case.log_prob(x, c)
    order = torch.arange(len(x) - 1, -1, -1, device=x.device)
    turned = case.log_prob(x[order], None if c is None else c[order])
    require(close(case, turned[order], whole), f"another order of the rows changes log_prob: {gap(turned[order], whole)}")
    conditions = [None] * len(x) if c is None else list(c.split(3))
    pieces = torch.cat([case.log_prob(part, k) for part, k in zip(x.split(3), conditions, strict=False)])
    require(close(case, pieces, whole), f"rows in threes have another log_prob than together: {gap(pieces, whole)}")


def values_outside_the_domain_have_no_density(case: Case) -> None:
    """p = 0 below a positive number, beyond an interval and for a level that there is not."""
    if not case.scored:
        return
    x, _ = case.complete_rows()
    for d, variable in enumerate(case.domain.variables):
        bounded = {"positive": -1.0, "interval": variable.upper + 1, "count": variable.lower - 1}
        wrong = bounded.get(variable.kind, float(len(variable.levels)) if variable.levels else None)
        if wrong is not None and wrong != variable.spike:
            row = x[:1].clone()
            row[0, d] = wrong
            value = case.log_prob(row)
            require(value == -torch.inf, f"log_prob at {variable.name!r} = {wrong:g}, outside the domain, is {float(value):.4g}")


def wrong_shapes_are_refused(case: Case) -> None:
    """Another width of x, a missing or needless condition and a negative number of draws are sentences, not crashes."""
    x, c = case.complete_rows()
    width = len(case.domain)
    calls: dict[str, tuple[Callable[[], object], type[PofxError]]] = {
        "x of another width": (lambda: case.model.log_prob(x.new_zeros(2, width + 1), None if c is None else c[:2]), DataError),
        "a condition too many": (lambda: case.model.log_prob(x[:2], x.new_zeros(2, 1 if c is None else 1 + c.shape[1])), DataError),
        "-1 draws": (lambda: case.model.sample(-1, None if c is None else c[:1]), OptionError),
    }
    for what, (call, error) in calls.items():
        try:
            call()
        except error:
            continue
        require(False, f"{what} must raise {error.__name__}")


def refusals_name_alternatives(case: Case) -> None:
    """A question without an answer raises Unavailable, which names families that answer it or a way round."""
    x, _ = case.complete_rows()
    evidence = x[0].clone()
    evidence[-1] = torch.nan
    questions: dict[str, Callable[[], object]] = {
        "marginal": lambda: case.model.marginal([0]),
        "conditional": lambda: case.model.conditional(evidence),
        "mode": lambda: case.model.mode(),
        "mean": lambda: case.model.mean(),
        "encode": lambda: case.model.encode(x[:1]),
        "log_prob": lambda: case.model.log_prob(evidence, generator=case.generator),
    }
    for name in ("impute", "complete"):
        if case.model.answers(name) is Kind.NONE:  # where there is an answer it may take long
            questions[name] = partial(getattr(case.model, name), evidence)
    for name, ask in questions.items() if case.unconditional else ():
        try:
            ask()
        except Unavailable as refusal:
            helps = "families that answer it:" in str(refusal) or "approximately:" in str(refusal)
            require(helps, f"the refusal of {name} names no alternative: {refusal}")


def loss_can_be_descended(case: Case) -> None:
    """One finite loss a row; where there are parameters, their gradients are finite."""
    x, c = case.complete_rows()
    with torch.enable_grad():
        loss = case.model.loss(x, c, generator=case.generator)
        require(loss.shape == (len(x),) and bool(loss.isfinite().all()), f"loss of {len(x)} rows is not {len(x)} finite numbers")
        weights = [p for p in case.model.parameters() if p.requires_grad]
        if weights and loss.requires_grad:
            gradients = torch.autograd.grad(loss.mean(), weights, allow_unused=True)
            require(all(bool(g.isfinite().all()) for g in gradients if g is not None), "a gradient of the loss is not finite")


def inputs_and_globals_are_left_alone(case: Case) -> None:
    """Rows are not written to; with a generator given, torch's own is not drawn from; its settings stay."""
    x, c = case.complete_rows()
    before = torch.random.get_rng_state(), _settings(), x.clone()
    if case.model.density is not Kind.NONE:
        case.log_prob(x, c)
    case.sample(3)
    case.model.loss(x, c, generator=case.generator)
    require(torch.equal(x, before[2]), "the model wrote to the rows it was asked about")
    require(_settings() == before[1], "the model changed a global setting of torch")
    require(torch.equal(torch.random.get_rng_state(), before[0]), "a generator was given, but torch's own was drawn from")


def codes_lead_back(case: Case) -> None:
    """One finite code a row; where a code has as many numbers as a row and p is exact, decode undoes encode."""
    x, c = case.complete_rows()
    z = answered(case.model.encode, x, c)
    if z is None:
        return
    require(z.shape[0] == len(x) and z.ndim == 2 and bool(z.isfinite().all()), f"the codes of {len(x)} rows have shape {tuple(z.shape)}")
    back = answered(case.model.decode, z, c)
    if back is not None and case.exact and z.shape == x.shape:
        scale = x.std(0, correction=0) + x.abs().mean(0)
        require((back - x).abs() <= 10 * case.rounding * (1 + scale), f"decode(encode(x)) is not x: {gap(back, x)}")


def state_goes_through_a_file(case: Case) -> None:
    """load_tensors of state_dict makes a spoilt copy equal again, bit for bit, and refuses a missing tensor."""
    state = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    twin = _spoilt(case.model)
    twin.load_tensors(state)
    for name, tensor in twin.state_dict().items():
        same = (
            torch.equal(tensor.nan_to_num(), state[name].nan_to_num()) if tensor.is_floating_point() else torch.equal(tensor, state[name])
        )
        require(same, f"tensor {name!r} does not come back through load_tensors")
    x, c = case.complete_rows()
    if case.model.density is not Kind.NONE:
        with torch.no_grad():
            here, there = (m.log_prob(x, c, generator=torch.Generator(x.device).manual_seed(2)) for m in (case.model, twin))
        require(torch.equal(here, there), f"log_prob is another after load_tensors: {gap(here, there)}")
    for name in list(state)[:1]:
        try:
            twin.load_tensors({k: v for k, v in state.items() if k != name})
        except FileError:
            continue
        require(False, f"load_tensors without {name!r} must raise FileError")


def _spoilt(model: Model) -> Model:
    """A copy with every number another."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1.0)
    return twin


def _settings() -> tuple[object, ...]:
    return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.distributions.Distribution._validate_args
