"""Learn every family on your data, under one budget, and measure each on the same rows."""

from pofx.compare.compare import compare
from pofx.compare.comparison import Comparison
from pofx.compare.result import Result
from pofx.compare.task import Task, task_of

__all__ = ["Comparison", "Result", "Task", "compare", "task_of"]
