"""Where a submission is refused before Teleport is asked, and by which version."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.errors import ReviewRejected
from sidecar.model import APPROVED, DENIED, AccessRequest, Ping, Review, Threshold
from sidecar.reconcile.submit import Submitter, on_behalf_refusal, state_refusal

PING = Ping("example.com", "7.0.0")
REQUEST = AccessRequest(id="r", user="bob", state="PENDING", thresholds=(Threshold(1, 1),))


@pytest.mark.parametrize("version", ["18.11.0", "v18.11.3", "18.12.0-dev.1", "19.0.0"])
def test_on_behalf_is_possible_from_18_11_on(version: str) -> None:
    assert on_behalf_refusal(msgspec.structs.replace(PING, server_version=version)) == ""


@pytest.mark.parametrize("version", ["18.10.9", "17.99.0", "7.0.0-dev", "", "latest", "18"])
def test_on_behalf_is_refused_before_it_and_where_no_version_can_be_read(version: str) -> None:
    assert on_behalf_refusal(msgspec.structs.replace(PING, server_version=version))
    assert on_behalf_refusal(None)


def test_the_state_may_be_set_on_the_edition_without_reviews() -> None:
    assert state_refusal(PING, REQUEST) == ""


@pytest.mark.parametrize(
    ("info", "request_"),
    [
        (None, REQUEST),
        (msgspec.structs.replace(PING, advanced_workflows=True), REQUEST),
        (msgspec.structs.replace(PING, paid_entitlement=True), REQUEST),
        (PING, msgspec.structs.replace(REQUEST, state="APPROVED")),
        (PING, msgspec.structs.replace(REQUEST, state="STATE 9")),
        (PING, msgspec.structs.replace(REQUEST, thresholds=())),
        (PING, msgspec.structs.replace(REQUEST, thresholds=(Threshold(2, 1),))),
        (PING, msgspec.structs.replace(REQUEST, thresholds=(Threshold(1, 2),))),
        (PING, msgspec.structs.replace(REQUEST, thresholds=(Threshold(1, 1, filter="true"),))),
        (PING, msgspec.structs.replace(REQUEST, thresholds=(Threshold(1, 1), Threshold(1, 1)))),
    ],
)
def test_the_state_is_set_nowhere_else(info: Ping | None, request_: AccessRequest) -> None:
    assert state_refusal(info, request_)


@pytest.mark.parametrize(("state", "said"), [(APPROVED, ""), (DENIED, "opposite")])
async def test_our_own_review_stands_and_is_no_other(state: str, said: str) -> None:
    """Teleport takes one review of the sidecar: the same one is done already, the opposite is not submitted."""
    request = msgspec.structs.replace(REQUEST, reviews=(Review("plugin", APPROVED), Review("alice", DENIED)))
    submitter = Submitter("plugin", None, lambda: "plugin", None)  # type: ignore[arg-type]
    try:
        assert await submitter.resolve(request, state, "because", ("alice",)) is request
        outcome = ""
    except ReviewRejected as exc:
        outcome = exc.reason
    assert outcome == said
