"""The command line: each verb works on a file, and a mistake is one sentence and exit code 2."""

import contextlib
import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import pofx
from pofx.cli.main import main


def pofx_(*arguments, code=0):
    """Run the command in this process; its standard output, or its standard error when it is to fail."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["pofx", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert (stopped.value.code or 0) == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table, the same with missing cells, and a model learned from it by the command."""
    path = tmp_path_factory.mktemp("cli")
    table = pofx.load("penguins").train
    table.to_csv(path / "table.csv", index=False)
    table.drop(columns="island").assign(island=pd.NA).to_csv(path / "holes.csv", index=False)
    pofx_("fit", path / "table.csv", "-f", "latent_class", "--set", "components=3", "-o", path / "model.safetensors")
    return path


VERBS = (
    "compare",
    "fit",
    "search",
    "approximate",
    "sample",
    "score",
    "impute",
    "cluster",
    "diagnose",
    "acquire",
    "outliers",
    "info",
    "families",
    "data",
    "cite",
)


def test_help_names_every_verb():
    text = pofx_("--help")
    for verb in VERBS:
        assert verb in text


def test_sample_gives_the_columns_back(folder):
    pofx_("sample", folder / "model.safetensors", "-n", 7, "-o", folder / "drawn.csv")
    drawn = pd.read_csv(folder / "drawn.csv")
    assert list(drawn.columns) == list(pd.read_csv(folder / "table.csv").columns)
    assert len(drawn) == 7


def test_sample_prints_csv_and_takes_evidence(folder):
    lines = pofx_("sample", folder / "model.safetensors", "-n", 3, "--where", "species=Gentoo").splitlines()
    assert len(lines) == 4
    assert "species" not in lines[0]


def test_a_file_is_asked_in_another_way(folder):
    """--set changes how a question is answered, not what was learned."""
    path = folder / "diffusion.safetensors"
    settings = [word for option in ("width=16", "blocks=1", "max_epochs=1") for word in ("--set", option)]
    pofx_("fit", "moons", "-f", "diffusion", *settings, "-o", path)
    pd.DataFrame(pofx.load("moons").test[:20], columns=["x0", "x1"]).to_csv(folder / "moons.csv", index=False)
    assert "(estimate" in pofx_("score", path, folder / "moons.csv", "--set", "likelihood=ode", "--set", "ode_steps=8")
    assert len(pofx_("sample", path, "-n", 3, "--set", "solver=heun", "--set", "steps=4").splitlines()) == 4
    assert "steps" in pofx_("sample", path, "--set", "steps=0", code=2)
    assert "decides what is learned" in pofx_("sample", path, "--set", "width=32", code=2)


def test_score_is_the_librarys(folder):
    printed = pofx_("score", folder / "model.safetensors", folder / "table.csv")
    score = pofx.open(folder / "model.safetensors").score(folder / "table.csv")
    assert printed.startswith(f"{score.value:.4f} ± {score.error:.4f} nats a row ({score.kind}")
    assert len(pofx_("score", folder / "model.safetensors", folder / "table.csv", "--rows").splitlines()) == len(
        pd.read_csv(folder / "table.csv")
    )


def test_given_values_stand_in_their_columns(folder):
    """The columns of the table in its order, the given values in theirs, and the draws of the library's conditional in the others."""
    given = ("--given", "year=2008", "--given", "species=Gentoo")
    pofx_("sample", folder / "model.safetensors", "-n", 20, *given, "--seed", 4, "-o", folder / "given.csv")
    drawn, table = pd.read_csv(folder / "given.csv"), pd.read_csv(folder / "table.csv")
    assert list(drawn.columns) == list(table.columns)
    assert (drawn["species"] == "Gentoo").all()
    assert (drawn["year"] == 2008).all()
    assert drawn["year"].dtype == table["year"].dtype
    expected = pofx.open(folder / "model.safetensors").conditional(species="Gentoo", year=2008).sample(20, seed=4)
    expected.to_csv(folder / "expected.csv", index=False)
    pd.testing.assert_frame_equal(drawn.drop(columns=["species", "year"]), pd.read_csv(folder / "expected.csv"))


def test_given_values_of_a_conditional_model_are_its_condition(folder):
    frame = pd.DataFrame({"dose": np.linspace(0.0, 1.0, 100), "response": np.linspace(0.0, 3.0, 100) ** 2})
    frame.to_csv(folder / "dose.csv", index=False)
    pofx_("fit", folder / "dose.csv", "-f", "vae", "--given", "dose", "--set", "max_epochs=1", "-o", folder / "dose.safetensors")
    pd.DataFrame({"dose": [0.5]}).to_csv(folder / "one.csv", index=False)
    printed = pofx_("sample", folder / "dose.safetensors", "-n", 3, "--given", "dose=0.5")
    assert printed == pofx_("sample", folder / "dose.safetensors", "-n", 3, "--given", folder / "one.csv")


