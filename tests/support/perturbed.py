"""Calls of several kinds, message by message, and what a network does to messages on their way.

What is said in each is known packet by packet, so that whoever loses one, or gives it to another
call or party, is found out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tests.support.callgen import START_NS, Frame, Phone, phones, rtp, sdp, udp_frame
from tests.support.unsignalled import tone

MS: Final = 1_000_000
ALICE, BOB = phones(0.1)
TALK_MS: Final = 2000


class Message(NamedTuple):
    """A SIP message: when it was sent, by whom, its start line, CSeq, body, To tag and branch."""

    at_ms: int
    by_caller: bool
    line: str
    cseq: str
    body: str = ""
    tagged: bool = True
    branch: str = ""


class Said(NamedTuple):
    """RTP of a party between two ends."""

    at_ms: int
    speaker: Phone
    listener: Phone
    first: int  # number of its first packet
    packets: int


@dataclass(frozen=True)
class Call:
    """One call. number: makes it another one; at_ms: when it begins."""

    messages: tuple[Message, ...]
    media: tuple[Said, ...]
    number: int = 0
    at_ms: int = 0
    call_id: str = ""
    nat: Phone | None = None  # from where, and to where, Alice's sound goes for others

    def heard(self, messages: Iterable[Message]) -> list[Frame]:
        """These messages, and all media."""
        said = [frame for one in self.media for frame in self._packets(one)]
        return [*(self._frame(one) for one in messages), *said]

    def payloads(self, party: str) -> list[bytes]:
        """All that a party said, by packet."""
        return sorted(
            self._payload(one.speaker, one.first + n)
            for one in self.media
            for n in range(one.packets)
            if (one.speaker.number == ALICE.number) == (party == "caller")
        )

    def _payload(self, speaker: Phone, packet: int) -> bytes:
        return tone(speaker, packet + 10_000 * self.number)

    def _packets(self, said: Said) -> list[Frame]:
        ends = [self._end(phone) for phone in (said.speaker, said.listener)]
        return [
            udp_frame(
                START_NS + (self.at_ms + said.at_ms + 20 * n) * MS, *ends,
                rtp(1000 + said.first + n, 160 * (said.first + n), said.speaker.ssrc,
                    self._payload(said.speaker, said.first + n)),
            )
            for n in range(said.packets)
        ]  # fmt: skip

    def _end(self, phone: Phone) -> tuple[str, int]:
        if self.nat is not None and phone.number == ALICE.number:
            phone = self.nat
        return phone.address, phone.rtp_port

    def _frame(self, message: Message) -> Frame:
        me, other = (ALICE, BOB) if message.by_caller else (BOB, ALICE)
        branch = f"{self.number}{message.branch or message.cseq.replace(' ', '')}"
        head = [
            message.line,
            f"Via: SIP/2.0/UDP {ALICE.address}:5060;branch=z9hG4bK{branch}",
            f"From: {ALICE.uri};tag=alice{self.number}",
            f"To: {BOB.uri}" + (f";tag=bob{self.number}" if message.tagged else ""),
            f"Call-ID: {self.call_id or self.number}",
            f"CSeq: {message.cseq}",
            *(["Content-Type: application/sdp"] if message.body else []),
            f"Content-Length: {len(message.body)}",
        ]
        data = ("\r\n".join(head) + "\r\n\r\n" + message.body).encode()
        time_ns = START_NS + (self.at_ms + message.at_ms) * MS
        return udp_frame(time_ns, (me.address, 5060), (other.address, 5060), data)


def ask(at_ms: int, method: str, number: int = 1, body: str = "", branch: str = "") -> Message:
    """A request of the caller's."""
    tagged = method != "INVITE" or number > 10
    line = f"{method} sip:{BOB.number}@{BOB.address} SIP/2.0"
    return Message(at_ms, True, line, f"{number} {method}", body, tagged, branch)


def reply(at_ms: int, status: str, cseq: str = "1 INVITE", body: str = "") -> Message:
    return Message(at_ms, False, f"SIP/2.0 {status}", cseq, body, tagged=status[0:3] != "100")


