"""When media is in the clear, by what is agreed upon, one thing after another."""

from capture.calls.inclear import MAX_SPANS, InClear
from spanvault.messages import Span


def test_it_is_while_both_agree_to_it():
    one = InClear()
    for secure, at_ns in ((False, 1), (False, 2), (True, 3), (True, 4), (False, 5)):
        one.agree(secure, at_ns)
    assert one.spans == [Span(1, 3), Span(5)]
    assert one.shifted(10) == [Span(11, 13), Span(15)]


def test_keys_on_its_own_path_end_it_for_good():
    one = InClear()
    one.agree(secure=False, at_ns=1)
    for _ in range(2):
        one.seal(3)
        one.agree(secure=False, at_ns=5)  # a hold, say
    assert one.spans == [Span(1, 3)]


def test_keys_that_were_agreed_upon_in_words_end_nothing():
    one = InClear()
    one.agree(secure=True, at_ns=1)
    one.seal(2)
    one.agree(secure=False, at_ns=3)
    one.seal(2)
    assert one.spans == [Span(3)]


def test_keys_that_were_found_out_late_end_what_followed():
    one = InClear()
    for secure, at_ns in ((False, 1), (True, 5), (False, 9)):
        one.agree(secure, at_ns)
    one.seal(3)
    assert one.spans == [Span(1, 3)]


def test_changes_without_end_are_bounded():
    one = InClear()
    for at_ns in range(4 * MAX_SPANS):
        one.agree(secure=bool(at_ns % 2), at_ns=at_ns)
    assert len(one.spans) == MAX_SPANS
