"""Key files that a passphrase or a token opens; the token is SoftHSM."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from spanvault.keys import keyfile, protected
from tests.support.softhsm import PIN, session, softhsm

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(protected, "MEMORY_KIB", 64)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "unlock.key"
    protected.write(path, text)
    return path


def test_passphrase_opens_and_another_does_not(tmp_path):
    path = written(tmp_path, protected.with_passphrase(KEY, "correct horse"))
    assert protected.load(path, lambda question: "correct horse") == KEY
    assert path.stat().st_mode & 0o777 == 0o600
    assert KEY.hex() not in path.read_text()
    with pytest.raises(ValueError, match=r"unlock.key: the passphrase is wrong"):
        protected.load(path, lambda question: "wrong horse")


def test_plain_key_asks_for_nothing(tmp_path):
    path = written(tmp_path, keyfile.text_of(KEY))
    assert protected.load(path) == KEY
    assert not protected.is_protected(path)


@pytest.mark.parametrize(
    ("old", "new"), [(" 64 ", " 99999999 "), (" 3 4 ", " 0 4 "), (" 3 4 ", " 4 4 "), ("a", "b")]
)
def test_changed_file_is_refused_and_costs_little(tmp_path, old, new):
    text = protected.with_passphrase(KEY, "correct horse")
    head, row, _ = text.split("\n")
    path = written(tmp_path, f"{head}\n{row[:8] + row[8:].replace(old, new)}\n")
    with pytest.raises(ValueError, match=r"out of bounds|passphrase is wrong"):
        protected.load(path, lambda question: "correct horse")


def test_daemon_finds_the_passphrase_among_its_credentials(tmp_path, monkeypatch):
    path = written(tmp_path, protected.with_passphrase(KEY, "correct horse"))
    with pytest.raises(ValueError, match=r"as credential unlock.key.secret"):
        protected.load(path)
    given = tmp_path / "credentials"
    given.mkdir()
    (given / "unlock.key.secret").write_text("correct horse\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert protected.load(path) == KEY


def test_key_that_everybody_may_read_is_told_and_used(tmp_path, caplog):
    path = written(tmp_path, keyfile.text_of(KEY))
    assert protected.load(path) == KEY
    assert caplog.records == []
    path.chmod(0o644)
    assert protected.load(path) == KEY
    (told,) = caplog.records
    assert (told.getMessage(), told.REMEDY) == (
        "The file of a private key is open to everybody", f"chmod 600 {path}"
    )  # fmt: skip


@pytest.mark.parametrize("given", [b"correct horse\r\n", b"\xef\xbb\xbfcorrect horse\n"])
def test_credential_is_taken_as_any_editor_writes_it(tmp_path, monkeypatch, given):
    path = written(tmp_path, protected.with_passphrase(KEY, "correct horse"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "unlock.key.secret").write_bytes(given)
    assert protected.load(path) == KEY


def test_accent_of_another_keyboard_is_the_same_passphrase(tmp_path):
    path = written(tmp_path, protected.with_passphrase(KEY, "Gr\u00fc\u00dfe an alle"))
    assert protected.load(path, lambda question: "Gru\u0308\u00dfe an alle") == KEY


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SoftHSM token with one RSA key pair; gives its URI."""
    with softhsm(tmp_path_factory.mktemp("hsm")) as uri:
        import pkcs11

        with session() as open_:
            open_.generate_keypair(pkcs11.KeyType.RSA, 2048, label="unlock", store=True)
        yield uri.replace("?", ";object=unlock?")


def test_token_opens_with_its_pin_alone(tmp_path, token):
    path = written(tmp_path, protected.with_token(KEY, token))
    assert protected.load(path, lambda question: PIN) == KEY
    assert KEY.hex() not in path.read_text()
    with pytest.raises(ValueError, match="token 'vault': the PIN is wrong"):
        protected.load(path, lambda question: "0000")


def test_empty_credential_costs_no_try_of_the_pin(tmp_path, token, monkeypatch):
    path = written(tmp_path, protected.with_token(KEY, token))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "unlock.key.secret").write_text("\n")
    with pytest.raises(ValueError, match=r"credential unlock.key.secret is empty"):
        protected.load(path)


def test_last_try_that_a_token_gives_is_left_to_people(tmp_path, token, monkeypatch):
    """SoftHSM gives any number of tries; what others say before the last is said for it here."""
    import pkcs11

    from spanvault.keys import token as tokens

    path, found = written(tmp_path, protected.with_token(KEY, token)), tokens._token
    told = SimpleNamespace(flags=pkcs11.TokenFlag.USER_PIN_FINAL_TRY)  # no way to open it
    with monkeypatch.context() as patched:
        patched.setattr(tokens, "_token", lambda place: found(place) and told)
        with pytest.raises(ValueError, match="one more wrong PIN locks it, so none is tried"):
            protected.load(path, lambda question: PIN)
    assert protected.load(path, lambda question: PIN) == KEY


def test_token_that_was_away_opens_again_without_a_restart(tmp_path, token):
    path = written(tmp_path, protected.with_token(KEY, token))
    assert protected.load(path, lambda question: PIN) == KEY
    tokens = Path(os.environ["SOFTHSM2_CONF"]).parent / "tokens"
    away = tokens.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"token 'vault': .* is it plugged in"):
        protected.load(path, lambda question: PIN)
    away.rename(tokens)
    assert protected.load(path, lambda question: PIN) == KEY


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("=vault", "=other", "no token 'other' is there"),
        ("=unlock", "=other", "it has no RSA key 'other'"),
        ("softhsm2.so", "nohsm.so", "cannot be loaded"),
        ("pkcs11:", "pkcs12:", "names no key in a token"),
    ],
)
def test_token_that_is_not_there_is_named(token, old, new, said):
    with pytest.raises(ValueError, match=said):
        protected.with_token(KEY, token.replace(old, new))
