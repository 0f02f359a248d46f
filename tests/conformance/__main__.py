"""`python -m tests.conformance [NAME…]`: every capture and lab case beside its truth, as a table.

Exit code 1 where anything differs without a reason (explained.py).
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.arrivals import Arrivals, Name, arrivals, with_losses
from tests.conformance.compare import differences
from tests.conformance.explained import unexplained
from tests.conformance.listening import Found, listen
from tests.conformance.recorded import Recorded
from tests.conformance.table import HEADER, TOLERANCES, heard, lines
from tests.conformance.truth import Case, lab_cases, public_cases


def check(case: Case) -> tuple[Recorded, list[Found], list[str]]:
    """Record a case in a folder of its own, compare and listen."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(case.capture, Path(folder))
        came = arrivals(case.capture) if case.streams else {}
        found = differences(with_losses(case, came), recorded.calls)
        if recorded.exit_code:
            found.append(f"exit code {recorded.exit_code}: {recorded.errors.strip()}")
        voices = list(voices_of(case, recorded, came))
    return recorded, voices, found + [one.fault for one in voices if one.fault]


def voices_of(case: Case, recorded: Recorded, came: dict[Name, Arrivals]) -> Iterator[Found]:
    """Every voice of a lab case, as it is heard in the exports."""
    if not any(stream.voice for stream in case.streams):
        return
    for call in recorded.calls:
        if call["recording_id"] and any(one["decodable"] for one in call["channels"]):
            yield from listen(call, case, came, *recorded.sound(call["recording_id"]))


def main() -> int:
    """Print the table."""
    cases = {**public_cases(), **lab_cases()}
    wanted = sys.argv[1:] or list(cases)
    bad = 0
    print(TOLERANCES)
    print(HEADER)
    for name in wanted:
        recorded, voices, found = check(cases[name])
        bad += bool(unexplained(name, found))
        for text in (*lines(cases[name], recorded.calls, found), *heard(voices)):
            print(text, flush=True)
    print(f"{len(wanted) - bad} of {len(wanted)} equal, but for what stands")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
