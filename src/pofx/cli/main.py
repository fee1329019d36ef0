"""pofx on the command line: each command a few lines over the library.

A user's mistake is one sentence on stderr and exit code 2 (`--debug` shows where it was raised).
Nothing heavy is imported before a command needs it: `pofx --help` loads no torch.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

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

Data = Annotated[str, typer.Argument(help="a file (CSV, Parquet, NPZ, NPY), a folder of images, or a built-in set: pofx data")]
ModelFile = Annotated[Path, typer.Argument(help="a file that pofx fit wrote")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="file to write (CSV, Parquet, NPY); printed as CSV otherwise")]
Seed = Annotated[int, typer.Option(help="of every random number")]
Kinds = Annotated[list[str] | None, typer.Option("--kind", help="correct the inferred kind of a column: age=count")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="an option of the family: components=5")]
Where = Annotated[list[str] | None, typer.Option("--where", help="evidence: species=setosa")]
Budget = Annotated[float | None, typer.Option(help="seconds after which learning keeps the best so far")]
Given = Annotated[str | None, typer.Option(help="columns to condition on, separated by commas")]


@app.callback()
def everywhere(*, debug: Annotated[bool, typer.Option(help="show the traceback of a mistake")] = False) -> None:
    """Learn p(x), ask it anything."""


@app.command()
def compare(
    data: Data,
    families: Annotated[str | None, typer.Option(help="names separated by commas; every family when left out")] = None,
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
    family: Annotated[str, typer.Option("--family", "-f", help="one of: pofx families")] = "gmm",
    out: Annotated[Path, typer.Option("--out", "-o", help="the model file to write")] = Path("model.safetensors"),
    given: Given = None,
    holdout: Annotated[str | None, typer.Option(help="file of held-out rows; a tenth of the data when left out")] = None,
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
    family: Annotated[str, typer.Option("--family", "-f", help="one of: pofx families")] = "gmm",
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
def sample(
    model: ModelFile,
    n: Annotated[int, typer.Option("--number", "-n", help="rows to draw (for each row of --given)")] = 10,
    where: Where = None,
    given: Annotated[Path | None, typer.Option(help="file with the rows to condition on, for a p(x | c)")] = None,
    out: Out = None,
    seed: Seed = 0,
) -> None:
    """Draw rows, from p or from p given evidence."""
    from pofx.ask import open as opened

    p = opened(model)
    if where:
        p = p.conditional(_evidence(where))
    _write(p.sample(n, given=None if given is None else str(given), seed=seed), out)


@app.command()
def score(
    model: ModelFile,
    data: Data,
    rows: Annotated[bool, typer.Option("--rows", help="print log p of every row")] = False,
    where: Where = None,
) -> None:
    """The mean log p of rows, in nats, with its standard error and its kind."""
    from pofx.ask import open as opened

    p = opened(model)
    if where:
        p = p.conditional(_evidence(where))
    if rows:
        for value in p.log_prob(data).value:
            typer.echo(f"{value:.6f}")
    else:
        answer = p.score(data)
        typer.echo(f"{answer.value:.4f} ± {answer.error:.4f} nats a row ({answer.kind}{': ' + answer.how if answer.how else ''})")


@app.command()
def impute(
    model: ModelFile,
    data: Data,
    out: Out = None,
    n: Annotated[int | None, typer.Option("--number", "-n", help="instead of means, the k-th of n joint draws: see --draw")] = None,
    seed: Seed = 0,
) -> None:
    """Fill missing cells: conditional means and most probable levels, or joint draws."""
    from pofx.ask import open as opened
    from pofx.data import read

    filled = opened(model).impute(read(data), n, seed=seed)
    if n is None:
        _write(filled, out)
        return
    if out is None:
        raise OptionError("draws need a file each: give --out NAME.csv, written as NAME-1.csv, NAME-2.csv, ...")
    for k, table in enumerate(filled, start=1):
        _write(table, out.with_stem(f"{out.stem}-{k}"))


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
) -> None:
    """The table family × question with the kind of each answer; or one family's options."""
    from pofx.cli.families import options, table

    typer.echo(options(name) if name else table(markdown=markdown))


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


def _pairs(items: list[str] | None, flag: str) -> dict[str, str]:
    for item in items or []:
        if "=" not in item:
            raise OptionError(f"{flag} is NAME=VALUE, got {item!r}")
    return dict(item.split("=", 1) for item in items or [])


def _settings(items: list[str] | None) -> dict[str, Any]:
    return {name: _plain(value) for name, value in _pairs(items, "--set").items()}


def _kinds(items: list[str] | None) -> dict[str, Any] | None:
    return _pairs(items, "--kind") or None


def _evidence(items: list[str]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in _pairs(items, "--where").items()}


def _plain(text: str) -> Any:  # noqa: ANN401
    """A number, list, true, false or null where the text is one; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _write(table: Any, out: Path | None) -> None:  # noqa: ANN401
    from pofx.data import as_csv, write

    if out is None:
        typer.echo(as_csv(table), nl=False)
    else:
        write(table, out)
        typer.echo(f"Wrote {out}", err=True)


if __name__ == "__main__":
    main()