def test_impute_fills_every_cell_and_nothing_else(folder):
    pofx_("impute", folder / "holes.csv", "--model", folder / "model.safetensors", "-o", folder / "full.csv")
    full, holes = pd.read_csv(folder / "full.csv"), pd.read_csv(folder / "holes.csv")
    assert not full.isna().any().any()
    assert set(full["island"]) <= {"Biscoe", "Dream", "Torgersen"}
    assert list(full.columns) == list(holes.columns)
    seen = holes.notna()
    assert all((full[name][seen[name]] == holes[name][seen[name]]).all() for name in holes)
    pofx_("impute", folder / "holes.csv", "-m", folder / "model.safetensors", "--draws", 2, "-o", folder / "draw.csv")
    draws = [pd.read_csv(folder / f"draw-{k}.csv") for k in (1, 2)]
    assert not draws[1].isna().any().any()
    assert not draws[0].equals(draws[1])


def test_cluster_is_the_librarys(folder):
    pofx_("cluster", folder / "model.safetensors", folder / "holes.csv", "-o", folder / "clusters.csv")
    found, p = pd.read_csv(folder / "clusters.csv"), pofx.open(folder / "model.safetensors").cluster(folder / "holes.csv")
    assert (found["cluster"] == np.argmax(p, 1)).all()
    np.testing.assert_allclose(found["probability"], np.max(p, 1))
    assert np.asarray(p).shape == (len(found), 3)


def test_impute_leaves_alone_what_the_model_does_not_know(folder):
    pd.read_csv(folder / "holes.csv").assign(note="seen twice").to_csv(folder / "noted.csv", index=False)
    pofx_("impute", folder / "noted.csv", "-m", folder / "model.safetensors", "-o", folder / "noted-full.csv")
    assert (pd.read_csv(folder / "noted-full.csv")["note"] == "seen twice").all()


def test_impute_learns_and_keeps_types_order_and_labels(folder):
    r = np.random.RandomState(0)
    size = r.randint(0, 30, 120)
    frame = pd.DataFrame({"size": size, "kind": np.where(size > 14, "big", "small"), "mass": np.round(size * 2.5 + r.rand(120), 3)})
    holes = frame.copy().astype({"size": "Int64"})
    for d, name in enumerate(frame.columns):
        holes.loc[d::9, name] = None
    holes.to_csv(folder / "typed.csv", index=False)
    pofx_("impute", folder / "typed.csv", "--family", "gaussian", "-o", folder / "typed-full.csv")
    full = pd.read_csv(folder / "typed-full.csv")
    assert (full.dtypes == frame.dtypes).all()
    seen = holes.notna()
    assert all((full[name][seen[name]] == frame[name][seen[name]]).all() for name in frame)
    assert set(full["kind"]) == {"big", "small"}
    assert "." not in (folder / "typed-full.csv").read_text().splitlines()[1].split(",")[0]
    labelled = holes.set_index(pd.Index([f"row {i}" for i in range(120)], name="id")).astype({"kind": "category"})
    labelled.to_parquet(folder / "typed.parquet")
    pofx_("impute", folder / "typed.parquet", "-f", "gaussian", "-o", folder / "typed-full.parquet")
    back = pd.read_parquet(folder / "typed-full.parquet")
    assert back.index.equals(labelled.index)
    assert (back.dtypes == labelled.dtypes).all()
    assert not back.isna().any().any()


def test_outliers_of_a_file_are_found_by_cross_fitting(folder):
    r = np.random.RandomState(0)
    a = r.randn(200)
    frame = pd.DataFrame({"a": a, "b": a + 0.1 * r.randn(200), "c": r.randn(200)})
    frame.loc[17, "b"] += 9.0
    frame.loc[30:40, "c"] = np.nan
    frame.to_csv(folder / "odd.csv", index=False)
    text = pofx_("outliers", folder / "odd.csv", "-f", "gaussian", "--n", 2, "-o", folder / "scores.csv")
    first = text.splitlines()[1].split()
    assert first[0] == "17"
    assert {"b", "a"} & set(first)
    assert "each of 5 parts under the p learned from the others" in text
    scores = pd.read_csv(folder / "scores.csv")
    assert scores["row"].tolist() == list(range(200))
    assert scores["p_value"].idxmin() == 17
    assert scores.loc[30:40, "p_value of c"].isna().all()
    again = pofx_("outliers", folder / "odd.csv", "-f", "gaussian", "--n", 2, "-o", folder / "scores.parquet")
    assert again == text
    assert text.startswith(pofx_("outliers", folder / "odd.csv", "--n", 2).splitlines()[0])
    assert "less the 40% of them" in pofx_("outliers", folder / "odd.csv", "--trim", 0.4, "--no-cells")
    np.testing.assert_allclose(scores["p_value"], pofx.outliers(str(folder / "odd.csv")).p_value)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "scores.parquet")[scores.columns[:5]], scores[scores.columns[:5]])


