"""What a run of learning leaves behind: plain data that tell how the weights came about."""

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, NotRequired, TypedDict

from pofx.errors import FileError


class Row(TypedDict):
    """One look at the run: both losses in nats per row (the family's own objective; lower is better).

    Where learning is by a surrogate, `train` is that, and `holdout` minus the true bound. Where steps can be skipped for their
    gradients, `skipped` counts those so far.
    """

    step: int
    epoch: int
    train: float
    holdout: float | None
    seconds: float
    skipped: NotRequired[int]


class Outcome(NamedTuple):
    """How a run ended: its history, why it stopped, and the step whose weights are kept."""

    history: list[Row]
    stopped: str
    kept: int


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("pofx", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass(frozen=True)
class Record:
    """How a model was learned.

    Args:
        family: the family's name in the registry, or its configuration's class.
        options: the family's options.
        history: one row per epoch (gradients) or step (EM, closed form).
        stopped: why learning stopped: a clause without a full stop.
        kept: the step whose weights the model has.
        seconds: how long it took, stretches before a resume included.
        seed: of all that was random.
        device: where it was learned.
        versions: of python, torch and pofx.
        surrogate: whether training rows were learned by something else than minus the true bound, which held-out rows were judged by.
        diagnosis: what a model with latents found when it looked at itself: plain data, in words under `says` and `warnings`; else empty.
    """

    family: str
    options: dict[str, Any]
    history: list[Row]
    stopped: str
    kept: int
    seconds: float
    seed: int
    device: str
    versions: dict[str, str] = field(default_factory=versions)
    surrogate: bool = False
    diagnosis: dict[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with what was learned, a sentence each without a full stop."""
        return self.diagnosis.get("warnings", [])

    def summary(self) -> str:
        """One sentence: what was learned, why learning stopped, which weights were kept, how latents are used; then a line a warning."""
        says = f"; {self.diagnosis['says']}" if "says" in self.diagnosis else ""
        run = (
            f"{self.family} learned for {self.seconds:.1f} s on {self.device} (seed {self.seed}): {self.stopped}; {self._weights()}{says}."
        )
        return "\n".join((run, *(f"Warning: {warning}." for warning in self.warnings)))

    def _weights(self) -> str:
        row = next((r for r in self.history if r["step"] == self.kept), None)
        if row is None:
            return f"the weights of step {self.kept} are kept"
        train, held = ("training surrogate", "held-out bound, negated,") if self.surrogate else ("training loss", "held-out loss")
        loss, what = (row["train"], train) if row["holdout"] is None else (row["holdout"], held)
        watched = len(self.history) > 1 and all(r["holdout"] is not None for r in self.history)
        improving = watched and row is self.history[-1]
        verdict = ": it was still improving" if improving else ""
        weights = f"the weights of step {self.kept} (epoch {row['epoch']} of {self.epochs}) are kept"
        return f"{weights}, {what} {loss:.4g} nats a row{verdict}{self._skipped()}"

    def _skipped(self) -> str:
        n = self.history[-1].get("skipped", 0) if self.history else 0
        return f"; {n} {'step was' if n == 1 else 'steps were'} skipped for gradients far above the usual" if n else ""

    @property
    def epochs(self) -> int:
        """How many there were; a last one may be broken off."""
        return self.history[-1]["epoch"] if self.history else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data: what `from_json` reads back. JSON has no infinities or NaN: they become null."""
        return _finite(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Record":
        """The record that `to_json` wrote.

        Raises:
            FileError: the data do not describe one.
        """
        try:
            return cls(**{**data, "history": [_row(r) for r in data["history"]], **_checked(data)})
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FileError(f"this does not describe how a model was learned: {error!r}") from error


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: str(data[name]) for name in ("family", "stopped", "device")}
    numbers = {"kept": int(data["kept"]), "seconds": float(data["seconds"]), "seed": int(data["seed"])}
    numbers["surrogate"] = bool(data.get("surrogate", False))
    return (
        texts
        | numbers
        | {
            "diagnosis": _diagnosis(data.get("diagnosis", {})),
            "options": dict(data["options"]),
            "versions": {k: str(v) for k, v in data["versions"].items()},
        }
    )


def _diagnosis(data: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, its words checked: they are shown."""
    words = {"says": str(data["says"]), "warnings": [str(warning) for warning in data["warnings"]]} if data else {}
    return {**data, **words}


def _row(data: Mapping[str, Any]) -> Row:
    train, holdout = data["train"], data["holdout"]
    row = Row(
        step=int(data["step"]),
        epoch=int(data["epoch"]),
        train=math.nan if train is None else float(train),
        holdout=None if holdout is None else float(holdout),
        seconds=float(data["seconds"]),
    )
    return {**row, "skipped": int(data["skipped"])} if "skipped" in data else row


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
