"""Turn stored RTP frames of video into tracks of a film, on demand; nothing is encoded anew.

A packet's way: units (packets to whole pictures; nal, vp8, vp9 say how a codec wraps them) → film
(tracks on the sound's time line) → worker (the file). A new codec is a row in units.KINDS and in
film.FILMS.
"""
