"""How a call failed -> what the caller does next, in Teleport's and grpcio's own words."""

from __future__ import annotations

import pytest

from sidecar.errors import (
    Conflict,
    LinkError,
    LinkLost,
    LinkRefused,
    PluginDataTooLarge,
    RequestGone,
    ReviewRejected,
    SidecarError,
)
from sidecar.teleport.status import CallFailed, is_missing_method, link_error, review_error, update_error, watch_error

_CONNECT = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:3025: "


def _failure(code: str, details: str = "") -> CallFailed:
    return CallFailed("Method", code, details)


def _outcome(error: SidecarError) -> tuple[type[SidecarError], str]:
    return type(error), getattr(error, "reason", "")


@pytest.mark.parametrize(
    ("details", "meaning"),
    [
        ("Unwrap failed (TSI_DATA_CORRUPTED)", "does not accept our client certificate"),
        ("Tls handshake failed: CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "not signed by"),
        ("SSL routines:OPENSSL_internal: certificate verify failed", "not signed by"),
        ("Tls handshake failed: CERTIFICATE_VERIFY_FAILED: certificate has expired", "has expired"),
        ("Tls handshake failed: CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "not yet valid"),
        ("Custom verification check failed: Hostname Verification Check failed.", "does not bear the expected name"),
        ("Failed to create security handshaker.", "the key does not match"),
        ("Ssl handshake failed: WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("Cannot check peer: missing selected ALPN property.", "not gRPC"),
    ],
)
def test_tls_failures_are_refusals_with_a_sentence(details: str, meaning: str) -> None:
    error = link_error(_failure("UNAVAILABLE", _CONNECT + details))
    assert _outcome(error) == (LinkRefused, "tls")
    assert meaning in error.detail
    assert details in error.detail


def test_tls_words_mean_nothing_in_another_status() -> None:
    assert _outcome(link_error(_failure("UNKNOWN", "certificate has expired"))) == (LinkLost, "unknown")


@pytest.mark.parametrize(
    ("verb", "resource", "rule"),
    [
        ("read", "access_request", "{resources: [access_request], verbs: [list, read]}"),
        ("update", "access_request", "{resources: [access_request], verbs: [list, read, update]}"),
        ("update", "access_plugin_data", "{resources: [access_plugin_data], verbs: [list, read, update]}"),
        ("read", "user", "{resources: [user], verbs: [read]}"),
    ],
)
def test_denied_names_the_rule_to_add(verb: str, resource: str, rule: str) -> None:
    words = f'[10] access denied\n\taccess denied to perform action "{verb}" on "{resource}"'
    error = watch_error(_failure("PERMISSION_DENIED", words))
    assert _outcome(error) == (LinkRefused, "denied")
    assert error.detail.endswith(f"add to allow.rules of our role: {rule}")
    assert "\n" not in error.detail


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        ("INVALID_ARGUMENT", "buffer overflow", (LinkLost, "overflow")),
        ("UNKNOWN", "watcher closed", (LinkLost, "closed")),
        ("UNAVAILABLE", "Stream removed (Socket closed)", (LinkLost, "unavailable")),
        ("PERMISSION_DENIED", "can't setup global watch", (LinkRefused, "denied")),
        ("NOT_FOUND", '[10] access denied\n\tuser "ghost" is not found', (LinkRefused, "user_deleted")),
        ("INVALID_ARGUMENT", 'cache "auth" does not support watching', (LinkRefused, "invalid_argument")),
        ("UNIMPLEMENTED", "unknown service proto.AuthService", (LinkRefused, "unimplemented")),
        ("RESOURCE_EXHAUSTED", "connection limit exceeded", (LinkLost, "resource_exhausted")),
    ],
)
def test_ends_of_a_watch(code: str, details: str, expected: tuple[type[LinkError], str]) -> None:
    assert _outcome(watch_error(_failure(code, details))) == expected


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        ("FAILED_PRECONDITION", 'expectations not met for field "tm"', (Conflict, "")),
        ("FAILED_PRECONDITION", "too many concurrent writes to plugin data r1", (LinkLost, "contention")),
        ("NOT_FOUND", 'access request "r1" not found', (RequestGone, "")),
        ("NOT_FOUND", 'access denied\n\tuser "ghost" is not found', (LinkRefused, "user_deleted")),
        ("INVALID_ARGUMENT", "plugin data size limit exceeded", (PluginDataTooLarge, "")),
        ("INVALID_ARGUMENT", 'unsupported resource kind "x"', (LinkRefused, "invalid_argument")),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5 vs. 4)", (PluginDataTooLarge, "")),
        ("RESOURCE_EXHAUSTED", "rate limit exceeded", (LinkLost, "resource_exhausted")),
    ],
)
def test_failed_plugin_data_updates(code: str, details: str, expected: tuple[type[SidecarError], str]) -> None:
    assert _outcome(update_error(_failure(code, details))) == expected


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        ("PERMISSION_DENIED", 'user "alice" has already reviewed this request', "duplicate"),
        ("ALREADY_EXISTS", 'user "alice" has already reviewed this request', "duplicate"),
        ("PERMISSION_DENIED", "the access request has been already approved", "resolved"),
        ("PERMISSION_DENIED", "the access request has been already denied", "resolved"),
        ("INVALID_ARGUMENT", 'cannot set request-state "APPROVED" (already denied)', "resolved"),
        ("PERMISSION_DENIED", "admin-level API request requires MFA verification", "mfa_required"),
        ("PERMISSION_DENIED", 'user "p" cannot submit reviews on behalf of "bob"', "not_allowed"),
        ("NOT_FOUND", 'user "bob" not found', "not_allowed"),
        ("INVALID_ARGUMENT", "request is uninitialized or does not support reviews", "other"),
        ("UNIMPLEMENTED", "annotations are not yet supported in reviews", "other"),
        ("FAILED_PRECONDITION", "something new", "other"),
        ("OUT_OF_RANGE", "", "other"),
    ],
)
def test_rejected_reviews(code: str, details: str, expected: str) -> None:
    error = review_error(_failure(code, details))
    assert _outcome(error) == (ReviewRejected, expected)
    assert str(error) == details  # what the person is told: Teleport's own words


