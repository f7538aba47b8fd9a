"""Who: accounts, tokens and settings of the simulated Mattermost."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from sidecar.simulator.mattermost.config import PRIVATE_CONFIG, PUBLIC_CONFIG
from sidecar.simulator.mattermost.hub import Hub
from sidecar.simulator.mattermost.values import ApiError, Json, Token, User, new_id, valid_id

NOTIFY = (
    "channel",
    "comments",
    "desktop",
    "desktop_sound",
    "email",
    "first_name",
    "mention_keys",
    "push",
    "push_status",
)


class People:
    """Accounts, tokens and settings. Every change here is what the REST call of that name does, events included."""

    def __init__(self, version: str = "5.37.0") -> None:
        if version not in ("5.37.0", "11.0.0"):
            raise ValueError(f"no profile for version {version}")
        self.version = version
        self.v11 = version == "11.0.0"
        self.version_id = f"{version}..40595ace28fdebc8443cd88ee9f9a25a.false"
        self.hello_extra: Json = {"server_hostname": "mattermost"} if self.v11 else {}
        self.hub = Hub()
        self.hub.extra = {"connection_id": "", "omit_connection_id": ""} if self.v11 else {}
        self.clock_offset = 0.0
        self.public_config = PUBLIC_CONFIG | {"Version": version}
        self.private_config = dict(PRIVATE_CONFIG)
        self.users: dict[str, User] = {}
        self._tokens: dict[str, Token] = {}
        self._usernames: dict[str, User] = {}
        self._emails: dict[str, User] = {}
        self._waiting = trio.lowlevel.ParkingLot()

    def now(self) -> int:
        return int((time.time() + self.clock_offset) * 1000)

    def changed(self) -> None:
        """Wake everybody who waits for a change."""
        if self._waiting:
            self._waiting.unpark_all()

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until `predicate` is true, looking again after each change, request and connection."""
        await trio.lowlevel.checkpoint()
        while not predicate():
            await self._waiting.park()

    def configure(self, **settings: str) -> None:
        """Change client settings by their names, as an administrator does at run time."""
        for name, value in settings.items():
            (self.public_config if name in self.public_config else self.private_config)[name] = value
        self.hub.publish("config_changed", {"config": self.public_config | self.private_config})
        self.changed()

    # users

    def add_user(
        self,
        username: str,
        *,
        email: str = "",
        roles: str = "system_user",
        id: str = "",
        first_name: str = "",
        last_name: str = "",
        remote_id: str | None = None,
        is_bot: bool = False,
    ) -> User:
        """Make an account with one token; a guest has `roles="system_guest"`, a shared-channel user a `remote_id`."""
        self._check_free(username, email)
        now = self.now()
        email = (email or f"{username}@{'localhost' if is_bot else 'example.com'}").lower()
        user = User(id=id or new_id(), username=username, email=email, create_at=now, update_at=now, roles=roles)
        user.first_name, user.last_name, user.remote_id, user.is_bot = first_name, last_name, remote_id, is_bot
        self.users[user.id] = self._usernames[username] = self._emails[email] = user
        self.new_token(user)
        self.hub.publish("new_user", {"user_id": user.id})
        self.changed()
        return user

    def add_bot(self, username: str, *, roles: str = "system_user", id: str = "") -> User:
        """Make a bot, whose address is `<username>@localhost`; "Post All" is `roles="system_user system_post_all"`."""
        return self.add_user(username, roles=roles, id=id, is_bot=True, first_name=username)

    def _check_free(self, username: str, email: str) -> None:
        if username.lower() in self._usernames:
            raise ApiError(400, "app.user.save.username_exists.app_error")
        if email.lower() in self._emails:
            raise ApiError(400, "app.user.save.email_exists.app_error")

    def new_token(self, user: User, value: str = "") -> str:
        """Another token of this account; those before keep working."""
        user.token = value or new_id()
        self._tokens[user.token] = Token(user.token, user.id)
        return user.token

    def session(self, value: str) -> Token | None:
        """The token, if it is good for a request now."""
        token = self._tokens.get(value)
        if token is None or not token.active or self.users[token.user_id].delete_at:
            return None
        return token

    def disable_token(self, user: User, value: str = "") -> None:
        """Disable one token (default: the newest). REST refuses it at once; on 5.37 its open sockets go on hearing."""
        token = self._tokens[value or user.token]
        token.active = False
        for socket in self.hub.sockets_of(user.id):
            if self.v11 and socket.token is token:
                socket.deaf = "session"
        self.changed()

    def enable_token(self, user: User, value: str = "") -> None:
        self._tokens[value or user.token].active = True
        self.changed()

    def deactivate(self, user: User) -> None:
        """Deactivate a person or disable a bot: REST 401 at once, open sockets go deaf for good."""
        user.delete_at = self.now()
        for socket in self.hub.sockets_of(user.id):
            socket.deaf = "session"
        self._user_updated(user)

    def activate(self, user: User) -> None:
        user.delete_at = 0
        self._user_updated(user)

    def rename(self, user: User, username: str) -> None:
        if user.username == username.lower():
            return
        self._check_free(username, "")
        del self._usernames[user.username]
        user.username = username.lower()
        self._usernames[user.username] = user
        self._user_updated(user)

    def set_names(self, user: User, *, first_name: str = "", last_name: str = "", nickname: str = "") -> None:
        """Change what a profile shows besides the user name; anybody may take anybody's."""
        user.first_name, user.last_name, user.nickname = first_name, last_name, nickname
        self._user_updated(user)

    def change_email(self, user: User, email: str) -> None:
        """As the person does; with RequireEmailVerification nothing changes until the new address is verified."""
        self._check_free("", email)
        if self.private_config["RequireEmailVerification"] == "true":
            return
        del self._emails[user.email]
        user.email = email.lower()
        self._emails[user.email] = user
        self._user_updated(user)

    def set_roles(self, user: User, roles: str) -> None:
        user.roles = roles
        for socket in self.hub.sockets_of(user.id):  # the session cache is dropped: a disabled token shows now
            if socket.token and not socket.token.active:
                socket.deaf = "session"
        self._user_updated(user)

    def _user_updated(self, user: User) -> None:
        user.update_at = self.now()
        self.hub.publish("user_updated", {"user": self.user_json(user, None)})
        self.changed()

    def user_json(self, user: User, viewer: User | None) -> Json:
        """A profile as `viewer` sees it (None: everybody)."""
        own = viewer is not None and viewer.id == user.id
        all_seeing = own or (viewer is not None and viewer.admin)
        names = all_seeing or self.private_config["ShowFullName"] == "true"
        body: Json = {
            "id": user.id,
            "create_at": user.create_at,
            "update_at": user.update_at,
            "delete_at": user.delete_at,
            "username": user.username,
            "auth_data": "",
            "auth_service": "",
            "email": user.email if all_seeing or self.private_config["ShowEmailAddress"] == "true" else "",
            "nickname": user.nickname,
            "first_name": user.first_name if names else "",
            "last_name": user.last_name if names else "",
            "position": "",
            "roles": user.roles,
        }
        if own:
            body |= {"notify_props": dict.fromkeys(NOTIFY, "mention"), "last_password_update": user.create_at}
        body |= {
            "locale": "en",
            "timezone": {"automaticTimezone": "", "manualTimezone": "", "useAutomaticTimezone": "true"},
        }
        if user.remote_id is not None:
            body["remote_id"] = user.remote_id
        if user.is_bot:
            body |= {"is_bot": True, "bot_description": user.username}
        return body | {"disable_welcome_email": False}

    def user(self, user_id: str) -> User:
        if not valid_id(user_id):
            raise ApiError(400, "api.context.invalid_url_param.app_error", "Invalid or missing user_id parameter.")
        if user_id not in self.users:
            raise ApiError(404, "app.user.missing_account.const", "Unable to find the user.")
        return self.users[user_id]

    def user_by_email(self, email: str) -> User | None:
        return self._emails.get(email.lower())

    def user_by_name(self, username: str) -> User | None:
        return self._usernames.get(username)
