"""compare, with doubles that are exactly known in place of families, and with real ones where that is the point."""

import json
import math
import re
import shlex
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pofx.comparison import compare, task_of
from pofx.comparison.answering import LEAST
from pofx.comparison.memory import PeakMemory, resident
from pofx.comparison.ranking import behind, behind_in_answers
from pofx.comparison.remarks import remarks
from pofx.comparison.surface import POINTS, grid, window
from pofx.comparison.trial import principal_plane
from pofx.data import encode
from pofx.domain import Domain, VariableKind
from pofx.errors import DataError, OptionError, TrainingError, Unavailable
from pofx.models.base import Model
from pofx.models.registry import families
from pofx.types import Answer, Kind

ISSUE_FIELDS = {  # what results.json promises for each family
    "family",
    "status",
    "reason",
    "kind",
    "test_nats",
    "test_nats_se",
    "bits_per_dim",
    "fit_seconds",
    "sample_seconds_per_1000",
    "parameters",
    "peak_memory_mb",
    "mmd2",
    "c2st",
}
FOR_TABLES = {name for name, line in families().items() if not line.config.images}
BASELINES = [name for name, line in families().items() if line.baseline]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """What is said of samples is said of 300 as of 1000, and how they are told apart costs the square of their number."""
    monkeypatch.setattr("pofx.comparison.trial.SAMPLES", 300)


class Normal(Model):
    """N(shift, 1) of every variable alone; with what a double has special about hidden cells."""

    missing = Kind.EXACT

    def __init__(self, domain, *, shift=0.0, spread=1.0, cell=0.0, wait=0.0):
        super().__init__(domain)
        self.shift, self.spread, self.cell, self.wait = shift, spread, cell, wait
        self.weights = torch.nn.Parameter(torch.zeros(16))

    def _log_prob(self, x, c, generator):
        return (-0.5 * ((x - self.shift) ** 2 + math.log(2 * math.pi)) - self.cell).nansum(1)

    def _sample(self, n, c, generator):
        return torch.randn(n, len(self.domain), generator=generator)

    def _impute(self, x, generator):
        time.sleep(self.wait * len(x))
        return torch.where(x.isnan(), self.shift, x)

    def _complete(self, x, generator):
        return torch.where(x.isnan(), self.shift + self.spread * torch.randn(x.shape, generator=generator), x)


class Mute(Model):
    """Nothing but samples: every question about part of a row is refused."""

    density = Kind.NONE

    def _log_prob(self, x, c, generator):
        raise Unavailable("log_prob", "Mute")

    def _sample(self, n, c, generator):
        return torch.randn(n, len(self.domain), generator=generator)


@dataclass
class Double:
    """A standard normal in D variables, shifted: what `fit` returns, without learning."""

    domain: Domain
    shift: float = 0.0
    kind: Kind = Kind.EXACT
    penalty: float = 0.0
    width: int = 0
    hidden: dict = field(default_factory=dict)
    mute: bool = False
    history: list = field(default_factory=lambda: [{"step": 1, "epoch": 1, "train": 1.0, "holdout": 1.0, "seconds": 0.1}])

    @property
    def model(self):
        return Mute(self.domain) if self.mute else Normal(self.domain, shift=self.shift, **self.hidden)

    @property
    def record(self):
        return SimpleNamespace(history=self.history, kept=1, stopped="its closed form is reached", surrogate=False)

    def log_prob(self, rows):
        x = encode(rows, self.domain).numpy()
        value = -0.5 * ((x - self.shift) ** 2 + math.log(2 * math.pi)).sum(1) - self.penalty
        return Answer(value, self.kind)

    def sample(self, n, *, seed):
        x = torch.randn(n, len(self.domain), generator=torch.Generator().manual_seed(seed)).numpy() + self.shift
        whole = not self.domain.variables[0].continuous
        return np.clip(np.rint(x), 0, 3).astype(np.int64).reshape(n, *self.domain.shape) if whole else x

    def encode(self, rows):
        if not self.width:
            raise Unavailable("encode", "Double")
        return encode(rows, self.domain).numpy()[:, : self.width]

    def save(self, path):
        path.write_text("saved")


