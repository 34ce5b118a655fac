"""The report of a run: one HTML file that opens anywhere."""

from __future__ import annotations

from raycl.report.page import write_report

__all__ = ["write_report"]
