"""Which ingest keys something of a call may have been sealed to: a copy of a spool opens with them.

Captures spool to base's key, whatever the call's pool is; what waits in the intake of a pool is
sealed to that pool's. Nothing is changed here. What becomes of these keys:
storaged.erasing.retiring.
"""

from collections.abc import Iterable

from spanvault.messages import IngestKey
from spanvault.spool import key_id
from storaged.erasing.doomed import Doomed
from storaged.index import ingestkeys
from storaged.index.view import View
from storaged.pools.vaults import BASE, Vault, Vaults


def spooled_under(view: View, vaults: Vaults, doomed: Iterable[Doomed]) -> list[IngestKey]:
    """All keys that there are of the calls' pools, but those that are younger than the calls."""
    found: set[IngestKey] = set()
    for one in doomed:
        for vault in _passed(view, vaults, one):
            found.update(IngestKey(vault.name, each) for each in _of(view, vault, one))
    return sorted(found, key=lambda each: (each.pool, each.key_id))


def _passed(view: View, vaults: Vaults, one: Doomed) -> list[Vault]:
    """The pools that a call may have waited for: its own, base, those it was moved up through."""
    moved = view.moved(one.erased.id) is not None
    return [
        vault
        for vault in vaults
        if vault.name in (BASE, one.erased.pool) or (moved and vault.tier < one.state.tier)
    ]


def _of(view: View, vault: Vault, one: Doomed) -> set[str]:
    if vault.locked:  # one that the call was moved through: its root is not here to ask
        newest, older = key_id(vault.intake_key), ingestkeys.older(view, vault.name)
    else:
        *replaced, newest = vault.keyring.ingest_key_ids
        older = set(replaced)
    born = ingestkeys.birth(view, vault.name, newest)
    young = ingestkeys.came_before(view, one.call, one.state, born)
    return older if young else {*older, newest}
