"""What an export says of packets that the call's record counts and no chunk brought."""

from typing import cast

import pytest

from spanvault.client import Client
from spanvault.commands.rendering import Sound
from spanvault.messages import Call
from tests.support.chunks import START_NS, stream


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["capture_restarted"], "1 packets that were heard were lost with the capture"),
        ([], "1 packets that were heard cannot be read"),
    ],
)
def test_what_was_lost_with_a_killed_capture_is_not_called_damage(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    call = Call(b"", "", ["c"], "a", "b", START_NS, flags=flags, streams=[stream()])
    never_asked = cast(Client, None)  # nothing is fetched
    assert Sound(never_asked, call).tell() is False
    said = capsys.readouterr().err
    assert words in said
    assert ("spanvault verify" in said) is not bool(flags)
