"""What differs between Teleport versions; everything else is the same from 7 to 18."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from dataclasses import dataclass

import grpc

_HOUR = 3600.0
_WEEK = 7 * 24 * _HOUR


@dataclass(frozen=True)
class Profile:
    """One Auth Service version ("7.0.0-dev", "12.4.1", "16.0.0", "18.11.0"), as far as a plugin can tell.

    Source: Teleport's source at 7.0, 12.0, 14.0, 16.0 and 18.0; between those the nearest release that is known.
    """

    version: str
    major: int
    minor: int

    @classmethod
    def of(cls, version: str) -> Profile:
        """Read a semver; a bare major ("12") means its .0.0."""
        numbers = re.match(r"(\d+)(?:\.(\d+))?", version)
        if numbers is None:
            raise ValueError(f"not a version: {version}")
        full = f"{version}.0.0" if version.isdigit() else version
        return cls(full, int(numbers[1]), int(numbers[2] or 0))

    @property
    def methods(self) -> frozenset[str]:
        """The RPCs that exist (of those that are imitated)."""
        names = {"Ping", "WatchEvents", "GetPluginData", "UpdatePluginData"}
        names |= {"SetAccessRequestState", "SubmitAccessReview", "GetRole", "GetRoles"}
        if self.major < 14:
            names.add("GetAccessRequests")
        if self.major >= 10:
            names.add("GetAccessRequestsV2")
        if self.has_rules:
            names |= {"ListAccessMonitoringRules", "ListAccessMonitoringRulesWithFilter", "GetUserLoginState"}
        if self.major >= 16:
            names.add("GetUser")
        return frozenset(names)

    @property
    def has_rules(self) -> bool:
        """Access monitoring rules; a 16.0 built without enterprise code answers that it has no such service."""
        return self.major >= 18

    @property
    def roles_are_live(self) -> bool:
        """7 takes the caller's roles from the backend when the certificate holds no traits; later ones from the O's."""
        return self.major < 12

    @property
    def init_status(self) -> bool:
        """INIT carries the confirmed kinds; before it is a message of no bytes."""
        return self.major >= 15

    @property
    def watch_buffer(self) -> int:
        """How many events a slow reader may be behind."""
        return 1024 if self.watch_ends_ok else 64

    @property
    def watch_ends_ok(self) -> bool:
        """16 and newer end a broken watch with status OK (an unnamed result in grpcserver.go)."""
        return self.major >= 16

    @property
    def list_is_cached(self) -> bool:
        """Lists without an id come from a cache that may lag; a get by id never does."""
        return self.major >= 15

    @property
    def skips_poison(self) -> bool:
        """A malformed stored request is skipped; older ones fail every list because of it."""
        return self.major >= 16

    @property
    def expiry_in_spec(self) -> bool:
        """Spec.ResourceExpiry instead of Metadata.Expires."""
        return self.major >= 18

    @property
    def pending_seconds(self) -> float:
        """How long a request may stay pending, capped by the access it asks for."""
        return _WEEK if self.major >= 15 else _HOUR

    @property
    def expired_seconds(self) -> float:
        """How long an expired request is still there: a task of its own removes it (seen on 18.0: up to 97 s)."""
        return 90.0 if self.major >= 17 else 0.0

    @property
    def has_metadata_id(self) -> bool:
        """Metadata.ID; reserved in 18."""
        return self.major < 18

    @property
    def has_revision(self) -> bool:
        """Metadata.Revision, and the fields 17 and 18 of the request."""
        return self.major >= 15

    @property
    def limits_reasons(self) -> bool:
        """Reasons have at most 4096 bytes; 7 takes any."""
        return self.major >= 12

    @property
    def stamps_reviews(self) -> bool:
        """A review without a time gets one; 7 leaves year 1."""
        return self.major >= 12

    @property
    def knows_promoted(self) -> bool:
        """The state PROMOTED has a name."""
        return self.major >= 14

    @property
    def writes_access_list(self) -> bool:
        """A review that resolves leaves an empty promotion behind, whatever it proposed."""
        return self.major >= 15

    @property
    def unknown_request(self) -> str:
        """What the first write of plugin data for a request that is not there is told; {} is its id."""
        return 'no access request matching "{}"' if self.major >= 15 else 'access request "{}" not found'

    @property
    def no_resource(self) -> str:
        """What a write of plugin data without a resource is told: the backend refuses the key."""
        known = "characters, hyphens, dots, and plus signs" if self.major >= 15 else "characters, hyphens and dots"
        return (
            f"special characters are not allowed in resource names, please use name composed only from {known}: "
            '"/plugin_data/access_request//params"'
        )

    @property
    def refuses_late_reviews(self) -> bool:
        """A review of a resolved request is refused; older ones store it without effect."""
        return self.major >= 15

    @property
    def duplicate_review(self) -> grpc.StatusCode:
        """The status of a second review by one author."""
        return grpc.StatusCode.ALREADY_EXISTS if self.major >= 18 else grpc.StatusCode.PERMISSION_DENIED

    @property
    def knows_admin_mfa(self) -> bool:
        """Admin actions may need a second factor; also: bots review with the roles of their certificate."""
        return self.major >= 15

    @property
    def guards_own_state(self) -> bool:
        """SetAccessRequestState reads the request first and refuses one's own; old clients are turned away."""
        return self.major >= 18

    @property
    def submits_for_users(self) -> bool:
        """`review_requests.submit_for_users` (18.11; read in upstream's reviews, not seen on a server)."""
        return (self.major, self.minor) >= (18, 11)

    def new_id(self) -> str:
        """Make a request id: UUIDv4, from 16 on the time-ordered v7, whose front parts are shared."""
        if self.major < 16:
            return str(uuid.uuid4())
        stamp = int(time.time() * 1000) << 80
        return str(uuid.UUID(int=stamp | 0x7 << 76 | secrets.randbits(12) << 64 | 0x2 << 62 | secrets.randbits(62)))
