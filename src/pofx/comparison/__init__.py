"""Learn every family on your data, under one budget, and measure each on the same rows."""

from pofx.comparison.compare import compare
from pofx.comparison.comparison import Comparison
from pofx.comparison.result import Result
from pofx.comparison.task import Task, task_of

__all__ = ["Comparison", "Result", "Task", "compare", "task_of"]