def doubles(**special):
    """A `fit` that gives a standard normal for every family but those with something special."""
    seen = []

    def fit(rows, family, *, holdout, schema, seed, budget, device, progress, **options):
        seen.append((family, rows, holdout, options, budget))
        made = special.get(family, {})
        if isinstance(made, Exception):
            raise made
        return Double(schema, **made)

    fit.seen = seen
    return fit


def failing(*but):
    """Doubles that fail at once, for all baselines but some."""
    return {name: RuntimeError("not in this test") for name in BASELINES if name not in but}


def normals(n=300, dim=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim))


# -- the row of a family ---------------------------------------------------------------------------


def test_a_known_density_has_its_numbers():
    x = normals(2000)
    result = compare(x, ["gaussian"], fit=doubles())["gaussian"]
    entropy = math.log(2 * math.pi * math.e)  # of the plane's standard normal, nats
    assert abs(result.nats - entropy) < 4.9 * float(result.likelihood.score.error)
    assert result.likelihood.bits_per_dim == pytest.approx(result.nats / (2 * math.log(2)))
    assert result.learning.parameters == 16
    assert float(result.sampling.c2st) == pytest.approx(0.5, abs=4.9 * float(result.sampling.c2st.distance.error) + 0.02)
    assert result.sampling.mmd.p_value > 1e-6
    assert result.kind is Kind.EXACT


def test_results_json_has_every_field_of_every_family(tmp_path):
    fit = doubles(vae=RuntimeError("no luck\nat all"), kde={"kind": Kind.UNNORMALISED}, gmm={"penalty": math.inf})
    comparison = compare(normals(), fit=fit)
    comparison.save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = {row["family"]: row for row in json.loads(text)["families"]}
    assert set(found) == FOR_TABLES
    for row in found.values():
        assert set(row) == set(found["gaussian"]) >= ISSUE_FIELDS
    assert found["vae"]["status"] == "failed"
    assert found["vae"]["reason"] == "RuntimeError: no luck"
    assert found["vae"]["kind"] == "none"
    assert found["vae"]["test_nats"] is found["vae"]["mmd2"] is None
    assert "RuntimeError" in found["vae"]["traceback"]
    assert found["kde"]["kind"] == "none"
    assert "unnormalised" in found["kde"]["reason"]
    assert found["gmm"]["test_nats"] is None
    assert "probability 0 to 60 of 60 test rows" in found["gmm"]["reason"]
    assert found["gaussian"]["status"] == "ok"
    assert found["gaussian"]["reason"] is None


def test_a_mistake_of_the_users_is_a_reason_without_a_trace():
    result = compare(normals(), [], fit=doubles(kde=TrainingError("the loss is not finite at step 3")))["kde"]
    assert result.failed
    assert result.reason == "the loss is not finite at step 3"
    assert not result.trace


def test_samples_that_are_not_finite_are_a_reason():
    result = compare(normals(), [], fit=doubles(kde={"shift": math.nan}))["kde"]
    assert result.failed


def test_baselines_are_always_there_and_chosen_options_arrive():
    fit = doubles()
    comparison = compare(normals(), {"vae": {"max_epochs": 3}}, fit=fit, budget=7.0)
    assert {r.family for r in comparison} == {*BASELINES, "vae"}
    options = {family: options for family, _, _, options, _ in fit.seen}
    assert options["vae"] == {"max_epochs": 3}
    assert comparison["vae"].config["max_epochs"] == 3
    assert {budget for *_, budget in fit.seen} == {7}


def test_variants_of_a_family_stand_beside_it_under_names_that_say_how(tmp_path):
    names = ["realnvp:layers=4:dropout=0.5", "realnvp", "gmm:components=3"]
    fit = doubles(**failing("gmm", "gmm:components=3"))
    comparison = compare(normals(), names, fit=fit, save_to=tmp_path)
    found = [r.family for r in comparison.results]
    assert found.index("gmm:components=3") == found.index("gmm") + 1
    assert found[-2:] == names[:2]
    assert [comparison[name].config["layers"] for name in names[:2]] == [4, 16]
    assert comparison[names[0]].config["dropout"] == 0.5
    assert tmp_path / "realnvp-layers=4-dropout=0.5.safetensors" in set(tmp_path.iterdir())
    assert "realnvp:layers=4:dropout=0.5" in str(comparison)
    assert shlex.quote(",".join(names)) in compare("iris", names, fit=fit).setting.command


