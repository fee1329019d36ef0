"""Every family of the registry keeps what `check_model` holds it to, and every check can fail."""

import math

import pytest
import torch

from pofx.data.preparation import prepare
from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import OptionError, Unavailable
from pofx.learn import run
from pofx.models.base import Model
from pofx.models.classical.density_tree import DensityTreeConfig
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.composed import assemble
from pofx.models.registry import families, family
from pofx.testing import check_model, checks
from pofx.testing.case import Case
from pofx.testing.check_model import run_check

TABLE = Domain(
    (
        Variable("height", K.POSITIVE),
        Variable("weight", K.REAL, resolution=0.5),
        Variable("saved", K.REAL, spike=0.0),
        Variable("visits", K.COUNT, lower=0.0),
        Variable("share", K.INTERVAL, lower=0.0, upper=1.0),
        Variable("colour", K.CATEGORICAL, levels=("red", "green", "blue")),
        Variable("sex", K.BINARY, levels=("f", "m")),
        Variable("dose", K.POSITIVE, resolution=0.5),  # some are rounded to 0
    )
)
IMAGES = Domain(tuple(Variable(f"x{d}", K.COUNT, lower=0.0, upper=4.0, dtype="int64") for d in range(9)), (3, 3))


def reals(n: int = 400) -> torch.Tensor:
    """Two half circles."""
    g = torch.Generator().manual_seed(0)
    t = math.pi * torch.rand(n, generator=g)
    moon = torch.stack((t.cos(), t.sin()), 1)
    moon[::2] = torch.tensor([1.0, 0.5]) - moon[::2]
    return moon + 0.1 * torch.randn(n, 2, generator=g)


def table(n: int = 400) -> torch.Tensor:
    """Rows of TABLE that depend on one hidden number; a tenth of the cells is missing."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, generator=g)
    e = torch.randn(8, n, generator=g) / 2
    columns = (
        (z + e[0]).exp(),
        ((z + e[1]) * 6).round() / 2,
        torch.where(torch.rand(n, generator=g) < 0.3, 0.0, z + e[2]),
        (z + e[3]).exp().round(),
        torch.sigmoid(z + e[4]),
        ((z + e[5]).abs() * 1.5).floor().clamp(max=2),
        (z + e[6] > 0).double(),
        (2 * (z + e[7]).exp()).round() / 2,
    )
    x = torch.stack(columns, 1)
    return torch.where(torch.rand(x.shape, generator=g) < 0.1, torch.nan, x)


def images(n: int = 400) -> torch.Tensor:
    """A bright blob on 3 x 3 pixels of 5 levels."""
    g = torch.Generator().manual_seed(0)
    at = torch.rand(n, 1, 2, generator=g) * 2
    pixels = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    distance = (at - pixels).square().sum(-1)
    return (4 * (-distance).exp() + 0.3 * torch.randn(n, 9, generator=g)).round().clamp(0, 4)


# What a check proves, it proves of small nets after two epochs; test_deepest asks the families as they come.
QUICK = {
    "max_epochs": 2,
    "units": 8,
    "width": 16,
    "widths": (32,),
    "draws": 8,
    "components": 4,
    "restarts": 1,
    "autoencoder": "vae:draws=8",
}
DATA = {"reals": (Domain.real(2), reals), "table": (TABLE, table), "images": (IMAGES, images)}


def learned(name: str, domain: Domain, x: torch.Tensor, context: Domain | None = None, c: torch.Tensor | None = None) -> Model:
    known = family(name).config.model_fields
    config = family(name).configure({option: value for option, value in QUICK.items() if option in known})
    model = assemble(config, domain, x, prepare(domain, x, config.takes), context, c)
    held = (None, None) if c is None else (c[50:], c[:50])
    run(model, x[50:], held[0], config=config, holdout=x[:50], holdout_c=held[1])
    return model


@pytest.mark.parametrize("name", [n for n, f in families().items() if f.baseline])
def test_closed_forms_on_reals(name):
    x = reals()
    check_model(learned(name, Domain.real(2), x), x[:30], generator=torch.Generator().manual_seed(0), draws=2000)


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", families())
def test_every_family(name, data):
    domain, rows = DATA[data]
    if family(name).config.images and len(domain.shape) == 1:
        pytest.skip("this family learns images")
    x = rows()
    check_model(learned(name, domain, x), x[:30], generator=torch.Generator().manual_seed(0), draws=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, f in families().items() if f.config.conditional])
def test_families_given_a_condition(name):
    """p(x | c) of a half circle that a label and a number shift."""
    x = reals()
    c = torch.stack((torch.arange(len(x)) % 2.0, x[:, 0] + torch.randn(len(x), generator=torch.Generator().manual_seed(1))), 1)
    context = Domain((Variable("half", K.BINARY, levels=(0, 1)), Variable("near", K.REAL)))
    domain = Domain(Domain.real(2).variables, (1, 2)) if family(name).config.images else Domain.real(2)
    model = learned(name, domain, x, context, c)
    check_model(model, x[:30], c[:30], generator=torch.Generator().manual_seed(0), draws=1000)


class Waiting(Model):
    """A third party's family with the two hooks it must have: p(x) = exp(-x)."""

    def __init__(self) -> None:
        super().__init__(Domain((Variable("time", K.POSITIVE),)))

    def _log_prob(self, x, c, generator):
        return torch.where(x[:, 0] > 0, -x[:, 0], -math.inf)

    def _sample(self, n, c, generator):
        return -torch.rand(n, 1, generator=generator, dtype=torch.float64).log()


