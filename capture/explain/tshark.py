"""A capture as tshark sees it, for comparison: its SIP messages by pyshark, its RTP streams.

tshark shares no code with us. It holds a capture's conversations in memory, so a large one is not
given to it unless asked for. pyshark is an optional part (the extra `explain`).
Sources: Wireshark's VoIP Calls (states of a call), tshark(1) -z rtp,streams.
"""

import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from capture.calls.beginning import OF_A_CALL
from spanvault.explained import TheirCall, TheirFlow

MAX_BYTES: Final = 128 << 20  # of a file that is given to tshark unasked: it needs several times it
MAX_CALLS: Final = 100_000
PATIENCE_S: Final = 3600.0
# Times, ends, SSRC, codecs, packets, lost: a line of `-z rtp,streams`.
STREAM: Final = re.compile(
    r"\s*[\d.]+\s+[\d.]+\s+(\S+)\s+(\d+)\s+(\S+)\s+(\d+)\s+0x([0-9A-F]{8})\s+(.*?)"
    r"\s+(\d+)\s+(-?\d+) \("
)
CHALLENGES: Final = frozenset({"401", "407"})

Key = tuple[str, str, int]  # source, destination, SSRC


class Unavailable(Exception):
    """tshark cannot be asked; the text says why, and what to do."""


class View:
    """What tshark says. Calls and streams are taken out as they are found to be ours, too."""

    def __init__(self, path: Path) -> None:
        """Raises Unavailable."""
        self.calls: dict[str, TheirCall] = {}
        self.flows: dict[Key, TheirFlow] = {}
        self.fault = ""
        program, self.version = _program()
        self._read_streams(program, path)
        self._read_calls(path)

    def _read_calls(self, path: Path) -> None:
        import pyshark

        # pyshark kills a tshark that has just ended by itself, and asyncio then wonders.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        capture = pyshark.FileCapture(str(path), display_filter="sip", keep_packets=False)
        try:
            capture.apply_on_packets(self._take)
        except Exception as error:  # of tshark, lxml and asyncio: pyshark lets all of them through
            self.fault = f"its SIP is not read to the end ({type(error).__name__})"

    def _take(self, packet: Any) -> None:
        for layer in packet.get_multiple_layers("sip"):
            self._hear(layer)

    def _hear(self, sip: Any) -> None:
        field = sip.get_field_value
        call_id = str(field("call_id") or "")
        method = str(field("cseq_method") or field("method") or "")
        call = self.calls.get(call_id)
        if call is None:
            if not call_id or method not in OF_A_CALL or len(self.calls) >= MAX_CALLS:
                return
            caller, callee = (_party(sip, header) for header in ("from", "to"))
            call = self.calls[call_id] = TheirCall(call_id, 0, caller, callee, "")
        call.messages += 1
        call.state = state(call.state, method, str(field("status_code") or ""))

    def _read_streams(self, program: str, path: Path) -> None:
        for line in self._lines(program, path):
            if found := STREAM.match(line):
                ends = _end(found[1], found[2]), _end(found[3], found[4])
                flow = TheirFlow(
                    *ends, int(found[5], 16), int(found[7]), int(found[8]), found[6].strip()
                )
                self.flows[(*ends, flow.ssrc)] = flow

    def _lines(self, program: str, path: Path) -> Iterator[str]:
        command = [program, "-n", "-q", "-r", str(path), "--enable-heuristic", "rtp_udp"]
        try:
            done = subprocess.run(
                [*command, "-z", "rtp,streams"],
                capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_S,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"tshark could not be asked ({error})") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            self.fault = f"it ended early: {last[0]}"
        yield from done.stdout.splitlines()


def state(before: str, method: str, status: str) -> str:
    """The state of a call in Wireshark's words, after one more message."""
    if method == "BYE":
        return "completed"
    if method == "CANCEL" and before != "in call":
        return "cancelled"
    if method != "INVITE" or before in ("in call", "completed", "cancelled", "rejected"):
        return before or "mid-call"
    if status >= "300" and status not in CHALLENGES:
        return "rejected"
    if status >= "200":
        return "call setup" if status in CHALLENGES else "in call"
    return "ringing" if status > "100" else before or "call setup"


def too_large(path: Path) -> bool:
    """Whether tshark would need more memory for it than one gives it unasked."""
    return path.stat().st_size > MAX_BYTES


def _program() -> tuple[str, str]:
    """Where tshark is, and its version."""
    try:
        from pyshark.tshark import tshark
    except ImportError:
        raise Unavailable(
            "pyshark is not installed, so tshark's view is missing: "
            "pip install 'spanvault[explain]'"
        ) from None
    try:
        return str(tshark.get_process_path()), f"tshark {tshark.get_tshark_version()}"
    except tshark.TSharkNotFoundException:
        raise Unavailable(
            "tshark is not installed, so its view is missing: apt install tshark"
        ) from None
    except (
        OSError,
        ValueError,
        subprocess.SubprocessError,
        tshark.TSharkVersionException,
    ) as error:
        raise Unavailable(f"tshark does not tell its version ({error})") from None


def _party(sip: Any, header: str) -> str:
    """User part of From or To, or the host where there is none."""
    field = sip.get_field_value
    return str(field(f"{header}_user") or field(f"{header}_host") or "")


def _end(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
