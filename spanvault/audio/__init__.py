"""Turn stored RTP frames into sound, on demand: caller left, callee right, one time line.

No key is ever in the same process: chunks come opened from storaged, files go to the operator.
A packet's way: order (chunks in the order they were heard) → timeline, clock, pace, sending (where
it lies) → decoding (payload to samples; codecs says how) → render (lanes, mixed to stereo blocks) →
encode (a file) or picture. A new codec is one line in codecs.DECODERS. Parts are imported from
where they are: who only asks whether a codec can be decoded loads nothing else.
"""
