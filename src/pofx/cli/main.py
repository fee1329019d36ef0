"""pofx on the command line: each command a few lines over the library.

A user's mistake is one sentence on stderr and exit code 2 (`--debug` shows where it was raised).
Nothing heavy is imported before a command needs it: `pofx --help` loads no torch.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pofx.errors import OptionError, PofxError

app = typer.Typer(
    name="pofx",
    help="Learn p(x), ask it anything.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

if TYPE_CHECKING:
    from pofx.ask import PofX

Data = Annotated[str, typer.Argument(help="a file (CSV, Parquet, NPZ, NPY), a folder of images, or a built-in set: pofx data")]
ModelFile = Annotated[Path, typer.Argument(help="a file that pofx fit wrote")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="file to write (CSV, Parquet, NPY); printed as CSV otherwise")]
Seed = Annotated[int, typer.Option(help="of every random number")]
Kinds = Annotated[list[str] | None, typer.Option("--kind", help="correct the inferred kind of a column: age=count")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="an option of the family: components=5")]
Where = Annotated[list[str] | None, typer.Option("--where", help="evidence: species=setosa")]
Budget = Annotated[float | None, typer.Option(help="seconds after which learning keeps the best so far")]
FAMILY = "gmm"  # what learns where none is named
LearnedModel = Annotated[Path | None, typer.Option("--model", "-m", help="instead, a file that pofx fit wrote")]
Given = Annotated[str | None, typer.Option(help="columns to condition on, separated by commas")]


@app.callback()
def everywhere(*, debug: Annotated[bool, typer.Option(help="show the traceback of a mistake")] = False) -> None:
    """Learn p(x), ask it anything."""


@app.command()
def compare(
    data: Data,
    families: Annotated[
        str | None, typer.Option(help="names separated by commas, with options: nsf,nsf:layers=2; every family when left out")
    ] = None,
    budget: Budget = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for results.json and the report")] = Path("pofx-report"),
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(help="families learned at the same time")] = 1,
    kind: Kinds = None,
) -> None:
    """Learn every family on your data; the measured table, and one page with pictures."""
    from pofx.comparison import compare as run
    from pofx.report import write

    comparison = run(
        data, _names(families), budget=budget, seed=seed, jobs=jobs, schema=_kinds(kind), progress=True, save_to=out / "models"
    )
    page = write(comparison, out)
    typer.echo(str(comparison))
    typer.echo(f"\nThe page with pictures: {page}")


@app.command()
def fit(
    data: Data,
    family: Annotated[str, typer.Option("--family", "-f", help="one of: pofx families")] = FAMILY,
    out: Annotated[Path, typer.Option("--out", "-o", help="the model file to write")] = Path("model.safetensors"),
    given: Given = None,
    holdout: Annotated[str | None, typer.Option(help="file of held-out rows; a tenth of the data when left out")] = None,
    weights: Annotated[str | None, typer.Option(help="the column that says how often each row counts; no column of x")] = None,
    setting: Settings = None,
    kind: Kinds = None,
    seed: Seed = 0,
    budget: Budget = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "auto",
    checkpoint: Annotated[Path | None, typer.Option(help="file to write to while learning and to go on from")] = None,
) -> None:
    """Learn one family from data and save it."""
    from pofx.ask import fit as learn

    p = learn(
        data,
        family,
        given=_names(given),
        holdout=holdout,
        weights=weights,
        schema=_kinds(kind),
        seed=seed,
        budget=budget,
        device=device,
        checkpoint=checkpoint,
        **_settings(setting),
    )
    p.save(out)
    typer.echo(f"{p}\n{p.record.summary()}\nSaved to {out}")


@app.command()
def search(
    data: Data,
    family: Annotated[str, typer.Option("--family", "-f", help="one of: pofx families")] = FAMILY,
    out: Annotated[Path, typer.Option("--out", "-o", help="the model file to write")] = Path("model.safetensors"),
    trials: Annotated[int, typer.Option(help="configurations to try")] = 20,
    timeout: Annotated[float | None, typer.Option(help="seconds after which no new one is tried")] = None,
    seed: Seed = 0,
    budget: Budget = None,
) -> None:
    """Choose a family's options by held-out likelihood; save the best."""
    from pofx.ask import search as run

    found = run(family, data, trials=trials, timeout=timeout, seed=seed, budget=budget)
    found.best.save(out)
    typer.echo(f"{found}\nSaved to {out}")


