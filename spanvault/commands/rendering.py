"""One call's media as the commands render it: fetched, put in order, drawn, written once.

How: spanvault.audio, spanvault.video. Files, folders and messages: sound.py.
"""

from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Final

from spanvault.audio.encode import write
from spanvault.audio.order import InTimeOrder, Pages
from spanvault.audio.render import Block, Renderer, output_rate
from spanvault.callline import encrypted
from spanvault.client import Client
from spanvault.commands.output import complain, progress, warn
from spanvault.media import inclear
from spanvault.media.srtcp import Opener
from spanvault.messages import Call, MediaKind
from spanvault.video.film import Film

KILLED: Final = (
    "It was killed before storaged had acknowledged them. Silence is in their place, the rest is "
    "there, undamaged."
)
UNEXPLAINED: Final = frozenset({"no_signalling", "started_mid_call"})  # flags: SDP is missing


def has(call: Call, media: MediaKind) -> bool:
    """Whether any was heard."""
    return any(stream.packets and stream.media == media for stream in call.streams)


def has_film(call: Call) -> bool:
    """Whether there is video that an export can show."""
    return bool(Film(call.streams, encrypted(call)).codecs)


class Sound:
    """One call's sound, and its video if it is wanted, to be heard, drawn or written once."""

    def __init__(self, client: Client, call: Call, *, film: bool = False) -> None:
        self.film = Film(call.streams, encrypted(call)) if film else None
        watch = self.film.watch if self.film else None
        rate = output_rate(call.streams)
        sealed = encrypted(call)
        clear, unexplained = inclear.surely(call), not UNEXPLAINED.isdisjoint(call.flags)
        self.renderer = Renderer(call.streams, rate, sealed, watch, clear, unexplained)
        # Digits were counted with the sound, and are kept apart from it.
        self.renderer.unread -= sum(s.packets for s in call.beside if s.media == "events")
        self.heard = has(call, "audio")
        self._pages = Pages(lambda cursor: client.fetch(call.id, cursor))
        self._restarted = "capture_restarted" in call.flags
        self._srtp, self._in_clear = "srtp_sdes" in call.flags, inclear.perhaps(call)
        self._order: InTimeOrder | None = None
        wanted = ("audio", "video") if film else ("audio",)
        heard = [s for s in call.streams if s.packets and s.media in wanted]
        first, last = (s.first_ns for s in heard), (s.last_ns for s in heard)
        self.span_s = (max(last, default=0) - min(first, default=0)) / 1e9

    def blocks(self) -> Iterator[Block]:
        """Stereo, a second each; a bar on stderr meanwhile."""
        with progress("s") as bar:
            task = bar.add_task("rendering", total=self.span_s)
            for block in self.renderer.render(self._in_order()):
                yield block
                bar.advance(task, len(block) / self.renderer.rate)

    def _in_order(self) -> InTimeOrder:
        if self._order is None:
            self._order = InTimeOrder(self._pages, srtp=self._srtp, in_clear=self._in_clear)
        return self._order

    def write(self, name: str, target: BinaryIO) -> float:
        """Write it into a file; give the seconds written. Raises OSError, SandboxDied."""
        if self.film is None:
            return write(self.blocks(), self.renderer.rate, name, target)
        self.film.survey(self._in_order())
        if self.film.turned:
            self.film.look(self._in_order().stored())
        opened = Opener(self._pages.keys).open if self._srtp else bytes
        for chunk in sorted(self._pages.control, key=lambda one: int(one.header["start_ns"])):
            self.film.report(chunk, [opened(bytes(one)) or b"" for one in chunk.payloads()])
        rate = self.renderer.rate
        return self.film.write(self.blocks(), rate, name, target, heard=self.heard)

    @property
    def warnings(self) -> Counter[str]:
        """What could not be rendered as it was sent, and how often."""
        told = [each.warnings for each in (self.renderer, self.film, self._order) if each]
        return sum(told, Counter())

    def tell(self) -> bool:
        """What could not be rendered, on stderr; False where something stored was unreadable."""
        for text, times in self.warnings.items():
            warn(f"{text} ({times})")
        faults, unread = list(self._pages.faults), self.renderer.unread
        if unread > 0 and self._restarted and not faults:
            # Counted in the call table, and still in memory as the capture was killed.
            complain(f"{unread} packets that were heard were lost with the capture", KILLED)
        elif unread > 0:
            faults.append(f"{unread} packets that were heard cannot be read")
        for fault in faults:
            complain(fault, "Silence is in its place, the rest is there. See: spanvault verify")
        return not faults and unread <= 0