def test_two_hooks_are_enough():
    x = torch.arange(1.0, 6.0)[:, None]
    check_model(Waiting(), x, generator=torch.Generator().manual_seed(0))


def test_rows_must_be_of_the_domain():
    with pytest.raises(OptionError, match="two or more rows of 1 variables, got shape"):
        check_model(Waiting(), torch.zeros(5, 2), generator=torch.Generator())


def test_checks_are_listed_with_what_they_hold_to():
    assert set(BROKEN) == set(checks())
    assert all(says.endswith((".", ";", ",")) or says for says in checks().values())


# -- every check can fail: one fault for each -----------------------------------------------------

SMALL = Domain((Variable("a", K.REAL), Variable("b", K.CATEGORICAL, levels=(0, 1, 2)), Variable("c", K.POSITIVE)))


def small(n: int = 500) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    b = torch.randint(0, 3, (n,), generator=g)
    return torch.stack((4 * b + torch.randn(n, generator=g), b, (b + 0.3 * torch.randn(n, generator=g)).exp()), 1)


@pytest.fixture(scope="module")
def state():
    model = DensityTreeConfig().build(SMALL)
    x = small()
    for _ in model.steps(x[:400], holdout=x[400:]):
        pass
    return model.state_dict()


@pytest.fixture
def model(state) -> Model:
    model = DensityTreeConfig().build(SMALL)
    model.load_tensors({name: tensor.clone() for name, tensor in state.items()})
    return model


def after(model: Model, hook: str, change) -> None:
    """The model with something done to what one of its methods returns; `change` also sees the arguments."""
    method = getattr(model, hook)
    setattr(model, hook, lambda *args, **options: change(method(*args, **options), *args))


def shifted(part: Model, *_) -> Model:
    after(part, "_log_prob", lambda value, *_: value + 0.2)
    return part


def refuse(*_):
    raise Unavailable("mode", "Broken")


def own_draws(model: Model) -> None:
    method = model._sample
    model._sample = lambda n, c, generator: method(n, c, None)


def no_condition(model: Model) -> None:
    model._conditional = lambda evidence: model._marginal(tuple(evidence.isnan().nonzero()[:, 0].tolist()))


def no_evidence(model: Model) -> None:
    model._complete = lambda x, generator: torch.where(x.isnan(), model._sample(len(x), None, generator), x)


def clamped(model: Model) -> None:
    method = model._log_prob
    model._log_prob = lambda x, c, generator: method(torch.stack((x[:, 0], x[:, 1].clamp(0, 2), x[:, 2]), 1), c, generator)


def any_number_of_draws(model: Model) -> None:
    method = model.sample
    model.sample = lambda n, *args, **options: method(abs(n), *args, **options)


