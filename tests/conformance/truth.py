"""What was really said on a capture, in one shape for the public captures and the lab's cases.

Sources: captures/manifest.json (tshark's view of public captures), lab/cases/*/truth.json (what the
phones did). Comparing: compare.py.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tests.support.folders import SHARED

FAILURES: Final = {
    "486": "busy", "600": "busy", "603": "declined", "404": "not_found", "604": "not_found",
    "480": "no_answer", "408": "no_answer", "487": "cancelled",
}  # fmt: skip

# By SSRC: in sip_tcp phone A stood still for a second, its timestamp with it, and then went on.
# The truth of that case goes by timestamps alone; the lab's script has learnt of arrivals since.
STOOD_STILL: Final = {"0x35f61e15": (5.98, 1.003)}
CLEAR: Final = 0.8  # a second that correlates so well is surely that voice, and nothing beside it


@dataclass(frozen=True)
class Channel:
    """One direction of media. seconds: first to last packet."""

    party: str
    source: str
    destination: str
    codec: str  # lower case
    packets: int
    lost: int  # of the lab's truth 0: arrivals.py knows
    seconds: float
    ssrc: str = ""  # of the lab's only


@dataclass(frozen=True)
class Voice:
    """What a stream carried: a WAV, how well it correlates, and where in the stream it starts."""

    wav: str
    correlation: float
    starts_at_s: float


@dataclass(frozen=True)
class Second:
    """What is heard from a second of a stream on: which WAV, from where in it, how well."""

    at_s: float  # since the stream's first packet
    wav: str
    position_s: float  # to 10 ms
    correlation: float
    lasts_s: float = 1.5  # so much the truth looked at


@dataclass(frozen=True)
class TrueCall:
    """One call attempt. outcome, channels: None where the truth does not say."""

    call_id: str
    caller: str
    callee: str
    outcome: str | None
    channels: list[Channel] | None = None


@dataclass(frozen=True)
class TrueStream:
    """One stream of the lab. start_s: when its first packet arrived, absolute."""

    source: str
    destination: str
    ssrc: str
    codec: str
    start_s: float
    voice: Voice | None
    seconds: list[Second] = field(default_factory=list)  # clear ones only; none of a loaded lab
    looped: bool = False  # the phone played its WAV again and again

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells it from all others of the case."""
        return self.source, self.destination, self.ssrc


@dataclass(frozen=True)
class Case:
    """A capture and its truth."""

    name: str
    capture: Path
    calls: list[TrueCall]
    streams: list[TrueStream] = field(default_factory=list)
    partial: bool = False  # the truth names only some of the calls
    audio_only: bool = False  # the truth says nothing of video


def public_cases() -> dict[str, Case]:
    """By the short name of the capture, as s01."""
    manifest = SHARED / "captures" / "manifest.json"
    files = json.loads(manifest.read_text())["files"] if manifest.exists() else []
    return {one.name: one for one in map(_public, files)}


def lab_cases() -> dict[str, Case]:
    """By name."""
    return {path.parent.name: _lab(path) for path in sorted(SHARED.glob("lab/cases/*/truth.json"))}


def _public(entry: dict[str, Any]) -> Case:
    recordings = {one["call_id"]: one for one in entry["expected_recordings"]}
    calls = []
    for call in entry["calls"]:
        found = recordings.get(call["call_id"], {"channels": []})
        streams = ((one, entry["rtp_streams"][one["stream"]]) for one in found["channels"])
        channels = [
            Channel(
                one["speaker"] or "unknown",
                stream["src"],
                stream["dst"],
                one["codec"].split("/")[0].lower(),
                one["packets_unique"],
                one["lost"],
                one["seconds_wall"],
            )
            for one, stream in streams
        ]
        outcome = _public_outcome(call["outcome"])
        calls.append(TrueCall(call["call_id"], call["from"], call["to"], outcome, channels))
    path = SHARED / "captures" / entry["file"]
    partial = len(calls) < entry["calls_total"]
    return Case(path.name.split("_")[0], path, calls, partial=partial, audio_only=True)


def _public_outcome(text: str) -> str | None:
    if text == "answered":
        return text
    code = text.removeprefix("failed-")
    return FAILURES.get(code, "failed") if code != text else None


def _lab(path: Path) -> Case:
    truth = json.loads(path.read_text())
    streams = truth["rtp_streams"]
    dialogs = [one for one in truth["sip_dialogs"] if "INVITE" in one["methods"]]
    if not dialogs:  # the capture began in mid-call
        dialogs = truth["sip_dialogs"]
    calls = [_lab_call(one, truth, streams, len(dialogs)) for one in dialogs]
    looped = bool(truth["expected"].get("groups"))  # under load sipp plays short voices in a loop
    heard = [_stream(one, looped) for one in streams]
    return Case(path.parent.name, path.with_name("call.pcap"), calls, heard)


