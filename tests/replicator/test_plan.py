"""The core as a conversation: the feed says, the plan answers, outcomes are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.plan import (
    ASIDE,
    ASIDE_MAX,
    BACK_OFF,
    HEAD_NS,
    MERGE_AT,
    Aside,
    AskFeed,
    AskHead,
    Claim,
    CopyBundle,
    CopyKeys,
    CopyObject,
    EraseCopies,
    Mark,
    Merge,
    Plan,
    Step,
    Wait,
)
from spanvault.messages import Change, FeedReply

SECOND = 1_000_000_000
RETRY = 10 * SECOND
STORE = "store-1"
FRESH = Mark(STORE, 0, claimed=True)


def record(position: int) -> Change:
    return Change(position, "record", id=bytes(16), data=b"sealed")


def recording(position: int, number: int = 0) -> Change:
    identity = bytes(15) + bytes([number or position])
    return Change(position, "object", id=identity, size=1, sha256=f"sha{position}")


def keys(position: int, name: str = "root") -> Change:
    return Change(position, "keys", name=name, data=b"sealed")


def page(*changes: Change, position: int | None = None, head: int = 0) -> FeedReply:
    last = changes[-1].position if changes else 0
    return FeedReply(STORE, list(changes), last if position is None else position, head)


def started(mark: Mark = FRESH) -> Plan:
    """A plan whose target was just found in order."""
    plan = Plan(mark, RETRY)
    assert plan.next(0) == Claim(STORE, first=False)
    plan.claimed(0)
    return plan


def follow(plan: Plan, steps: int, now_ns: int = 0) -> list[Step]:
    """Take so many steps, all of which succeed."""
    taken = []
    for _ in range(steps):
        step = plan.next(now_ns)
        assert isinstance(step, CopyBundle | CopyKeys | CopyObject)
        plan.copied(step)
        taken.append(step)
    return taken


def test_the_first_time_the_store_is_asked_who_it_is_then_the_target_is_claimed() -> None:
    plan = Plan(Mark(), RETRY)
    assert plan.next(0) == AskFeed(0)
    plan.fed(page(record(1)), 0)
    assert plan.next(0) == Claim(STORE, first=True)
    plan.claimed(0)
    assert plan.mark.claimed
    assert plan.next(0) == CopyBundle([record(1)])


def test_bundle_then_keys_then_recordings_and_the_position_follows_what_is_verified() -> None:
    plan = started()
    changes = [recording(1), record(2), keys(3), recording(4), record(5)]
    plan.fed(page(*changes), 0)
    positions = []
    for expected in (
        CopyBundle(changes),
        CopyKeys(keys(3)),
        CopyObject(recording(1)),
        CopyObject(recording(4)),
    ):
        assert plan.next(0) == expected
        positions.append(plan.mark.position)
        follow(plan, 1)
    assert positions == [0, 0, 0, 3]
    assert plan.mark.position == 5
    assert plan.next(0) == AskFeed(5)


def test_of_two_versions_of_a_recording_in_a_page_only_the_later_is_copied() -> None:
    plan = started()
    plan.fed(page(recording(1, 7), record(2), recording(3, 7)), 0)
    _, copy = follow(plan, 2)
    assert copy == CopyObject(recording(3, 7))
    assert plan.next(0) == AskFeed(3)


def test_a_damaged_recording_is_set_aside_and_the_rest_goes_on() -> None:
    plan = started()
    plan.fed(page(recording(1), recording(2)), 0)
    follow(plan, 1)
    plan.refused(plan.next(0), "its SHA-256 is another", 0)
    assert follow(plan, 1) == [CopyObject(recording(2))]
    assert plan.mark.position == 2
    assert [aside.change for aside in plan.mark.aside] == [recording(1)]


def test_what_was_set_aside_is_tried_again_when_nothing_else_is_to_do() -> None:
    plan = started()
    plan.fed(page(recording(1)), 0)
    follow(plan, 1)
    plan.refused(plan.next(0), "damaged", 0)
    now_ns = SECOND
    plan.fed(page(position=1), now_ns)
    now_ns += SECOND
    retried = plan.next(now_ns)
    assert retried == CopyObject(recording(1))
    plan.refused(retried, "still damaged", 0)
    plan.fed(page(position=1), now_ns)
    assert plan.next(now_ns + SECOND) == AskFeed(1)  # not again at once
    now_ns += ASIDE * RETRY
    plan.claimed(now_ns)
    plan.fed(page(position=1), now_ns)
    plan.copied(plan.next(now_ns + SECOND))  # it was repaired
    assert plan.mark == Mark(STORE, 1, claimed=True)


def test_a_store_that_cannot_give_anything_is_waited_for() -> None:
    aside = tuple(Aside(recording(1), "EIO") for _ in range(ASIDE_MAX))
    plan = started(Mark(STORE, 1, claimed=True, aside=aside))
    plan.fed(page(recording(2)), 0)
    follow(plan, 1)
    plan.refused(plan.next(0), "EIO", 0)
    assert plan.mark.position == 1
    assert plan.fault is not None
    assert plan.fault.text == "1000 recordings are set aside. EIO"
    assert plan.next(SECOND) == CopyObject(recording(2))


def test_a_later_version_replaces_what_was_set_aside() -> None:
    plan = started()
    plan.fed(page(recording(1, 7)), 0)
    follow(plan, 1)
    plan.refused(plan.next(0), "damaged", 0)
    plan.fed(page(recording(2, 7)), 0)
    follow(plan, 2)
    assert plan.mark.aside == ()


def test_a_target_that_is_away_is_tried_less_and_less_often_and_looked_at_first() -> None:
    plan = started()
    plan.fed(page(record(1)), 0)
    now_ns, waits = 0, []
    for _ in range(8):
        plan.target_failed("write /mnt/b: away", "mount it", now_ns)
        waited_from_ns = now_ns
        while not isinstance(step := plan.next(now_ns), Claim):
            if isinstance(step, AskHead):
                plan.head_is(1, now_ns)
            else:
                assert isinstance(step, Wait)
                now_ns = step.until_ns
        waits.append((now_ns - waited_from_ns) // RETRY)
        assert plan.next(now_ns) == Claim(STORE, first=False)
    assert waits == [1, 2, 4, 8, 16, 32, BACK_OFF, BACK_OFF]
    assert plan.fault is not None
    assert (plan.fault.text, plan.fault.since_ns) == ("write /mnt/b: away", 0)
    plan.claimed(now_ns)
    assert plan.fault is not None  # it is there, but is it writable?
    plan.copied(plan.next(now_ns))
    assert plan.fault is None
    assert plan.next(now_ns) == AskFeed(1)


def test_an_idle_target_is_looked_at_from_time_to_time() -> None:
    plan = started()
    plan.fed(page(position=5), 0)
    later_ns = 60 * SECOND
    assert plan.next(later_ns) == Claim(STORE, first=False)
    plan.target_failed("open /mnt/b: gone", "mount it", later_ns)
    assert plan.fault is not None
    plan.claimed(later_ns + RETRY)
    assert plan.fault is None


def test_an_absent_store_is_asked_every_second_and_nothing_is_lost() -> None:
    plan = started()
    plan.fed(page(recording(1)), 0)
    follow(plan, 1)
    plan.store_failed("no answer", "start it", 0)
    assert plan.next(0) == Wait(SECOND)
    assert plan.next(SECOND) == CopyObject(recording(1))
    plan.copied(plan.next(SECOND))
    assert plan.fault is None


def test_lag_counts_what_is_read_and_what_is_not() -> None:
    plan = started()
    plan.fed(page(record(3), recording(4), position=4, head=10), 77)
    assert plan.lag() == (8, 77)
    follow(plan, 1)
    assert plan.lag() == (7, 77)
    follow(plan, 1)
    assert plan.lag() == (6, None)


def test_while_a_target_is_away_the_store_is_asked_how_far_it_is() -> None:
    plan = started()
    plan.fed(page(record(3), position=3, head=3), 0)
    for _ in range(6):
        plan.target_failed("away", "mount it", 0)
    assert plan.next(0) == AskHead(3)
    plan.head_is(50, 0)
    assert plan.lag().changes == 48
    assert plan.next(0) == Wait(HEAD_NS)
    assert plan.next(HEAD_NS) == AskHead(3)
    plan.head_is(None, HEAD_NS)
    assert plan.lag().changes == 48


def test_bundles_are_merged_when_many_were_written() -> None:
    plan = started()
    for position in range(1, MERGE_AT + 1):
        plan.fed(page(record(position)), 0)
        follow(plan, 1)
    assert plan.next(0) == Merge()
    plan.merged()
    assert plan.next(0) == AskFeed(MERGE_AT)


def test_another_store_is_never_copied_over_this_one() -> None:
    plan = started()
    with pytest.raises(ValueError, match="now serves store store-2"):
        plan.fed(FeedReply("store-2", [record(1)], 1), 0)


@pytest.mark.parametrize(
    "reply",
    [page(record(2), record(2)), page(record(3), record(2)), page(record(5), position=4)],
)
def test_positions_must_rise(reply: FeedReply) -> None:
    with pytest.raises(ValueError, match="do not rise"):
        started().fed(reply, 0)


def test_a_store_that_was_put_back_is_compared_from_the_beginning() -> None:
    plan = started(Mark(STORE, 900, claimed=True))
    plan.fed(page(position=900, head=40), 0)
    assert plan.next(0) == AskFeed(0)


def test_a_restart_goes_on_behind_the_last_verified_change() -> None:
    plan = started()
    plan.fed(page(recording(1), recording(2), recording(3)), 0)
    follow(plan, 2)  # the bundle and the first recording; then kill -9
    again = started(plan.mark)
    assert again.next(0) == AskFeed(1)


@given(
    st.lists(st.sampled_from("orkORK"), max_size=30),
    st.lists(st.sampled_from(["done", "refused", "target", "store", "kill"]), max_size=80),
)
def test_whatever_happens_the_position_passes_only_what_is_dealt_with(
    kinds: list[str], outcomes: list[str]
) -> None:
    """Capitals: a change to something that changed before. Killed: only the mark is left."""
    make = {"o": recording, "r": lambda position, _=0: record(position), "k": keys}
    changes = [
        make[kind.lower()](position, *([1] if kind == "O" else []))
        for position, kind in enumerate(kinds, 1)
    ]
    newest = {change.id: change for change in changes if change.kind == "object"}
    plan, now_ns, copied = started(), 0, set()
    fate = iter(outcomes)
    for _ in range(4000):
        match step := plan.next(now_ns):
            case Wait(until_ns):
                now_ns = max(until_ns, now_ns + 60 * SECOND)  # it looks up rarely
            case AskHead():
                plan.head_is(len(changes), now_ns)
            case Claim():
                plan.claimed(now_ns)
            case AskFeed(position):
                page_of = [c for c in changes if c.position > position][:4]
                plan.fed(page(*page_of, head=len(changes), position=position + len(page_of)), 0)
                if position == len(changes):
                    break
            case CopyBundle() | CopyKeys() | CopyObject():
                outcome = next(fate, "done")
                if outcome == "done":
                    plan.copied(step)
                    copied.add(getattr(step, "change", None) and step.change.sha256)
                elif outcome == "refused":
                    plan.refused(step, "damaged", now_ns)
                elif outcome == "target":
                    plan.target_failed("full", "free space", now_ns)
                elif outcome == "store":
                    plan.store_failed("away", "start it", now_ns)
                else:
                    plan = Plan(plan.mark, RETRY)
        aside = {a.change.sha256 for a in plan.mark.aside}
        passed = {c.sha256 for c in newest.values() if c.position <= plan.mark.position}
        assert passed <= copied | aside
    assert plan.mark.position == len(changes)
    assert plan.lag().changes == 0


def test_erasure_comes_after_the_keys_it_needs_and_after_the_recordings() -> None:
    plan = Plan(FRESH, RETRY)
    plan.claimed(0)
    erase = Change(3, "erase", id=b"e" * 16)
    plan.fed(page(recording(1), keys(2), erase), 0)
    steps = []
    while not isinstance(step := plan.next(0), AskFeed):
        steps.append(type(step))
        plan.copied(step)
    assert steps == [CopyBundle, CopyKeys, CopyObject, EraseCopies]


def test_erasure_whose_root_is_not_there_is_tried_again_at_the_feed_s_end() -> None:
    plan = Plan(FRESH, RETRY)
    plan.claimed(0)
    erase = Change(1, "erase", id=b"e" * 16)
    plan.fed(page(erase), 0)
    plan.copied(plan.next(0))
    plan.put_off(plan.next(0), "no root yet")
    assert (plan.mark.position, [one.change for one in plan.mark.aside]) == (1, [erase])
    plan.fed(page(keys(2)), 0)
    for _ in range(2):
        plan.copied(plan.next(0))
    plan.fed(page(position=2), 0)
    again = plan.next(SECOND)
    assert again == EraseCopies(erase)
    plan.copied(again)
    assert plan.mark.aside == ()


def test_recording_set_aside_is_not_asked_for_once_it_is_erased() -> None:
    plan = Plan(FRESH, RETRY)
    plan.claimed(0)
    plan.fed(page(recording(1)), 0)
    plan.copied(plan.next(0))
    plan.refused(plan.next(0), "gone", 0)
    plan.erased([recording(1).id])
    assert plan.mark.aside == ()
