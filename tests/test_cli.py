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


def test_help_names_every_verb():
    text = pofx_("--help")
    for verb in ("compare", "fit", "search", "sample", "score", "impute", "info", "families", "data", "cite"):
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


def test_score_is_the_librarys(folder):
    printed = pofx_("score", folder / "model.safetensors", folder / "table.csv")
    score = pofx.open(folder / "model.safetensors").score(folder / "table.csv")
    assert printed.startswith(f"{score.value:.4f} ± {score.error:.4f} nats a row ({score.kind}")
    assert len(pofx_("score", folder / "model.safetensors", folder / "table.csv", "--rows").splitlines()) == len(
        pd.read_csv(folder / "table.csv")
    )


def test_impute_fills_every_cell(folder):
    pofx_("impute", folder / "model.safetensors", folder / "holes.csv", "-o", folder / "full.csv")
    full = pd.read_csv(folder / "full.csv")
    assert not full.isna().any().any()
    assert set(full["island"]) <= {"Biscoe", "Dream", "Torgersen"}
    pofx_("impute", folder / "model.safetensors", folder / "holes.csv", "-n", 2, "-o", folder / "draw.csv")
    assert not pd.read_csv(folder / "draw-2.csv").isna().any().any()


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
}


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
