"""check_model: what every family must pass, also a third party's."""

import torch
from torch import Tensor

from pofx.errors import OptionError
from pofx.models.base import Model
from pofx.testing import answers, masses, questions, restrictions
from pofx.testing.case import Case

CHECKS = (
    answers.kinds_are_declared,
    answers.log_prob_is_one_number_a_row,
    answers.errors_fit_the_kind,
    answers.rows_do_not_see_each_other,
    answers.values_outside_the_domain_have_no_density,
    answers.wrong_shapes_are_refused,
    answers.refusals_name_alternatives,
    answers.loss_can_be_descended,
    answers.inputs_and_globals_are_left_alone,
    answers.codes_lead_back,
    answers.state_goes_through_a_file,
    masses.draws_lie_in_the_domain,
    masses.equal_generators_give_equal_draws,
    masses.mass_is_one,
    masses.draws_follow_the_density,
    questions.missing_cells_are_summed_out,
    questions.parts_keep_their_variables,
    questions.chain_rule_holds,
    questions.filling_in_keeps_what_is_observed,
    questions.mode_is_a_maximum,
    questions.mean_is_that_of_draws,
    questions.completions_follow_the_conditional,
    restrictions.restriction_is_p_over_its_probability,
    restrictions.restrictions_add_up,
    restrictions.entropy_is_the_mean_of_minus_log_p,
)


def checks() -> dict[str, str]:
    """Every check's name and what it holds a model to."""
    return {check.__name__: (check.__doc__ or "").partition("\n")[0] for check in CHECKS}


def check_model(model: Model, x: Tensor, c: Tensor | None = None, *, generator: torch.Generator, draws: int = 4000) -> None:
    """Hold a learned model to what pofx promises of every family; silent when it keeps all of it.

    A check that does not apply (no conditionals, an estimated density) passes. Statistical checks fail for a right
    model at most once in a million runs. The model is put in evaluation mode meanwhile.

    Args:
        model: learned, or at least initialised.
        x: rows of its domain (N, D), two or more, as in the data: they may hold NaN.
        c: their conditions (N, C), for p(x | c).
        generator: of every draw.
        draws: rows that a statistical check draws: more see finer faults.

    Raises:
        AssertionError: at the first check that fails; one sentence says which, and what was found.
    """
    if len(x) < 2 or x.ndim != 2 or x.shape[1] != len(model.domain):
        raise OptionError(f"check_model takes two or more rows of {len(model.domain)} variables, got shape {tuple(x.shape)}")
    was_training = model.training
    model.eval()
    case = Case(model, x, c, generator, draws)
    try:
        for check in CHECKS:
            run_check(check.__name__, case)
    finally:
        model.train(was_training)


def run_check(name: str, case: Case) -> None:
    """One check, by name.

    Raises:
        AssertionError: it fails, or the model crashes.
    """
    check = next(check for check in CHECKS if check.__name__ == name)
    try:
        check(case)
    except AssertionError as failed:
        raise AssertionError(f"{type(case.model).__name__} fails {name}: {failed}") from None
    except Exception as crash:
        raise AssertionError(f"{type(case.model).__name__} fails {name}: {type(crash).__name__}: {crash}") from crash
