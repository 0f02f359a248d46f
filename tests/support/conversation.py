"""SIP conversations for tests of the call table: who says what, and what RTP flows meanwhile.

A Wire is the call table with a clock and a stand-in for media's counters; a Leg is one Call-ID
between two hosts, whose methods say one message each.
"""

import ipaddress
import itertools
from typing import Any

from capture.calls.calls import Calls
from capture.model import Attach, Close, Datagram, Endpoint, NewStream, StreamTotals
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Call, Stream

START_NS = 1_795_000_000_000_000_000
SECOND = 1_000_000_000
NOTHING = StreamTotals(0, 0, 0, 0, 0.0, 0, 0, {})


def endpoint(text: str) -> Endpoint:
    """`10.0.0.1:4000` or `[fd00::1]:4000`."""
    host, _, port = text.rpartition(":")
    return Endpoint(ipaddress.ip_address(host.strip("[]")).packed, int(port))


def sdp(at: str, *codecs: str, media: str = "audio", more: tuple[str, ...] = ()) -> bytes:
    """A description with one m= line. codecs: "0", or "97 opus/48000/2"."""
    host, _, port = at.rpartition(":")
    kind = "IP6" if "[" in host else "IP4"
    numbers = " ".join(codec.split()[0] for codec in codecs or ("0",))
    lines = ["v=0", f"o=- 1 1 IN {kind} {host.strip('[]')}", "s=-"]
    lines += [f"c=IN {kind} {host.strip('[]')}", "t=0 0", f"m={media} {port} RTP/AVP {numbers}"]
    lines += [f"a=rtpmap:{codec}" for codec in codecs if " " in codec]
    return "\r\n".join([*lines, *more, ""]).encode()


class Wire:
    """What the capture hears."""

    def __init__(self, **settings: Any) -> None:
        ids = itertools.count(1)
        self.settings = CaptureConfig(name="test", **settings)
        self._new_id = lambda: next(ids).to_bytes(16, "big")
        self._rows = itertools.count(1)
        self.now_ns = START_NS
        self.totals: dict[int, StreamTotals] = {}
        self.records: dict[bytes, Call] = {}
        self.history: list[Call] = []
        self.calls = self._table()

    def _table(self) -> Calls:
        return Calls(self.settings, lambda row: self.totals.get(row, NOTHING), self._new_id)

    def restart(self) -> None:
        """The capture dies and comes back with what it saved last."""
        saved = self.calls.snapshot()
        self.calls = self._table()
        self.totals.clear()
        self.calls.restore(saved)

    def wait(self, seconds: float) -> None:
        """Time passes, and the table is told once."""
        self.now_ns += int(seconds * SECOND)
        self.calls.tick(self.now_ns)
        self.collect()

    def end(self) -> list[Call]:
        """The capture ends. All calls, oldest first."""
        self.calls.finish(self.now_ns)
        self.collect()
        return sorted(self.records.values(), key=lambda call: call.started_ns)

    def collect(self) -> None:
        for record in self.calls.records():
            self.history.append(record)
            self.records[record.id] = record

    def hear(self, source: str, destination: str, payload: bytes) -> None:
        self.now_ns += 1_000_000
        self.calls.receive(
            Datagram(self.now_ns, endpoint(source), endpoint(destination), payload, "udp")
        )

    def rtp(
        self,
        source: str,
        destination: str,
        ssrc: int = 1,
        payload_type: int = 0,
        seconds: int = 5,
        timestamp: int | None = None,
    ) -> int:
        """A stream that begins now and goes on for some seconds. Returns media's row."""
        row, self.now_ns = next(self._rows), self.now_ns + 1_000_000
        end_ns = self.now_ns + seconds * SECOND
        packets = seconds * 50
        self.totals[row] = StreamTotals(
            packets, 0, 0, 0, 0.0, self.now_ns, end_ns, {payload_type: packets}
        )
        stream = (endpoint(source), endpoint(destination), ssrc, payload_type, timestamp)
        self.calls.opened(NewStream(row, self.now_ns, *stream))
        return row

    def attached(self) -> dict[int, tuple[bytes, int]]:
        """row → (recording, stream number), of what was decided since last asked."""
        commands = self.calls.commands()
        self.closed = {
            command.row: command.at_ns for command in commands if isinstance(command, Close)
        }
        return {
            command.row: (command.recording_id, command.number)
            for command in commands
            if isinstance(command, Attach)
        }


