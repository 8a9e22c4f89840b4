"""Build one self-contained HTML page of a run: its questions, windows, masks over thumbnails, scores and failures.

What strangers wrote (questions, ids, answers, errors) travels as JSON in a script element and is shown through textContent
only; see `page`.
"""

from gmcli.report.build import Report, build_report

__all__ = ["Report", "build_report"]
