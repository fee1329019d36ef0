"""What the table does not say by itself: why the order is as it is, and what not to conclude from it."""

import math
from collections.abc import Callable

import torch

from pofx.comparison.answering import LEAST
from pofx.comparison.findings import Findings
from pofx.comparison.ranking import CLEAR, behind, behind_in_answers, error_of
from pofx.comparison.result import Result
from pofx.comparison.words import count, duration, listed
from pofx.domain import LEVELLED, Variable, VariableKind
from pofx.measure import paired_difference
from pofx.measure.hidden_cells import INTERVAL
from pofx.types import Answer, Kind

SURE = 0.01  # a p-value below it is a difference
OFF = 3.0  # standard errors of a coverage that chance does not make, thirteen families over
WORTH_A_WORD = 0.03  # of a coverage
UNHEARD_OF = 4.9  # standard errors: a chance below 1e-6
NEAR = 0.8  # of the distance of held-out rows: nearer samples repeat training rows


def remarks(comparison: Findings) -> list[str]:
    """Sentences for a reader who will decide by the table."""
    found = (remark(comparison) for remark in REMARKS)
    return [sentence for sentence in found if sentence]


def kinds(comparison: Findings) -> str:
    """What a bound in the column of exact numbers means."""
    bounds = [r.family for r in comparison.ranked if r.kind is Kind.BOUND]
    estimates = [r.family for r in comparison.ranked if r.kind is Kind.ESTIMATE]
    parts = []
    if bounds:
        parts.append(
            f"≤ marks a bound ({listed(bounds)}): the true −log p is at most that, "
            "so a bound that wins has won, and one that loses may not have lost."
        )
    if estimates:
        parts.append(f"≈ marks an estimate ({listed(estimates)}).")
    return " ".join(parts)


def _by_gradients(result: Result) -> bool:
    """Whether the family, or its first stage, has a learning rate."""
    return not {"learning_rate", "autoencoder"}.isdisjoint(result.config)


def closed_forms(comparison: Findings) -> str:
    """What gradients bought over the best family that needs none."""
    scored = [r for r in comparison.ranked if math.isfinite(r.nats)]
    closed, deep = ([r for r in scored if _by_gradients(r) is gradients] for gradients in (False, True))
    gap = behind(deep[0], closed[0]) if closed and deep else None
    if gap is None or closed[0].learning is None or deep[0].learning is None:
        return ""
    plain, best = closed[0], deep[0]
    took = f"after {duration(closed[0].learning.seconds)} of learning against {duration(deep[0].learning.seconds)}"
    size = f"{abs(float(gap)):.2f} ± {error_of(gap):.2f} nats a row"
    if abs(float(gap)) <= CLEAR * error_of(gap):
        return f"Gradients buy nothing that can be seen here: {plain.family} (closed form or EM) is level with {best.family}, {took}."
    if float(gap) > 0:
        return f"A closed form (or EM) beats gradients here: {plain.family} leads {best.family} by {size}, {took}."
    return f"Gradients pay here: {best.family} leads {plain.family}, the best closed form (or EM), by {size}, which came {took}."


def discrete(comparison: Findings) -> str:
    """What it costs to see counts and levels as real numbers."""
    whole, lumpy = len(comparison.task.domain), sum(_is_lumpy(v) for v in comparison.task.domain.variables)
    scored = [r for r in comparison.ranked if math.isfinite(r.nats)]
    native, lifted = ([r for r in scored if (r.takes == "reals") is real] for real in (False, True))
    gap = behind(lifted[0], native[0]) if lumpy and native and lifted else None
    if gap is None:
        return ""
    return (
        f"{'All' if lumpy == whole else f'{lumpy} of'} {whole} variables are counts, levels or rounded numbers{_still(comparison)}. "
        f"Families that take them as they are ({listed([r.family for r in native])}) give each value a probability of its own. To the "
        f"others ({listed([r.family for r in lifted])}) each value is a cell of the real line, filled with noise (dequantisation); what "
        f"they report is the mean log-density of the noisy row, a lower bound on log p. "
        f"{_cost(native[0], lifted[0], gap)}{_cells(comparison)}"
    )


def _cost(native: Result, lifted: Result, gap: Answer) -> str:
    size = f"{abs(float(gap)):.2f} ± {error_of(gap):.2f} nats a row"
    if abs(float(gap)) <= CLEAR * error_of(gap):
        return f"The best of both kinds, {native.family} and {lifted.family}, are level here."
    if float(gap) < 0:
        return f"It does not decide here: {lifted.family} leads {native.family}, the best of the former, by {size}."
    return (
        f"{native.family} leads {lifted.family}, the best of the latter, by {size}, and the noise has its part in that: to lose nothing by "
        "it, a density would have to follow it within every cell and jump at the cell's edges, in all dimensions at once, where a smooth "
        "density or flow can only bend."
    )


def _cells(comparison: Findings) -> str:
    """What keeps the price of the noise low where a variable has finitely many values."""
    if not any(v.cardinality for v in comparison.task.domain.variables):
        return ""
    return (
        " The cell of a level is the part of a bell curve that has the level's own frequency, so that each variable alone is matched "
        "before learning begins; uniform noise in cells of one width, the common way, costs a smooth flow far more."
    )


def _is_lumpy(v: Variable) -> bool:
    return v.kind in LEVELLED or v.kind is VariableKind.COUNT or v.resolution is not None


def _still(comparison: Findings) -> str:
    """How many variables hardly vary: there a probability is near 1 and a density has most to lose."""
    x = comparison.task.train
    share = (x == x.nan_to_num().mode(0).values).double().mean(0)
    still = int((share > 0.95).sum())
    return f", and {still} of them hold one value in more than 95 % of the rows" if still else ""


