"""A replicator that is taken over speaks for its own places alone, and an operator for none."""

import msgspec
import pytest

from spanvault import certificate
from spanvault import messages as m
from spanvault.transport import Identity
from storaged.index.writing import Writing
from storaged.requests.receipts import place_of
from tests.storaged.erasing.test_eraser import erase, signed
from tests.support.desk import OPERATOR, Counter
from tests.support.vault import call_id, make_call

ONE = call_id(1)
SITE_A, SITE_B = Identity("replicator", "site-a"), Identity("replicator", "site-b")


@pytest.fixture
def fed(counter: Counter) -> Counter:
    """A sealed call, and two places that were fed."""
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    for who in (SITE_A, SITE_B):
        counter.ask(m.Feed(0, target=who.name), who=who)
    return counter


def copied(counter: Counter, target: str, size: int | None = None) -> m.Receipt:
    about = counter.ask(m.Get(ONE))
    return m.Receipt(ONE, target, size or about.size, counter.ask(m.Verify(ONE)).sha256, 7)


def test_copy_is_believed_of_the_place_s_own_replicator_only(fed):
    assert fed.ask(copied(fed, "site-a"), who=SITE_B).code == "denied"
    assert fed.ask(copied(fed, "nowhere"), who=SITE_B).code == "not_found"
    assert fed.ask(m.Receipt(b"", "site-b", 1, "", 0), who=SITE_B).code == "not_found"
    assert fed.ask(copied(fed, "site-a"), who=OPERATOR).code == "denied"
    assert fed.ask(m.Get(ONE)).receipts == []
    assert fed.ask(copied(fed, "site-a"), who=SITE_A) == m.Done()


def test_copy_of_something_else_is_no_copy(fed):
    assert fed.ask(copied(fed, "site-a", size=5), who=SITE_A).code == "invalid"
    assert fed.ask(m.Get(ONE)).receipts == []


def test_copy_is_brought_back_by_the_place_s_own_replicator_only(fed):
    change = m.Change(0, "object", ONE)
    for who in (SITE_B, OPERATOR):
        assert fed.ask(m.Return("site-a", change), b"bytes", who=who).code == "denied"
    assert fed.ask(m.Return("nowhere", change), who=SITE_B).error.startswith("the feed was never")
    assert fed.ask(m.Return("site-a", change), who=SITE_A).error == "nothing such is asked back"


def test_place_cannot_be_taken_over(fed):
    reply = fed.ask(m.Feed(0, target="site-a"), who=SITE_B)
    assert (reply.code, "target site-a is replicator/site-a's" in reply.error) == ("denied", True)


def receipt(counter: Counter, target: str, key: bytes) -> m.ErasureReceipt:
    (erasure,) = counter.ask(m.Erasures()).erasures
    return signed(counter, m.ErasureReceipt(erasure.id, target, 5, certificate.OVERWRITTEN), key)


def test_erasure_counts_as_followed_by_its_places_signed_word_alone(fed):
    erase(fed, ONE)
    said = receipt(fed, "site-a", b"a" * 32)
    assert fed.ask(said, who=SITE_B).code == "denied"
    assert fed.ask(said, who=OPERATOR).code == "denied"
    for changed in ({"grade": "TPM"}, {"at_ns": 6}, {"signature": bytes(64)}, {"signer": b""}):
        assert fed.ask(msgspec.structs.replace(said, **changed), who=SITE_A).code == "denied"
    assert fed.ask(m.Erasures()).erasures[0].pending == ["site-a", "site-b"]
    assert fed.ask(said, who=SITE_A) == m.Done()
    assert fed.ask(m.Erasures()).erasures[0].pending == ["site-b"]
    certificate.parse(fed.ask(m.Certify(ONE)).document)


def test_place_signs_with_one_key_for_ever(fed):
    erase(fed, ONE)
    assert fed.ask(receipt(fed, "site-a", b"a" * 32), who=SITE_A) == m.Done()
    reply = fed.ask(receipt(fed, "site-a", b"b" * 32), who=SITE_A)
    assert (reply.code, "not signed with the key of target site-a" in reply.error) == (
        "denied", True)  # fmt: skip


def test_place_of_a_store_made_before_belongs_to_the_first_who_asks(fed):
    def older(writing: Writing) -> None:
        writing.put(b"target", b"old", b"")

    fed.parts.index.write(older)
    fed.ask(m.Feed(0, target="old"), who=SITE_B)
    with fed.parts.index.reading() as view:
        place = place_of(view, "old")
    assert place is not None
    assert place.owner == "replicator/site-b"