@app.command()
def approximate(
    density: Annotated[str, typer.Argument(help="FILE.py:FUNCTION, which is run: from rows (N, D) in float64 to log p + constant, (N,)")],
    dim: Annotated[int | None, typer.Option(help="how many real variables there are")] = None,
    variable: Annotated[list[str] | None, typer.Option(help="instead, each of them: mu=real, tau=positive, rho=0:1")] = None,
    family: Annotated[str, typer.Option("--family", "-f", help="a flow, one of: pofx families")] = "iaf",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write q to, as pofx fit writes models")] = None,
    samples: Annotated[Path | None, typer.Option(help="file to write 4000 resampled rows to (CSV, Parquet, NPY)")] = None,
    start: Annotated[str | None, typer.Option(help="a file of rows, or a model file of this command, to begin from")] = None,
    objective: Annotated[str, typer.Option(help="reverse, reverse-score or forward")] = "reverse",
    steps: Annotated[int, typer.Option(help="of the optimiser")] = 3500,
    setting: Settings = None,
    seed: Seed = 0,
    budget: Budget = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "auto",
) -> None:
    """Fit a flow to a density of your own, known up to its constant; its moments, corrected by importance weights."""
    from pofx.ask import open as opened
    from pofx.ask.approximating import approximate as run
    from pofx.cli.approximate import density as function
    from pofx.cli.approximate import space
    from pofx.cli.rows import check_ending

    check_ending(samples)
    answer = run(
        function(density),
        space(dim, variable),
        family,
        steps=steps,
        objective=objective,
        start=opened(start) if start and start.endswith(".safetensors") else start,
        seed=seed,
        budget=budget,
        device=device,
        **_settings(setting),
    )
    typer.echo(str(answer))
    if out is not None:
        answer.save(out)
        typer.echo(f"Saved to {out}", err=True)
    if samples is not None:
        _write(answer.sample(4000), samples)


@app.command()
def sample(
    model: ModelFile,
    n: Annotated[int, typer.Option("--number", "-n", help="rows to draw (for each row of a --given file)")] = 10,
    where: Where = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="a column's value, which the rows then show: age=30; or a file with the rows to condition on, for a p(x | c)"),
    ] = None,
    setting: Settings = None,
    out: Out = None,
    seed: Seed = 0,
) -> None:
    """Draw rows, from p or from p given evidence (--given shows the evidence in its column, --where leaves it out)."""
    from pofx.cli.rows import sample_given

    p = _asked(model, setting)
    if where:
        p = _given(p, where)
    if given and all("=" in item for item in given):
        _write(sample_given(p, _words(given), n, seed), out)
        return
    if given and len(given) > 1:
        raise OptionError(f"--given is one file, or values NAME=VALUE, got {', '.join(given)}")
    _write(p.sample(n, given=given[0] if given else None, seed=seed), out)


@app.command()
def score(
    model: ModelFile,
    data: Data,
    rows: Annotated[bool, typer.Option("--rows", help="print log p of every row")] = False,
    where: Where = None,
    accuracy: Annotated[
        float | None, typer.Option(help="nats of standard error to bring each row to, where log p is known by draws")
    ] = None,
    setting: Settings = None,
) -> None:
    """The mean log p of rows, in nats, with its standard error and its kind."""
    p = _asked(model, setting)
    if where:
        p = _given(p, where)
    if rows:
        for value in p.log_prob(data, accuracy=accuracy).value:
            typer.echo(f"{value:.6f}")
    else:
        answer = p.score(data, accuracy=accuracy)
        typer.echo(f"{answer.value:.4f} ± {answer.error:.4f} nats a row ({answer.kind}{': ' + answer.how if answer.how else ''})")


@app.command()
def impute(
    data: Data,
    out: Out = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family", "-f", help="learns from the data; the likeliest of several, separated by commas, or of four when left out"
        ),
    ] = None,
    model: LearnedModel = None,
    draws: Annotated[
        int | None, typer.Option("--draws", "--number", "-n", min=1, help="instead of means, so many joint draws, a file each: NAME-1, ...")
    ] = None,
    setting: Settings = None,
    kind: Kinds = None,
    seed: Seed = 0,
    budget: Budget = None,
) -> None:
    """Fill missing cells: conditional means and most probable levels, or joint draws; types, order and labels stay.

    Without a model or a family, gaussian, latent_class, gmm and vae learn from the rows with holes, and held-out likelihood chooses.
    """
    from pofx.ask import open as opened
    from pofx.cli.rows import check_ending, filled_in, learned_to_fill, read_typed, write_labelled

    if draws and out is None:
        raise OptionError("draws need a file each: give --out NAME.csv, written as NAME-1.csv, NAME-2.csv, ...")
    check_ending(out)
    _check_either(model, family, setting, kind, budget)
    rows = read_typed(data)
    fill: Callable[..., Any]
    if model:
        p = opened(model)
        fill = p.impute
    else:
        choice = learned_to_fill(rows, _names(family), _settings(setting), _kinds(kind), seed=seed, budget=budget)
        p, fill = choice.p, choice.fill
    if out is None:
        _write(filled_in(rows, fill(rows, seed=seed)), None)
        return
    for k in range(draws or 1):  # one at a time: memory for one table, however many files
        place = out.with_name(f"{out.name.partition('.')[0]}-{k + 1}{''.join(out.suffixes)}") if draws else out
        filled = p.impute(rows, 1, seed=seed + k)[0] if draws else fill(rows, seed=seed)
        write_labelled(filled_in(rows, filled), place)
        typer.echo(f"Wrote {place}", err=True)


