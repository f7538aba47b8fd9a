"""The settings: one frozen value for each section of the file, with its defaults.

Rule: values only; what a type cannot say is said in `checks.py`. No I/O but files that are read anew each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from sidecar.config.values import Names, Seconds, Secret, split_address
from sidecar.errors import ConfigError, LinkRefused
from sidecar.files import CredentialFiles, read_token

Way = Literal["reaction", "reply", "direct"]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class TeleportConfig(CredentialFiles, frozen=True, kw_only=True):
    """[teleport]."""

    old: ClassVar[dict[str, str]] = {"auth_server": "addr"}

    addr: str = "localhost:3025"
    verify: Literal["cluster", "hostname"] = "cluster"
    proxy_ca_file: Path | None = None
    plugin_name: str = "mattermost"
    web_url: str = ""
    lease: Seconds = 30.0


class MattermostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[mattermost]. `recipients` is already in `Config.role_to_recipients`, as its "*" entry."""

    url: str = ""
    token: Secret | None = None
    token_file: Path | None = None
    recipients: Names = ()
    suggested_reviewers: Literal["off", "mapped", "email"] = "email"
    notify_requester: bool = True
    max_suggested_reviewers: Annotated[int, msgspec.Meta(ge=1, le=400)] = 20
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 24
    max_posts_per_second: Annotated[float, msgspec.Meta(ge=0.01, le=1000)] = 20.0
    ca_file: Path | None = None

    def read_token(self) -> str:
        """Return the bot's token, from its file each time. Raises LinkRefused where there is none to use."""
        source = "mattermost.token:"
        if self.token is not None:
            token = self.token.reveal()
        else:
            source = f"mattermost.token_file: {self.token_file}"
            try:
                token = read_token("mattermost.token_file", self.token_file or Path())
            except ConfigError as exc:
                raise LinkRefused("mattermost", "token", str(exc)) from exc.__cause__
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise LinkRefused("mattermost", "token", f"{source} holds characters that no token has")
        return token


class RulesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[rules]: what Teleport's access monitoring rules that name our plugin mean beside role_to_recipients."""

    mode: Literal["replace", "add", "off"] = "replace"


class AnnounceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[announce]."""

    resolved: bool = False
    delay: Seconds = 0.0


class Policy(msgspec.Struct, frozen=True):
    """[reviews.policy.<role>]: which Teleport users decide, and how many of them it takes."""

    reviewers: Names = ()
    approvals: int = 0
    denials: int = 0


class ReviewsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[reviews]. Emoji are names without colons."""

    submit_as: Literal["none", "reviewer", "plugin", "on_behalf", "state"] = "none"
    identities: Path | None = None
    approve: Names = ("white_check_mark",)
    deny: Names = ("x",)
    ways: tuple[Way, ...] = ("reaction", "reply", "direct")
    require_reason: Literal["none", "approve", "deny", "both"] = "none"
    identity: Literal["map", "email"] = "map"
    looking: Names = ("eyes",)
    policy: dict[str, Policy] = {}


class Reviewer(msgspec.Struct, frozen=True, kw_only=True):
    """A value of [reviewers]: the Teleport user, and the Mattermost user id ("" for whoever bears the name)."""

    alone: ClassVar[str] = "user"

    user: str = ""
    id: str = ""


class Requester(msgspec.Struct, frozen=True, kw_only=True):
    """A value of [requesters]: a Mattermost user by "@name" or address, or by user id."""

    alone: ClassVar[str] = "name"

    name: str = ""
    id: str = ""

    @property
    def recipient(self) -> str:
        """Return the name of a direct recipient."""
        if self.id:
            return f"user:{self.id}"
        return self.name if not self.name or "@" in self.name or "/" in self.name else f"@{self.name}"


class RemindersConfig(msgspec.Struct, frozen=True):
    """[reminders]: the first `after` so long without a review (0: never), then `every` so often, `most` in all."""

    after: Seconds = 0.0
    every: Seconds = 7200.0
    most: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[limits]."""

    workers: Positive = 64
    queue: Positive = 10_000
    open_requests: Positive = 50_000


class EndpointsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[endpoints]. The bearer token guards /metrics alone."""

    listen: str = "127.0.0.1:9464"
    tls_crt: Path | None = None
    tls_key: Path | None = None
    bearer_token_file: Path | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Return `listen` as (host, port); an empty host is every interface."""
        return split_address(self.listen) or ("", 0)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[log]. The words of the official plugin, in any case."""

    severity: Literal["TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERR", "ERROR"] = "INFO"
    format: Literal["auto", "text", "json"] = "auto"


class MessagesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[messages]. `time_zone` is an IANA name, shown beside UTC; "" for none."""

    time_zone: str = ""


class Sections(msgspec.Struct, frozen=True, kw_only=True):
    """What may stand in the file."""

    teleport: TeleportConfig = TeleportConfig()
    mattermost: MattermostConfig = MattermostConfig()
    role_to_recipients: dict[str, Names] = {}
    rules: RulesConfig = RulesConfig()
    announce: AnnounceConfig = AnnounceConfig()
    reviews: ReviewsConfig = ReviewsConfig()
    # Mattermost username -> who that is on Teleport
    reviewers: dict[str, Reviewer] = {}
    # Teleport user -> who that is in Mattermost; or Mattermost user -> Teleport user
    requesters: dict[str, Requester] = {}
    reminders: RemindersConfig = RemindersConfig()
    limits: LimitsConfig = LimitsConfig()
    endpoints: EndpointsConfig = EndpointsConfig()
    log: LogConfig = LogConfig()
    messages: MessagesConfig = MessagesConfig()


class Config(Sections, frozen=True, kw_only=True):
    """The settings, checked. `notices` are sentences for the log at start: old keys, and what deserves a look."""

    notices: tuple[str, ...] = ()

    def requester_recipient(self, user: str) -> str:
        """Return the direct recipient of a Teleport user by [requesters], "" where it has none.

        An entry reads either way: Teleport user = Mattermost user, or Mattermost user = Teleport user.
        """
        if user in self.requesters:
            return self.requesters[user].recipient
        backwards = [key for key, value in self.requesters.items() if user and value.name == user]
        return Requester(name=backwards[0]).recipient if len(backwards) == 1 else ""

    def requester_recipients(self) -> dict[str, str]:
        """Return the direct recipient of each name that [requesters] holds, on either side."""
        names = dict.fromkeys((*self.requesters, *(value.name for value in self.requesters.values())))
        return {name: self.requester_recipient(name) for name in names if name}
