"""From data to parameters: one gradient loop, full-batch families, checkpoints, search."""

from pofx.learn.checkpoint import write_atomically
from pofx.learn.distributed import choose_device
from pofx.learn.record import Record, versions
from pofx.learn.run import check_weighable, run
from pofx.learn.search import Search, search
from pofx.learn.streams import isolated

__all__ = ["Record", "Search", "check_weighable", "choose_device", "isolated", "run", "search", "versions", "write_atomically"]