def test_outliers_under_a_model_are_the_librarys(folder):
    files = folder / "table.csv", "--model", folder / "model.safetensors"
    pofx_("outliers", *files, "--reference", folder / "table.csv", "--no-cells", "-o", folder / "scores.csv")
    p, table = pofx.open(folder / "model.safetensors"), pd.read_csv(folder / "table.csv")
    expected = p.outliers(table, table, cells=False)
    np.testing.assert_allclose(pd.read_csv(folder / "scores.csv")["p_value"], expected.p_value)
    assert len(pofx_("outliers", *files, "--no-cells", "--n", 3).split("\n\n")[0].splitlines()) == 4


def test_info_families_data_and_cite(folder):
    text = pofx_("info", folder / "model.safetensors")
    assert "latent_class" in text
    assert "species" in text
    assert "torch" in pofx_("info")
    assert "conditional" in pofx_("families")
    assert "components" in pofx_("families", "gmm")
    assert "digits" in pofx_("data")
    assert "categorical" in pofx_("data", folder / "table.csv")
    assert "@" in pofx_("cite", "realnvp")


def test_compare_writes_everything(folder):
    out = folder / "report"
    text = pofx_("compare", "iris", "--families", "independent,gaussian", "-o", out)
    assert "gaussian" in text
    assert {f.name for f in out.iterdir()} >= {"results.json", "report.html", "report.md"}


def test_kinds_can_be_corrected(folder):
    assert "as you said" in pofx_(
        "data", folder / "table.csv", "--kind", "year=ordinal" if "year" in pofx_("data", "penguins") else "sex=categorical"
    )


BAD = {
    "no such file": (("fit", "nowhere.csv"), "nowhere.csv"),
    "no such family": (("fit", "iris", "-f", "gnm"), "did you mean 'gmm'"),
    "no such option": (("fit", "iris", "-f", "gmm", "--set", "component=3"), "did you mean 'components'"),
    "option out of range": (("fit", "iris", "-f", "gmm", "--set", "components=0"), "components"),
    "setting without value": (("fit", "iris", "--set", "components"), "NAME=VALUE"),
    "no such column given": (("fit", "iris", "--given", "colour"), "colour"),
    "no such kind": (("data", "iris", "--kind", "species=colour"), "colour"),
    "not a model": (("info", "pyproject.toml"), "no model file"),
    "no model": (("sample", "nowhere.safetensors"), "can not be read"),
    "no such family to cite": (("cite", "nobody"), "nobody"),
    "draws without a file": (("impute", "iris", "--draws", "2"), "--out NAME.csv"),
    "an ending that is not written": (("impute", "iris", "-o", "full.xlsx"), "full.xlsx"),
    "scores as an array": (("outliers", "iris", "-o", "scores.npy"), "scores.npy"),
    "a model and a family": (("outliers", "iris", "-f", "gmm", "-m", "model.safetensors"), "leave out --family"),
    "a model and a setting": (("impute", "iris", "--set", "components=2", "-m", "model.safetensors"), "leave out --family"),
    "one fold": (("outliers", "iris", "-f", "gaussian", "--folds", "1"), "number of folds"),
    "all rows trimmed": (("outliers", "iris", "-f", "gaussian", "--trim", "1"), "share of rows to leave out"),
    "a setting of no family": (("impute", "iris", "--set", "components=2"), "name it with --family"),
    "a table without holes": (("impute", "iris", "-f", "gaussian"), "nothing to fill"),
    "an unknown family to impute by": (("impute", "iris", "-f", "gnm"), "did you mean 'gmm'"),
}
GIVEN = {
    "unknown column": (("specie=Gentoo",), "did you mean 'species'"),
    "unseen level": (("species=Gento",), "did you mean 'Gentoo'"),
    "a word for a number": (("bill_depth_mm=deep",), "takes a number, got 'deep'"),
    "not a number": (("bill_depth_mm=nan",), "takes a number, got 'nan'"),
    "grouped digits": (("body_mass_g=4_000",), "takes a number, got '4_000'"),
    "no value": (("bill_depth_mm=",), "takes a number, got ''"),
    "twice": (("species=Gentoo", "species=Adelie"), "'species' is given twice, 'Gentoo' and 'Adelie'"),
    "values and a file": (("species=Gentoo", "rows.csv"), "--given is one file, or values NAME=VALUE"),
}


