"""Turn stored RTP frames into sound, on demand: caller left, callee right, one time line.

No key is ever in the same process: chunks come opened from storaged, files go to the operator.
A packet's way: order (chunks in the order they were heard) → timeline and clock (where it lies) →
decoding (payload to samples; codecs says how) → render (lanes, mixed to stereo blocks) → encode (a
file) or picture. A new codec is one line in codecs.DECODERS.
"""

from spanvault.audio.codecs import decodable
from spanvault.audio.encode import FORMATS, write
from spanvault.audio.order import InTimeOrder, Pages
from spanvault.audio.picture import Picture
from spanvault.audio.render import Block, Renderer, output_rate

__all__ = [
    "FORMATS",
    "Block",
    "InTimeOrder",
    "Pages",
    "Picture",
    "Renderer",
    "decodable",
    "output_rate",
    "write",
]
