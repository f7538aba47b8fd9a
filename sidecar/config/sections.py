"""The settings: one frozen value for each section of the file, with its defaults.

Rule: values only; what a type cannot say is said in `checks.py`. No I/O but the token file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from sidecar.config.values import Names, Seconds, Secret, split_address
from sidecar.errors import LinkRefused

_FOLDER = Path("/var/lib/teleport/plugins/mattermost")
_TOKEN_BYTES = 2000  # the official plugin reads no more of its token file

Way = Literal["reaction", "reply", "direct"]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class TeleportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[teleport]. Where `identity` is given, the three files are not used. `ca_pin` has any pin that may match."""

    addr: str = "localhost:3025"
    client_crt: Path = _FOLDER / "auth.crt"
    client_key: Path = _FOLDER / "auth.key"
    root_cas: Path = _FOLDER / "auth.cas"
    identity: Path | None = None
    verify: Literal["cluster", "hostname"] = "cluster"
    ca_pin: Names = ()
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
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=100)] = 8
    max_posts_per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 20.0
    ca_file: Path | None = None

    def read_token(self) -> str:
        """Return the bot's token, from its file each time. Raises LinkRefused where there is none to read."""
        if self.token is not None:
            return self.token.reveal()
        try:
            token = (self.token_file or Path()).read_bytes()[:_TOKEN_BYTES].decode().strip()
        except OSError as exc:
            sentence = f"mattermost.token_file: {self.token_file} cannot be read: {exc.strerror}"
            raise LinkRefused("mattermost", "token", sentence) from exc
        except UnicodeDecodeError:
            raise LinkRefused(
                "mattermost", "token", f"mattermost.token_file: {self.token_file} holds no token"
            ) from None
        if not token:
            raise LinkRefused("mattermost", "token", f"mattermost.token_file: {self.token_file} is empty")
        return token


class AnnounceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[announce]."""

    resolved: bool = False
    delay: Seconds = 0.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
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
    require_ids: bool = False
    identity: Literal["map", "email"] = "map"
    policy: dict[str, Policy] = {}


class Reviewer(msgspec.Struct, frozen=True, kw_only=True):
    """A value of [reviewers]: the Teleport user, and the Mattermost user id where it is pinned ("" where not)."""

    alone: ClassVar[str] = "user"

    user: str = ""
    id: str = ""


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
    announce: AnnounceConfig = AnnounceConfig()
    reviews: ReviewsConfig = ReviewsConfig()
    # Mattermost username -> who that is on Teleport
    reviewers: dict[str, Reviewer] = {}
    requesters: dict[str, str] = {}
    limits: LimitsConfig = LimitsConfig()
    endpoints: EndpointsConfig = EndpointsConfig()
    log: LogConfig = LogConfig()
    messages: MessagesConfig = MessagesConfig()


class Config(Sections, frozen=True, kw_only=True):
    """The settings, checked. `notices` are sentences for the log at start: old keys, and what deserves a look."""

    notices: tuple[str, ...] = ()

    def requester_recipient(self, user: str) -> str:
        """Return the Mattermost recipient of a Teleport user by [requesters], "" where it has none.

        An entry reads either way: Teleport user = Mattermost recipient, or Mattermost user = Teleport user.
        """
        backwards = [key for key, value in self.requesters.items() if value == user]
        found = self.requesters.get(user) or (backwards[0] if len(backwards) == 1 else "")
        return found if not found or "@" in found or "/" in found else f"@{found}"