def _lab_call(
    dialog: dict[str, Any], truth: dict[str, Any], streams: list[dict[str, Any]], dialogs: int
) -> TrueCall:
    agents = [one for one in truth["ua_calls"] if one["call_id"] == dialog["call_id"]]
    # `replacement` is an INVITE with Replaces: the phone that sent it took a leg over as callee.
    roles = {"caller": "caller"}
    ends = {
        media["local_rtp"]: roles.get(one["role"], "callee")
        for one in agents
        for media in one["media"]
    }
    for one in agents:  # behind NAT a phone does not know where it is heard from, but whom it hears
        for media in one["media"]:
            ends.setdefault(media.get("remote_rtp", ""), _far(roles.get(one["role"], "callee")))
    told: list[dict[str, Any]] | None = streams
    if not ends:  # SIPp does not tell its ports
        told = streams if dialogs == 1 else _of_answer(dialog, truth, streams)
        ends = {one["src"]: _role(one["src"]) for one in streams}
    return TrueCall(
        dialog["call_id"],
        _user(dialog["from_"]),
        _user(dialog["to"]),
        _lab_outcome(dialog, truth["expected"].get("outcome"), agents),
        None if told is None else _lab_channels(told, ends),
    )


def _of_answer(
    dialog: dict[str, Any], truth: dict[str, Any], streams: list[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """The streams of a call under load: the two voices of its pair of numbers, from its answer on.

    The lab answers calls of one pair two seconds apart, and the phones speak at once. None where
    the truth does not say which streams have which voice: it listens to the first 400.
    """
    pairs = [
        one
        for one in truth["expected"].get("groups", [])
        if one["caller"] == _user(dialog["from_"])
    ]
    answered = dialog.get("answer_t", math.inf)
    begun = [one for one in streams if 0 <= one["t0"] - answered < 1]
    if any("audio" not in one for one in begun):
        return None
    wavs = {wav for pair in pairs for wav in (pair["a_wav"], pair["b_wav"])}
    return [one for one in begun if (one["audio"] or {}).get("wav") in wavs]


def _lab_channels(streams: list[dict[str, Any]], ends: dict[str, str]) -> list[Channel]:
    parties = ((one, ends.get(one["src"]) or _other(ends.get(one["dst"]))) for one in streams)
    return [
        Channel(
            party, one["src"], one["dst"], one["codec"].lower(), one["unique"], 0,
            one["t1"] - one["t0"], one["ssrc"],
        )
        for one, party in parties
        if party
    ]  # fmt: skip


def _role(source: str) -> str:
    """In the lab, phone A calls."""
    return "caller" if source.startswith("10.77.0.11:") else "callee"


def _far(role: str) -> str:
    return "callee" if role == "caller" else "caller"


def _other(role: str | None) -> str | None:
    return role and _far(role)


def _user(header: str) -> str:
    found = re.search(r"sips?:(?:([^@>;]*)@)?([^>;:]+)", header)
    return (found[1] or found[2]) if found else header


def _lab_outcome(
    dialog: dict[str, Any], expected: str | None, agents: list[dict[str, Any]]
) -> str | None:
    if "INVITE" not in dialog["methods"] or "answer_t" in dialog:
        return "answered"
    if "cancel_t" in dialog:
        return "cancelled"
    if expected in FAILURES.values() and any(one["role"] == "caller" for one in agents):
        return expected  # what happened, whatever code a PBX chose to tell it
    codes = [code for code in dialog["responses"] if code >= "300" and code not in ("401", "407")]
    return FAILURES.get(codes[0], "failed") if codes else None


def _stream(entry: dict[str, Any], looped: bool) -> TrueStream:
    audio = entry.get("audio") or {}
    heard = audio.get("corr", 0) >= 0.3
    voice = Voice(audio["wav"], audio["corr"], audio["wav_starts_at_s"]) if heard else None
    whole_s = entry["t1"] - entry["t0"]
    seconds = [
        Second(one[0], one[1], one[2], one[3], min(1.5, whole_s - one[0]))
        for one in audio.get("timeline", ())
        if one[3] >= CLEAR
    ]
    if entry["ssrc"] in STOOD_STILL:
        seconds = list(_after_standstill(seconds, *STOOD_STILL[entry["ssrc"]]))
    return TrueStream(
        entry["src"], entry["dst"], entry["ssrc"], entry["codec"].lower(), entry["t0"], voice,
        seconds if voice else [], looped,
    )  # fmt: skip


def _after_standstill(seconds: list[Second], at_s: float, lasted_s: float) -> Iterator[Second]:
    """The same seconds, those behind a standstill later; the one it tears is left out."""
    for one in seconds:
        if one.at_s + one.lasts_s <= at_s:
            yield one
        elif one.at_s >= at_s:
            yield replace(one, at_s=one.at_s + lasted_s)


def names(cases: Iterable[Case]) -> list[str]:
    """For test ids."""
    return [case.name for case in cases]
