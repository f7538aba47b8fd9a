"""Where: teams, channels, memberships of the simulated Mattermost; and who may read and post there."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.simulator.mattermost.people import People
from sidecar.simulator.mattermost.values import PERMISSION, ApiError, Channel, Team, User, new_id


class Places(People):
    """Teams and channels. Every change here is what the REST call of that name does, events included."""

    def __init__(self, version: str = "5.37.0") -> None:
        super().__init__(version)
        self.teams: dict[str, Team] = {}
        self.channels: dict[str, Channel] = {}
        self._by_name: dict[tuple[str, str], Channel] = {}

    def add_team(self, name: str, *, display_name: str = "", id: str = "", members: Iterable[User] = ()) -> Team:
        """A team by invitation, with its Town Square and its Off-Topic."""
        team = Team(id=id or new_id(), name=name, display_name=display_name or name.title(), create_at=self.now())
        self.teams[team.id] = team
        self.add_channel(team, "town-square", display_name="Town Square")
        self.add_channel(team, "off-topic", display_name="Off-Topic")
        for user in members:
            self.join_team(team, user)
        return team

    def archive_team(self, team: Team) -> None:
        """Its channels stay, and take posts; nobody sees them."""
        team.delete_at = self.now()

    def unarchive_team(self, team: Team) -> None:
        team.delete_at = 0

    def join_team(self, team: Team, user: User) -> None:
        team.members.add(user.id)
        for name in ("town-square", "off-topic"):
            self._by_name[team.id, name].members[user.id] = self.now()
        self.hub.publish("added_to_team", {"team_id": team.id, "user_id": user.id}, user_id=user.id)
        self.changed()

    def leave_team(self, team: Team, user: User) -> None:
        team.members.discard(user.id)
        for channel in self.channels.values():
            if channel.team_id == team.id:
                channel.members.pop(user.id, None)
        self.hub.publish("leave_team", {"team_id": team.id, "user_id": user.id}, to=team.members | {user.id})
        self.changed()

    def add_channel(
        self,
        team: Team,
        name: str,
        *,
        private: bool = False,
        display_name: str = "",
        id: str = "",
        members: Iterable[User] = (),
    ) -> Channel:
        now = self.now()
        channel = Channel(id=id or new_id(), name=name, type="P" if private else "O", create_at=now, update_at=now)
        channel.team_id, channel.display_name = team.id, display_name or name
        self._store(channel)
        for user in members:
            self.join(channel, user)
        return channel

    def _store(self, channel: Channel) -> None:
        self.channels[channel.id] = self._by_name[channel.team_id, channel.name] = channel
        self.changed()

    def open_direct(self, creator: User, other: User, *, id: str = "") -> Channel:
        """POST /channels/direct: the one channel of these two, made if need be."""
        name = "__".join(sorted((creator.id, other.id)))
        if channel := self._by_name.get(("", name)):
            return channel
        if self.restricted(creator, other):
            raise ApiError(403, "api.channel.create_channel.direct_channel.team_restricted_error")
        if self.v11 and other.remote_id:
            raise ApiError(403, "api.channel.create_channel.direct_channel.remote_restricted.app_error")
        now = self.now()
        channel = Channel(id=id or new_id(), name=name, type="D", create_at=now, update_at=now, creator_id=creator.id)
        channel.members = {creator.id: now, other.id: now}
        self._store(channel)
        data = {"creator_id": creator.id, "teammate_id": other.id}
        self.hub.publish("direct_added", data, to=channel.members, channel_id=channel.id)
        return channel

    def restricted(self, one: User, other: User) -> bool:
        """Whether RestrictDirectMessage keeps these two apart."""
        if self.private_config["RestrictDirectMessage"] != "team" or one is other:
            return False
        return not any({one.id, other.id} <= team.members for team in self.teams.values())

    def add_group(self, *users: User, id: str = "") -> Channel:
        """A group message (type G) made by the first of `users`."""
        now = self.now()
        channel = Channel(id=id or new_id(), name=new_id(), type="G", create_at=now, update_at=now)
        channel.display_name = ", ".join(sorted(user.username for user in users))
        channel.members = dict.fromkeys((user.id for user in users), now)
        self._store(channel)
        self.hub.publish("group_added", {"teammate_ids": "[]"}, to=channel.members, channel_id=channel.id)
        return channel

    def archive(self, channel: Channel) -> None:
        channel.delete_at = channel.update_at = self.now()
        data = {"channel_id": channel.id, "delete_at": channel.delete_at}
        self.hub.publish("channel_deleted", data, to=channel.members, channel_id=channel.id)
        self.changed()

    def unarchive(self, channel: Channel) -> None:
        channel.delete_at = 0
        self.hub.publish("channel_restored", {"channel_id": channel.id}, to=channel.members, channel_id=channel.id)
        self.changed()

    def join(self, channel: Channel, user: User) -> None:
        """Make a member, as by an administrator, without the system post (POST .../members writes that too)."""
        channel.members[user.id] = self.now()
        data = {"team_id": channel.team_id, "user_id": user.id}
        self.hub.publish("user_added", data, to=channel.members, channel_id=channel.id)
        self.changed()

    def leave(self, channel: Channel, user: User, *, remover: User | None = None) -> None:
        """End a membership; from then on no event of the channel reaches the user."""
        channel.members.pop(user.id, None)
        remover_id = (remover or user).id
        data = {"remover_id": remover_id, "user_id": user.id}
        self.hub.publish("user_removed", data, to=channel.members, channel_id=channel.id)
        self.hub.publish("user_removed", {"channel_id": channel.id, "remover_id": remover_id}, user_id=user.id)
        self.changed()

    def channel_named(self, team_id: str, name: str, *, archived: bool = False) -> Channel | None:
        channel = self._by_name.get((team_id, name))
        return None if channel is None or (channel.delete_at and not archived) else channel

    def team_named(self, name: str) -> Team:
        for team in self.teams.values():
            if team.name == name:
                return team
        raise ApiError(404, "app.team.get_by_name.missing.app_error", "Unable to find the existing team.")

    # permissions (mattermost 5.37 model/role.go; custom schemes are not imitated)

    def can_read(self, user: User, channel: Channel, *, public: bool = False) -> bool:
        """Members and administrators; with `public` whoever is on the team of a public channel, too."""
        if user.id in channel.members or user.admin:
            return True
        team = self.teams.get(channel.team_id)
        return public and channel.type == "O" and team is not None and user.id in team.members

    def can_post(self, user: User, channel: Channel) -> bool:
        roles = user.roles.split()
        if self.can_read(user, channel) or "system_post_all" in roles:
            return True
        return channel.type == "O" and "system_post_all_public" in roles

    def readable(self, user: User, channel_id: str, *, public: bool = False) -> Channel:
        """The channel, if the user may read in it."""
        channel = self.channels.get(channel_id)
        if channel is None:
            raise ApiError(404, "app.channel.get.existing.app_error", "Unable to find the existing channel.")
        if not self.can_read(user, channel, public=public):
            raise ApiError(403, PERMISSION)
        return channel
