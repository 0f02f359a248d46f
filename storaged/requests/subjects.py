"""What the access log says that a request was about: ids, pools, reasons; never a number in clear.

What a search looked for comes as the index's tokens, which take a key: storaged.requests.desk adds
them. FORMAT.md §10. Pure.
"""

from typing import Any, Final

from spanvault import messages as m
from spanvault.spool import key_id
from storaged.erasing.eraser import MOST

SEVERAL_MAX: Final = 500  # ids of a request that are told
_RECIPIENTS_MAX: Final = 64  # the same of keys


def subject_of(request: Any) -> dict[str, Any]:
    """Fields of the line about a request; of one that could not be read none."""
    if isinstance(request, m.Search):
        subject: dict[str, Any] = {
            "since_ns": request.since_ns,
            "until_ns": request.until_ns,
            "outcome": request.outcome,
            "longer_s": request.longer_s,
            "shorter_s": request.shorter_s,
        }
        return {name: value for name, value in subject.items() if value is not None}
    if isinstance(request, m.Feed):
        return {"position": request.position}
    if isinstance(request, m.Several):
        return {"ids": [one.hex()[:32] for one in request.ids[:SEVERAL_MAX]]}
    if isinstance(request, m.Erase):
        ids = [one.hex()[:32] for one in request.ids[:MOST]]  # more are refused
        return {"ids": ids, "reason": request.reason[:500]}
    if isinstance(request, m.Move):
        ids = [one.hex()[:32] for one in request.ids[:SEVERAL_MAX]]
        return {"ids": ids, "pool": request.pool[:16], "reason": request.reason[:500]}
    if isinstance(request, m.ErasureReceipt):
        return {"erasure": request.erasure.hex()[:32], "target": request.target[:200]}
    if isinstance(request, m.Unlock | m.OfferShare | m.Lock | m.Rotate | m.Recipients):
        return {"pool": request.pool[:16], **_of_keys(request)}
    if isinstance(request, m.Mend):
        return {"ids": [one.hex()[:32] for one in request.ids[:SEVERAL_MAX]]}
    if isinstance(request, m.Check):
        return {"what": request.what}
    if isinstance(request, m.Return):
        about = {"id": request.change.id.hex()[:32], "target": request.target[:200]}
        if request.change.kind == "keys":
            about["name"] = request.change.name[:64]
        return about | ({"fault": request.fault[:200]} if request.fault else {})
    if isinstance(request, m.Import):
        return {"id": request.change.id.hex()[:32], "change": request.change.kind}
    subject = {"id": request.id.hex()[:32]} if getattr(request, "id", None) is not None else {}
    if isinstance(request, m.Fetch):
        subject["cursor"] = request.cursor
        if request.from_ns is not None:
            subject["from_ns"] = request.from_ns
        if request.digits:
            subject["digits"] = True
    return subject


def _of_keys(request: Any) -> dict[str, Any]:
    """What is to become of a pool's keys; of recipients the ids alone."""
    if isinstance(request, m.Unlock) and request.drill:
        return {"drill": True}
    if isinstance(request, m.Rotate):
        return {"what": request.what}
    if isinstance(request, m.Recipients):
        added = [key_id(one) for one in request.add[:_RECIPIENTS_MAX]]
        return {"add": added, "remove": [one[:16] for one in request.remove[:_RECIPIENTS_MAX]]}
    return {}
