"""What a conformance run found, a line a case: how much was compared, and what differs.

An aspect reads `=` where every value is the truth's, else how many are not; `-` where the truth
says nothing of it.
"""

import re
from collections.abc import Iterator
from textwrap import fill
from typing import Any, Final

from tests.conformance.explained import reasons, unexplained
from tests.conformance.listening import OFFSET_S, SECOND_OFFSET_S, SHARE, Found
from tests.conformance.truth import Case

ASPECTS: Final = {  # aspect → the texts of compare.py and listening.py about it
    "calls": r"not recorded$(?<!was not recorded)|no such call",
    "parties": r": (caller|callee) '",
    "outcome": r": outcome ",
    "channels": r"channel .*(was not recorded|is not in the truth)$",
    "packets": r": packets ",
    "lost": r": lost ",
    "seconds": r": seconds ",
}
HEADER: Final = f"{'case':22}{'calls':>7}{'streams':>9}{'packets':>9}  " + "".join(
    f"{name:>9}" for name in (*ASPECTS, "sound")
)
# Why so much: listening.py.
TOLERANCES: Final = (
    f"sound: correlates {SHARE} times as well as the truth says, begins within "
    f"±{OFFSET_S * 1000:.0f} ms of it, each second within ±{SECOND_OFFSET_S * 1000:.0f} ms"
)
WAITED_S: Final = 0.010  # packets that waited longer than this are told of


def lines(case: Case, calls: list[dict[str, Any]], found: list[str]) -> Iterator[str]:
    """The case's line, and why what differs does."""
    channels = [channel for call in calls for channel in call["channels"]]
    packets = sum(channel["packets"] for channel in channels)
    aspects = [_aspect(name, case, found) for name in ASPECTS] + [_sound(case, found)]
    yield (
        f"{case.name:22}{len(calls):7}{len(channels):9}{packets:9}  "
        + "".join(f"{one:>9}" for one in aspects)
    )
    for text in unexplained(case.name, found):
        yield f"    DIFFERS: {text}"
    for text in reasons(case.name, found):
        yield fill(f"stands: {text}", 100, initial_indent="    ", subsequent_indent="    ")


def heard(voices: list[Found]) -> Iterator[str]:
    """How far the voices of a case, and the seconds of them, are from where they should be."""
    if not voices:
        return
    words = []
    for name, tolerance_s in (("voices", OFFSET_S), ("seconds", SECOND_OFFSET_S)):
        off_ms = [one.off_s * 1000 for one in voices if one.tolerance_s == tolerance_s]
        if off_ms:
            words.append(f"{len(off_ms)} {name} off by {min(off_ms):+.1f} to {max(off_ms):+.1f} ms")
    yield f"    heard: {', '.join(words)}"
    late: dict[str, list[float]] = {}
    for one in voices:
        if abs(one.late_s) > WAITED_S:
            late.setdefault(one.name.split(",")[0], []).append(one.late_s * 1000)
    for name, late_ms in late.items():
        yield (
            f"    late: {name} came {min(late_ms):+.0f} to {max(late_ms):+.0f} ms after "
            "where the truth lays it out"
        )


def _aspect(name: str, case: Case, found: list[str]) -> str:
    if name not in ("calls", "parties", "outcome") and not any(
        call.channels for call in case.calls
    ):
        return "-"
    if name != "calls" and not case.calls:
        return "-"
    return str(sum(1 for text in found if re.search(ASPECTS[name], text)) or "=")


def _sound(case: Case, found: list[str]) -> str:
    if not any(stream.voice for stream in case.streams):
        return "-"
    known = [text for text in found if any(re.search(one, text) for one in ASPECTS.values())]
    return str(len(found) - len(known) or "=")