@pytest.mark.parametrize(("given", "fragment"), GIVEN.values(), ids=GIVEN)
def test_a_given_value_is_never_guessed(folder, given, fragment):
    items = [part for item in given for part in ("--given", item)]
    error = pofx_("sample", folder / "model.safetensors", *items, code=2)
    assert fragment in error
    assert len(error.strip().splitlines()) == 1


def test_given_needs_a_family_that_answers(folder):
    np.savetxt(folder / "plane.csv", np.random.RandomState(0).randn(60, 2), header="a,b", delimiter=",", comments="")
    pofx_("fit", folder / "plane.csv", "-f", "realnvp", "--set", "max_epochs=1", "-o", folder / "plane.safetensors")
    assert "families that answer it" in pofx_("sample", folder / "plane.safetensors", "--given", "a=0.5", code=2)


@pytest.mark.parametrize(("arguments", "fragment"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_sentence(arguments, fragment):
    error = pofx_(*arguments, code=2)
    assert fragment in error
    assert error.startswith("pofx: ")
    assert len(error.strip().splitlines()) == 1


def command(*arguments):
    """Run the command as a process of its own."""
    return subprocess.run([sys.executable, "-W", "error", "-m", "pofx.cli.main", *arguments], capture_output=True, text=True, check=False)


def test_a_process_of_its_own_exits_with_2_and_one_line():
    run = command("fit", "nowhere.csv")
    assert run.returncode == 2
    assert run.stderr.startswith("pofx: ")
    assert len(run.stderr.splitlines()) == 1


def test_debug_shows_where():
    assert "Traceback" in command("--debug", "fit", "nowhere.csv").stderr


def test_rows_of_another_table_are_refused(folder):
    np.savetxt(folder / "other.csv", np.zeros((3, 2)), header="a,b", delimiter=",", comments="")
    assert "species" in pofx_("score", folder / "model.safetensors", folder / "other.csv", code=2)


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    """A file with a density: two normals, one of them behind a logarithm."""
    file = tmp_path_factory.mktemp("density") / "target.py"
    file.write_text("def log_p(x):\n    return -0.5 * (x[:, 0] - 2).square() - 0.5 * x[:, 1].log().square() - x[:, 1].log()\n\nMANY = 3\n")
    return file


QUICK = ("--steps", 50, "--set", "layers=1", "--set", "width=8")


def test_approximate_runs_a_function_of_ones_own(density, tmp_path):
    variables = ("--variable", "m=real", "--variable", "s=positive")
    files = ("-o", tmp_path / "q.safetensors", "--samples", tmp_path / "x.csv")
    text = pofx_("approximate", f"{density}:log_p", *variables, *QUICK, *files)
    assert all(word in text for word in ("± mean", "log evidence", "k-hat", "s "))
    drawn = pd.read_csv(tmp_path / "x.csv")
    assert list(drawn.columns) == ["m", "s"]
    assert (drawn["s"] > 0).all()
    assert pofx.open(tmp_path / "q.safetensors").domain.names == ("m", "s")
    pofx_("approximate", f"{density}:log_p", *variables, *QUICK, "--start", tmp_path / "q.safetensors")


@pytest.mark.parametrize(
    ("what", "options", "sentence"),
    [
        ("{}", ("--dim", 2), "a density is FILE.py:FUNCTION"),
        ("none.py:f", ("--dim", 2), "there is no file 'none.py'"),
        ("{}:log_q", ("--dim", 2), "has no function 'log_q'; did you mean 'log_p'"),
        ("{}:MANY", ("--dim", 2), "has no function 'MANY'"),
        ("{}:log_p", (), "give --dim, for reals, or a --variable"),
        ("{}:log_p", ("--variable", "m=1:x"), "NAME=LOWER:UPPER, got 'm=1:x'"),
        ("{}:log_p", ("--dim", 2), "the log-density is nan at"),
    ],
)
def test_a_density_that_can_not_be_run_is_told(density, what, options, sentence):
    assert sentence in pofx_("approximate", what.format(density), *options, code=2)
