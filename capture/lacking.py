"""What a port seems to lack, by what is heard there: the mirror's faults, seen from its end.

A recorder hears what the switch gives it, and a wrong mirror looks like silence. Said only while
it holds, so that whoever mends it sees the line go. No clock or file here; the rules are those of
an administrator: nothing at all, no telephony, one half of it, one direction of it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from spanvault.messages import Call

PATIENCE_S: Final = 20.0  # a port is given so long before a frame is missed on it, …
SIGNALLING_S: Final = 600.0  # … and SIP: phones of a quiet night say something so often
QUIET_S: Final = 300.0  # without one frame; a switch port speaks by itself: STP, LLDP, ARP
LEAST_RTP: Final = 500  # packets: fewer may be anything
CALLS: Final = 20  # answered ones, the latest, of which a share is told
LEAST_CALLS: Final = 5  # one call that is an announcement is no fault of a mirror
SHARE: Final = 0.5
FLAGS: Final = {
    "no_media": "without any RTP: mirror the path of the media, too, as past the PBX",
    "one_way": "with one party only: set the mirror to both directions of the port",
}


class Lacking:
    """Fed with running totals and final records; tells in one line, "" where all seems well."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._since_s: float | None = None
        self._frames, self._moved_s = 0, 0.0
        self._flags: deque[frozenset[str]] = deque(maxlen=CALLS)

    def heard(self, calls: Iterable[Call]) -> None:
        """Records that leave."""
        for call in calls:
            if call.final and call.outcome == "answered" and call.call_ids and _talks(call):
                self._flags.append(frozenset(call.flags))

    def look(self, now_s: float, counters: Mapping[str, int], secure: bool = False) -> str:
        """What is missing, and what to do. counters: since the beginning, the capture's own.

        secure: SIP over TLS is there, and told of.
        """
        if self._since_s is None:
            self._since_s = self._moved_s = now_s
        frames = counters.get("frames", 0)
        if frames != self._frames:
            self._frames, self._moved_s = frames, now_s
        if now_s - self._since_s < PATIENCE_S:
            return ""
        early = now_s - self._since_s < SIGNALLING_S
        kinds = "" if secure or early else self._of_kinds(counters)
        return self._of_frames(now_s) or kinds or self._of_calls()

    def _of_frames(self, now_s: float) -> str:
        if not self._frames:
            return (
                f"NOTHING is heard on {self._interface}: is it the port that the switch mirrors "
                "to, and the mirror on?"
            )
        if (quiet_s := now_s - self._moved_s) >= QUIET_S:
            return f"NOTHING was heard on {self._interface} for {quiet_s:.0f} s: is the mirror on?"
        return ""

    def _of_kinds(self, counters: Mapping[str, int]) -> str:
        sip, rtp = counters.get("sip_messages", 0), counters.get("rtp", 0)
        if sip:
            return ""
        if rtp >= LEAST_RTP:
            return "RTP, and NO SIP: mirror the signalling, too, where it is plain (not TLS)"
        if rtp:
            return ""
        return (
            f"NO SIP and no RTP among {self._frames} frames: does {self._interface} get the mirror "
            "of the PBX's or the SBC's port?"
        )

    def _of_calls(self) -> str:
        for flag, remedy in FLAGS.items():
            count = sum(flag in flags for flags in self._flags)
            if len(self._flags) >= LEAST_CALLS and count >= SHARE * len(self._flags):
                return f"{count} of the last {len(self._flags)} answered calls {remedy}"
        return ""


def _talks(call: Call) -> bool:
    """Whether both parties are to be heard: not of a fax, nor of a recording client's leg."""
    return "fax" not in call.flags and call.siprec is None
