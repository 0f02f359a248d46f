"""Certificate files as they are written and as administrators change them."""

import pytest

from spanvault.transport import Clients, Identity, load_certificate, make_certificate


def granted(folder, line: str):
    """A public half in which a line was put below the role."""
    make_certificate(folder, "operator", "alice")
    path = folder / "alice.key"
    text = path.read_text()
    path.write_text(text.replace("    role = operator\n", f"    role = operator\n    {line}\n"))
    return path


@pytest.mark.parametrize(
    ("line", "rights"),
    [
        ("rights = digits", {"digits"}),
        ('rights = "digits"', {"digits"}),
        ("rights =digits, digits", {"digits"}),
        ("rights =", set()),
        ("", set()),
    ],
)
def test_rights_are_read_from_the_public_half(tmp_path, line, rights):
    path = granted(tmp_path, line)
    found = load_certificate(path)
    assert (found.role, found.name, found.rights) == ("operator", "alice", rights)
    assert Clients(tmp_path)._known[found.public] == Identity("operator", "alice", found.rights)


@pytest.mark.parametrize("line", ["rights = digit", "rights = digits everything"])
def test_a_right_that_there_is_not_is_named_with_its_file(tmp_path, line):
    path = granted(tmp_path, line)
    with pytest.raises(
        ValueError, match=r"(digit|everything) is no right; there is: digits"
    ) as told:
        Clients(tmp_path)
    assert str(path) in str(told.value)


def test_what_is_made_with_a_right_bears_it(tmp_path):
    secret = make_certificate(tmp_path, "operator", "bob", "digits")
    assert load_certificate(secret).rights == {"digits"}
    assert load_certificate(tmp_path / "bob.key").rights == {"digits"}


@pytest.mark.parametrize("damage", ["public-key", "= =", "\x00\xff"])
def test_a_damaged_certificate_is_named_and_never_a_fault_of_ours(tmp_path, damage):
    make_certificate(tmp_path, "operator", "alice")
    path = tmp_path / "alice.key"
    text = path.read_text()
    path.write_text(text[: text.index("public-key")] + damage + "\n", "latin-1")
    with pytest.raises(ValueError, match=r"alice\.key: not a certificate"):
        load_certificate(path)
