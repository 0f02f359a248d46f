"""Which captures may yet bring something under an ingest key: each says it for itself.

Protocol: WIRE.md §5. When the keys go: test_retiring.py.
"""

import pytest

from spanvault import messages as m
from spanvault.transport import Identity
from storaged.erasing.holding import Holding
from storaged.erasing.retiring import PAUSE_NS
from storaged.index import ingestkeys
from tests.support.desk import GRACE_NS


def test_capture_that_is_away_is_waited_for_until_the_grace_is_over_and_that_is_told(house):
    house.say(house.keys[0])
    house.erase(1)
    house.look()
    assert house.counter.retirer.words() == ""  # captures learn of it within seconds
    house.now_ns += 120 * 10**9
    house.look()
    assert house.state == ["waits for capture office"]
    assert "waits for capture office until" in house.counter.retirer.words()
    house.now_ns += GRACE_NS - 121 * 10**9
    house.look()
    assert not house.gone()
    house.now_ns += 10**9
    house.look()
    assert (house.gone(), len(house.keys)) == (True, 1)


@pytest.mark.parametrize("told", [None, "key", ["nonsense"], [7], [["00" * 8]], ["0" * 16] * 65])
def test_capture_that_says_nothing_of_use_is_waited_for(house, told):
    house.greet()
    house.counter.retirer.holding.hear(
        "office", m.Health("capture office", "", {"sealed_to": told})
    )
    house.erase(1)
    house.look()
    house.look()
    assert house.state == ["waits for capture office"]


def test_capture_of_a_version_before_is_waited_for_once_it_was_told_a_key(house):
    house.counter.retirer.holding.hear("office", m.Health("capture office", "recording", {}))
    house.greet()
    house.erase(1)
    house.look()
    house.look()
    assert house.state == ["waits for capture office"]


def test_last_word_from_before_the_newest_key_does_not_count_for_that(house):
    """It may have met the newest key behind its last word, and have spooled under it."""
    first = house.keys[0]
    house.say(first)
    house.erase(1)
    house.look()
    house.say(house.keys[1])
    house.look()
    second = house.keys[0]
    for number in (12, 13):
        house.now_ns += PAUSE_NS
        house.store(number)
        house.erase(number)
        house.look()
        house.look()
    assert house.keys[0] == second
    third = house.keys[1]
    assert house.state[-1] != "goes now"
    house.say(second)
    house.look()
    assert third in house.keys  # what it says has no key that is newer
    house.say(house.keys[-1])
    house.look()
    assert len(house.keys) == 1


def test_what_was_said_counts_after_a_restart_too(house):
    old = house.keys[0]
    house.say(old)
    house.look()
    house.again()
    house.erase(1)
    house.look()
    house.look()
    assert old in house.keys
    house.say(house.keys[1])
    house.look()
    assert house.keys != [old]
    assert house.gone()


def test_without_certificate_only_who_said_so_is_waited_for(house):
    old = house.keys[0]
    house.say(old)
    house.greet("elsewhere")
    house.say(old, capture="gone")
    house.erase(1)
    house.look()
    house.say(house.keys[1])
    house.look()
    assert house.state == ["waits for capture gone"]


def test_programs_that_share_a_certificate_are_each_waited_for(house):
    old = house.keys[0]
    house.say(old)
    house.say(old, daemon="capture annex")
    house.erase(1)
    house.look()
    house.say(house.keys[1])
    house.look()
    assert old in house.keys
    house.say(house.keys[1], daemon="capture annex")
    house.look()
    assert old not in house.keys


def test_cloned_hosts_are_each_waited_for(house):
    """They have one certificate and one name; what one says is not the other's word."""
    old = house.keys[0]
    house.say(old, host="alpha")
    house.say(old, host="beta")
    house.erase(1)
    house.look()
    house.say(house.keys[1], host="beta")
    house.look()
    assert old in house.keys
    house.say(house.keys[1], host="alpha")
    house.look()
    assert old not in house.keys


def test_who_invents_programs_holds_up_himself_until_the_grace_and_fills_nothing(house):
    for number in range(1000):
        house.say("00" * 8, daemon=f"capture {number}")
    house.look()
    with house.counter.parts.index.reading() as view:
        assert len(ingestkeys.holders(view)) == ingestkeys.DAEMONS + 1
    house.erase(1)
    house.look()
    house.look()
    assert house.state == ["waits for capture office"]
    house.now_ns += GRACE_NS
    house.look()
    assert house.gone()


def test_guest_waits_for_every_capture_that_the_store_ever_met(parts):
    """Who may send has certificates in settings that are not at hand."""
    old, new = "0" * 16, "1" * 16
    holding = Holding(parts.index, None)
    parts.index.write(lambda writing: writing.take_capture("office"))

    def waits() -> list[str]:
        holding.keep()
        with parts.index.reading() as view:
            return holding.of(view, m.IngestKey("base", old), [new])

    assert waits() == ["office"]
    for said, still in (([old, new], ["office"]), ([], ["office"]), ([new], [])):
        holding.hear("office", m.Health("capture office", "", {"sealed_to": said}))
        assert waits() == still


def test_what_another_than_a_capture_says_of_keys_counts_for_nothing(house):
    (old,) = house.keys
    house.say(old)
    house.erase(1)
    house.look()
    house.counter.desk.take_health(
        Identity("replicator", "office"),
        m.Health("capture office", "", {"sealed_to": [house.keys[1]]}),
    )
    house.look()
    assert old in house.keys
