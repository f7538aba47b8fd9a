"""What a type cannot say about a setting: problems that stop the start, and notices that do not.

Rule: pure; a file that is not there is nobody's problem here, since `run` waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from sidecar.config.sections import EndpointsConfig, Policy, RemindersConfig, Requester, ReviewsConfig, Sections
from sidecar.config.values import split_address

# The name of a setting, and what is wrong with it.
Problem = tuple[str, str]

_FILES = ("client_crt", "client_key", "root_cas")
_EMOJI = re.compile(r"[a-z0-9_+-]+")
_PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_USER_ID = re.compile(r"[a-z0-9]{26}")
_CA_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_NO_ID = "has an id that is not a Mattermost user id (26 lower-case letters and digits)"
_MONTH = 30 * 86400
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
    yield from _reminders(sections.reminders)
    yield from _endpoints(sections.endpoints)
    if not 0 <= sections.announce.delay <= 86400:
        yield "announce.delay", "must be at most one day"
    if not _is_time_zone(sections.messages.time_zone):
        zone = sections.messages.time_zone
        yield "messages.time_zone", f"must be a time zone that this system knows, such as Europe/Vienna, not {zone}"


def find_bare_names(sections: Sections) -> Iterator[Problem]:
    """Yield the lines of [reviewers] that `run` does not accept while decisions are on, and `check --pin` completes."""
    bare = sorted(name for name, reviewer in sections.reviewers.items() if not reviewer.id)
    if bare and sections.reviews.submit_as != "none":
        why = "a username can change hands, so decisions need user ids; `sidecar check --pin` prints the table to paste"
        yield "reviewers", f"{', '.join(bare)} without an id: {why}"


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
        yield (
            "teleport.addr",
            (
                "must be host:port of the Auth Service or the Proxy Service, such as localhost:3025, "
                f"not {teleport.addr}"
            ),
        )
    if teleport.web_url:
        yield from _url("teleport.web_url", teleport.web_url)
    if not _PLUGIN_NAME.fullmatch(teleport.plugin_name):
        yield (
            "teleport.plugin_name",
            f"must be one word of letters, digits, dots and dashes, not {teleport.plugin_name}",
        )
    if not 1 <= teleport.lease <= 3600:
        yield "teleport.lease", "must be between one second and one hour"
    if not all(map(_CA_PIN.fullmatch, teleport.ca_pin)):
        wrong = ", ".join(teleport.ca_pin)
        yield "teleport.ca_pin", f"must be sha256: and 64 hexadecimal digits, as tctl status prints it, not {wrong}"


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
        yield name, f"must have a port between 1 and 65535, not {parts.netloc.rpartition(':')[2]}"
    elif not good or re.search(r"\s", url):
        yield name, f"must be an http:// or https:// address, not {url.rpartition('@')[2]}"
    elif "@" in parts.netloc:
        yield name, "must not contain a user name or a password"
    elif parts.query or parts.fragment:
        yield name, "must end with its path, without ? or #"


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
            yield place, _NO_ID
        if reviewer.id and ids.setdefault(reviewer.id, name) != name:
            yield place, f"has the id of reviewers.{ids[reviewer.id]}"


def _requesters(requesters: Mapping[str, Requester]) -> Iterator[Problem]:
    for key, value in requesters.items():
        place = f"requesters.{key}"
        if bool(value.name) == bool(value.id):
            yield place, 'must name one Mattermost user: "@bob", an email address or { id = "…" }'
        elif value.id and not _USER_ID.fullmatch(value.id):
            yield place, _NO_ID
        elif key != value.name and value.name in requesters:
            yield place, f"{value.name} stands on both sides of the table, so nobody can tell who is who"


def _emoji(reviews: ReviewsConfig) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for key, emoji in (("approve", reviews.approve), ("deny", reviews.deny), ("looking", reviews.looking)):
        if not emoji and key != "looking":
            yield f"reviews.{key}", "is empty: name at least one emoji"
        if not all(map(_EMOJI.fullmatch, emoji)):
            yield f"reviews.{key}", f"must hold emoji names, such as white_check_mark, not {', '.join(emoji)}"
        if both := [name for name in emoji if seen.setdefault(name, key) != key]:
            yield f"reviews.{key}", f"and reviews.{seen[both[0]]} share {', '.join(sorted(set(both)))}"


def _submission(reviews: ReviewsConfig) -> Iterator[Problem]:
    if reviews.submit_as != "none" and not reviews.ways:
        yield "reviews.ways", "is empty, and reviews.submit_as is set: name at least one way"
    if reviews.submit_as == "reviewer" and reviews.identities is None:
        yield "reviews.identities", 'is missing: submit_as = "reviewer" needs the folder with reviewers\' credentials'
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


def _reminders(reminders: RemindersConfig) -> Iterator[Problem]:
    if not 0 <= reminders.after <= _MONTH:
        yield "reminders.after", "must be at most 30 days"
    if not 1 <= reminders.every <= _MONTH:
        yield "reminders.every", "must be between one second and 30 days"


def _endpoints(endpoints: EndpointsConfig) -> Iterator[Problem]:
    if split_address(endpoints.listen) is None:
        yield "endpoints.listen", f"must be host:port, such as 127.0.0.1:9464, not {endpoints.listen}"
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
    """Yield what is worth a look but does not prevent the start."""
    mattermost, reviews, endpoints = sections.mattermost, sections.reviews, sections.endpoints
    if mattermost.token is not None:
        yield "mattermost.token: the token stands in the configuration; token_file is a better place"
    if mattermost.url.startswith("http:") and urlsplit(mattermost.url).hostname not in _LOOPBACK:
        yield "mattermost.url: without https the token travels in the clear"
    yield from _roles(sections.role_to_recipients)
    if endpoints.address[0] not in _LOOPBACK and not (endpoints.tls_crt or endpoints.bearer_token_file):
        guard = "give bearer_token_file, and tls_crt with tls_key, or listen on 127.0.0.1 alone"
        who = f"others can reach {endpoints.listen}, and neither TLS nor a bearer token guards it"
        yield f"endpoints.listen: {who}: {guard}"
    if reviews.submit_as != "none" and not sections.reviewers and reviews.identity == "map":
        yield "reviewers: is empty, so nobody can decide from Mattermost"
    for name, sentence in find_bare_names(sections):
        yield f"{name}: {sentence}"


def _roles(recipients: Mapping[str, object]) -> Iterator[str]:
    if "*" not in recipients:
        yield 'role_to_recipients: has no "*" entry, so other roles are announced to suggested reviewers only'
    for role in recipients:
        if why := doubt(role):
            yield f'role_to_recipients: "{role}" {why}'


def doubt(role: str) -> str:
    """Say why a name in role_to_recipients probably matches no role; "" where nothing speaks against it."""
    if role != role.strip():
        return f'begins or ends with a blank, which no role does: write "{role.strip()}"'
    if role.startswith("^") or role.endswith("$") or ".*" in role:
        plain = role.removeprefix("^").removesuffix("$").replace(".*", "*")
        return f'is a regular expression, but only * is special here: write "{plain}"'
    return "" if role == role.lower() else "matches only a role of exactly this spelling: upper and lower case differ"
