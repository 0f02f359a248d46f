"""For all tests: the machine may be busy, and a slow draw of an example is no fault of ours.

What a test tells (`tell`) is printed behind everything else, whichever process it ran in: the
conformance table, what was killed, cut or sent, and with which seed.
"""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")

TOLD = "told"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Gets a text for the end of the run. What several tests of a file tell is printed once."""
    return lambda text: record_property(TOLD, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    told: dict[str, dict[str, None]] = {}  # by file, in the order of the tests' names
    for report in sorted(reports, key=lambda report: report.nodeid):
        for key, text in report.user_properties:
            if key == TOLD:
                told.setdefault(report.fspath, {})[text] = None
    for path, texts in told.items():
        terminalreporter.section(path, sep="-")
        for text in texts:
            terminalreporter.write_line(text)
