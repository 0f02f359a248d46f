"""Offers and answers, in whatever messages they ride."""

from capture.signalling.offer_answer import OfferAnswer, signalled_flags
from capture.signalling.sdp import parse as parse_sdp
from capture.signalling.sip import SipMessage

AUDIO = "m=audio 4000 RTP/AVP 0"
VIDEO = "m=video 4002 RTP/AVP 96"


class Talk:
    """One call's descriptions. Each act returns (side, role) or None."""

    def __init__(self) -> None:
        self.state = OfferAnswer()

    def say(self, side, method, *lines, status=None, cseq=1, tag="t"):
        message = SipMessage(method, status, "", "1", cseq, {}, b"")
        body = "\n".join(["v=0", "c=IN IP4 192.0.2.1", *lines]).encode()
        self.change = self.state.receive(message, side, tag, parse_sdp(body))
        return self.change and (self.change.side, self.change.role)


def test_offer_in_the_invite_answer_in_the_200():
    talk = Talk()
    assert talk.say("caller", "INVITE", AUDIO, tag="") == ("caller", "offer")
    assert talk.say("callee", "INVITE", AUDIO, status=200) == ("callee", "answer")
    assert not talk.state.delayed


def test_the_200_repeats_the_answer_of_the_183():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, tag="")
    assert talk.say("callee", "INVITE", AUDIO, status=183) == ("callee", "answer")
    assert talk.say("callee", "INVITE", AUDIO, status=200) == ("callee", "answer")


def test_an_answer_that_comes_again_is_of_no_new_offer():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, "a=recvonly", tag="")
    talk.say("callee", "INVITE", AUDIO, "a=sendonly", status=200)
    talk.say("callee", "INVITE", AUDIO, "a=sendonly", status=200)
    assert not talk.change.reoffer
    talk.say("caller", "INVITE", AUDIO, "a=sendonly", cseq=2)
    for _ in range(2):
        talk.say("callee", "INVITE", AUDIO, "a=recvonly", status=200, cseq=2)
        assert talk.change.reoffer


def test_delayed_offer_is_answered_in_the_ack():
    talk = Talk()
    assert talk.say("callee", "INVITE", AUDIO, status=200) == ("callee", "offer")
    assert talk.say("caller", "ACK", AUDIO) == ("caller", "answer")
    assert talk.state.delayed


def test_offer_in_a_reliable_183_is_answered_in_the_prack():
    talk = Talk()
    assert talk.say("callee", "INVITE", AUDIO, status=183) == ("callee", "offer")
    assert talk.say("caller", "PRACK", AUDIO, cseq=2) == ("caller", "answer")


def test_update_before_the_answer():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, tag="")
    talk.say("callee", "INVITE", AUDIO, status=183)
    assert talk.say("caller", "UPDATE", AUDIO, cseq=2) == ("caller", "offer")
    assert talk.say("callee", "UPDATE", AUDIO, status=200, cseq=2) == ("callee", "answer")


def test_every_fork_answers_the_same_offer():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, VIDEO, tag="")
    assert talk.say("callee", "INVITE", AUDIO, status=183, tag="one") == ("callee", "answer")
    assert talk.say("callee", "INVITE", AUDIO, status=200, tag="two") == ("callee", "answer")


def test_refused_lines_are_paired_by_their_place():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, VIDEO, tag="")
    talk.say("callee", "INVITE", AUDIO, "m=video 0 RTP/AVP 96", status=200)
    assert [(media.kind, media.port) for media in talk.change.rejected] == [("video", 4002)]


def test_hold_begins_with_the_answer_to_a_reoffer_and_ends_with_the_next():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, tag="")
    talk.say("callee", "INVITE", AUDIO, status=200)
    assert not talk.state.held
    for cseq, offer, answer, held in (
        (2, "a=sendonly", "a=recvonly", True),
        (3, "a=sendrecv", "a=sendrecv", False),
        (4, "a=inactive", "a=inactive", True),
    ):
        talk.say("caller", "INVITE", AUDIO, offer, cseq=cseq)
        talk.say("callee", "INVITE", AUDIO, answer, status=200, cseq=cseq)
        assert (talk.change.reoffer, talk.state.held) == (True, held)


def test_a_refused_reoffer_changes_nothing():
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, tag="")
    talk.say("callee", "INVITE", AUDIO, status=200)
    talk.say("caller", "INVITE", AUDIO, "a=sendonly", cseq=2)
    talk.state.refuse("t", 2)
    assert not talk.state.held


def test_descriptions_in_other_messages_mean_nothing():
    talk = Talk()
    assert talk.say("caller", "MESSAGE", AUDIO) is None
    assert talk.say("callee", "INVITE", AUDIO, status=488) is None
    assert talk.say("caller", "OPTIONS", AUDIO, status=200) is None


def test_protection_counts_where_both_agreed_to_it():
    talk, crypto = Talk(), "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x"
    talk.say("caller", "INVITE", AUDIO, crypto, tag="")
    talk.say("callee", "INVITE", AUDIO, status=200)
    assert signalled_flags(talk.state) == set()
    talk.say("callee", "INVITE", AUDIO, crypto, status=200)
    assert signalled_flags(talk.state) == {"srtp_sdes"}


def test_what_a_fork_offers_and_is_refused_agrees_upon_nothing():
    """Beside it stands what the INVITE offered, to that fork as to all others."""
    talk = Talk()
    talk.say("caller", "INVITE", AUDIO, tag="")
    secure = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "QUJD" * 10
    talk.say("callee", "UPDATE", AUDIO, secure, cseq=7)
    talk.state.refuse("t", 7)
    assert signalled_flags(talk.state) == set()
