"""Turn stored RTP frames into sound, on demand: caller left, callee right, one time line.

No key is ever in the same process: chunks come opened from storaged, files go to the operator.
A packet's way: order (chunks in the order they were heard) → clock (where on the time line) →
codecs (payload to samples) → render (lanes, mixed to stereo blocks) → encode (a file) or picture.
A new codec is one line in codecs.DECODERS.
"""

from spanvault.audio.codecs import DECODABLE
from spanvault.audio.encode import FORMATS, write
from spanvault.audio.order import Pages, in_time_order
from spanvault.audio.picture import Picture
from spanvault.audio.render import Block, Renderer, output_rate

__all__ = [
    "DECODABLE",
    "FORMATS",
    "Block",
    "Pages",
    "Picture",
    "Renderer",
    "in_time_order",
    "output_rate",
    "write",
]