@app.command()
def cluster(model: ModelFile, data: Data, out: Out = None, seed: Seed = 0) -> None:
    """Which component of a learned mixture each row is from, and how probably: gmm, latent_class, or a vae with prior=mixture."""
    from pofx.ask import open as opened
    from pofx.cli.rows import check_ending, clustered

    check_ending(out)
    _write(clustered(opened(model).cluster(data, seed=seed)), out)


@app.command()
def diagnose(
    model: ModelFile,
    data: Data,
    plot: Annotated[
        Path | None,
        typer.Option(help="file for the picture: codes beside the prior, or costs along the noise (SVG, PNG, HTML)"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """What the latents of a vae carry for the rows of a file, or what each noise level of a diffusion model costs; and what is wrong."""
    from pofx.ask import open as opened
    from pofx.report.diagnoses import check_picture, write_picture

    check_picture(plot)
    p = opened(model)
    found = p.diagnose(data, seed=seed)
    typer.echo(str(found))
    if plot is not None:
        write_picture(found, plot, p.domain)
        typer.echo(f"Wrote {plot}", err=True)


@app.command()
def classify(
    model: ModelFile,
    data: Data,
    column: Annotated[str | None, typer.Option(help="a column of levels, or a condition; the only one there is when left out")] = None,
    out: Out = None,
) -> None:
    """The most probable level of a column in each row, given the row's other cells, and the probability of every level."""
    from pofx.ask import open as opened
    from pofx.cli.rows import check_ending, classified

    check_ending(out)
    _write(classified(opened(model), data, column), out)


@app.command()
def ask(
    model: ModelFile,
    event: Annotated[list[str], typer.Argument(help='what holds: "income > 50000", sex=F, "10 <= age < 20"; all of several')],
    given: Annotated[list[str] | None, typer.Option(help="what is known, in the same words")] = None,
    n: Annotated[int, typer.Option("--number", "-n", min=1, help="draws, where the answer is an estimate")] = 10_000,
    seed: Seed = 0,
) -> None:
    """P(event), or P(event | given), with its standard error."""
    from pofx.ask import open as opened
    from pofx.ask.evidence import conditions

    p = opened(model)
    if given:
        p = p.conditional(conditions(p.domain, given), draws=n, seed=seed)
    answer = p.probability(conditions(p.domain, event), n, seed=seed)
    error = "" if answer.error is None else f" ± {float(answer.error):.2g}"
    how = "; ".join(filter(None, (answer.how, p.approximation)))
    typer.echo(f"{float(answer):.6g}{error} ({answer.kind}{': ' + how if how else ''})")


@app.command()
def acquire(
    model: ModelFile,
    rows: Annotated[str, typer.Argument(help="a file with the rows as far as they are known: empty cells, or columns left out")],
    target: Annotated[str, typer.Option(help="columns to learn about, separated by commas")],
    budget: Annotated[int, typer.Option(help="how many columns to measure: above 1, a set")] = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file for the table (CSV, Parquet)")] = None,
    seed: Seed = 0,
) -> None:
    """What to measure next: how many nats each unknown column of each row is expected to tell about the target."""
    from pofx.ask import open as opened
    from pofx.cli.acquire import of_rows, table, told
    from pofx.cli.rows import check_ending

    check_ending(out, (".csv", ".csv.gz", ".tsv", ".parquet"))
    answers = of_rows(opened(model), rows, _names(target) or [], budget, seed)
    typer.echo(told(answers))
    if out is not None:
        _write(table(answers), out)


@app.command()
def outliers(
    data: Data,
    family: Annotated[str | None, typer.Option("--family", "-f", help="learns from the data, one of: pofx families  [gaussian]")] = None,
    model: LearnedModel = None,
    reference: Annotated[str | None, typer.Option(help="file of ordinary rows that were not learned from; else draws of p")] = None,
    n: Annotated[int, typer.Option("--n", "--number", "-n", min=0, help="rows to show, the most surprising first")] = 10,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file for the numbers of every row (CSV, Parquet)")] = None,
    folds: Annotated[int, typer.Option(help="parts of the data, each judged by what is learned from the others")] = 5,
    trim: Annotated[float, typer.Option(help="share of the rows, the most surprising, that learning leaves out")] = 0.25,
    cells: Annotated[bool, typer.Option(help="also judge each cell: D + 1 times the work")] = True,
    setting: Settings = None,
    kind: Kinds = None,
    seed: Seed = 0,
    budget: Budget = None,
) -> None:
    """The most surprising rows, and the cell most to blame in each."""
    from pofx.ask.outlying import FAMILY as PLAIN
    from pofx.ask.outlying import outliers as within
    from pofx.cli.outliers import scores, told, under
    from pofx.cli.rows import check_ending

    check_ending(out, (".csv", ".csv.gz", ".tsv", ".parquet"))
    _check_either(model, family, setting, kind, budget)
    if model:
        result = under(model, data, reference, cells=cells, seed=seed)
    else:
        result = within(
            data,
            family or PLAIN,
            trim=trim,
            folds=folds,
            reference=reference,
            schema=_kinds(kind),
            cells=cells,
            seed=seed,
            budget=budget,
            **_settings(setting),
        )
    typer.echo(told(result, n))
    if out is not None:
        _write(scores(result), out)


@app.command()
def info(
    file: Annotated[Path | None, typer.Argument(help="a model file; without one: versions and devices")] = None,
) -> None:
    """What a model file holds, without building it; or what is installed here."""
    from pofx.cli.info import of_file, of_machine

    typer.echo(of_machine() if file is None else of_file(file))


@app.command()
def families(
    name: Annotated[str | None, typer.Argument(help="a family: its options")] = None,
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="as the README has it")] = False,
    proof: Annotated[bool, typer.Option("--proof", help="what each answer is held against in the tests, in Markdown")] = False,
) -> None:
    """The table family × question with the kind of each answer; or one family's options."""
    from pofx.cli.families import options, proofs, table

    typer.echo(options(name) if name else proofs() if proof else table(markdown=markdown))


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="a set or file: its domain; without one: the built-in sets")] = None,
    kind: Kinds = None,
) -> None:
    """The built-in sets; or the domain inferred from a file, with the reason for each kind."""
    from pofx.cli.sets import describe, listing

    typer.echo(listing() if name is None else describe(name, _kinds(kind)))