def test_rejected_state_names_the_rule_to_add() -> None:
    words = 'access denied to perform action "update" on "access_request"'
    error = review_error(_failure("PERMISSION_DENIED", words))
    assert _outcome(error) == (ReviewRejected, "not_allowed")
    assert "verbs: [list, read, update]" in str(error)


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        ("NOT_FOUND", 'cannot apply review to access request "r1" (not found)', (RequestGone, "")),
        ("FAILED_PRECONDITION", "too many concurrent writes to access request r1", (LinkLost, "contention")),
        ("UNIMPLEMENTED", "unknown method SubmitAccessReview for service", (LinkRefused, "unimplemented")),
        ("UNAUTHENTICATED", "", (LinkRefused, "denied")),
        ("UNAVAILABLE", "Socket closed", (LinkLost, "unavailable")),
    ],
)
def test_reviews_that_were_not_judged(code: str, details: str, expected: tuple[type[SidecarError], str]) -> None:
    assert _outcome(review_error(_failure(code, details))) == expected


@pytest.mark.parametrize("to_error", [update_error, review_error])
@pytest.mark.parametrize(
    ("code", "details", "ambiguous"),
    [
        ("UNAVAILABLE", _CONNECT + "Connection refused", False),
        ("UNAVAILABLE", "errors resolving auth.example.com:3025: Domain name not found", False),
        ("CANCELLED", "Channel closed!", True),
        ("UNAVAILABLE", "Stream removed (Socket closed)", True),
        ("UNAVAILABLE", "failed to connect to the database", True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True),
        ("FAILED_PRECONDITION", "too many concurrent writes to it", False),
    ],
)
def test_a_write_is_ambiguous_unless_it_provably_never_arrived(
    to_error: object,
    code: str,
    details: str,
    ambiguous: bool,  # noqa: FBT001
) -> None:
    assert callable(to_error)
    error = to_error(_failure(code, details))
    assert isinstance(error, LinkLost)
    assert error.ambiguous is ambiguous


def test_a_lost_read_is_not_ambiguous() -> None:
    error = link_error(_failure("DEADLINE_EXCEEDED"))
    assert isinstance(error, LinkLost)
    assert not error.ambiguous


def test_words_are_bounded_and_on_one_line() -> None:
    error = link_error(_failure("UNKNOWN", "a\n\tb " * 10_000))
    assert len(error.detail) < 600
    assert "\n" not in error.detail


def test_missing_method_needs_both_code_and_words() -> None:
    assert is_missing_method(_failure("UNIMPLEMENTED", "unknown method X for service proto.AuthService"))
    assert not is_missing_method(_failure("UNIMPLEMENTED", "annotations are not yet supported in reviews"))
    assert not is_missing_method(_failure("UNKNOWN", "unknown method X"))
