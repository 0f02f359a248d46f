"""What RTCP says of an encrypted call's far ends: `spanvault show --far-end`.

The capture keeps encrypted RTCP as heard and reads none of it. It is fetched with the recording,
as whoever may hear it may do, and opened here. How: spanvault.media.farend.
"""

from spanvault.client import Client
from spanvault.media.chunk import Chunk
from spanvault.media.farend import FarEnds
from spanvault.messages import Call, MediaKey


def read_far_ends(client: Client, call: Call) -> list[str]:
    """Fill in the far ends of a call whose keys SDP told; what could not be read, a line each.

    Of other calls there is nothing to open. Raises client.RequestFailed.
    """
    if "srtp_sdes" not in call.flags:
        return []
    chunks: list[Chunk] = []
    keys: list[MediaKey] = []
    faults: list[str] = []
    control = {stream.number for stream in call.beside if stream.media == "control"}
    cursor: int | None = 0
    while cursor is not None and control:
        page = client.fetch(call.id, cursor)
        faults += page.faults
        keys += page.keys
        chunks += [one for one in page.media.chunks() if int(one.header["stream"]) in control]
        cursor = page.next
    read = FarEnds(call.streams, keys)
    read.receive(sorted(chunks, key=lambda one: int(one.header["start_ns"])))
    return faults + [f"{text} ({times})" for text, times in read.warnings.items()]
