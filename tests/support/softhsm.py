"""A SoftHSM token of a test's own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
LABEL, PIN = "vault", "4321"


def make_token(folder: Path) -> None:
    """Make a token, and `conf` that leads to it. Skips where SoftHSM is not installed."""
    if not shutil.which("softhsm2-util") or not MODULE.exists():
        pytest.skip("softhsm2 is not installed")
    (folder / "tokens").mkdir()
    conf = folder / "conf"
    conf.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", "1234", "--pin",
         PIN], check=True, capture_output=True, env={**os.environ, "SOFTHSM2_CONF": str(conf)},
    )  # fmt: skip


@contextmanager
def softhsm(folder: Path) -> Iterator[str]:
    """Make a token; gives its URI without an object. Skips where SoftHSM is not installed."""
    make_token(folder)
    import pkcs11

    os.environ["SOFTHSM2_CONF"] = str(folder / "conf")
    pkcs11.lib(
        str(MODULE)
    ).reinitialize()  # it may know the tokens of tests before, in this process
    yield f"pkcs11:token={LABEL}?module-path={MODULE}"
    del os.environ["SOFTHSM2_CONF"]


def session() -> Any:
    """A session of the token that may write."""
    import pkcs11

    token = pkcs11.lib(str(MODULE)).get_token(token_label=LABEL)
    return token.open(rw=True, user_pin=PIN)