BROKEN = {
    "kinds_are_declared": lambda m: setattr(m, "density", "perfect"),
    "log_prob_is_one_number_a_row": lambda m: after(m, "_log_prob", lambda value, *_: value * torch.nan),
    "errors_fit_the_kind": lambda m: after(m, "_log_prob_and_error", lambda pair, *_: (pair[0], pair[1] + 1)),
    "rows_do_not_see_each_other": lambda m: after(m, "_log_prob", lambda value, x, *_: value + x[:, 0].mean()),
    "values_outside_the_domain_have_no_density": clamped,
    "wrong_shapes_are_refused": any_number_of_draws,
    "refusals_name_alternatives": lambda m: setattr(m, "_mode", refuse),
    "loss_can_be_descended": lambda m: after(m, "loss", lambda value, *_: value.mean()),
    "inputs_and_globals_are_left_alone": lambda m: after(m, "_log_prob", lambda value, x, *_: x.add_(1)[:, 0] * 0 + value),
    "codes_lead_back": lambda m: after(m, "_decode", lambda x, *_: x + 1),
    "state_goes_through_a_file": lambda m: setattr(m, "load_tensors", lambda tensors: None),
    "draws_lie_in_the_domain": lambda m: after(m, "_sample", lambda x, *_: x + 0.5),
    "equal_generators_give_equal_draws": own_draws,
    "mass_is_one": lambda m: after(m, "_marginal", shifted),
    "draws_follow_the_density": lambda m: after(m, "_sample", lambda x, *_: x * 3),
    "missing_cells_are_summed_out": lambda m: after(m, "_log_prob", lambda value, x, *_: value + 0.1 * x.isnan().any(1)),
    "parts_keep_their_variables": lambda m: setattr(m, "_marginal", lambda keep, f=m._marginal: f(tuple(sorted(keep)))),
    "chain_rule_holds": no_condition,
    "filling_in_keeps_what_is_observed": lambda m: after(m, "_impute", lambda filled, *_: filled + 1),
    "mode_is_a_maximum": lambda m: after(m, "_mode", lambda x, *_: x + torch.tensor([0.0, 0.0, 50.0])),
    "mean_is_that_of_draws": lambda m: after(m, "_mean", lambda x, *_: x + torch.tensor([0.0, 0.3, 0.0])),
    "completions_follow_the_conditional": no_evidence,
    "restriction_is_p_over_its_probability": lambda m: after(m, "_restrict", lambda found, *_: (found[0], found[1] + 0.05)),
    "restrictions_add_up": lambda m: after(m, "_restrict", lambda found, *_: (found[0], 0.95 * found[1])),
    "entropy_is_the_mean_of_minus_log_p": lambda m: after(m, "_entropy", lambda value, *_: value + 0.5),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_check_finds_its_fault(model, name):
    x = small(40)
    if name == "codes_lead_back":
        model, x = GaussianConfig().build(Domain.real(2)), x[:, [0, 2]]
        list(model.steps(x))
    run_check(name, Case(model, x, None, torch.Generator().manual_seed(0)))
    BROKEN[name](model)
    with pytest.raises(AssertionError, match=f"^{type(model).__name__} fails {name}: "):
        run_check(name, Case(model, x, None, torch.Generator().manual_seed(0)))


def test_a_density_that_is_too_large_everywhere_is_found(model):
    """Without any marginal to integrate: by the draws of a reference alone."""
    after(model, "_log_prob", lambda value, *_: value + 0.5)
    with pytest.raises(AssertionError, match="the density is larger than the draws say"):
        run_check("draws_follow_the_density", Case(model, small(100), None, torch.Generator().manual_seed(0)))


def test_a_crash_is_a_failure_with_its_name(model):
    model._mean = lambda: 1 / 0
    with pytest.raises(AssertionError, match="fails mean_is_that_of_draws: ZeroDivisionError"):
        run_check("mean_is_that_of_draws", Case(model, small(20), None, torch.Generator().manual_seed(0)))


def test_training_mode_is_given_back(model):
    model.train()
    check_model(model, small(30), generator=torch.Generator().manual_seed(0), draws=1000)
    assert model.training
