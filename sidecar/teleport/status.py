"""How a gRPC call failed -> the error tree: one map for each kind of call, by code and by Teleport's own words.

Teleport attaches no structured details, and its texts may be nested, so words are searched for, never compared
(trail/trail.go of github.com/gravitational/trace; Teleport 7.0 to 18.0).
"""

from __future__ import annotations

import re

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

# Long enough for every text of Teleport's; a server must not fill our log.
_MAX_WORDS = 500
# grpcio's words for a call that cannot have reached a server.
_NEVER_SENT = ("failed to connect to all addresses", "errors resolving")
# What grpcio 1.85 says of a failed handshake (it hides the alert), and what it means.
_TLS = (
    (
        "Unwrap failed (TSI_DATA_CORRUPTED)",
        "the Auth Service does not accept our client certificate: expired, not yet valid, or of another cluster",
    ),
    ("certificate has expired", "the certificate of the Auth Service has expired, or our clock is wrong"),
    ("certificate is not yet valid", "the certificate of the Auth Service is not yet valid, or our clock is wrong"),
    ("CERTIFICATE_VERIFY_FAILED", "the certificate of the Auth Service is not signed by an authority in our CA file"),
    ("certificate verify failed", "the certificate of the Auth Service is not signed by an authority in our CA file"),
    ("Hostname Verification Check failed", "the certificate of the Auth Service does not bear the expected name"),
    (
        "Failed to create security handshaker",
        "the client certificate, its key and the CA file cannot be used: the key does not match, or one is damaged",
    ),
    ("WRONG_VERSION_NUMBER", "the port does not speak TLS"),
    ("missing selected ALPN", "the port speaks TLS but not gRPC; is it the Auth Service's own (3025 as a rule)?"),
)
_RBAC = re.compile(r'access denied to perform action "(\w+)" on "(\w+)"')
# The rules that the sidecar needs, by resource; a verb outside of them is named as it is.
_VERBS = {"access_request": ["list", "read"], "access_plugin_data": ["list", "read", "update"]}


class CallFailed(Exception):
    """A call ended with a status other than OK; `code` is the name of a grpc.StatusCode."""

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {code}: {details}")
        self.method = method
        self.code = code
        self.details = details

    @property
    def sentence(self) -> str:
        """What happened, on one line of bounded length."""
        words = " ".join(self.details.split())[:_MAX_WORDS]
        return f"{self.method} ended with {self.code}: {words}"


def is_missing_method(failure: CallFailed) -> bool:
    """Whether the server has no such method; UNIMPLEMENTED alone may also be said of an argument."""
    return failure.code == "UNIMPLEMENTED" and "unknown method" in failure.details


def is_too_large(failure: CallFailed) -> bool:
    """Whether the answer was longer than the channel takes; grpcio's own words."""
    return failure.code == "RESOURCE_EXHAUSTED" and "larger than max" in failure.details


def speaks_of_user(failure: CallFailed) -> bool:
    """Whether NOT_FOUND is said of a user (our own was deleted) and not of an access request."""
    return 'user "' in failure.details


def link_error(failure: CallFailed, *, write: bool = False) -> LinkError:
    """Map a failed Ping, list, get or plugin data read; with `write` also what is common to all writes."""
    match failure.code:
        case "PERMISSION_DENIED" | "UNAUTHENTICATED":
            return LinkRefused("teleport", "denied", failure.sentence + _rule_to_add(failure.details))
        case "NOT_FOUND":
            sentence = f"{failure.sentence}; does our own user still exist, and was a client certificate sent?"
            return LinkRefused("teleport", "user_deleted", sentence)
        case "UNIMPLEMENTED" | "INVALID_ARGUMENT":
            return LinkRefused("teleport", failure.code.lower(), failure.sentence)
        case "FAILED_PRECONDITION" if "too many concurrent writes" in failure.details:
            return LinkLost("teleport", "contention", failure.sentence)
        case "UNAVAILABLE":
            for words, meaning in _TLS:
                if words in failure.details:
                    return LinkRefused("teleport", "tls", f"{meaning} ({failure.sentence})")
    ambiguous = write and not any(words in failure.details for words in _NEVER_SENT)
    reason = "too_large" if is_too_large(failure) else failure.code.lower()
    return LinkLost("teleport", reason, failure.sentence, ambiguous=ambiguous)


def watch_error(failure: CallFailed) -> LinkError:
    """Map the end of a watch.

    A slow reader is told INVALID_ARGUMENT, a reset cache UNKNOWN (lib/services/fanout.go, 7 and 12).
    """
    if failure.code == "INVALID_ARGUMENT" and "buffer overflow" in failure.details:
        return LinkLost("teleport", "overflow", failure.sentence)
    if failure.code == "UNKNOWN" and "watcher closed" in failure.details:
        return LinkLost("teleport", "closed", failure.sentence)
    return link_error(failure)


def update_error(failure: CallFailed) -> SidecarError:
    """Map a failed UpdatePluginData."""
    match failure.code:
        case "FAILED_PRECONDITION" if "expectations not met" in failure.details:
            return Conflict(failure.sentence)
        case "NOT_FOUND" if not speaks_of_user(failure):
            return RequestGone(failure.sentence)
        case "INVALID_ARGUMENT" if "size limit exceeded" in failure.details:
            return PluginDataTooLarge(failure.sentence)
        case "RESOURCE_EXHAUSTED" if "message larger than max" in failure.details:
            return PluginDataTooLarge(failure.sentence)
    return link_error(failure, write=True)


def review_error(failure: CallFailed) -> SidecarError:
    """Map a failed SubmitAccessReview or SetAccessRequestState: what the person who decided is to be told.

    The reasons of ReviewRejected are "duplicate", "resolved", "mfa_required", "not_allowed" and "other".
    """
    match failure.code:
        case "NOT_FOUND" if not speaks_of_user(failure):
            return RequestGone(failure.sentence)
        case "FAILED_PRECONDITION" if "too many concurrent writes" in failure.details:
            return link_error(failure, write=True)
        case "UNIMPLEMENTED" if is_missing_method(failure):
            return link_error(failure, write=True)
        case "PERMISSION_DENIED" | "ALREADY_EXISTS" | "NOT_FOUND" | "INVALID_ARGUMENT" | "UNIMPLEMENTED":
            return ReviewRejected(_rejection(failure), _words(failure))
        case "FAILED_PRECONDITION" | "OUT_OF_RANGE":
            return ReviewRejected("other", _words(failure))
    return link_error(failure, write=True)


def _rejection(failure: CallFailed) -> str:
    words = failure.details
    if failure.code == "ALREADY_EXISTS" or "has already reviewed" in words:
        return "duplicate"
    # "the access request has been already approved", "cannot set request-state "APPROVED" (already denied)"
    if re.search(r"already (approved|denied|promoted)", words):
        return "resolved"
    if "MFA" in words:
        return "mfa_required"
    return "not_allowed" if failure.code in {"PERMISSION_DENIED", "NOT_FOUND"} else "other"


def _words(failure: CallFailed) -> str:
    return " ".join(failure.details.split())[:_MAX_WORDS] + _rule_to_add(failure.details)


def _rule_to_add(details: str) -> str:
    found = _RBAC.search(details)
    if found is None:
        return ""
    verb, resource = found.groups()
    verbs = _VERBS.get(resource, [])
    listed = ", ".join(verbs if verb in verbs else [*verbs, verb])
    return f"; add to allow.rules of our role: {{resources: [{resource}], verbs: [{listed}]}}"