def both(at_ms: int, ms: int, first: int = 0, alice: Phone = ALICE, bob: Phone = BOB) -> list[Said]:
    """Sound both ways."""
    packets = ms // 20
    return [Said(at_ms, alice, bob, first, packets), Said(at_ms + 7, bob, alice, first, packets)]


def _parted(at_ms: int, number: int) -> list[Message]:
    return [ask(at_ms, "BYE", number), reply(at_ms + 10, "200 OK", f"{number} BYE")]


def _again(at_ms: int, number: int, offer: str, answer: str) -> list[Message]:
    """A re-INVITE. number: above 10."""
    return [
        ask(at_ms, "INVITE", number, offer),
        reply(at_ms + 20, "200 OK", f"{number} INVITE", answer),
        ask(at_ms + 30, "ACK", number),
    ]


def _made(messages: list[Message], media: list[Said]) -> Call:
    return Call(tuple(messages), tuple(media))


def plain() -> Call:
    words = [
        ask(0, "INVITE", body=sdp(ALICE)), reply(5, "100 Trying"), reply(40, "180 Ringing"),
        reply(1000, "200 OK", body=sdp(BOB)), ask(1010, "ACK"), *_parted(3100, 2),
    ]  # fmt: skip
    return _made(words, both(1050, TALK_MS))


def early() -> Call:
    """The callee is heard before it answers; the 183 is acknowledged."""
    words = [
        ask(0, "INVITE", body=sdp(ALICE)),
        reply(40, "183 Session Progress", body=sdp(BOB)),
        ask(60, "PRACK", 2), reply(70, "200 OK", "2 PRACK"),
        reply(1500, "200 OK", body=sdp(BOB)), ask(1510, "ACK"), *_parted(3600, 3),
    ]  # fmt: skip
    sound = [Said(100, BOB, ALICE, 0, 172), Said(1560, ALICE, BOB, 0, 100)]
    return _made(words, sound)


def login() -> Call:
    words = [
        ask(0, "INVITE", body=sdp(ALICE)), reply(5, "401 Unauthorized"),
        ask(10, "ACK", branch="1INVITE"), ask(40, "INVITE", 2, sdp(ALICE)),
        reply(60, "180 Ringing", "2 INVITE"), reply(1000, "200 OK", "2 INVITE", sdp(BOB)),
        ask(1010, "ACK", 2), *_parted(3100, 3),
    ]  # fmt: skip
    return _made(words, both(1050, TALK_MS))


def delayed() -> Call:
    """The offer comes with the 200, its answer with the ACK."""
    words = [
        ask(0, "INVITE"), reply(40, "180 Ringing"), reply(1000, "200 OK", body=sdp(BOB)),
        ask(1010, "ACK", body=sdp(ALICE)), *_parted(3100, 2),
    ]  # fmt: skip
    return _made(words, both(1050, TALK_MS))


def moved() -> Call:
    """Both sides move their media by a re-INVITE."""
    alice, bob = replace(ALICE, rtp_port=24_000), replace(BOB, rtp_port=25_000)
    words = [*plain().messages[:-2], *_again(3100, 11, sdp(alice), sdp(bob)), *_parted(5200, 12)]
    sound = both(1050, TALK_MS) + both(3150, TALK_MS, 500, alice, bob)
    return _made(words, sound)


def held() -> Call:
    """Hold and resume; timestamps go on meanwhile."""
    quiet = sdp(ALICE) + "a=sendonly\r\n", sdp(BOB) + "a=recvonly\r\n"
    words = [
        *plain().messages[:-2], *_again(3100, 11, *quiet), *_again(4000, 12, sdp(ALICE), sdp(BOB)),
        *_parted(6200, 13),
    ]  # fmt: skip
    sound = both(1050, TALK_MS) + both(4050, TALK_MS, 150)
    return _made(words, sound)


KINDS: Final[dict[str, Callable[[], Call]]] = {
    "plain": plain, "early media": early, "login": login, "delayed offer": delayed,
    "moved": moved, "held": held,
}  # fmt: skip


def late(messages: Iterable[Message], delays_ms: Iterable[int]) -> list[Message]:
    """Each message is on its way so much longer than sound is."""
    pairs = zip(messages, delays_ms, strict=False)
    return [one._replace(at_ms=one.at_ms + delay_ms) for one, delay_ms in pairs]
