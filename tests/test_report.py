"""The page: whole, self-contained, escaped, and drawn without touching matplotlib's globals."""

import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pofx.ask import fit as learn
from pofx.comparison import compare
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import FileError
from pofx.measure import held_out
from pofx.report import write
from pofx.report.dots import axis_of, axis_of_answers
from pofx.report.images import is_picture, sheet

QUICK = {"gaussian": {}, "histogram": {}, "vae": {"max_epochs": 7}}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def learning(*names):
    """A `fit` that learns some families; the others are failed rows."""

    def some(rows, family, **arguments):
        if family not in names:
            raise RuntimeError("left out <here> & now")
        return learn(rows, family, **arguments)

    return some


@pytest.fixture(scope="module")
def compared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pofx.comparison.answering.SECONDS", 0.5)  # the page is the same with fewer rows asked
        return comparisons()


def comparisons():
    generator = np.random.default_rng(0)
    plane = compare(generator.normal(size=(200, 2)), QUICK, fit=learning(*QUICK))
    known = -0.5 * (plane.task.test.square() + math.log(2 * math.pi)).sum(1)
    nasty = pd.DataFrame(generator.normal(size=(150, 3)), columns=["<script>alert(1)</script>", "a & b", "$c_1^2$ |"])
    nasty["kind"] = np.where(nasty.iloc[:, 0] > 0, "up", "down")
    nasty.iloc[3:9, 1] = np.nan
    return {
        "digits": compare("digits", ["gaussian"], fit=learning("gaussian", "histogram")),
        "plane": replace(plane, task=replace(plane.task, true_nats=known)),
        "table": compare(nasty, QUICK, fit=learning(*QUICK)),
    }


@pytest.fixture(scope="module")
def written(compared, tmp_path_factory):
    places = {name: tmp_path_factory.mktemp(name) / "new" / "folder" for name in compared}
    for name, comparison in compared.items():
        write(comparison, places[name])
    return places


@pytest.fixture(params=["digits", "plane", "table"])
def folder(request, written):
    return written[request.param]


@pytest.fixture
def page(folder):
    return (folder / "report.html").read_text()