class Leg:
    """One Call-ID between a caller's host and a callee's."""

    def __init__(
        self,
        wire: Wire,
        call_id: str = "call-1",
        caller: str = "1001",
        callee: str = "1002",
        hosts: tuple[str, str] = ("10.0.0.1:5060", "10.0.0.2:5060"),
    ) -> None:
        self.wire, self.call_id = wire, call_id
        self.users = {"caller": caller, "callee": callee}
        self.hosts = dict(zip(("caller", "callee"), hosts, strict=True))
        self.tags = {"caller": f"from-{call_id}", "callee": f"to-{call_id}"}
        self.cseq = 1

    def request(
        self,
        method: str,
        by: str = "caller",
        body: bytes = b"",
        *headers: str,
        in_dialog: bool = True,
        cseq: int | None = None,
        branch: str = "",
    ) -> None:
        """Say a request."""
        to = "callee" if by == "caller" else "caller"
        number = cseq or self.cseq
        line = f"{method} sip:{self.users[to]}@{self.hosts[to]} SIP/2.0"
        branch = branch or f"{self.call_id}-{number}-{method}"
        self._say(line, by, to, by, method, number, branch, body, headers, in_dialog)

    def reply(
        self,
        status: int,
        method: str = "INVITE",
        by: str = "callee",
        body: bytes = b"",
        *headers: str,
        cseq: int | None = None,
        tag: str | None = None,
        branch: str = "",
    ) -> None:
        """Say a response, to the other party's request."""
        to = "callee" if by == "caller" else "caller"
        number = cseq or self.cseq
        line = f"SIP/2.0 {status} Whatever"
        kept = self.tags["callee"]
        self.tags["callee"] = tag or kept
        branch = branch or f"{self.call_id}-{number}-{method}"
        self._say(line, by, to, to, method, number, branch, body, headers, status > 100)
        self.tags["callee"] = kept

    def _say(
        self,
        line: str,
        by: str,
        to: str,
        asker: str,
        method: str,
        number: int,
        branch: str,
        body: bytes,
        headers: tuple[str, ...],
        tagged: bool,
    ) -> None:
        other = "callee" if asker == "caller" else "caller"
        tag = f";tag={self.tags[other]}" if tagged else ""
        head = [
            line,
            f"Via: SIP/2.0/UDP {self.hosts[asker]};branch=z9hG4bK{branch}",
            f"From: <sip:{self.users[asker]}@{self.hosts[asker]}>;tag={self.tags[asker]}",
            f"To: <sip:{self.users[other]}@{self.hosts[other]}>{tag}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {number} {method}",
            *headers,
        ]
        if body:
            head += ["Content-Type: application/sdp"]
        head += [f"Content-Length: {len(body)}", "", ""]
        self.wire.hear(self.hosts[by], self.hosts[to], "\r\n".join(head).encode() + body)

    def invite(self, body: bytes = b"", *headers: str, cseq: int | None = None) -> None:
        self.request("INVITE", "caller", body, *headers, in_dialog=False, cseq=cseq)

    def ack(self, body: bytes = b"") -> None:
        self.request("ACK", "caller", body)

    def answer(self, offer: bytes, reply: bytes) -> None:
        """INVITE, 180, 200, ACK."""
        self.invite(offer)
        self.reply(100)
        self.reply(180)
        self.reply(200, body=reply)
        self.ack()

    def bye(self, by: str = "caller") -> None:
        self.cseq += 1
        self.request("BYE", by)
        self.reply(200, "BYE", "callee" if by == "caller" else "caller")


ALICE, BOB = sdp("10.0.0.1:4000"), sdp("10.0.0.2:5000")
A_TO_B, B_TO_A = ("10.0.0.1:4000", "10.0.0.2:5000"), ("10.0.0.2:5000", "10.0.0.1:4000")


def talk(wire: Wire, leg: Leg) -> None:
    """An answered call with sound both ways for five seconds."""
    leg.answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)


def sounds(call: Call) -> list[tuple[str, str, int]]:
    """(party, codec of the first payload type heard, packets) of each stream."""
    return [(stream.party, _codec(stream), stream.packets) for stream in call.streams]


def _codec(stream: Stream) -> str:
    numbers = [*stream.payload_types, *stream.codecs]
    return next((stream.codecs[n].name for n in numbers if n in stream.codecs), "unknown")
