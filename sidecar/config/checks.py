"""What a type cannot say of a setting: problems that stop the start, and notices that do not.

Rule: pure; a file that is not there is nobody's problem here, since `run` waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from sidecar.config.sections import EndpointsConfig, Policy, ReviewsConfig, Sections
from sidecar.config.values import split_address

# The name of a setting, and what is wrong with it.
Problem = tuple[str, str]

_FILES = ("client_crt", "client_key", "root_cas")
_EMOJI = re.compile(r"[a-z0-9_+-]+")
_PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_USER_ID = re.compile(r"[a-z0-9]{26}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def find_problems(sections: Sections, given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem. `given` are the tables as they were written, to tell a default from a choice."""
    teleport = given.get("teleport")
    yield from _credentials(teleport if isinstance(teleport, dict) else {})
    yield from _teleport(sections)
    yield from _mattermost(sections)
    yield from _reviewers(sections)
    yield from _requesters(sections.requesters)
    yield from _emoji(sections.reviews)
    yield from _submission(sections.reviews)
    yield from _endpoints(sections.endpoints)
    if not 0 <= sections.announce.delay <= 86400:
        yield "announce.delay", "is at most one day"
    if not _is_time_zone(sections.messages.time_zone):
        yield "messages.time_zone", "is no time zone of this system, write it as Europe/Vienna"


def _credentials(teleport: Mapping[str, Any]) -> Iterator[Problem]:
    files = [key for key in _FILES if key in teleport]
    if "identity" in teleport and files:
        yield "teleport.identity", f"stands beside {', '.join(files)}: give either the identity or the three files"
    elif files and len(files) < len(_FILES):
        missing = [key for key in _FILES if key not in files]
        yield f"teleport.{missing[0]}", f"is missing: {', '.join(_FILES)} belong together"


def _teleport(sections: Sections) -> Iterator[Problem]:
    teleport = sections.teleport
    address = split_address(teleport.addr)
    if address is None or not all(address):
        yield "teleport.addr", f"is host:port of the Auth Service, such as localhost:3025, not {teleport.addr}"
    if teleport.web_url:
        yield from _url("teleport.web_url", teleport.web_url)
    if not _PLUGIN_NAME.fullmatch(teleport.plugin_name):
        yield "teleport.plugin_name", "is a word of letters, digits, dots and dashes"
    if not 1 <= teleport.lease <= 3600:
        yield "teleport.lease", "is between one second and one hour"


def _mattermost(sections: Sections) -> Iterator[Problem]:
    mattermost = sections.mattermost
    if mattermost.url:
        yield from _url("mattermost.url", mattermost.url)
    else:
        yield "mattermost.url", "is missing, write it as https://mattermost.example.com"
    if mattermost.token is not None and mattermost.token_file is not None:
        yield "mattermost.token", "stands beside token_file: give one of them"
    if mattermost.token is None and mattermost.token_file is None:
        yield "mattermost.token_file", "is missing: the file that holds the bot's token"
    if not any(sections.role_to_recipients.values()):
        yield "mattermost.recipients", 'is missing: give it, or role_to_recipients, such as ["team/channel"]'


