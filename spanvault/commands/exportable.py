"""Which streams an export can render, for commands that render nothing themselves."""

from spanvault.audio.codecs import decodable
from spanvault.messages import Codec
from spanvault.video.units import muxable


def exportable(codec: Codec | None) -> bool:
    """Whether a stream of this codec can be rendered."""
    return decodable(codec) or muxable(codec)
