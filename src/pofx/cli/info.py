"""What a model file holds, read from its header; and what is installed here."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pofx.ask.files import read_file
from pofx.ask.questions import QUESTIONS, kind_of
from pofx.domain import Domain
from pofx.learn import Record
from pofx.models.registry import family
from pofx.types import Kind

EXTRAS = {"pyarrow": "parquet", "optuna": "tune", "pooch": "download", "scikit-learn": "sklearn"}


def of_file(path: Path) -> str:
    """Family, columns, options, how it was learned, and the questions it answers."""
    header, tensors = read_file(path)
    model = family(header.family).config.model
    answers = [f"{q} ({kind_of(model, q)})" for q in QUESTIONS if kind_of(model, q) is not Kind.NONE]
    given = f" given {', '.join(header.given)}" if header.given else ""
    return "\n".join(
        (
            f"{header.family}{given}, saved by pofx {header.pofx}, {sum(t.numel() for t in tensors.values())} numbers",
            f"options: {header.options}",
            f"learned: {Record.from_json(header.record).summary()}",
            f"answers on the prepared variables: {', '.join(answers)}",
            "",
            str(Domain.from_json(header.table)),
        )
    )


def of_machine() -> str:
    """Versions, devices, and the command that adds a missing extra."""
    import torch

    import pofx

    devices = ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))]
    lines = [
        f"pofx {pofx.__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        f"devices: {', '.join(devices)}",
        *(f"{package}: {_installed(package, extra)}" for package, extra in EXTRAS.items()),
    ]
    return "\n".join(lines)


def _installed(package: str, extra: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed: pip install 'pofx[{extra}]'"