def _url(name: str, url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname
    except ValueError:
        parts, good = urlsplit(""), False
    if good and not _has_port(parts):
        yield name, f"has a port that is none: {parts.netloc.rpartition(':')[2]} is not between 1 and 65535"
    elif not good or re.search(r"\s", url):
        yield name, "is no http:// or https:// address"
    elif "@" in parts.netloc:
        yield name, "carries a user name or a password, which has no place in an address"
    elif parts.query or parts.fragment:
        yield name, "ends with its path, without ? and #"


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _reviewers(sections: Sections) -> Iterator[Problem]:
    ids: dict[str, str] = {}
    for name, reviewer in sections.reviewers.items():
        place = f"reviewers.{name}"
        if not reviewer.user:
            yield place, 'is missing its user: write "alice@example.com" or { id = "…", user = "alice@example.com" }'
        if reviewer.id and not _USER_ID.fullmatch(reviewer.id):
            yield place, "has an id that is no Mattermost user id (26 letters and digits)"
        if reviewer.id and ids.setdefault(reviewer.id, name) != name:
            yield place, f"has the id of reviewers.{ids[reviewer.id]}"
        if not reviewer.id and sections.reviews.require_ids:
            yield place, "has no id, and reviews.require_ids is set"


def _requesters(requesters: Mapping[str, str]) -> Iterator[Problem]:
    for key, value in requesters.items():
        if not value:
            yield f"requesters.{key}", "is empty"
        elif key != value and value in requesters:
            yield f"requesters.{key}", f"{value} stands on both sides of the table, so nobody can tell who is who"


def _emoji(reviews: ReviewsConfig) -> Iterator[Problem]:
    for key, emoji in (("approve", reviews.approve), ("deny", reviews.deny)):
        if not emoji:
            yield f"reviews.{key}", "is empty: name at least one emoji"
        if any(not _EMOJI.fullmatch(name) for name in emoji):
            yield f"reviews.{key}", "holds something that is no emoji name, such as white_check_mark"
    if both := set(reviews.approve) & set(reviews.deny):
        yield "reviews.deny", f"and reviews.approve share {', '.join(sorted(both))}"


def _submission(reviews: ReviewsConfig) -> Iterator[Problem]:
    if reviews.submit_as != "none" and not reviews.ways:
        yield "reviews.ways", "is empty, and reviews.submit_as is set: name at least one way"
    if reviews.submit_as == "reviewer" and reviews.identities is None:
        yield (
            "reviews.identities",
            'is missing: submit_as = "reviewer" needs the folder with the reviewers\' credentials',
        )
    if reviews.submit_as in {"plugin", "state"} and not reviews.policy:
        yield "reviews.policy", f'is missing: submit_as = "{reviews.submit_as}" needs one for each role, or for "*"'
    for role, policy in reviews.policy.items():
        yield from _policy(f"reviews.policy.{role}", policy)


def _policy(name: str, policy: Policy) -> Iterator[Problem]:
    people = len(set(policy.reviewers))
    if not people:
        yield f"{name}.reviewers", "is empty: name the Teleport users who decide"
    for key, count in (("approvals", policy.approvals), ("denials", policy.denials)):
        if count < 1:
            yield f"{name}.{key}", "is missing or below 1"
        elif people and count > people:
            yield f"{name}.{key}", f"is {count}, but reviewers names only {people}"


def _endpoints(endpoints: EndpointsConfig) -> Iterator[Problem]:
    if split_address(endpoints.listen) is None:
        yield "endpoints.listen", f"is host:port, such as 127.0.0.1:9464, not {endpoints.listen}"
    if (endpoints.tls_crt is None) != (endpoints.tls_key is None):
        yield "endpoints.tls_crt", "and endpoints.tls_key belong together"


def _is_time_zone(name: str) -> bool:
    if not name:
        return True
    import zoneinfo  # noqa: PLC0415 - costs each start 9 ms, and few name a zone

    try:
        return bool(zoneinfo.ZoneInfo(name))
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        return False


def find_notices(sections: Sections) -> Iterator[str]:
    """Yield what deserves a second look and does not stop the start."""
    mattermost, reviews = sections.mattermost, sections.reviews
    if mattermost.token is not None:
        yield "mattermost.token: the token stands in the configuration, better give token_file"
    if mattermost.url.startswith("http:") and urlsplit(mattermost.url).hostname not in _LOOPBACK:
        yield "mattermost.url: without https the token travels in the clear"
    if "*" not in sections.role_to_recipients:
        yield 'role_to_recipients: has no "*" entry, so other roles are announced to suggested reviewers only'
    endpoints = sections.endpoints
    if endpoints.address[0] not in _LOOPBACK and not (endpoints.tls_crt or endpoints.bearer_token_file):
        yield f"endpoints.listen: others can reach {endpoints.listen}, and neither TLS nor a bearer token guards it"
    if reviews.submit_as == "none":
        return
    unpinned = sorted(name for name, reviewer in sections.reviewers.items() if not reviewer.id)
    if unpinned and reviews.identity == "map":
        yield f"reviewers: {', '.join(unpinned)} named without an id; a renamed Mattermost user could take the name"
    if not sections.reviewers and reviews.identity == "map":
        yield "reviewers: is empty, so nobody can decide from Mattermost"