def test_every_family_sees_the_same_rows_and_never_a_test_row():
    x = normals(200, 3)
    fit = doubles()
    task = compare(x, [], fit=fit).task
    parts = [(rows.tobytes(), holdout.tobytes()) for _, rows, holdout, _, _ in fit.seen]
    assert len(set(parts)) == 1
    _, train, holdout, _, _ = fit.seen[0]
    assert len(train) + len(holdout) + len(task.test) == 200
    every = np.concatenate((train, holdout, task.test.numpy()))
    assert np.array_equal(np.unique(every, axis=0), np.unique(x, axis=0))


def test_the_split_is_the_seeds():
    first, again, other = (task_of(normals(), seed=seed).test for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_missing_cells_reach_the_families_and_tell_no_samples_apart():
    x = normals(400, 3)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    fit = doubles()

    class Marginalising(Double):
        def log_prob(self, rows):
            x = encode(rows, self.domain)
            return Answer((-0.5 * (x**2 + math.log(2 * math.pi))).nansum(1).numpy(), Kind.EXACT)

    def with_holes(rows, family, **arguments):
        fit(rows, family, **arguments)
        return Marginalising(arguments["schema"])

    comparison = compare(x, [], fit=with_holes)
    assert comparison.task.missing == pytest.approx(0.2, abs=0.05)
    assert np.isnan(fit.seen[0][1]).any()
    result = comparison["gaussian"]
    assert not result.failed
    assert result.sampling.mmd.p_value > 1e-2
    assert "of the cells missing" in str(comparison)


def test_models_are_saved_where_asked(tmp_path):
    compare(normals(), [], fit=doubles(kde=RuntimeError("no")), save_to=tmp_path / "models")
    assert {p.stem for p in (tmp_path / "models").iterdir()} == set(BASELINES) - {"kde"}


def test_a_code_is_measured_by_labels_where_there_are_labels():
    comparison = compare("digits", [], fit=doubles(gaussian={"width": 30}, **failing("gaussian", "kde")))
    code = comparison["gaussian"].code
    assert code.width == 30
    assert 0.3 < float(code.accuracy) <= 1
    assert code.plane.shape == (447, 2)
    assert comparison["kde"].code is None


# -- ranking ---------------------------------------------------------------------------------------


def test_the_gap_is_paired():
    comparison = compare(normals(), [], fit=doubles(kde={"penalty": 0.25}))
    gap = behind(comparison["kde"], comparison["gaussian"])
    assert float(gap) == pytest.approx(0.25)
    assert float(gap.error) == pytest.approx(0, abs=1e-12)


def test_a_bound_that_loses_is_not_ruled_out_and_one_that_wins_has_won():
    losing = compare(normals(), [], fit=doubles(gmm={"kind": Kind.BOUND, "penalty": 0.5}))
    assert losing.wins[0].family != "gmm"
    assert "gmm reports a bound" in losing.wins[0].caveat
    assert any("≤ marks a bound (gmm)" in remark for remark in remarks(losing))
    winning = compare(normals(), [], fit=doubles(gmm={"kind": Kind.BOUND, "penalty": -0.5}))
    assert winning.wins[0].family == "gmm"
    assert not winning.wins[0].caveat
    assert not winning.wins[0].level
    assert "≤ " in str(winning)


def test_families_within_the_error_are_level():
    comparison = compare(normals(), [], fit=doubles(kde={"shift": 1.0}))
    assert set(comparison.wins[0].level) == set(BASELINES) - {"kde", comparison.wins[0].family}


def test_the_failed_come_last_and_the_infinite_before_them():
    comparison = compare(normals(), [], fit=doubles(gaussian=RuntimeError("x"), gmm={"penalty": math.inf}))
    assert [r.family for r in comparison.ranked][-2:] == ["gmm", "gaussian"]
    assert comparison.best.family not in {"gmm", "gaussian"}
    assert "∞" in str(comparison)
    assert "gaussian failed: RuntimeError: x" in str(comparison)


def test_nothing_learned_is_still_a_table():
    comparison = compare(normals(), [], fit=doubles(**failing()))
    assert comparison.best is None
    assert comparison.wins == []
    assert "failed" in str(comparison)


# -- hidden cells ----------------------------------------------------------------------------------


def test_answers_of_a_known_density_have_their_numbers():
    answering = compare(normals(4000, 3), [], fit=doubles(**failing("gaussian")))["gaussian"].answering
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert abs(answering.nats - entropy) < 4.9 * float(answering.score.error)
    assert answering.kind is Kind.EXACT
    assert abs(float(answering.numbers) - 1) < 4.9 * float(answering.numbers.error) + 0.05  # in deviations of 2900 training rows
    assert abs(float(answering.calibration.coverage()) - 0.9) < 4.9 * float(answering.calibration.coverage().error)
    assert answering.levels is None
    assert set(answering.questions) == {"scored", "filled", "drawn"}


def test_every_family_is_asked_the_same_cells_which_the_seed_decides():
    comparison = compare(normals(300, 3), [], fit=doubles())
    hidden = comparison.task.hidden
    for r in comparison:
        assert torch.equal(r.answering.scored.nats.row, hidden.row)
        assert torch.equal(~r.answering.calibration.rank.isnan(), hidden.mask)
    assert not torch.equal(task_of("iris", seed=1).hidden.row, task_of("iris", seed=2).hidden.row)


def test_a_family_that_refuses_the_questions_is_left_out_of_them():
    comparison = compare(normals(), [], fit=doubles(kde={"mute": True}))
    assert not comparison["kde"].failed
    assert not comparison["kde"].answering.questions
    assert [r.family for r in comparison.answering if r.family == "kde"] == []
    row = comparison["kde"].to_json()
    assert {row[key] for key in row if key.startswith("hidden_") and key != "hidden_kind"} == {None}
    assert "hidden cells" in str(comparison)
    assert "hidden cells" not in str(compare(normals(), [], fit=doubles(**{name: {"mute": True} for name in BASELINES})))


def test_the_gap_in_answers_is_paired():
    comparison = compare(normals(300, 4), [], fit=doubles(kde={"hidden": {"cell": 0.25}}))
    assert comparison.answering[-1].family == "kde"
    gap = behind_in_answers(comparison["kde"], comparison.best_answerer)
    assert float(gap) == pytest.approx(0.25)
    assert float(gap.error) == pytest.approx(0, abs=1e-12)
    win = next(w for w in comparison.wins if w.question.startswith("likelihood of hidden cells"))
    assert "kde" not in (win.family, *win.level)
    assert len(win.level) == len(BASELINES) - 2


def test_a_slow_family_is_asked_less_and_compared_on_the_rows_of_both(monkeypatch):
    monkeypatch.setattr("pofx.comparison.answering.SECONDS", 0.5)
    comparison = compare(normals(3000, 4), [], fit=doubles(kde={"hidden": {"wait": 0.01}}, **failing("gaussian", "kde")))
    quick, slow = (comparison[name].answering.filled for name in ("gaussian", "kde"))
    assert quick.rows == len(comparison.task.hidden)
    assert 0 < slow.rows <= 50  # 0.5 s at 10 ms a row
    assert slow.seconds_per_1000 >= 10
    assert f"kde (filled {slow.rows})" in " ".join(remarks(comparison))
    assert comparison["kde"].to_json()["hidden_rows_filled"] == slow.rows


def test_too_few_rows_make_no_number(monkeypatch):
    monkeypatch.setattr("pofx.comparison.answering.SECONDS", 0.0)
    answering = compare(normals(300, 4), [], fit=doubles(**failing("gaussian")))["gaussian"].answering
    assert all(0 < q.rows < LEAST for q in answering.questions.values())
    assert answering.score is answering.numbers is answering.calibration is None
    assert math.isnan(answering.nats)
    assert answering.filled.seconds_per_1000 > 0


def test_remarks_say_whose_intervals_lie_and_who_answers_better_than_it_explains():
    special = {
        "kde": {"hidden": {"spread": 0.5}},
        "gmm": {"hidden": {"spread": 3.0}},
        "independent": {"penalty": -5.0, "hidden": {"cell": 0.5}},
    }
    comparison = compare(normals(2000, 4), [], fit=doubles(**special))
    said = " ".join(remarks(comparison))
    assert re.search(r"too sure of themselves: kde \(\d\d %\); less sure than they could be: gmm \(\d+ %\)\.", said)
    assert comparison.best.family == "independent"
    assert re.search(r"gives hidden ones 0\.500 ± 0\.000 nats a cell more than independent", said)
    assert "whole rows" not in " ".join(remarks(compare(normals(), [], fit=doubles())))


def test_what_is_impossible_has_infinite_nats():
    comparison = compare(normals(300, 4), [], fit=doubles(kde={"hidden": {"cell": math.inf}}))
    assert comparison["kde"].answering.nats == math.inf
    assert comparison.answering[-1].family == "kde"
    assert "∞" in str(comparison)
    json.dumps(comparison.to_json(), allow_nan=False)


# -- the truth, and words --------------------------------------------------------------------------


def test_the_truth_of_a_toy_is_a_line_and_what_beats_it_is_called_wrong():
    honest = compare("eight_gaussians", [], fit=doubles(**failing("gmm")))
    task = honest.task
    assert float(task.truth) == pytest.approx(float(task.true_nats.mean()))
    assert "the truth" in str(honest)
    assert honest.to_json()["data"]["true_test_nats"] == pytest.approx(-float(task.truth))
    assert not any("wrong" in remark for remark in remarks(honest))
    lying = compare("eight_gaussians", [], fit=doubles(**failing("gmm"), gmm={"penalty": -100.0}))
    assert any("below the truth beyond chance" in remark for remark in remarks(lying))


def test_remarks_say_why_counting_beats_bending():
    x = np.random.default_rng(0).integers(0, 4, size=(400, 3)).astype(np.int64)
    fit = doubles(gaussian={"kind": Kind.BOUND, "penalty": 5.0}, gmm={"kind": Kind.BOUND, "penalty": 9.0}, vae={"penalty": 7.0})
    said = " ".join(remarks(compare(x, ["vae", "independent"], fit=fit)))
    assert "dequantisation" in said
    assert "counts, levels or rounded numbers" in said
    assert "A closed form (or EM) beats gradients here" in said


def test_remarks_say_who_repeats_training_rows_and_who_was_still_learning():
    x = normals(400)

    class Parrot(Double):
        def sample(self, n, *, seed):
            return self.kept[np.arange(n) % len(self.kept)]

        @property
        def record(self):
            return SimpleNamespace(history=self.history, kept=1, stopped="its budget of 5 s is spent", surrogate=False)

    def fit(rows, family, *, schema, **arguments):
        p = Parrot(schema) if family == "kde" else Double(schema)
        p.kept = rows
        return p

    comparison = compare(x, [], fit=fit, budget=5.0)
    said = " ".join(remarks(comparison))
    assert comparison["kde"].sampling.memorising.copies == 1
    assert "partly repeated from them (ratio of mean nearest distances): kde (0.00)" in said
    assert "Still learning when the budget of 5 s was spent: kde" in said


def test_the_table_fits_a_wide_terminal():
    text = str(compare(normals(), fit=doubles()))
    assert max(map(len, text.splitlines())) <= 150
    assert all(name in text for name in FOR_TABLES)


# -- how to do it again, and mistakes --------------------------------------------------------------


def test_the_command_says_what_was_asked():
    comparison = compare("iris", ["gaussian"], fit=doubles(), budget=2.5, seed=4, schema={"species": "categorical"})
    command = shlex.split(comparison.setting.command)
    assert command[:3] == ["pofx", "compare", "iris"]
    assert command[3:] == ["--families", "gaussian", "--budget", "2.5", "--kind", "species=categorical", "--seed", "4"]
    assert comparison.task.domain["species"].kind is VariableKind.CATEGORICAL


def test_what_no_shell_can_say_is_said_in_python():
    comparison = compare(pd.DataFrame(normals(), columns=["a", "b"]), {"gmm": {}}, fit=doubles())
    assert comparison.setting.command == "pofx.compare(data, {'gmm': {}}, budget=None, seed=0)"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"families": ["gausian"]}, OptionError, "did you mean 'gaussian'"),
        ({"families": "gaussian"}, OptionError, r"write \['gaussian'\]"),
        ({"families": {"gmm": {"speed": 1}}}, OptionError, "no option 'speed'"),
        ({"families": ["nsf:speed=1"]}, OptionError, "'nsf:speed=1' has no option 'speed'"),
        ({"families": ["nsf:layers"]}, OptionError, "NAME=VALUE after a colon, got 'layers'"),
        ({"families": ["nsff:layers=1"]}, OptionError, "no family 'nsff'"),
        ({"budget": 0.0}, OptionError, "budget=0.0"),
        ({"jobs": 0}, OptionError, "jobs=0"),
        ({"data": normals(30)}, DataError, "at least 10 rows to test on, got 6"),
        ({"data": "no/such/file.csv"}, ValueError, "no/such/file.csv"),
    ],
)
def test_mistakes_are_found_before_anything_is_learned(arguments, error, says):
    fit = doubles()
    with pytest.raises(error, match=says):
        compare(**{"data": normals(), "fit": fit, **arguments})
    assert not fit.seen


