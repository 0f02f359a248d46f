"""A call as a ladder: a lane for each host, an arrow for each message and each stream.

Lines of plain words that fit a width; where there are more hosts than lanes fit, arrows are told in
words. Below each arrow stands what followed from it.
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from spanvault.explained import AGAIN, Explained, Flow, Step

CLOCK: Final = 10  # columns for the seconds since the call began
LANE: Final = 22  # columns that a lane needs to be read
MAX_LANES: Final = 6
MARK: Final = "· "  # before what was concluded
DIFFERS: Final = "≠ "  # before what tshark sees otherwise


def ladder(document: Explained, width: int) -> Iterator[tuple[str, str]]:
    """Lines and their styles, no line longer than width (of at least 40 columns)."""
    width = max(40, width)
    began_ns = document.call.started_ns
    flows = [one for one in document.flows if one.packets]
    events: list[Step | Flow] = [*_folded(document.steps), *flows]
    events.sort(key=_when)
    lanes = _lanes(events, width)
    if lanes:
        yield " " * CLOCK + _heads(lanes, width), "bold"
    for event in events:
        clock = f"{(_when(event) - began_ns) / 1e9:{CLOCK - 2}.3f}  "
        yield from _arrow(event, clock, lanes, width)
        yield from _below(event, lanes, width)


def _folded(steps: list[Step]) -> Iterator[Step]:
    """Each message once: what was sent again and again is told below the first of it."""
    again: dict[tuple[str, str, str], list[Step]] = {}
    shown: list[tuple[Step, list[Step]]] = []
    for step in steps:
        key = (step.words, step.source, step.destination)
        if step.concluded == [AGAIN] and key in again:
            again[key].append(step)
        else:
            again[key] = []
            shown.append((step, again[key]))
    for step, copies in shown:
        if copies:
            seconds = (copies[-1].time_ns - step.time_ns) / 1e9
            told = f"sent again ×{len(copies)}, the last {seconds:.1f} s later: changes nothing"
            yield msgspec.structs.replace(step, concluded=[*step.concluded, told])
        else:
            yield step


def _when(event: Step | Flow) -> int:
    return event.time_ns if isinstance(event, Step) else event.first_ns


def _lanes(events: Sequence[Step | Flow], width: int) -> list[str]:
    """The hosts by lane; none where they would not fit. One host alone: its ports."""
    ends = [end for event in events for end in (event.source, event.destination) if end]
    hosts = list(dict.fromkeys(map(_host, ends)))
    lanes = hosts if len(hosts) > 1 else list(dict.fromkeys(ends))
    fits = 2 <= len(lanes) <= min(MAX_LANES, (width - CLOCK) // LANE)
    return lanes if fits else []


def _host(end: str) -> str:
    return end.rpartition(":")[0]


def _lane(lanes: list[str], end: str) -> int:
    return lanes.index(end) if end in lanes else lanes.index(_host(end))


def _column(lane: int, lanes: list[str], width: int) -> int:
    """Where a lane's line stands, behind the clock."""
    each = (width - CLOCK) // len(lanes)
    return lane * each + each // 2


def _heads(lanes: list[str], width: int) -> str:
    each = (width - CLOCK) // len(lanes)
    return "".join(_ends_kept(name, each - 2).center(each) for name in lanes).rstrip()


def _arrow(
    event: Step | Flow, clock: str, lanes: list[str], width: int
) -> Iterator[tuple[str, str]]:
    label, style = _label(event), "cyan" if isinstance(event, Flow) else ""
    if not event.source:
        yield clock + _short(label, width - CLOCK), "yellow"
    elif lanes:
        yield clock + _drawn(event, label, lanes, width), style
    else:
        yield clock + _short(f"{event.source} → {event.destination}", width - CLOCK), style
        yield " " * CLOCK + _short(label, width - CLOCK), style


def _label(event: Step | Flow) -> str:
    if isinstance(event, Step):
        return event.words
    seconds = (event.last_ns - event.first_ns) / 1e9
    lost = f", {event.lost} lost" if event.lost else ""
    codec = event.codec.partition("/")[0]
    return f"RTP {codec}, {event.packets} packets{lost}, {seconds:.1f} s"


def _drawn(event: Step | Flow, label: str, lanes: list[str], width: int) -> str:
    """An arrow between two lanes with its label, the other lanes as lines."""
    columns = [_column(lane, lanes, width) for lane in range(len(lanes))]
    row = [" "] * (width - CLOCK)
    for column in columns:
        row[column] = "│"
    start, end = (columns[_lane(lanes, one)] for one in (event.source, event.destination))
    low, high = min(start, end), max(start, end)
    stroke = "═" if isinstance(event, Flow) else "─"
    if low == high:  # from a host to itself
        label = _short(f"↺ {label}", width - CLOCK - high - 2)
        return "".join(row[: high + 1]) + " " + label
    span = high - low - 1
    inner = _short(f" {label} ", span - 2).center(span - 1, stroke)
    row[low + 1 : high] = list(inner + "►" if start < end else "◄" + inner)
    return "".join(row).rstrip()


def _below(event: Step | Flow, lanes: list[str], width: int) -> Iterator[tuple[str, str]]:
    """What an arrow carried, and what followed."""
    indent = " " * (CLOCK + (2 if lanes else 0))
    if isinstance(event, Step) and event.description:
        yield from _wrapped(event.description, indent, indent, width, "dim")
    if isinstance(event, Flow):
        ends = f"{event.codec} {event.source} → {event.destination} SSRC {event.ssrc:#010x}"
        yield from _wrapped(ends, indent, indent, width, "dim")
    for sentence in event.concluded:
        yield from _wrapped(sentence, indent + MARK, indent + "  ", width, "green")
    if isinstance(event, Flow):
        for sentence in event.differences:
            yield from _wrapped(sentence, indent + DIFFERS, indent + "  ", width, "red")


def _wrapped(text: str, first: str, rest: str, width: int, style: str) -> Iterator[tuple[str, str]]:
    for line in textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest):
        yield line, style


def _ends_kept(text: str, room: int) -> str:
    """A name cut in its midst: IPv6 hosts of one network differ at their end."""
    if len(text) <= room:
        return text
    kept = (room - 1) // 2
    return f"{text[: room - 1 - kept]}…{text[len(text) - kept :]}"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"
