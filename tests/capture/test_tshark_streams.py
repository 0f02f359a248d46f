"""Our RTP streams, RTCP and digits equal tshark's, on every public capture and every lab case.

Every SSRC between every two ends: packets, lost, payload types. Every report: who sent it, of whom,
fraction lost, lost, jitter; and what a call's record says of them. Every key. Where the two differ,
one of the rules below must explain it from what is in the frames, whatever the file.
"""

import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from capture.model import StreamTotals
from spanvault.daemon.config import CaptureConfig
from spanvault.media import rtcp
from spanvault.messages import Call, Stream
from tests.support.callgen import START_NS, answered, phones, write_pcap
from tests.support.folders import SAMPLE, SHARED
from tests.support.recorded import Recording
from tests.support.streamtable import Table
from tests.support.tsharkview import Datagram, Key, Said, Theirs, Tshark, padding_impossible
from tests.support.wrapping import WRAPPINGS, wrapped

MISORDER = 100  # packets that overtake each other: RFC 3550 §A.1
GRACE_NS = round(CaptureConfig().bye_grace_s * 1e9)
pytestmark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")


def of_another_protocol(datagrams: list[Datagram]) -> bool:
    """Rule 1: tshark knows these by their port for DNS, NetBIOS and the like.

    Such bytes can look like RTP for a packet or two. We remember them in case signalling asks for
    them, and it never does.
    """
    return all(each.protocol not in ("rtp", "data") for each in datagrams)


def explained(key: Key, ours: StreamTotals, tshark: Tshark, held: set[Key]) -> bool:
    """Whether a difference follows one of the rules."""
    datagrams = tshark.datagrams(key)
    theirs = tshark.streams.get(key)
    if theirs is None:
        return key not in held and of_another_protocol(datagrams)
    refused = [each for each in datagrams if each.payload_type is None]
    return (
        ours.packets + ours.duplicates == theirs.packets + len(refused)
        and ours.lost <= theirs.lost
        and all(map(padding_impossible, refused))
    )


def equal(ours: StreamTotals, theirs: Theirs, kinds: Counter[int], outside: int) -> bool:
    """Packets, lost and payload types; tshark counts copies among them. outside: see beyond()."""
    copies = sum((kinds - Counter(ours.payload_types)).values())
    return (
        theirs == (ours.packets + ours.duplicates, ours.lost - ours.duplicates - outside)
        and copies == ours.duplicates
        and kinds.keys() == ours.payload_types.keys()
    )


def beyond(datagrams: list[Datagram]) -> int:
    """Rule 6: how many numbers lie before the first that came and behind the last that did.

    To tshark none of them is missing: it counts from the one to the other.
    """
    numbers = [int.from_bytes(each.payload[2:4], "big") for each in datagrams]
    first = [_apart(number, numbers[0]) for number in numbers[:MISORDER]]
    last = [_apart(number, numbers[-1]) for number in numbers[-MISORDER:]]
    early, late = -min(first, default=0), max(last, default=0)
    return (early if early <= MISORDER else 0) + (late if late <= MISORDER else 0)


def _apart(number: int, other: int) -> int:
    return (number - other + 0x8000 & 0xFFFF) - 0x8000


def unexplained(tshark: Tshark, table: Table, path: Path) -> list[str]:
    ours = table.totals()
    differing = [f"{key}: only tshark has it" for key in tshark.streams.keys() - ours.keys()]
    held: set[Key] | None = None
    for key, totals in ours.items():
        kinds = Counter(
            each.payload_type for each in tshark.datagrams(key) if each.payload_type is not None
        )
        outside = beyond([each for each in tshark.datagrams(key) if each.payload_type is not None])
        if key in tshark.streams and equal(totals, tshark.streams[key], kinds, outside):
            continue
        held = _held(path) if held is None else held
        if not explained(key, totals, tshark, held):
            differing.append(f"{key}: {totals}, tshark {tshark.streams.get(key)} {kinds}")
    return differing


def _held(path: Path) -> set[Key]:
    """The streams that our calls hold."""
    return {
        (stream.source, stream.destination, stream.ssrc)
        for call in Recording(path).calls
        for stream in call.streams
    }


# --- RTCP -----------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What the far end says of a stream: of 1, packets, and units of the media clock."""

    reports: int
    lost: int
    worst: float
    jitter: float


class Sent(NamedTuple):
    """A datagram between two ends."""

    source: str
    destination: str
    payload: bytes


def no_rtcp(payload: bytes) -> bool:
    """Rule 3: what has no header of version 2 and no SSRC is no RTCP (RFC 3550 §6.4.1).

    tshark takes for RTCP whatever goes where SDP says that it goes: the byte, too, that some phones
    send there to keep a NAT open.
    """
    return len(payload) < 8 or payload[0] >> 6 != 2


def does_not_add_up(payload: bytes) -> bool:
    """Rule 4: where no SDP says so, RTCP is to tshark what its lengths end with to the byte.

    We look at the first packet: encryption (RFC 3711 §3.4) and wrong padding are behind it.
    """
    at = 0
    while at + 4 <= len(payload) and payload[at] >> 6 == 2:
        at += 4 + 4 * int.from_bytes(payload[at + 2 : at + 4], "big")
    return at != len(payload)


def reports_of(payload: bytes) -> tuple[Said, ...]:
    """As we read them; none where it cannot be read."""
    try:
        packets = rtcp.parse(payload)
    except ValueError:
        return ()
    return tuple(
        Said(report.ssrc, report.fraction, report.lost, report.jitter)
        for packet in packets
        if isinstance(packet, rtcp.SenderReport | rtcp.ReceiverReport)
        for report in packet.reports
    )