def test_asking_for_a_family_that_was_not_compared():
    with pytest.raises(OptionError, match="'vae'"):
        compare(normals(), [], fit=doubles())["vae"]


def test_progress_is_a_line_for_each_family(capsys):
    compare(normals(), [], fit=doubles(kde=RuntimeError("x")), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(BASELINES)
    assert sum("failed: RuntimeError: x" in line for line in lines) == 1


# -- parts -----------------------------------------------------------------------------------------


def test_peak_memory_sees_what_is_gone_again():
    with PeakMemory() as memory:
        block = np.ones(30_000_000)  # 240 MB, touched
        time.sleep(0.1)
        del block
    assert memory.megabytes > resident() + 150


def test_principal_plane_of_a_plane_is_itself_turned():
    code = torch.zeros(50, 4)
    code[:, 1], code[:, 3] = torch.randn(50), 3 * torch.randn(50)
    plane, shares = principal_plane(code)
    assert sum(shares) == pytest.approx(1)
    assert np.allclose(np.abs(plane[:, 0]).mean(), float((code[:, 3] - code[:, 3].mean()).abs().mean()), rtol=0.1)
    assert np.allclose(np.linalg.norm(plane, axis=1), (code - code.mean(0)).norm(dim=1))
    assert principal_plane(code[:, :1]) == (None, None)


def test_the_surface_integrates_to_the_mass_in_its_window():
    x = normals(3000)
    comparison = compare(x, [], fit=doubles(**failing("gaussian")))
    rows = torch.cat((comparison.task.train, comparison.task.test))
    (left, right), (bottom, top) = window(rows)
    cell = (right - left) * (top - bottom) / (POINTS - 1) ** 2
    assert np.exp(comparison["gaussian"].surface).sum() * cell == pytest.approx(1, abs=0.01)
    points = grid(rows)
    assert points[1, 0] > points[0, 0]  # the first variable moves fastest
    assert points[1, 1] == points[0, 1]


# -- real families ---------------------------------------------------------------------------------


def only_real(*names):
    from pofx.ask import fit

    def some(rows, family, **arguments):
        if family not in names:
            raise RuntimeError("not in this test")
        return fit(rows, family, **arguments)

    return some


def test_a_real_gaussian_nears_the_entropy_of_a_normal():
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    x = np.random.default_rng(0).multivariate_normal([5, -2], covariance, size=3000)
    comparison = compare(x, [], fit=only_real("gaussian"))
    entropy = 0.5 * math.log((2 * math.pi * math.e) ** 2 * np.linalg.det(covariance))
    result = comparison["gaussian"]
    assert abs(result.nats - entropy) < 4.9 * float(result.likelihood.score.error) + 0.01
    assert result.learning.stopped
    assert comparison.best is result


def test_a_real_mixed_table_with_holes():
    comparison = compare("penguins", [], fit=only_real("gaussian", "histogram"))
    assert not comparison["gaussian"].failed
    assert comparison["gaussian"].kind is Kind.BOUND
    assert not comparison["histogram"].failed


@pytest.mark.slow
def test_jobs_in_processes_give_the_same_numbers_as_one_after_another():
    x = normals(120)
    alone, together = (compare(x, [], jobs=jobs, seed=1) for jobs in (1, 2))
    found, again = ({r.family: r.nats for r in comparison if not r.failed} for comparison in (alone, together))
    assert again == pytest.approx(found, rel=1e-6)  # the other processes do not share this test's default dtype
    assert len(found) >= 4
