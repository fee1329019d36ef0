"""The comparison as a page to hand over: one self-contained HTML file, the same in Markdown, and results.json."""

from pofx.report.write import write

__all__ = ["write"]
