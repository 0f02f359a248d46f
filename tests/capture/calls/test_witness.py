"""The call table tells its witness what it decided, in the order in which it did."""

from itertools import count
from typing import Any

from capture.calls.livecall import LiveCall
from capture.calls.witness import Decision, Witness
from capture.model import Datagram
from capture.recorder import Recorder
from capture.signalling.sip import SipMessage
from capture.sources import files
from spanvault.daemon.config import CaptureConfig
from tests.support.folders import SAMPLE


class Diary(Witness):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def heard(self, datagram: Datagram, message: SipMessage) -> None:
        self.lines.append(f"> {message.status or message.method}")

    def decided(self, decision: Decision, call: LiveCall | None = None, **facts: Any) -> None:
        shown = [str(facts[name]) for name in ("after", "role", "why") if name in facts]
        self.lines.append(" ".join([decision, *shown]))


def test_an_answered_call_and_a_busy_one() -> None:
    diary, ids = Diary(), count(1)
    recorder = Recorder(CaptureConfig(), lambda: next(ids).to_bytes(16), witness=diary)
    for block in files.blocks(SAMPLE):
        recorder.receive(block)
    recorder.finish()
    assert diary.lines == [
        "> INVITE", "begins", "belongs", "moved calling", "described offer", "bound",
        "> 100", "belongs", "moved proceeding",
        "> 180", "belongs", "moved proceeding",
        "> 200", "belongs", "moved confirmed", "described answer", "bound",
        "> ACK", "belongs",
        "opened", "attached", "opened", "attached",
        "> BYE", "belongs", "moved terminated", "closed ended", "closed ended",
        # Until then, whoever has not got the BYE goes on sending.
        "> 200", "belongs", "moved terminated", "closed ended", "closed ended",
        "> INVITE", "begins", "belongs", "moved calling", "described offer", "bound",
        "> 100", "belongs", "moved proceeding",
        "> 486", "belongs", "moved terminated",
        "> ACK", "belongs",
    ]  # fmt: skip
