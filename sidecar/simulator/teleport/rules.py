"""What the stand-in Auth Service has beside requests: access monitoring rules, the traits of users, names of roles.

Facts: lib/accessmonitoring, lib/auth/userloginstate and the protos of 18.0; 16.0 answers "unknown service".
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import Message

from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.codec import encode_labels, raw, text
from sidecar.simulator.teleport.roles import REQUEST, RULE, denied, require
from sidecar.teleport.pb import teleport_pb2 as pb

if TYPE_CHECKING:
    from sidecar.simulator.teleport.rpc import Caller, Service

# The server's own limit for a page.
_PAGE = 1000


def make_rule(
    name: str,
    condition: str,
    recipients: Iterable[str],
    *,
    plugin: str = "mattermost",
    subjects: Iterable[str] = (REQUEST,),
    unknown: bytes = b"",
) -> pb.AccessMonitoringRule:
    """A rule as `tctl create` stores it; `unknown` are encoded fields of its spec that a newer version has."""
    spec = pb.AccessMonitoringRuleSpec(
        subjects=map(raw, subjects),
        condition=raw(condition),
        notification=pb.Notification(name=raw(plugin), recipients=map(raw, recipients)),
    )
    spec.MergeFromString(unknown)
    return pb.AccessMonitoringRule(metadata=pb.Metadata(Name=raw(name)), kind=raw(RULE), version=b"v1", spec=spec)


def encode_rule_put(rule: pb.AccessMonitoringRule) -> bytes:
    """The event of a rule that was made or changed."""
    return pb.Event(Type=pb.PUT, AccessMonitoringRule=rule).SerializeToString()


def encode_rule_delete(name: str) -> bytes:
    """The event of a rule that is gone."""
    header = pb.ResourceHeader(Kind=raw(RULE), Version=b"v1", Metadata=pb.Metadata(Name=raw(name)))
    return pb.Event(Type=pb.DELETE, ResourceHeader=header).SerializeToString()


def list_rules(service: Service, caller: Caller, message: pb.ListAccessMonitoringRulesRequest) -> Message:
    """One page by name; the token is the name of the next rule."""
    for verb in ("list", "read"):
        require(caller.roles, RULE, verb)
    if message.page_token and service.rules_end_after_page_one:
        raise denied(f'access denied to perform action "list" on "{RULE}"')
    size = min(message.page_size or _PAGE, _PAGE)
    with service.changed:
        found = (rule for name, rule in sorted(service.rules.items()) if raw(name) >= message.page_token)
        matching = (rule for rule in found if _matches(rule, message))
        page = list(islice(matching, size + 1))
    following = page[size].metadata.Name if len(page) > size else b""
    return pb.ListAccessMonitoringRulesResponse(rules=page[:size], next_page_token=following)


def list_rules_plain(service: Service, caller: Caller, message: pb.ListAccessMonitoringRulesRequest) -> Message:
    """The same without filters."""
    del message.subjects[:]
    message.notification_name = b""
    return list_rules(service, caller, message)


def get_login_state(service: Service, caller: Caller, message: pb.GetByName) -> Message:
    """Those who sign in by single sign-on have one."""
    require(caller.roles, "user_login_state", "read")
    name = text(message.name)
    user = service.users.get(name)
    if user is None or not user.sso:
        raise Refusal(grpc.StatusCode.NOT_FOUND, f'user_login_state "{name}" doesn\'t exist')
    traits = [pb.Trait(key=raw(key), values=map(raw, values)) for key, values in user.traits]
    return pb.UserLoginState(spec=pb.UserLoginStateSpec(traits=traits))


def get_user(service: Service, caller: Caller, message: pb.GetByName) -> Message:
    """A stored user."""
    require(caller.roles, "user", "read")
    name = text(message.name)
    if name not in service.users:
        raise Refusal(grpc.StatusCode.NOT_FOUND, f'user "{name}" doesn\'t exist')
    traits = encode_labels(service.users[name].traits)
    return pb.GetUserResponse(user=pb.UserV2(Spec=pb.UserSpecV2(Traits=traits)))


def get_roles(service: Service, caller: Caller, _message: pb.PingRequest) -> Message:
    """All roles."""
    for verb in ("list", "read"):
        require(caller.roles, "role", verb)
    return pb.GetRolesResponse(
        Roles=[pb.RoleV6(Metadata=pb.Metadata(Name=raw(name))) for name in sorted(service.roles)]
    )


def get_role(service: Service, caller: Caller, message: pb.GetByName) -> Message:
    """One role. The sidecar never asks; the official plugin does, for each request, and only takes no for an answer."""
    require(caller.roles, "role", "read")
    if text(message.name) not in service.roles:
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"role {text(message.name)} is not found")
    return pb.RoleV6(Metadata=pb.Metadata(Name=message.name))


def _matches(rule: pb.AccessMonitoringRule, message: pb.ListAccessMonitoringRulesRequest) -> bool:
    spec = rule.spec
    named = not message.notification_name or spec.notification.name == message.notification_name
    return named and all(subject in spec.subjects for subject in message.subjects)