def unexplained_control(tshark: Tshark, table: Table) -> list[str]:
    """Datagrams that only one has, and reports that are read otherwise."""
    theirs = [each for each in tshark.all() if each.protocol == "rtcp"]
    others = {
        Sent(each.source, each.destination, each.payload): each
        for each in tshark.all()
        if each.protocol != "rtcp"
    }
    counted = Counter(Sent(each.source, each.destination, each.payload) for each in theirs)
    ours = Counter(
        Sent(str(each.source), str(each.destination), each.payload) for each in table.control
    )
    differing = [f"only tshark: {one}" for one in counted - ours if not no_rtcp(one.payload)]
    for one in ours - counted:
        other = others.get(one)
        if other is None or not (of_another_protocol([other]) or does_not_add_up(one.payload)):
            differing.append(f"only ours: {one}")
    for each in theirs:
        said = reports_of(each.payload)
        if said != each.reports and (said or not does_not_add_up(each.payload)):
            differing.append(f"{each}: {said}")
    return differing


def told(tshark: Tshark, call: Call, stream: Stream) -> Told | None:
    """What the far end's reports come to, as noted() gives it.

    Those of whoever hears the stream, to whoever sends it; a copy that follows at once is none.
    Rule 5: nor are those that come when the call is over and its streams are let go. Rule 4 again:
    what tshark leaves alone for its lengths, between the same ends, is read as we read it.
    """
    until_ns = (call.ended_ns or sys.maxsize) + GRACE_NS
    between = [_host(stream.destination), _host(stream.source)]
    said: list[Said] = []
    last: dict[tuple[str, str], bytes] = {}
    for each in tshark.all():
        ends = each.source, each.destination
        reports = each.reports if each.protocol == "rtcp" else reports_left_alone(each)
        if reports and each.time_ns <= until_ns and last.get(ends) != each.payload:
            last[ends] = each.payload
            if [_host(end) for end in ends] == between:
                said += [report for report in reports if report.ssrc == stream.ssrc]
    if not said:
        return None
    worst, jitter = max(one.fraction for one in said), max(one.jitter for one in said)
    return Told(len(said), said[-1].lost, worst / 256, float(jitter))


def reports_left_alone(datagram: Datagram) -> tuple[Said, ...]:
    """Of what is UDP to tshark, since no SDP names its port and its lengths do not add up."""
    if datagram.protocol == "rtp" or not does_not_add_up(datagram.payload):
        return ()
    return reports_of(datagram.payload)


def _host(end: str) -> str:
    return end.rpartition(":")[0]


def noted(stream: Stream) -> Told | None:
    """What our record says of them."""
    far_end = stream.far_end
    return far_end and Told(far_end.reports, far_end.lost, far_end.worst, far_end.jitter)


# --- digits ---------------------------------------------------------------------------------------


def pressed(tshark: Tshark, stream: Stream) -> list[int]:
    """Codes of events, one for each timestamp, in the order in which they were heard."""
    heard = [
        each.key for each in tshark.datagrams((stream.source, stream.destination, stream.ssrc))
    ]
    return [key[1] for key in dict.fromkeys(heard) if key is not None]


# --- all ------------------------------------------------------------------------------------------


def captures() -> list[Path]:
    return [
        *sorted((SHARED / "captures" / "pcap").glob("*")),
        *sorted((SHARED / "lab" / "cases").glob("*/call.pcap")),
    ]


@pytest.fixture(
    scope="module", params=captures(), ids=lambda path: path.parent.name + "/" + path.stem
)
def path(request: pytest.FixtureRequest) -> Path:
    if not SHARED.exists():
        pytest.skip(f"no public captures at {SHARED}")
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def tshark(path: Path) -> Tshark:
    return Tshark(path)


@pytest.fixture(scope="module")
def table(path: Path) -> Table:
    return Table(path)


def test_the_sample() -> None:
    tshark = Tshark(SAMPLE)
    assert len(tshark.streams) == 2
    assert unexplained(tshark, Table(SAMPLE), SAMPLE) == []


@pytest.mark.parametrize("name", [None, "QinQ", "ERSPAN III", "VXLAN", "GRE of Ethernet", "MPLS"])
def test_however_packets_come(name: str | None, tmp_path: Path) -> None:
    """A call of forged phones, up to 40 ms out of order, a fifth of it again, some of it lost."""
    chance = random.Random(name)
    frames = answered(START_NS, *phones(4.0), "oracle@spanvault.example")
    frames = [frame for frame in frames if b"SIP/2.0" in frame.data or chance.random() > 0.05]
    frames += [frame for frame in frames if chance.random() < 0.2]
    late = [
        frame._replace(time_ns=frame.time_ns + chance.randrange(40_000_000)) for frame in frames
    ]
    path = tmp_path / "shuffled.pcap"
    write_pcap(path, wrapped(late, WRAPPINGS[name].wrap) if name else sorted(late))
    tshark = Tshark(path)
    assert len(tshark.streams) == 2
    assert unexplained(tshark, Table(path), path) == []


@pytest.mark.shared
def test_every_stream_is_tsharks_too(tshark: Tshark, table: Table, path: Path) -> None:
    assert unexplained(tshark, table, path) == []


@pytest.mark.shared
def test_every_report_and_every_key_is_tsharks_too(
    tshark: Tshark, table: Table, path: Path
) -> None:
    assert unexplained_control(tshark, table) == []
    if not any(each.reports or each.key for each in tshark.all()):
        return
    recording = Recording(path)
    for call in recording.calls:
        for stream in call.streams:
            ours, theirs = noted(stream), told(tshark, call, stream)
            assert ours == theirs, stream
            keys = [key.code for key in recording.keys(call, stream.number)]
            assert keys == pressed(tshark, stream), stream