class Balanced(HTMLParser):
    """Fails on an element that is closed twice, or never; gathers every attribute."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    return parser


def test_three_files_are_written(folder):
    assert {p.name for p in folder.iterdir()} == {"report.html", "report.md", "results.json"}
    assert json.loads((folder / "results.json").read_text())["families"]


def test_nothing_is_fetched(page):
    for name, value in parsed(page).attributes:
        if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
            assert value.startswith(("#", "data:image/png;base64,")), (name, value[:80])
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not re.search(r"<(script|link|iframe|object)\b", page)


def test_every_id_is_there_once_and_every_reference_is_to_one(page):
    parser = parsed(page)
    assert len(parser.ids) == len(set(parser.ids))
    wanted = {value[1:] for name, value in parser.attributes if name == "href" and value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(parser.ids)


def test_what_users_write_is_text(written):
    page = (written["table"] / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "left out &lt;here&gt; &amp; now" in page


def test_the_stand_in_colours_are_all_variables(page):
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", page)
    assert "var(--ink-soft)" in page


def test_the_sections_are_those_that_the_data_allow(written):
    found = {name: set(re.findall(r'<section id="(\w+)"', (place / "report.html").read_text())) for name, place in written.items()}
    always = {"table", "why", "answers", "data", "configured", "again", "samples", "learning", "codes"}
    assert found["digits"] == always - {"learning"}
    assert found["plane"] == always | {"densities", "latents"}
    assert found["table"] == always | {"latents"}


def test_what_the_latents_carry_is_on_the_page(compared, written):
    comparison, page = compared["table"], unescape((written["table"] / "report.html").read_text())
    latents = comparison["vae"].latents
    assert latents.sentence() in page
    assert all(warning in page for warning in latents.warnings)
    row = comparison["vae"].to_json()
    assert (row["latent_units"], row["latent_active"]) == (len(latents.levels[0].activity), latents.levels[0].active)
    assert row["latent_kl"] == pytest.approx(latents.kl)
    assert comparison["gaussian"].latents is comparison["gaussian"].to_json()["latent_kl"] is None


def test_the_page_says_what_was_measured(compared, written):
    comparison, page = compared["plane"], (written["plane"] / "report.html").read_text()
    best = comparison.best
    assert f"{best.family} explains the test rows best" in page
    assert f"{best.nats:.2f} ± {float(best.likelihood.score.error):.2f}" in page
    assert comparison.setting.command in unescape(page)
    assert "the truth" in page
    assert "@" in re.search(r"<h3>To cite</h3>\s*<pre>(.)", page).group(1)
    assert all(r.family in page for r in comparison)


def test_markdown_has_the_same_table(compared, written):
    comparison, text = compared["table"], (written["table"] / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(any(line.startswith(f"| {r.family} |") for line in lines) for r in comparison)
    assert "$c_1^2$ \\|" in text
    assert "## Which answers best" in text
    assert comparison.setting.command in text


def test_writing_again_replaces(compared, tmp_path):
    for name in ("report.html", "report.md", "results.json"):
        (tmp_path / name).write_text("old")
    write(compared["digits"], tmp_path)
    assert "on digits" in (tmp_path / "report.html").read_text()
    assert "old" not in {p.read_text() for p in tmp_path.iterdir()}


def test_a_comparison_where_all_failed_is_a_page(compared, tmp_path):
    comparison = compared["digits"]
    failed = replace(comparison, results=tuple(r for r in comparison if r.failed))
    page = write(failed, tmp_path).read_text()
    parsed(page)
    assert "No family gives every test row a probability" in page


def test_a_folder_that_can_not_be_made_is_one_sentence(compared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can not write to"):
        write(compared["table"], tmp_path / "file" / "folder")


def test_matplotlib_is_left_as_it_was(compared, tmp_path):
    before = dict(matplotlib.rcParams)
    write(compared["digits"], tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_importing_the_room_loads_no_matplotlib_and_no_jinja():
    code = "import sys, pofx.report; sys.exit(any(m in sys.modules for m in ('matplotlib', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- parts -----------------------------------------------------------------------------------------


def test_a_sheet_shows_the_pixels():
    domain = Domain.counts((2, 3), 5)
    x = np.array([[0, 1, 2, 3, 4, 4], [4, 0, 0, 0, 0, 0]], dtype=float)
    uri = sheet(x, domain, columns=2, rows=1)
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert pixels.shape == (2, 7, 4)
    assert pixels[0, :3, 0].tolist() == [0, 64, 128]
    assert pixels[1, 0, 1] == 191
    assert pixels[:, 3].sum() == 0  # the gap is transparent
    assert pixels[0, 4].tolist() == [255, 255, 255, 255]


@pytest.mark.parametrize(("shape", "shown"), [((4,), False), ((2, 2), True), ((1, 2, 2), True), ((2, 2, 1), False)])
def test_which_arrays_are_pictures(shape, shown):
    variables = tuple(Variable(f"x{d}", VariableKind.REAL) for d in range(4))
    assert is_picture(Domain(variables, shape)) is shown


def test_dots_are_in_order_on_their_axis(compared):
    comparison = compared["plane"]
    axis = axis_of(comparison)
    at = [axis.dots[r.family].at for r in comparison.ranked if r.family in axis.dots]
    assert at == sorted(at)
    assert all(0 <= dot.left <= dot.at <= dot.right <= 100 for dot in axis.dots.values())
    truth = -float(comparison.task.truth)
    assert axis.truth == pytest.approx(100 * (truth - axis.low) / (axis.high - axis.low))


def test_the_page_says_what_was_asked_and_answered(compared, written):
    comparison, page = compared["table"], (written["table"] / "report.html").read_text()
    section = page[page.index('<section id="answers">') :].partition("</section>")[0]
    assert f"{int(comparison.task.hidden.mask.sum())} hidden cells of {len(comparison.task.test)} test rows" in section
    scored = [r for r in comparison.answering if r.answering.score is not None]
    assert scored  # which of them depends on the machine
    for r in scored:
        assert f"{r.answering.nats:.3f} ± {float(r.answering.score.error):.3f}" in section
        assert (f'aria-label="calibration {r.family}"' in section) is (r.answering.calibration is not None)
    assert set(axis_of_answers(comparison).dots) == {r.family for r in scored}


def test_an_outlier_does_not_stretch_the_axis(compared):
    comparison = compared["plane"]
    worst = comparison.ranked[2]
    nats = worst.likelihood.nats - 1e6
    far = replace(worst, likelihood=replace(worst.likelihood, nats=nats, score=held_out(torch.as_tensor(nats))))
    others = tuple(r for r in comparison if r.family != worst.family)
    axis = axis_of(replace(comparison, results=(*others, far)))
    assert axis.high < 1e3
    assert axis.dots[worst.family].beyond
    assert not axis.dots[comparison.best.family].beyond