@app.command()
def cite(names: Annotated[list[str] | None, typer.Argument(help="families; all when left out")] = None) -> None:
    """The BibTeX of what a family is built on."""
    from pofx.models.registry import families as known
    from pofx.models.registry import family

    entries = [entry for name in (names or known()) for entry in family(name).config.cites]
    typer.echo("\n\n".join(dict.fromkeys(entries)))


def main() -> None:
    """The entry point: a mistake is one sentence and exit code 2, an interrupt 130."""
    debug = "--debug" in sys.argv
    try:
        app()
    except PofxError as error:
        if debug:
            raise
        typer.echo(f"pofx: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("pofx: interrupted", err=True)
        sys.exit(130)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def _check_either(model: Path | None, *learning: object) -> None:
    if model and any(option is not None for option in learning):
        raise OptionError("--model is learned already: leave out --family, --set, --kind and --budget, or --model")


def _words(items: list[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (item.partition("=") for item in items)]


def _pairs(items: list[str] | None, flag: str) -> dict[str, str]:
    for item in items or []:
        if "=" not in item:
            raise OptionError(f"{flag} is NAME=VALUE, got {item!r}")
    return dict(item.split("=", 1) for item in items or [])


def _settings(items: list[str] | None) -> dict[str, Any]:
    from pofx.models.registry import plain

    return {name: plain(value) for name, value in _pairs(items, "--set").items()}


def _kinds(items: list[str] | None) -> dict[str, Any] | None:
    return _pairs(items, "--kind") or None


def _asked(model: Path, settings: list[str] | None) -> "PofX":
    """The p of a file, asked as the options say."""
    from pofx.ask import open as opened

    p = opened(model)
    return p.using(**_settings(settings)) if settings else p


def _given(p: "PofX", items: list[str]) -> "PofX":
    """p of the other columns, evidence read by each column's kind."""
    from pofx.ask.evidence import parse

    _pairs(items, "--where")
    return p.conditional(parse(p.domain, _words(items)))


def _write(table: Any, out: Path | None) -> None:  # noqa: ANN401
    from pofx.data import as_csv, write

    if out is None:
        typer.echo(as_csv(table), nl=False)
    else:
        write(table, out)
        typer.echo(f"Wrote {out}", err=True)


if __name__ == "__main__":
    main()
