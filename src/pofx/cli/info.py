"""What a model file holds, read from its header; and what is installed here."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pofx.ask.files import read
from pofx.ask.questions import kinds
from pofx.types import Kind

EXTRAS = {"pyarrow": "parquet", "optuna": "tune", "pooch": "download", "scikit-learn": "sklearn"}


def of_file(path: Path) -> str:
    """Family, columns, options, how it was learned, and the questions it answers."""
    model, origin, _, _ = read(path)
    answers = [f"{question} ({kind})" for question, kind in kinds(model).items() if kind is not Kind.NONE]
    given = f" given {', '.join(model.context.names)}" if model.context else ""
    size = sum(t.numel() for t in model.state_dict().values())
    return "\n".join(
        (
            f"{origin.family}{given}, saved by pofx {origin.record.versions.get('pofx', 'of an unknown version')}, {size} numbers",
            f"options: {origin.config.model_dump(mode='json')}",
            f"learned: {origin.record.summary()}",
            f"answers: {', '.join(answers)}",
            "",
            str(origin.table),
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
