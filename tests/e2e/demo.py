"""`make demo`: a telephone call is heard at a mirror port, stored encrypted, copied, and played.

As root, two SIPp phones call each other over a switch in network namespaces, whose ports are
mirrored to where the capture listens. Without root the capture reads tests/data/sample.pcap.
What is left to look at lies in demo/. Exit status 0 only if both voices came out at the end.
"""

import json
import os
import shutil
import signal
import sys
import time
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

REPOSITORY: Final = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.support import callgen  # noqa: E402 - found only by the line above
from tests.support.appliance import Appliance  # noqa: E402
from tests.support.folders import SAMPLE  # noqa: E402
from tests.support.lab import Lab  # noqa: E402
from tests.support.phones import Phones  # noqa: E402
from tests.support.voices import likeness  # noqa: E402

FOLDER: Final = REPOSITORY / "demo"
TALK_S: Final = 10.0
PATIENCE_S: Final = 60.0

Voices = Mapping[str, NDArray[np.int16]]


class DemoFailed(Exception):
    """What did not come out as it should."""


def main() -> int:
    """Run the demonstration; the exit status says whether every part of it worked."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # everything is undone
    shutil.rmtree(FOLDER, ignore_errors=True)
    live = os.geteuid() == 0 and shutil.which("sipp") is not None
    try:
        with live_call() if live else replayed_call() as (appliance, voices):
            look(appliance, voices)
    except (DemoFailed, OSError) as error:
        say(f"FAILED: {error}")
        return 1
    say("Every step worked. All of it lies in demo/, with the daemons' messages in demo/log.")
    return 0


@contextmanager
def live_call() -> Iterator[tuple[Appliance, Voices]]:
    """A call between two phones, heard at a mirror port."""
    say("Building a switch with two phones and a mirror port (network namespaces, tc)")
    with Lab() as lab, Appliance(FOLDER, "span0", lab.within("span")) as appliance:
        for name in ("storaged", "replicator", "capture"):
            appliance.start(name)
            say(f"Started {name}: {appliance.statuses.get(name, '')}")
        phones = Phones(lab, FOLDER / "phones", TALK_S)
        say(f"Phone a calls phone b; both talk for {TALK_S:g} s")
        if phones.call().wait(TALK_S + 30):
            raise DemoFailed(f"the phones could not talk: see {FOLDER}/phones/sipp-a.log")
        say("They hung up")
        yield appliance, {"caller": phones.voices["a"], "callee": phones.voices["b"]}


@contextmanager
def replayed_call() -> Iterator[tuple[Appliance, Voices]]:
    """The call of the repository's capture file, through the same daemons."""
    say(f"No root or no SIPp here, so no live call: reading {SAMPLE.relative_to(REPOSITORY)}")
    with Appliance(FOLDER) as appliance:
        for name in ("storaged", "replicator"):
            appliance.start(name)
            say(f"Started {name}: {appliance.statuses.get(name, '')}")
        appliance.start("capture", str(SAMPLE), wait=False)
        if status := appliance.processes["capture"].wait(PATIENCE_S):
            raise DemoFailed(f"capture ended with status {status}\n{appliance.log('capture')}")
        caller, callee = callgen.phones(8.0)
        yield appliance, {"caller": caller.samples, "callee": callee.samples}


def look(appliance: Appliance, voices: Voices) -> None:
    """Ask for the call as an operator would, and listen to it."""
    call = wait_for_copy(appliance)
    ask(appliance, "calls")
    ask(appliance, "show", call["id"], "--waveform")
    ask(appliance, "verify", call["id"])
    ask(appliance, "status")
    sound = FOLDER / "call.wav"
    ask(appliance, "export", call["id"], "-o", str(sound))
    say("Who is heard in it, compared with what was said:")
    check_voices(sound, voices)
    (receipt,) = call["recording"]["receipts"]
    print(f"    receipt    {receipt['target']}, {receipt['size']} bytes read back,")
    print(f"               SHA-256 {receipt['sha256']}")
    print(f"    recording  {sound}")


def wait_for_copy(appliance: Appliance) -> dict[str, Any]:
    """The call with media, once its recording is sealed and a copy of it is verified."""
    say("Waiting for the recording to be sealed, copied, and the copy read back")
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        calls = [json.loads(line) for line in answer(appliance, "calls", "--json").splitlines()]
        for call in calls:
            if call["recording_id"]:
                shown = json.loads(answer(appliance, "show", call["id"], "--json"))
                if shown["recording"]["sealed"] and shown["recording"]["receipts"]:
                    return dict(shown)
        time.sleep(0.5)
    raise DemoFailed(f"no recording was copied within {PATIENCE_S:g} s: see {appliance.logs}")


def check_voices(sound: Path, voices: Voices) -> None:
    """The caller must be heard on the left only, the callee on the right only."""
    with wave.open(str(sound)) as file:
        if file.getnchannels() != 2:
            raise DemoFailed(f"{sound} is not stereo")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    for column, side in enumerate(("left", "right")):
        found = {party: likeness(samples[:, column], said)[0] for party, said in voices.items()}
        expected, other = ("caller", "callee") if side == "left" else ("callee", "caller")
        print(f"    {side:<10} {expected} {found[expected]:.3f}, {other} {found[other]:.3f}")
        if found[expected] < 0.9 or found[other] > 0.3:
            raise DemoFailed(f"the {side} channel of {sound} is not the {expected}'s voice")


def ask(appliance: Appliance, *arguments: str) -> None:
    """Run the operator's command and show what it says."""
    shown = [word.replace(f"{REPOSITORY}/", "") for word in arguments]
    say("spanvault " + " ".join(shown))
    for line in answer(appliance, *arguments).splitlines():
        print(f"    {line}".rstrip())


def answer(appliance: Appliance, *arguments: str) -> str:
    """What the operator's command printed. Raises DemoFailed with its message if it failed."""
    done = appliance.spanvault(*arguments)
    if done.returncode:
        raise DemoFailed(f"spanvault {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout or done.stderr


def say(text: str) -> None:
    """One step."""
    print(f"\n==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
