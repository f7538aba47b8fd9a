"""Who and what there is in Mattermost: users, teams and channels."""

from __future__ import annotations

import math
from typing import Final

import trio

from sidecar.errors import LinkLost
from sidecar.mattermost import codec
from sidecar.mattermost.codec import Channel, Team
from sidecar.mattermost.pages import Rest, if_found, part
from sidecar.model import User
from sidecar.once import Bounded

# The list of the bot's channels is read each minute where people decide.
_SHARED_SECONDS: Final = 120.0
_MOST_CHANNELS: Final = 10_000


class Directory:
    """Asks for them; see `api` for what each call can raise."""

    def __init__(self, rest: Rest) -> None:
        self.use(rest)

    def use(self, rest: Rest) -> None:
        """Make all calls by `rest` from now on."""
        self._rest = rest
        self._has_my_channels = True
        # channel -> whether another server has a part in it, and when that was read (trio's clock).
        self._shared = Bounded[str, tuple[bool, float]](_MOST_CHANNELS)

    async def user(self, user_id: str) -> User | None:
        """Return a user by id, deactivated ones too; None for an unknown one."""
        return await if_found(self._rest.call("GET", f"/users/{part(user_id)}", codec.decode_user))

    async def users(self, user_ids: list[str]) -> list[User]:
        """Return users by id, deactivated ones too; unknown ones are left out."""
        return await self._rest.call("POST", "/users/ids", codec.decode_users, body=user_ids)

    async def users_by_username(self, usernames: list[str]) -> list[User]:
        """Return users by name, deactivated ones too; unknown ones are left out."""
        return await self._rest.call("POST", "/users/usernames", codec.decode_users, body=usernames)

    async def user_by_username(self, username: str) -> User | None:
        """Return a user by name; names are lower case and may change hands."""
        path = f"/users/username/{part(username.lower())}"
        return await if_found(self._rest.call("GET", path, codec.decode_user))

    async def user_by_email(self, email: str) -> User | None:
        """Return a user by address; 403 for every address where PrivacySettings.ShowEmailAddress is off."""
        return await if_found(self._rest.call("GET", f"/users/email/{part(email)}", codec.decode_user))

    async def team_by_name(self, name: str) -> Team | None:
        """Return a team; 403 where it exists and the bot is not on it."""
        return await if_found(self._rest.call("GET", f"/teams/name/{part(name)}", codec.decode_team))

    async def channel_by_name(self, team: str, name: str) -> Channel | None:
        """Return a channel by URL names, archived ones too; None also for a private one that the bot is not in."""
        path = f"/teams/name/{part(team)}/channels/name/{part(name)}?include_deleted=true"
        return self._noted(await if_found(self._rest.call("GET", path, codec.decode_channel)))

    async def channel(self, channel_id: str) -> Channel | None:
        """Return a channel by id; None for an unknown one, 403 where the bot is not in it."""
        return self._noted(
            await if_found(self._rest.call("GET", f"/channels/{part(channel_id)}", codec.decode_channel))
        )

    async def shared(self, channel_id: str) -> bool:
        """Whether another Mattermost server has a part in a channel, by what was read of it lately."""
        shared, read_at = self._shared.get(channel_id, (True, -math.inf))
        if trio.current_time() < read_at + _SHARED_SECONDS:
            return shared
        channel = await self.channel(channel_id)
        return channel is None or bool(channel.shared)

    def _noted(self, channel: Channel | None) -> Channel | None:
        if channel is not None:
            self._shared[channel.id] = (bool(channel.shared), trio.current_time())
        return channel

    async def member(self, channel_id: str, user_id: str = "me") -> bool:
        """Whether a user is in a channel; False also where the bot may not know."""
        path = f"/channels/{part(channel_id)}/members/{part(user_id)}"
        return await if_found(self._rest.call("GET", path, codec.decode_done), missing=(403, 404)) is not None

    async def direct_channel(self, user_id: str, bot_id: str) -> str:
        """Return the id of the direct channel of two users, made where there is none yet."""
        body = [bot_id, user_id]
        channel = await self._rest.call("POST", "/channels/direct", codec.decode_channel, body=body, write=True)
        self._noted(channel)
        return channel.id

    async def my_teams(self) -> list[Team]:
        """Return the teams that the bot is on."""
        return await self._rest.call("GET", "/users/me/teams", codec.decode_teams)

    async def my_channels(self) -> list[Channel]:
        """Return all channels that the bot is in, direct ones too."""
        channels = await self._my_channels()
        for channel in channels:
            self._noted(channel)
        return channels

    async def _my_channels(self) -> list[Channel]:
        if self._has_my_channels:
            try:
                return await self._channels("/users/me/channels")
            except LinkLost as exc:
                if exc.reason != "unknown_route":
                    raise
                self._has_my_channels = False  # 5.x, where each team has to be asked
        found: dict[str, Channel] = {}
        for team in await self.my_teams():
            found |= {one.id: one for one in await self._channels(f"/users/me/teams/{part(team.id)}/channels")}
        return list(found.values())

    async def _channels(self, path: str) -> list[Channel]:
        channels = await self._rest.call("GET", path, codec.decode_channels, items=codec.channels)
        for channel in channels:
            self._noted(channel)
        return channels
