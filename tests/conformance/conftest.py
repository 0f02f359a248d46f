"""Prints the table of the conformance run behind everything else, wherever its tests ran."""

import pytest

from tests.conformance.table import HEADER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    rows = [text for report in reports for key, text in report.user_properties if key == "table"]
    if rows:
        terminalreporter.section("conformance")
        terminalreporter.write_line(HEADER)
        for text in sorted(rows):
            terminalreporter.write_line(text)