def truth(comparison: Findings) -> str:
    """How far the best is from what can not be beaten."""
    task, best = comparison.task, comparison.best
    if task.true_nats is None or task.truth is None or best is None or best.likelihood is None:
        return ""
    excess = paired_difference(task.true_nats, torch.as_tensor(best.likelihood.nats))
    sure = -float(excess) > UNHEARD_OF * error_of(excess)
    verdict = "; that is below the truth beyond chance, so its number is wrong" if sure else ""
    return (
        f"The density that the rows were drawn from has {-float(task.truth):.3f} ± {error_of(task.truth):.3f} nats a row on the test rows, "
        f"which no p(x) beats on average; {best.family} is {float(excess):.3f} ± {error_of(excess):.3f} above it{verdict}."
    )


def indistinguishable(comparison: Findings) -> str:
    """Whose samples pass both two-sample tests."""
    drawn = [r for r in comparison.ranked if r.sampling is not None]
    passing = [r.family for r in drawn if r.sampling and min(r.sampling.mmd.p_value, r.sampling.c2st.p_value) > SURE]
    if not drawn:
        return ""
    rows = len(comparison.task.test)
    if not passing:
        return f"Every family's samples can be told from the {rows:,} test rows (p < {SURE} in at least one of two tests)."
    return f"The samples of {listed(passing)} can not be told from the {rows:,} test rows (p > {SURE} in both tests); more rows might."


def memorised(comparison: Findings) -> str:
    """Whose samples repeat training rows."""
    found = [r for r in comparison.ranked if _repeats(r)]
    if not found:
        return ""
    says = listed([f"{r.family} ({float(r.sampling.memorising.ratio):.2f})" for r in found if r.sampling])
    return f"Samples nearer to training rows than fresh data are, so partly repeated from them (ratio of mean nearest distances): {says}."


def _repeats(result: Result) -> bool:
    if result.sampling is None:
        return False
    ratio = result.sampling.memorising.ratio
    return float(ratio) + CLEAR * error_of(ratio) < NEAR


def latents_amiss(comparison: Findings) -> str:
    """Whose latents carry nothing, or are not where the prior has them."""
    found = [f"{r.family}: {warning}" for r in comparison.ranked if r.latents is not None for warning in r.latents.warnings]
    return f"Latents. {'. '.join(found)}." if found else ""


def data_hungry(comparison: Findings) -> str:
    """Which families have more numbers to set than the data have cells, by gradients."""
    cells = comparison.task.train.numel()
    greedy = [r for r in comparison.ranked if r.learning is not None and "learning_rate" in r.config and r.learning.parameters > cells]
    if not greedy:
        return ""
    says = listed([f"{r.family} ({count(r.learning.parameters)})" for r in greedy if r.learning])
    return (
        f"More numbers to learn than there are cells in the training rows ({count(cells)}): {says}. "
        "They lean on stopping early, and more data would help them most."
    )


def spent(comparison: Findings) -> str:
    """Who was still learning when the budget ended."""
    cut = [r.family for r in comparison.ranked if r.learning is not None and "budget" in r.learning.stopped]
    return f"Still learning when the budget of {comparison.setting.budget:g} s was spent: {listed(cut)}." if cut else ""


def other_order(comparison: Findings) -> str:
    """Whether the family that explains whole rows best is also the one to ask about parts of them."""
    likeliest, answerer = comparison.best, comparison.best_answerer
    gap = None if likeliest is None or answerer is None else behind_in_answers(likeliest, answerer)
    if likeliest is None or answerer is None or gap is None or not float(gap) > CLEAR * error_of(gap):
        return ""
    return (
        f"The best likelihood of whole rows is not the best of their parts: given the other cells of a row, {answerer.family} gives hidden "
        f"ones {float(gap):.3f} ± {error_of(gap):.3f} nats a cell more than {likeliest.family}. To fill in or to condition, choose by that."
    )


def sure_of_themselves(comparison: Findings) -> str:
    """Whose intervals hold fewer, or more, hidden numbers than they say."""
    found = [(r.family, r.answering.calibration) for r in comparison.answering if r.answering.calibration is not None]
    off = [(family, float(c.coverage()), c.off) for family, c in found if abs(float(c.coverage()) - INTERVAL) > WORTH_A_WORD]
    narrow, wide = ([f"{family} ({100 * share:.0f} %)" for family, share, z in off if sign * z > OFF] for sign in (-1, 1))
    parts = [f"too sure of themselves: {listed(narrow)}"] if narrow else []
    parts += [f"less sure than they could be: {listed(wide)}"] if wide else []
    held = f"{100 * INTERVAL:g} %"
    return f"Central {held} intervals of hidden numbers should hold {held} of them; {'; '.join(parts)}." if parts else ""


def asked_less(comparison: Findings) -> str:
    """Which families were asked about less than half of the rows, for want of time."""
    every = len(comparison.task.hidden)
    short = {r.family: {k: q.rows for k, q in r.answering.questions.items() if 2 * q.rows < every} for r in comparison.answering}
    says = listed([f"{family} ({', '.join(f'{k} {n}' for k, n in rows.items())})" for family, rows in short.items() if rows])
    few = f"; fewer than {LEAST} make no number"
    return f"Of the {every} rows with hidden cells, those that answer slowly had time for less than half: {says}{few}." if says else ""


REMARKS: tuple[Callable[[Findings], str], ...] = (
    kinds,
    closed_forms,
    discrete,
    other_order,
    sure_of_themselves,
    asked_less,
    truth,
    indistinguishable,
    memorised,
    latents_amiss,
    data_hungry,
    spent,
)
