"""A cluster without a socket: users, roles, access requests and plugin data, and what a local tctl does with them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import grpc
import msgspec

from sidecar.model import AccessRequest, Resource, Threshold
from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.codec import StoredPluginData, StoredRequest, text
from sidecar.simulator.teleport.plugin_data import PluginDataStore
from sidecar.simulator.teleport.reviews import (
    StateChange,
    Submission,
    check_reason,
    check_state_change,
    is_poisoned,
    with_review,
    with_state,
)
from sidecar.simulator.teleport.roles import RULE, Role, User, denied, filter_matches, invalid, thresholds_for
from sidecar.simulator.teleport.rules import encode_rule_delete, encode_rule_put, make_rule
from sidecar.simulator.teleport.store import Store
from sidecar.teleport.pb import teleport_pb2 as pb

_ACCESS_SECONDS = 8 * 3600.0


class Backend(Store):
    """A cluster without a socket. Its public methods act as a local tctl does; they raise Refusal as Teleport would."""

    def __init__(self, version: str = "7.0.0-dev", *, watch_buffer: int | None = None) -> None:
        super().__init__(version, watch_buffer=watch_buffer)
        self.users: dict[str, User] = {}
        self.roles: dict[str, Role] = {}
        self.rules: dict[str, pb.AccessMonitoringRule] = {}
        # Who may list the first page of rules may not list the second one.
        self.rules_end_after_page_one = False
        self._plugin_data = PluginDataStore(self.profile.unknown_request)

    # Users and roles

    def add_user(
        self,
        name: str,
        roles: Iterable[str] = (),
        *,
        sso: bool = False,
        bot: bool = False,
        traits: Mapping[str, Iterable[str]] | None = None,
    ) -> User:
        """Create or replace a user."""
        held = tuple((key, tuple(values)) for key, values in (traits or {}).items())
        user = User(name, tuple(roles), sso=sso, bot=bot, traits=held)
        with self.changed:
            self.users[name] = user
            self.changed.notify_all()
        return user

    def remove_user(self, name: str) -> None:
        """Delete a user; its certificates then fail every call, Ping included."""
        with self.changed:
            del self.users[name]
            self.changed.notify_all()

    def add_role(
        self,
        name: str,
        *,
        request_roles: Iterable[str] = (),
        thresholds: Iterable[Threshold] = (),
        suggested_reviewers: Iterable[str] = (),
        review_roles: Iterable[str] = (),
        submit_for_users: Iterable[str] = (),
        rules: Mapping[str, Iterable[str]] | None = None,
        deny_rules: Mapping[str, Iterable[str]] | None = None,
    ) -> Role:
        """Create or replace a role; `rules` maps a resource to verbs.

        Raises:
            ValueError: a threshold's filter is more than the simulator understands.

        """
        role = Role(
            name,
            request_roles=tuple(request_roles),
            thresholds=tuple(thresholds),
            suggested_reviewers=tuple(suggested_reviewers),
            review_roles=tuple(review_roles),
            submit_for_users=tuple(submit_for_users),
            rules={resource: frozenset(verbs) for resource, verbs in (rules or {}).items()},
            deny_rules={resource: frozenset(verbs) for resource, verbs in (deny_rules or {}).items()},
        )
        for threshold in role.thresholds:
            filter_matches(threshold.filter, (), ())
        with self.changed:
            self.roles[name] = role
            self.changed.notify_all()
        return role

    def roles_of(self, names: Iterable[str]) -> list[Role]:
        """Look role definitions up, live."""
        return [self.roles[name] for name in names if name in self.roles]

    # Rules

    def add_rule(self, name: str, condition: str, recipients: Iterable[str], **more: Any) -> None:  # noqa: ANN401
        """Create or replace an access monitoring rule; `more` as make_rule takes it."""
        with self.changed:
            self.rules[name] = make_rule(name, condition, recipients, **more)
            self.publish(encode_rule_put(self.rules[name]), name, None, RULE)
            self.changed.notify_all()

    def remove_rule(self, name: str) -> None:
        """Delete a rule."""
        with self.changed:
            del self.rules[name]
            self.publish(encode_rule_delete(name), name, None, RULE)
            self.changed.notify_all()

    # Requests

    def create_request(
        self,
        user: str,
        roles: Iterable[str],
        *,
        reason: str | bytes = "",
        suggested_reviewers: Iterable[str] | None = None,
        expires_in: float | None = None,
        access_for: float = _ACCESS_SECONDS,
        resources: Iterable[Resource] = (),
        kind: str = "",
    ) -> str:
        """Create a request and give its id.

        `expires_in` seconds is when it goes away while pending (default: the version's), `access_for` when the access
        would end. A `reason` of bytes goes to the wire as it is. Reviewers default to those of the requester's roles.
        """
        now = time.time()
        access_until = now + max(access_for, expires_in or 0.0)
        pending = self.profile.pending_seconds if expires_in is None else expires_in
        check_reason(text(reason), "access request reason", self.profile)
        with self.changed:
            held = self.roles_of(self._user(user).roles)
            if suggested_reviewers is None:
                suggested_reviewers = sorted({name for role in held for name in role.suggested_reviewers})
            thresholds, mapping = thresholds_for(user, held, roles)
            request = AccessRequest(
                id=self.profile.new_id(),
                user=user,
                state="PENDING",
                roles=tuple(sorted(set(roles))),
                reason=text(reason),
                created=now,
                expires=min(now + pending, access_until),
                access_until=access_until,
                thresholds=thresholds,
                role_thresholds=mapping,
                suggested_reviewers=tuple(suggested_reviewers),
                resources=tuple(resources),
                kind=kind,
            )
            self.store(StoredRequest(request, (), 0))
        return request.id

    def review(self, request_id: str, author: str, proposed_state: str, reason: str = "") -> AccessRequest:
        """Review as `tctl requests review --author` on the Auth host does."""
        return self.submit(Submission(request_id, author, proposed_state, reason, created=time.time())).request

    def set_state(
        self, request_id: str, state: str, reason: str = "", *, delegator: str = "", roles: Iterable[str] = ()
    ) -> AccessRequest:
        """Approve or deny as `tctl requests approve|deny` does, past all thresholds."""
        return self.change_state(StateChange(request_id, state, reason, delegator, roles=tuple(roles))).request

    def rewrite(self, request_id: str, **changes: Any) -> AccessRequest:  # noqa: ANN401 - any field of AccessRequest
        """Put a request back with any fields changed and no checks, as only the backend's owner can."""
        with self.changed:
            stored = self._get(request_id, "rewrite")
            return self.store(replace(stored, request=msgspec.structs.replace(stored.request, **changes))).request

    def delete_request(self, request_id: str) -> None:
        """Remove it as `tctl requests rm` does; plugin data stays."""
        with self.changed:
            if self.live(request_id) is None:
                raise _not_found(request_id, "delete")
            self.remove(request_id)

    def request(self, request_id: str) -> AccessRequest | None:
        """Give the request as it is now; None when it is gone."""
        with self.changed:
            stored = self.live(request_id)
            return stored.request if stored else None

    def requests(self) -> list[AccessRequest]:
        """Give all requests that are there now."""
        with self.changed:
            return [stored.request for stored in self.scan()]

    def submit(self, submission: Submission, roles: Iterable[str] | None = None) -> StoredRequest:
        """Apply a review; `roles` names the author's roles where not the stored ones count (bots)."""
        author = submission.author
        with self.changed:
            held = self.roles_of(self._user(author).roles if roles is None else roles)
            if not any(role.review_roles for role in held):
                raise denied(f'user "{author}" cannot submit reviews')
            stored = self._get(submission.request_id, "apply review to")
            return self.store(with_review(stored, submission, held, self.profile))

    def change_state(self, change: StateChange) -> StoredRequest:
        """Apply a SetAccessRequestState."""
        check_state_change(change, self.profile)
        with self.changed:
            return self.store(with_state(self._get(change.request_id, "set state of"), change))

    # Plugin data

    def plugin_data(self, request_id: str, plugin: str = "mattermost") -> dict[str, str]:
        """Give one plugin's entry; {} where there is none."""
        found = self.find_plugin_data(request_id, plugin)
        return dict(found[0].entries[plugin]) if found else {}

    def find_plugin_data(self, request_id: str = "", plugin: str = "") -> list[StoredPluginData]:
        """Find objects with all their entries."""
        with self.changed:
            return self._plugin_data.find(time.time(), request_id, plugin)

    def write_plugin_data(
        self,
        request_id: str,
        new: Mapping[str, str],
        expect: Mapping[str, str] | None = None,
        *,
        plugin: str = "mattermost",
    ) -> None:
        """Set and expect as UpdatePluginData does: another plugin, or another replica."""
        with self.changed:
            stored = self.live(request_id)
            request = stored.request if stored else None
            changes = (new, expect or {})
            self._plugin_data.update(time.time(), self.next_serial(), request_id, request, plugin, changes)
            self.changed.notify_all()

    def _user(self, name: str) -> User:
        if name not in self.users:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f'user "{name}" is not found')
        return self.users[name]

    def _get(self, request_id: str, what: str) -> StoredRequest:
        stored = self.live(request_id)
        if stored is None:
            raise _not_found(request_id, what)
        if is_poisoned(stored.request):
            raise invalid("pending requests cannot include resolve reason")
        return stored


def _not_found(request_id: str, what: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, f'cannot {what} access request "{request_id}" (not found)')
