"""What goes wrong, in sentences: what was expected, what came, and what to do."""

from collections.abc import Sequence


class PofxError(ValueError):
    """A mistake the user can mend. Its message is one sentence; the command line prints it and exits 2."""


class DataError(PofxError):
    """The data can not be learned from, or do not fit the domain: names the column or row."""


class OptionError(PofxError):
    """An option, a name or a configuration is not one the library knows."""


class FileError(PofxError):
    """A file is missing, damaged, foreign, or made by a later version."""


class TrainingError(PofxError):
    """Learning stopped: says what happened, at which step, and where the last good state is."""


class Unavailable(PofxError):
    """A question this p(x) can not answer: names who can, and the approximate way.

    Args:
        question: the verb, for example "conditional".
        model: who was asked.
        why: the reason, a clause without a full stop.
        families: names of families that answer it.
        instead: the approximate way, a clause.
    """

    def __init__(self, question: str, model: str, why: str = "", *, families: Sequence[str] = (), instead: str = "") -> None:
        self.question = question
        parts = [f"{model} has no {question}"]
        if why:
            parts.append(f": {why}")
        if families:
            parts.append(f"; families that answer it: {', '.join(families)}")
        if instead:
            parts.append(f"; approximately: {instead}")
        super().__init__("".join(parts))
