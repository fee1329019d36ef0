"""What every family must pass, also a third party's."""

from pofx.testing.check_model import check_model, checks

__all__ = ["check_model", "checks"]
