"""Calls that ring at several phones, with sound from more than one: signalling, voices, truth.

A proxy forks the INVITE (RFC 3261 §16.7, §13.2.2.4); each phone that replies has a tag of its own,
and may speak before anybody has answered (RFC 3960). Heard is the caller's side of the proxy, or
both; of media through a relay, both.
"""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.callgen import START_NS, Frame, Phone, sdp, talk, udp_frame
from tests.support.voices import heard, voice

MS: Final = 1_000_000
PER_MS: Final = 8  # samples
PROXY: Final = "10.30.0.1"
RELAY: Final = "10.30.0.2"
VOICE_S: Final = 5.0


class Said(NamedTuple):
    """A stretch of sound: when it began, on which side of the export it is heard."""

    at_ms: int
    side: int
    sound: NDArray[np.int16]


class Fork:
    """One call of a caller to several phones, told message by message. Times: ms since its INVITE.

    both_sides: what the proxy says to the phones is heard, too.  relay: beside it stands one for
    media, with two ends for each phone, that hands packets on as they are.
    """

    def __init__(
        self, number: int, name: str, both_sides: bool = False, relay: bool = False
    ) -> None:
        self.frames: list[Frame] = []
        self._number, self.call_id, self._both = number, f"{name}@forks", both_sides
        self._relay = relay
        self._start_ns = START_NS + number * 20_000 * MS
        self._said: list[Said] = []
        # Who spoke, from where, and with whom or at whom of those who were rung.
        self.flows: list[tuple[Phone, Phone, Phone]] = []
        self.caller, self.one, self.two, self.three = (self._phone(which) for which in range(4))

    def _phone(self, which: int) -> Phone:
        return Phone(
            f"493055500{self._number}{which}",
            f"10.31.{self._number}.{10 + which}",
            20_000 + 2 * which,
            0x6B000000 + 16 * self._number + which,
            voice(VOICE_S, 110.0 + 40 * which, seed=10 * self._number + which),
        )

    # --- signalling -----------------------------------------------------------------------------

    def invite(self, at_ms: int, *rung: Phone, cseq: int = 1) -> None:
        """From the caller to the proxy, which calls these."""
        self._ask(at_ms, f"{cseq} INVITE", body=sdp(self.caller))
        self._reply(at_ms + 2, "100 Trying", f"{cseq} INVITE")
        for phone in rung:
            offer = sdp(self._relayed(phone, self.caller))
            self._ask(at_ms + 4, f"{cseq} INVITE", of=phone, body=offer)

    def reply(self, at_ms: int, by: Phone, status: str, body: bool = False, cseq: int = 1) -> None:
        """What a phone says to the INVITE, and the proxy passes on."""
        for hop, of, end in ((0, by, by), (2, None, self._relayed(by, by))):
            said = sdp(end) if body else ""
            self._reply(at_ms + hop, status, f"{cseq} INVITE", by, of=of, body=said)

    def fail(self, at_ms: int, by: Phone, status: str) -> None:
        """A phone's refusal, which the proxy keeps to itself."""
        self._reply(at_ms, status, "1 INVITE", by, of=by)
        self._ask(at_ms + 2, "1 ACK", to=by, of=by, branch="INVITE")

    def call_off(self, at_ms: int, phone: Phone) -> None:
        """The proxy cancels what it asked of a phone, since another one has answered."""
        self._ask(at_ms, "1 CANCEL", of=phone, branch="INVITE")
        self._reply(at_ms + 2, "200 OK", "1 CANCEL", phone, of=phone)
        self.fail(at_ms + 4, phone, "487 Request Terminated")

    def refuse(self, at_ms: int, by: Phone, status: str, contact: Phone | None = None) -> None:
        """A final reply that the caller gets."""
        self._reply(at_ms, status, "1 INVITE", by, contact=contact)
        self._ask(at_ms + 2, "1 ACK", to=by, branch="INVITE")

    def ack(self, at_ms: int, to: Phone, cseq: int = 1) -> None:
        self._ask(at_ms, f"{cseq} ACK", to=to, branch=f"ack{to.number}")

    def bye(self, at_ms: int, to: Phone, cseq: int = 2) -> None:
        self._ask(at_ms, f"{cseq} BYE", to=to, branch=f"bye{to.number}")
        self._reply(at_ms + 3, "200 OK", f"{cseq} BYE", to)

    # --- sound ----------------------------------------------------------------------------------

    def speak(self, at_ms: int, ms: int, speaker: Phone, listener: Phone | None = None) -> None:
        """The beginning of a phone's voice, to the caller if nobody else is named."""
        part = replace(speaker, samples=speaker.samples[: PER_MS * ms])
        listener = listener or self.caller
        rung = listener if speaker is self.caller else speaker
        hops = [(part, listener)]
        if self._relay:
            hops = [(part, self._relayed(rung, listener)), (self._relayed(rung, part), listener)]
        for late_ms, (here, there) in enumerate(hops):
            self.frames += talk(self._start_ns + (at_ms + late_ms) * MS, here, there)
            self.flows.append((speaker, here, rung))
        self._said.append(Said(at_ms, int(speaker is not self.caller), heard(part.samples)))

    def sound(self) -> NDArray[np.int16]:
        """What an export must hold: int16[n, 2], from the first sound on. All voices are added."""
        origin = min(said.at_ms for said in self._said)
        ends = [PER_MS * (said.at_ms - origin) + len(said.sound) for said in self._said]
        mixed = np.zeros((max(ends), 2), np.int32)
        for said, end in zip(self._said, ends, strict=True):
            mixed[end - len(said.sound) : end, said.side] += said.sound
        return np.clip(mixed, -32768, 32767).astype(np.int16)

    def _relayed(self, rung: Phone, spoken_for: Phone) -> Phone:
        """The end of the relay that stands for somebody, in the talk with a phone that is rung."""
        if not self._relay:
            return spoken_for
        port = 30_000 + rung.rtp_port + 1000 * (spoken_for.number == self.caller.number)
        return replace(spoken_for, address=RELAY, rtp_port=port)

    # --- messages -------------------------------------------------------------------------------

    def _ask(
        self, at_ms: int, cseq: str, *, to: Phone | None = None, of: Phone | None = None,
        body: str = "", branch: str = "",
    ) -> None:  # fmt: skip
        """By the caller. to: whose tag it bears.  of: whom the proxy asks, else it is asked."""
        there = (of or self.one).address if of else PROXY
        line = f"{cseq.split()[1]} sip:4930555@{there} SIP/2.0"
        self._say(at_ms, True, line, cseq, to, of, body, branch, self.caller)

    def _reply(
        self, at_ms: int, status: str, cseq: str, by: Phone | None = None, *,
        of: Phone | None = None, body: str = "", contact: Phone | None = None,
    ) -> None:  # fmt: skip
        """To the caller. by: whose tag it bears.  of: who tells it to the proxy."""
        self._say(at_ms, False, f"SIP/2.0 {status}", cseq, by, of, body, "", contact or by)

    def _say(
        self, at_ms: int, asks: bool, line: str, cseq: str, tagged: Phone | None,
        of: Phone | None, body: str, branch: str, contact: Phone | None,
    ) -> None:  # fmt: skip
        if of is not None and not self._both:
            return
        number, method = cseq.split()
        mine = f"{number}{branch or method}"
        vias = [f"Via: SIP/2.0/UDP {self.caller.address}:5060;branch=z9hG4bK{mine}"]
        if of is not None:
            vias.insert(0, f"Via: SIP/2.0/UDP {PROXY}:5060;branch=z9hG4bK{mine}{of.number}")
        head = [
            line,
            *vias,
            f"From: {self.caller.uri};tag=caller",
            f"To: <sip:4930555@{PROXY}>" + (f";tag={tagged.number}" if tagged else ""),
            f"Call-ID: {self.call_id}",
            f"CSeq: {cseq}",
            *([f"Contact: {contact.uri}"] if contact else []),
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        near = (PROXY, 5060) if of else (self.caller.address, 5060)
        far = (of.address, 5060) if of else (PROXY, 5060)
        ends = (near, far) if asks else (far, near)
        data = ("\r\n".join(head) + "\r\n\r\n" + body).encode()
        self.frames.append(udp_frame(self._start_ns + at_ms * MS, *ends, data))
