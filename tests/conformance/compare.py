"""Differences between what was recorded and the truth, in words; none is good."""

from typing import Any, Final

from tests.conformance.truth import Case, Channel, TrueCall

SECONDS: Final = 0.1  # how exactly a channel's length must agree
Key = tuple[str, str, str, str]


def differences(case: Case, calls: list[dict[str, Any]]) -> list[str]:
    """Of the call set, and of every call that both have."""
    wanted = {call.call_id: call for call in case.calls}
    got = {call_id: call for call in calls for call_id in call["call_ids"]}
    found = [f"{name}: not recorded" for name in wanted if name not in got]
    if not case.partial:
        found += [f"{name}: no such call" for name in got if name not in wanted]
    for name in wanted.keys() & got.keys():
        texts = _of_call(wanted[name], got[name], case.audio_only)
        found += [f"{name}: {text}" for text in texts]
    return sorted(found)


def _of_call(wanted: TrueCall, got: dict[str, Any], audio_only: bool) -> list[str]:
    found = [
        f"{name} {got[name]!r}, truth {getattr(wanted, name)!r}"
        for name in ("caller", "callee", "outcome")
        if getattr(wanted, name) not in (None, got[name])
    ]
    if wanted.channels is not None:
        found += _of_channels(wanted.channels, got, audio_only)
    return found


def _of_channels(wanted: list[Channel], got: dict[str, Any], audio_only: bool) -> list[str]:
    ours: dict[Key, Channel] = {}
    truth: dict[Key, Channel] = {}
    for channel in got["channels"]:
        if channel["media"] == "audio" or not audio_only:
            _add(ours, _from_document(channel))
    for channel in wanted:
        _add(truth, channel)
    found = [f"channel {_name(key)} was not recorded" for key in truth.keys() - ours.keys()]
    found += [f"channel {_name(key)} is not in the truth" for key in ours.keys() - truth.keys()]
    for key in truth.keys() & ours.keys():
        found += [f"channel {_name(key)}: {text}" for text in _of_channel(truth[key], ours[key])]
    return found


def _of_channel(wanted: Channel, got: Channel) -> list[str]:
    found = [
        f"{name} {getattr(got, name)}, truth {getattr(wanted, name)}"
        for name in ("packets", "lost")
        if getattr(got, name) != getattr(wanted, name)
    ]
    if abs(got.seconds - wanted.seconds) > SECONDS:
        found.append(f"seconds {got.seconds:.3f}, truth {wanted.seconds:.3f}")
    return found


def _from_document(channel: dict[str, Any]) -> Channel:
    return Channel(
        channel["party"], channel["source"], channel["destination"], channel["codec"].lower(),
        channel["packets"], channel["lost"], channel["seconds"],
    )  # fmt: skip


def _add(channels: dict[Key, Channel], one: Channel) -> None:
    """Streams that follow each other between the same two ends are one channel."""
    key = (one.party, one.source, one.destination, one.codec)
    before = channels.get(key)
    channels[key] = one if before is None else Channel(
        *key, before.packets + one.packets, before.lost + one.lost, before.seconds + one.seconds
    )  # fmt: skip


def _name(key: Key) -> str:
    party, source, destination, codec = key
    return f"{party} {codec} {source} → {destination}"
