"""Two telephones: SIPp (Debian: sip-tester) calling from `a` to `b` of the lab, both speaking.

Every call says the same words; the caller's number tells the calls apart. SIPp's scenarios are
written here because the parties, the length and the voices are the test's.
"""

import subprocess
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tests.support.lab import ADDRESSES, Lab
from tests.support.voices import voice, write_rtp

CALLER: Final = "4930901820"  # + the number of the call
CALLEE: Final = "4989546770"
SSRC: Final = {"a": 0x0A0A0A0A, "b": 0x0B0B0B0B}

_SDP: Final = """v=0
o=sipp 1 1 IN IP4 [media_ip]
s=-
c=IN IP4 [media_ip]
t=0 0
m=audio [auto_media_port] RTP/AVP 8
a=rtpmap:8 PCMA/8000
a=ptime:20
"""

_CALLER: Final = f"""<?xml version="1.0" encoding="UTF-8"?>
<scenario name="caller">
<send retrans="500"><![CDATA[
INVITE sip:{CALLEE}@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:{CALLER}[call_number]@[local_ip]:[local_port]>;tag=[pid]a[call_number]
To: <sip:{CALLEE}@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:{CALLER}[call_number]@[local_ip]:[local_port]>
Max-Forwards: 70
Content-Type: application/sdp
Content-Length: [len]

{_SDP}
]]></send>
<recv response="180"/>
<recv response="200"/>
<send><![CDATA[
ACK sip:{CALLEE}@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:{CALLER}[call_number]@[local_ip]:[local_port]>;tag=[pid]a[call_number]
To: <sip:{CALLEE}@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

]]></send>
<nop><action><exec play_pcap_audio="VOICE"/></action></nop>
<pause milliseconds="TALK"/>
<send retrans="500"><![CDATA[
BYE sip:{CALLEE}@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:{CALLER}[call_number]@[local_ip]:[local_port]>;tag=[pid]a[call_number]
To: <sip:{CALLEE}@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200"/>
</scenario>
"""

_WITH_SDP: Final = f"""Content-Type: application/sdp
Content-Length: [len]

{_SDP}"""

_REPLY: Final = """SIP/2.0 {status}
[last_Via:]
[last_From:]
[last_To:];tag=[pid]b[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:{callee}@[local_ip]:[local_port]>
{rest}"""


def _reply(status: str, rest: str = "Content-Length: 0\n") -> str:
    return _REPLY.format(status=status, callee=CALLEE, rest=rest)


_CALLEE: Final = f"""<?xml version="1.0" encoding="UTF-8"?>
<scenario name="callee">
<recv request="INVITE"/>
<send><![CDATA[
{_reply("180 Ringing")}
]]></send>
<pause milliseconds="200"/>
<send retrans="500"><![CDATA[
{_reply("200 OK", _WITH_SDP)}
]]></send>
<recv request="ACK"/>
<nop><action><exec play_pcap_audio="VOICE"/></action></nop>
<recv request="BYE"/>
<send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

]]></send>
<timewait milliseconds="300"/>
</scenario>
"""


class Phones:
    """`a` calls `b`. talk_s: how long each call lasts after it was answered."""

    def __init__(self, lab: Lab, folder: Path, talk_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lab, self._folder, self.talk_s = lab, folder, talk_s
        self.voices: dict[str, NDArray[np.int16]] = {
            "a": voice(talk_s, pitch_hz=190, seed=1),
            "b": voice(talk_s, pitch_hz=105, seed=2),
        }
        for name, scenario in (("a", _CALLER), ("b", _CALLEE)):
            sound = folder / f"{name}.pcap"
            write_rtp(sound, self.voices[name], SSRC[name])
            text = scenario.replace("VOICE", str(sound))
            text = text.replace("TALK", str(round(self.talk_s * 1000) + 200))
            (folder / f"{name}.xml").write_text(text)

    def call(
        self, calls: int = 1, at_once: int = 1, a_second: float = 10
    ) -> "subprocess.Popen[bytes]":
        """Begin to place so many calls, so many at once; wait() gives 0 if all went well."""
        self._callee = self._sipp("b", ["-aa", "-m", str(calls)])
        period_ms = round(1000 * max(1, 1 / a_second))
        rate = ["-r", str(max(1, round(a_second))), "-rp", str(period_ms)]
        rate += ["-m", str(calls), "-l", str(at_once), "-recv_timeout", "10000"]
        return self._sipp("a", [*rate, f"{ADDRESSES['b']}:5060"])

    def _sipp(self, name: str, options: list[str]) -> "subprocess.Popen[bytes]":
        address = ADDRESSES[name]
        command = ["sipp", "-sf", f"{self._folder}/{name}.xml", "-nostdin", "-trace_err"]
        command += ["-i", address, "-p", "5060", "-mi", address, "-mp", "10000"]
        return self._lab.start(
            name, [*command, *options], self._folder / f"sipp-{name}.log", cwd=self._folder
        )
