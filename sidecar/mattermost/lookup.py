"""Where posts for a recipient's name go, for each way to write one, and what stands in the way.

Names come in lower case with single spaces. People that are looked up at one moment are asked for in one call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sidecar.errors import PostRejected, RecipientError
from sidecar.mattermost.api import MattermostClient
from sidecar.mattermost.batch import Batch
from sidecar.mattermost.codec import Channel
from sidecar.mattermost.pages import if_found
from sidecar.model import Destination, User

_ID: Final = re.compile(r"[a-z0-9]{26}")
_USERNAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
_URL_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_EMAIL: Final = re.compile(r"[^\s@/]+@[^\s@/]+")
# What the address bar shows, with or without its beginning.
_LINK: Final = re.compile(r"(?:\S*/)?([a-z0-9_-]+)/(?:channels/([a-z0-9_-]+)|messages/(@[a-z0-9._-]+))/?")
_DIRECT: Final = "D"
# From so many on the list of all channels is cheaper than to open theirs one by one.
_MANY_CHANNELS: Final = 8
_PEOPLE_AT_ONCE: Final = 100


class Lookup:
    """Asks Mattermost, and remembers nothing."""

    def __init__(self, client: MattermostClient) -> None:
        self._client = client
        self._by_name = Batch(client.user_by_username, self._users_by_name, least=2, complete=True)
        self._by_id = Batch(client.user, self._users_by_id, least=2, complete=True)
        self._direct_channels = Batch(self._open_direct, self._open_already, least=_MANY_CHANNELS, complete=False)
        # The bot's teams that are not archived, as of the last look at everything; None before.
        self._teams: frozenset[str] | None = None

    async def well(self, user_ids: Iterable[str]) -> frozenset[str]:
        """The ids of those users who are active, and of all channels where the bot can be read. Raises as `find`."""
        ids = list(user_ids)
        found: set[str] = set()
        for start in range(0, len(ids), _PEOPLE_AT_ONCE):
            users = await self._client.users(ids[start : start + _PEOPLE_AT_ONCE])
            found |= {user.id for user in users if not user.delete_at}
        teams = await self._living_teams()
        # A bot that is in no channel at all gets 404.
        for channel in await if_found(self._client.my_channels()) or ():
            if not channel.delete_at and channel.team_id in {"", *teams}:
                found.add(channel.id)
        return frozenset(found)

    async def _living_teams(self) -> frozenset[str]:
        self._teams = frozenset(team.id for team in await self._client.my_teams() if not team.delete_at)
        return self._teams

    async def find(self, key: str) -> Destination:
        """Return where posts for this name go. Raises RecipientError, PostRejected, LinkError."""
        if key.startswith("@"):
            return await self._username(key)
        if key.startswith("user:"):
            return await self._user_id(key)
        if key.startswith("~"):
            return await self._channel_of_any_team(key)
        if link := _LINK.fullmatch(key):
            team, channel, username = link.groups()
            raise RecipientError("invalid", f"{key}: this is a link; write {username or f'{team}/{channel}'}")
        if "/" in key:
            return await self._team_channel(key)
        if "@" in key:
            return await self._email(key)
        if _ID.fullmatch(key):
            return await self._channel_id(key)
        raise RecipientError(
            "invalid", f"{key}: write team/channel, ~channel, @username, an email address or a channel id"
        )

    async def _username(self, key: str) -> Destination:
        username = key.removeprefix("@")
        if not _USERNAME.fullmatch(username) or username.strip(".") == "":
            raise RecipientError("invalid", f"{key}: no Mattermost username looks like this")
        user = await self._by_name.ask(username)
        if user is None:
            raise RecipientError("not_found", f"{key}: there is no such user")
        return await self._direct(key, user)

    async def _user_id(self, key: str) -> Destination:
        """A user by the immutable id: how the map of reviewers names people."""
        user_id = key.removeprefix("user:")
        user = await self._by_id.ask(user_id) if _ID.fullmatch(user_id) else None
        if user is None:
            raise RecipientError("not_found", f"{key}: there is no such user")
        return await self._direct(key, user)

    async def _users_by_name(self, names: list[str]) -> dict[str, User]:
        return {user.username: user for user in await self._client.users_by_username(names)}

    async def _users_by_id(self, ids: list[str]) -> dict[str, User]:
        return {user.id: user for user in await self._client.users(ids)}

    async def _email(self, key: str) -> Destination:
        if not _EMAIL.fullmatch(key):
            raise RecipientError("invalid", f"{key}: this is no email address")
        try:
            user = await self._client.user_by_email(key)
        except PostRejected as exc:
            if exc.status != 403:
                raise
            detail = f"{key}: Mattermost hides email addresses (PrivacySettings.ShowEmailAddress); name @username"
            raise RecipientError("forbidden", detail) from exc
        if user is None:
            raise RecipientError("not_found", f"{key}: no user has this address")
        return await self._direct(key, user)

    async def _direct(self, key: str, user: User) -> Destination:
        if user.delete_at:
            raise RecipientError("deactivated", f"{key}: the user is deactivated")
        bot = await self._me()
        if user.id == bot.id:
            raise RecipientError("invalid", f"{key}: this is the bot itself")
        try:
            channel_id = await self._direct_channels.ask(user.id)
        except PostRejected as exc:
            if exc.status != 403:
                raise
            detail = f"{key}: Mattermost allows no direct message; put the bot on a team of theirs"
            raise RecipientError("forbidden", f"{detail} (TeamSettings.RestrictDirectMessage)") from exc
        if channel_id is None:
            raise RecipientError("not_found", f"{key}: there is no such user")
        return Destination(channel_id, "direct", user.id)

    async def _open_direct(self, user_id: str) -> str | None:
        return await self._client.direct_channel(user_id, (await self._me()).id)

    async def _open_already(self, user_ids: list[str]) -> dict[str, str]:
        """Channels by the other's id: the name of a direct channel is both ids in their order."""
        bot_id = (await self._me()).id
        names = {"__".join(sorted((bot_id, user_id))): user_id for user_id in user_ids}
        channels = await self._client.my_channels()
        return {names[one.name]: one.id for one in channels if one.type == _DIRECT and one.name in names}

    async def _team_channel(self, key: str) -> Destination:
        team, _, name = key.partition("/")
        if not (_URL_NAME.fullmatch(team) and _URL_NAME.fullmatch(name)):
            hint = await self._suggestion(name, team)
            raise RecipientError("invalid", f"{key}: URL names are needed, as they stand in the channel's link{hint}")
        try:
            channel = await self._client.channel_by_name(team, name)
            if channel is None and await self._client.team_by_name(team) is None:
                raise RecipientError("not_found", f"{key}: there is no team {team}")
        except PostRejected as exc:
            if exc.status != 403:
                raise
            raise RecipientError("not_member", f"{key}: the bot is not on the team {team}: add it") from exc
        if channel is None:
            hint = await self._suggestion(name, team)
            raise RecipientError("not_found", f"{key}: no such channel, or a private one without the bot{hint}")
        return await self._posting_to(key, channel)

    async def _channel_of_any_team(self, key: str) -> Destination:
        name = key.removeprefix("~")
        channels = [one for one in await self._client.my_channels() if one.name == name and one.type in {"O", "P"}]
        if not channels:
            hint = await self._suggestion(name, "")
            raise RecipientError("not_found", f"{key}: the bot is in no such channel{hint}")
        if len(channels) > 1:
            teams = {team.id: team.name for team in await self._client.my_teams()}
            names = ", ".join(sorted(f"{teams.get(one.team_id, '?')}/{name}" for one in channels))
            raise RecipientError("ambiguous", f"{key}: say which one: {names}")
        return await self._posting_to(key, channels[0])

    async def _channel_id(self, key: str) -> Destination:
        try:
            channel = await self._client.channel(key)
        except PostRejected as exc:
            if exc.status != 403:
                raise
            raise RecipientError("not_member", f"{key}: the bot is not in this channel: invite it") from exc
        if channel is None:
            raise RecipientError("not_found", f"{key}: there is no channel with this id")
        if channel.type == _DIRECT:
            return await self._direct_by_id(key, channel)
        return await self._posting_to(key, channel)

    async def _direct_by_id(self, key: str, channel: Channel) -> Destination:
        bot = await self._me()
        others = [id_ for id_ in channel.name.split("__") if id_ != bot.id]
        user = await self._client.user(others[0]) if len(others) == 1 else None
        if user is None:
            raise RecipientError("invalid", f"{key}: this direct channel is not between the bot and a user")
        return await self._direct(key, user)

    async def _posting_to(self, key: str, channel: Channel) -> Destination:
        """Check that the bot can post there, read and edit what it posted, and hears of it: that takes membership."""
        if channel.delete_at:
            raise RecipientError("archived", f"{key}: the channel is archived")
        # A channel of an archived team takes posts that nobody sees. The look at everything finds it first.
        forgotten = channel.team_id and self._teams is not None and channel.team_id not in self._teams
        if forgotten and channel.team_id not in await self._living_teams():
            raise RecipientError("archived", f"{key}: its team is archived, or the bot is no longer on it")
        if not await self._client.member(channel.id):
            raise RecipientError("not_member", f"{key}: the bot is not in the channel: invite it")
        return Destination(channel.id, "channel")

    async def _suggestion(self, given: str, team: str) -> str:
        """Name the channel whose display name was given instead of its URL name; "" where there is none."""
        wanted = _slug(given)
        teams = {one.id: one for one in await self._client.my_teams()}
        names = [
            f"{teams[one.team_id].name}/{one.name}"
            for one in await self._client.my_channels()
            if one.team_id in teams
            and wanted in {_slug(one.display_name), one.name}
            and (not team or _slug(team) in {_slug(teams[one.team_id].display_name), teams[one.team_id].name})
        ]
        if not names and not _URL_NAME.fullmatch(given) and wanted:
            names = [f"{_slug(team)}/{wanted}" if team else f"~{wanted}"]
        return f"; did you mean {' or '.join(sorted(names))}?" if names else ""

    async def _me(self) -> User:
        return self._client.bot or await self._client.me()


def _slug(display_name: str) -> str:
    """Guess the URL name that Mattermost makes of a display name."""
    return re.sub(r"[^a-z0-9]+", "-", display_name.lower()).strip("-")
