"""Root keys whose other half a token keeps: old copies of key files open nothing any more."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pkcs11 import Attribute, ObjectClass

from spanvault import certificate
from spanvault import messages as m
from spanvault.keys import keyfile
from storaged.faults import Fault
from storaged.format import keypage
from storaged.keys import rootfile
from storaged.keys.keyring import Keyring
from storaged.keys.rootfile import RootFile
from storaged.keys.slot import GRADE, TokenSlot
from tests.support.softhsm import MODULE, PIN, session, softhsm
from tests.support.vault import Rig, call_id, make_call, make_media

ONE, TWO = call_id(1), call_id(2)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with softhsm(tmp_path_factory.mktemp("hsm")) as made:
        yield made


@pytest.fixture
def pin(tmp_path: Path) -> Path:
    path = tmp_path / "erasure.pin"
    path.write_text(PIN + "\n")
    return path


@pytest.fixture
def ring(parts, uri, pin) -> Keyring:
    """The keys of a store with two DEKs in use, its root in the token."""
    for number in (1, 2):
        parts.commit([(call_id(number), 1, 0)], [make_call(number)])
    ring = opened(parts.folder, uri, pin)
    assert ring.slot_due
    ring.renew()
    return ring


def opened(folder: Path, uri: str, pin: Path) -> Keyring:
    return Keyring(folder / "keys", keyfile.load(folder / "unlock.key"), slot=TokenSlot(uri, pin))


def labels(store_id: bytes) -> list[str]:
    """The secrets of a store in the token."""
    with session() as token:
        found = token.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY})
        return sorted(one.label for one in found if store_id.hex() in one.label)


def test_root_opens_with_the_unlock_key_and_the_token_alone(parts, ring, uri, pin):
    again = opened(parts.folder, uri, pin)
    assert (again.epoch, again.slot_due, again.grade) == (2, False, GRADE)
    assert again.dek(0) == ring.dek(0)
    with pytest.raises(Fault, match="a part of the root key is in a token"):
        Keyring(parts.folder / "keys", keyfile.load(parts.folder / "unlock.key"))
    data = (parts.folder / "keys/root").read_bytes()
    held = keypage.open_envelope(data, keyfile.load(parts.folder / "unlock.key"))
    with pytest.raises(ValueError, match="does not authenticate"):  # a share is no root key
        keypage.open_root(data, keyfile.load(parts.folder / "unlock.key"), lambda *_: held)


def test_erasure_makes_every_old_copy_of_the_key_files_useless(parts, ring, uri, pin, tmp_path):
    backup = tmp_path / "backup"
    shutil.copytree(parts.folder / "keys", backup / "keys")
    shutil.copy(parts.folder / "unlock.key", backup)
    kept = ring.dek(1)
    dropped = ring.drop([0])
    assert dropped.grade == GRADE
    assert labels(ring.store_id) == [f"spanvault {ring.store_id.hex()} 0 3"]
    with pytest.raises(Fault, match="has 0 secrets"):
        opened(backup, uri, pin)
    assert opened(parts.folder, uri, pin).dek(1) == kept


def test_copy_of_the_key_files_opens_while_nothing_was_erased(parts, ring, uri, pin, tmp_path):
    """The negative control: it is the erasure that ends it."""
    shutil.copytree(parts.folder / "keys", tmp_path / "backup/keys")
    shutil.copy(parts.folder / "unlock.key", tmp_path / "backup")
    assert opened(tmp_path / "backup", uri, pin).dek(0) == ring.dek(0)


def test_every_new_root_has_a_secret_of_its_own(ring):
    first = ring.ingest_key_ids
    for change in (ring.renew, ring.add_ingest_key, lambda: ring.retire_ingest_keys(first)):
        change()
        assert labels(ring.store_id) == [f"spanvault {ring.store_id.hex()} 0 {ring.epoch}"]


class Died(Exception):
    """The process ends here."""


@pytest.mark.parametrize(("place", "step"), [(rootfile, "put"), (RootFile, "clear")])
def test_crash_leaves_one_root_that_opens_and_one_secret(
    parts, ring, uri, pin, monkeypatch, place, step
):
    def dies(*_: object) -> None:
        raise Died

    neighbour = ring.dek(1)
    with monkeypatch.context() as dying:
        dying.setattr(place, step, dies)
        with pytest.raises(Died):
            ring.drop([0])
    assert len(labels(ring.store_id)) == 2
    again = opened(parts.folder, uri, pin)
    assert labels(ring.store_id) == [f"spanvault {ring.store_id.hex()} 0 {again.epoch}"]
    assert again.dek(1) == neighbour
    again.drop([0])
    with pytest.raises(Fault, match="destroyed"):
        again.dek(0)
    assert again.dek(1) == neighbour


def test_token_that_is_away_is_named_and_nothing_is_lost(parts, ring, uri, pin):
    pin.write_text("0000")
    with pytest.raises(Fault, match="the PIN is wrong"):
        ring.drop([0])
    with pytest.raises(Fault, match="the PIN is wrong, and is not tried again"):
        opened(parts.folder, uri, pin)  # or the token would lock itself
    parts.keyring = ring
    assert ring.dek(0)  # what is open stays open
    pin.write_text(PIN)
    assert opened(parts.folder, uri, pin).dek(0) == ring.dek(0)
    pin.unlink()
    with pytest.raises(Fault, match="PIN cannot be read"):
        opened(parts.folder, uri, pin)


def test_uri_that_names_no_token_is_refused(pin):
    with pytest.raises(ValueError, match="names no key in a token"):
        TokenSlot("pkcs11:object=x", pin)
    assert TokenSlot(f"pkcs11:token=x?module-path={MODULE}", pin)


def test_daemon_moves_its_root_into_the_token_and_certifies_by_it(rig: Rig, uri):
    """One that ran without is given the token; pages, keys status and certificate follow."""
    rig.start()
    capture = rig.capture()
    capture.send(m.Hello("test"))
    media = make_media([(ONE, 1, 0), (TWO, 1, 0)])
    capture.send(m.Batch("test", 1, [make_call(1), make_call(2)]), media)
    operator = rig.client("operator")
    while operator.ask(m.Search())[0].calls == []:
        pass
    (pool,) = operator.ask(m.Keys())[0].pools
    assert (pool.epoch, pool.grade) == (1, certificate.OVERWRITTEN)
    rig.stop()
    (rig.folder / "erasure.pin").write_text(PIN)
    rig.configure(erasure_token=uri, erasure_pin=rig.folder / "erasure.pin")
    rig.start()
    operator = rig.client("operator")
    (pool,) = operator.ask(m.Keys())[0].pools
    assert (pool.epoch, pool.grade) == (2, GRADE)
    names = [one.name for one in operator.ask(m.Feed(0))[0].changes if one.kind == "keys"]
    assert names.count("root") == 1
    assert operator.ask(m.Erase([ONE], "asked for"))[0].erased == 1
    facts, _ = certificate.parse(operator.ask(m.Certify(ONE))[0].document)
    assert (facts["grade"], facts["root_epoch"]) == (GRADE, 3)
    assert operator.ask(m.Verify(TWO))[0].faults == []
    rig.stop()
    rig.start()
    assert rig.client("operator").ask(m.Verify(TWO))[0].faults == []
