"""What every family must pass, also a third party's."""

from pofx.testing.check_model import check_model, checks
from pofx.testing.matrix import check_questions
from pofx.testing.table import table

__all__ = ["check_model", "check_questions", "checks", "table"]
