"""When a call's media is in the clear: while both sides agree to it, until keys show on its path.

Fed with what descriptions agree upon (capture.calls.signalling) and with agreements that media
makes by itself (capture.calls.handshakes). What follows from it: spanvault.media.inclear.
"""

from typing import Final

import msgspec

from spanvault.messages import Span

MAX_SPANS: Final = 64  # of one call; the oldest give way, and stay silent


class InClear(msgspec.Struct, array_like=True):
    """The spans of one call, oldest first; only the last may be open."""

    spans: list[Span] = []
    sealed: bool = False  # media has agreed upon keys of which signalling says nothing

    def agree(self, secure: bool, at_ns: int) -> None:
        """From now on, media is agreed to be encrypted, or not to be."""
        last = self.spans[-1] if self.spans else None
        if last is not None and last.until_ns is None:
            if secure:
                self.spans = [*self.spans[:-1], Span(last.from_ns, at_ns)]
        elif not secure and not self.sealed:
            self.spans = [*self.spans, Span(at_ns)][-MAX_SPANS:]

    def seal(self, at_ns: int) -> None:
        """Media has agreed upon keys: whatever signalling said, it is encrypted from then on."""
        for place, span in enumerate(self.spans):
            if span.from_ns <= at_ns and (span.until_ns is None or at_ns < span.until_ns):
                self.spans, self.sealed = [*self.spans[:place], Span(span.from_ns, at_ns)], True
                return

    def shifted(self, by_ns: int) -> list[Span]:
        """The spans by a clock that is ahead by so much."""
        return [
            Span(one.from_ns + by_ns, None if one.until_ns is None else one.until_ns + by_ns)
            for one in self.spans
        ]
