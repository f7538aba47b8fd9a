"""The REST routes, each a few lines over the state; paths, statuses and error ids of mattermost 5.37 and v11, api4/."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from sidecar.simulator.mattermost.board import Board
from sidecar.simulator.mattermost.http import Answer, Request
from sidecar.simulator.mattermost.values import PERMISSION, ApiError, Channel, Json, Post, Team, User, valid_id

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_USERNAME = re.compile(r"[a-z0-9._-]{1,64}")
_ROLES = {"scheme_guest": False, "scheme_user": True, "scheme_admin": False, "explicit_roles": ""}
_NOTIFY = dict.fromkeys(("desktop", "email", "ignore_channel_mentions", "push"), "default") | {"mark_unread": "all"}

Handler = Callable[["Api", Request, User], Answer | Awaitable[Answer]]
BAD_BODY = ApiError(400, "api.context.invalid_body_param.app_error", "Invalid or missing parameter in request body.")
BAD_URL = ApiError(400, "api.context.invalid_url_param.app_error", "Invalid or missing parameter in request URL.")
FORBIDDEN = ApiError(403, PERMISSION, "You do not have the appropriate permissions.")
OK = Answer(200, {"status": "OK"})


class Api:
    """What the handlers work on; `processing` is how many seconds the server takes to store a post."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.processing = 0.0
        # Threads whose first reply is being stored.
        self.beginning: set[str] = set()

    def channel_json(self, channel: Channel) -> Json:
        return {
            "id": channel.id,
            "create_at": channel.create_at,
            "update_at": channel.update_at,
            "delete_at": channel.delete_at,
            "team_id": channel.team_id,
            "type": channel.type,
            "display_name": channel.display_name,
            "name": channel.name,
            "header": "",
            "purpose": "",
            "last_post_at": channel.last_post_at,
            "total_msg_count": channel.total,
            "extra_update_at": 0,
            "creator_id": channel.creator_id,
            "scheme_id": None,
            "props": None,
            "group_constrained": None,
            "shared": channel.shared or (False if channel.type == "D" else None),
            "total_msg_count_root": channel.total,
            "policy_id": None,
        }

    def team_json(self, team: Team) -> Json:
        body: Json = {"id": team.id, "create_at": team.create_at, "update_at": team.create_at}
        body["delete_at"] = team.delete_at
        body |= {"display_name": team.display_name, "name": team.name, "description": "", "email": "", "type": "I"}
        body |= {
            "company_name": "",
            "allowed_domains": "",
            "invite_id": "",
            "allow_open_invite": team.allow_open_invite,
        }
        return body | {"scheme_id": None, "group_constrained": None, "policy_id": None}

    def member_json(self, channel: Channel, user_id: str) -> Json:
        body: Json = {"channel_id": channel.id, "user_id": user_id, "roles": "channel_user", "last_viewed_at": 0}
        body |= dict.fromkeys(("msg_count", "mention_count", "mention_count_root", "msg_count_root"), 0)
        return body | {"notify_props": _NOTIFY, "last_update_at": channel.members[user_id]} | _ROLES


# system


def ping(api: Api, _request: Request, _user: User) -> Answer:
    phones = dict.fromkeys(
        f"{kind}{end}" for kind in ("Android", "Desktop", "Ios") for end in ("LatestVersion", "MinVersion")
    )
    body = dict.fromkeys(phones, "") | ({"ActiveSearchBackend": "database"} if api.board.v11 else {})
    return Answer(200, body | {"status": "OK"})


def client_config(api: Api, request: Request, user: User | None) -> Answer:
    if request.query.get("format", "") != "old" and not api.board.v11:
        raise ApiError(501, "api.config.client.old_format.app_error")
    return Answer(200, api.board.public_config | (api.board.private_config if user else {}))


# users


def get_user(api: Api, request: Request, user: User) -> Answer:
    return Answer(200, api.board.user_json(_person(api, request.args[0], user), user))


def _person(api: Api, user_id: str, user: User) -> User:
    return user if user_id == "me" else api.board.user(user_id)


def user_by_email(api: Api, request: Request, user: User) -> Answer:
    if not _EMAIL.fullmatch(request.args[0]):
        raise BAD_URL
    if api.board.private_config["ShowEmailAddress"] != "true" and not user.admin:
        raise ApiError(403, "api.user.get_user_by_email.permissions.app_error")
    found = api.board.user_by_email(request.args[0])
    if found is None:
        raise ApiError(404, "app.user.missing_account.const", "Unable to find the user.")
    return Answer(200, api.board.user_json(found, user))


def user_by_username(api: Api, request: Request, user: User) -> Answer:
    if not _USERNAME.fullmatch(request.args[0]):
        raise BAD_BODY
    found = api.board.user_by_name(request.args[0])
    if found is None:
        raise ApiError(404, "app.user.get_by_username.app_error", "Unable to find an existing account.")
    return Answer(200, api.board.user_json(found, user))


def users_by_ids(api: Api, request: Request, user: User) -> Answer:
    found = [api.board.users[one] for one in dict.fromkeys(_names(request)) if one in api.board.users]
    return Answer(200, [api.board.user_json(one, user) for one in found])


def users_by_usernames(api: Api, request: Request, user: User) -> Answer:
    found = [api.board.user_by_name(one) for one in dict.fromkeys(_names(request))]
    return Answer(200, [api.board.user_json(one, user) for one in found if one])


def _names(request: Request) -> list[str]:
    body = request.json()
    if not isinstance(body, list) or not body:
        raise BAD_BODY
    return [one for one in body if isinstance(one, str)]


def list_users(api: Api, request: Request, user: User) -> Answer:
    page, per_page = _paging(request)
    users = sorted(api.board.users.values(), key=lambda one: one.username)[page * per_page :][:per_page]
    return Answer(200, [api.board.user_json(one, user) for one in users])


def _paging(request: Request) -> tuple[int, int]:
    page, per_page = _number(request, "page", 0), _number(request, "per_page", 60)
    return page, min(per_page, 200)


def _number(request: Request, name: str, default: int) -> int:
    value = request.query.get(name, "")
    return int(value) if value.isdecimal() else default


# teams


def my_teams(api: Api, _request: Request, user: User) -> Answer:
    mine = [team for team in api.board.teams.values() if user.id in team.members and not team.delete_at]
    return Answer(200, [api.team_json(team) for team in mine])


def team_by_name(api: Api, request: Request, user: User) -> Answer:
    team = api.board.team_named(request.args[0])
    if user.id not in team.members and not user.admin and not team.allow_open_invite:
        raise FORBIDDEN
    return Answer(200, api.team_json(team))


# channels


def my_channels(api: Api, request: Request, user: User) -> Answer:
    """Of all teams (v11), or of one team and the direct ones (both)."""
    if not request.args and not api.board.v11:
        raise ApiError(404, "api.context.404.app_error")
    teams = {"", request.args[0]} if request.args else {"", *api.board.teams}
    mine = [one for one in api.board.channels.values() if user.id in one.members and one.team_id in teams]
    return Answer(200, [api.channel_json(one) for one in mine if not one.delete_at])


def get_channel(api: Api, request: Request, user: User) -> Answer:
    if not valid_id(request.args[0]):
        raise BAD_URL
    return Answer(200, api.channel_json(api.board.readable(user, request.args[0], public=True)))


def channel_by_name(api: Api, request: Request, user: User) -> Answer:
    return _channel_by_name(api, api.board.team_named(request.args[0]), request, user)


def channel_by_team(api: Api, request: Request, user: User) -> Answer:
    team = api.board.teams.get(request.args[0])
    if team is None:
        raise ApiError(404, "app.channel.get_by_name.missing.app_error", "Channel does not exist.")
    return _channel_by_name(api, team, request, user)


def _channel_by_name(api: Api, team: Team, request: Request, user: User) -> Answer:
    archived = request.query.get("include_deleted", "") == "true"
    channel = api.board.channel_named(team.id, request.args[1], archived=archived)
    readable = channel is not None and api.board.can_read(user, channel, public=True)
    if channel is None or (channel.type != "O" and not readable):  # a private one looks as if it were not there
        raise ApiError(404, "app.channel.get_by_name.missing.app_error", "Channel does not exist.")
    if not readable:
        raise FORBIDDEN
    return Answer(200, api.channel_json(channel))


def channel_members(api: Api, request: Request, user: User) -> Answer:
    channel = api.board.readable(user, request.args[0], public=True)
    page, per_page = _paging(request)
    return Answer(200, [api.member_json(channel, one) for one in sorted(channel.members)[page * per_page :][:per_page]])


def channel_member(api: Api, request: Request, user: User) -> Answer:
    channel = api.board.readable(user, request.args[0], public=True)
    user_id = _person(api, request.args[1], user).id if request.args[1] == "me" else request.args[1]
    if not valid_id(user_id):
        raise BAD_URL
    if user_id not in channel.members:
        raise ApiError(404, "app.channel.get_member.missing.app_error", "No channel member found for that user ID.")
    return Answer(200, api.member_json(channel, user_id))


def add_channel_member(api: Api, request: Request, user: User) -> Answer:
    """Any member may add; to a public channel a person of its team may add himself."""
    channel = api.board.readable(user, request.args[0], public=True)
    user_id = request.object().get("user_id", "")
    if not valid_id(user_id):
        raise BAD_BODY
    if not api.board.can_read(user, channel) and user_id != user.id:
        raise FORBIDDEN
    api.board.add_member(user, channel, api.board.user(user_id))
    return Answer(201, api.member_json(channel, user_id))


def remove_channel_member(api: Api, request: Request, user: User) -> Answer:
    channel = api.board.readable(user, request.args[0])
    api.board.remove_member(user, channel, _person(api, request.args[1], user))
    return OK


def direct_channel(api: Api, request: Request, user: User) -> Answer:
    ids = request.json()
    if not isinstance(ids, list) or len(ids) != 2 or not all(map(valid_id, ids)):
        raise BAD_BODY
    if user.id not in ids and not user.admin:
        raise FORBIDDEN
    if not all(one in api.board.users for one in ids):
        raise ApiError(400, "api.channel.create_direct_channel.invalid_user.app_error", "Invalid user ID.")
    other = ids[1] if ids[0] == user.id else ids[0]
    return Answer(201, api.channel_json(api.board.open_direct(user, api.board.users[other])))


# posts


async def create_post(api: Api, request: Request, user: User) -> Answer:
    draft = request.object()
    kinds = {"channel_id": str, "message": str, "root_id": str, "type": str, "pending_post_id": str, "props": dict}
    if not draft or any(not isinstance(draft.get(name) or kind(), kind) for name, kind in kinds.items()):
        raise BAD_BODY
    api.board.check_post(user, draft)
    if (found := api.board.found_post(user, draft)) is not None:
        return Answer(201, api.board.post_json(found, count=True, metadata=False))
    key = draft.get("pending_post_id", "")
    if api.processing:
        await _store(api, draft.get("root_id", ""), key)
    post = api.board.save_post(user, draft)
    return Answer(201, api.board.post_json(post, count=True, pending=key))


async def _store(api: Api, root_id: str, key: str) -> None:
    """Take the time that storing takes; of first replies that come at once, both servers store one (threads_pkey)."""
    root = api.board.all_posts.get(root_id)
    if root is None or root.replies:
        await trio.sleep(api.processing)
        return
    lost = root_id in api.beginning
    api.beginning.add(root_id)
    try:
        await trio.sleep(api.processing)
    finally:
        if not lost:
            api.beginning.discard(root_id)
    if lost:
        api.board.pending.settle(key, None)
        raise ApiError(500, "app.post.save.app_error", "Unable to save the Post.")


def get_post(api: Api, request: Request, user: User) -> Answer:
    return Answer(200, api.board.post_json(api.board.readable_post(user, request.args[0]), count=False))


def get_thread(api: Api, request: Request, user: User) -> Answer:
    return Answer(200, api.board.thread_json(api.board.readable_post(user, request.args[0])))


def patch_post(api: Api, request: Request, user: User) -> Answer:
    post, patch = _known(api, request.args[0]), request.object()
    props, message = patch.get("props"), patch.get("message")
    if not patch or not isinstance(props, dict | None) or not isinstance(message, str | None):
        raise BAD_BODY
    api.board.edit(user, post, message, props=props)
    return Answer(200, api.board.post_json(post, count=True))


def put_post(api: Api, request: Request, user: User) -> Answer:
    """The whole post anew: what the body leaves out becomes empty. The official plugin edits so."""
    post, body = _known(api, request.args[0]), request.object()
    props, message = body.get("props") or {}, body.get("message", "")
    if body.get("id") != post.id or not isinstance(props, dict) or not isinstance(message, str):
        raise BAD_BODY
    api.board.edit(user, post, message, props=props)
    return Answer(200, api.board.post_json(post, count=True))


def delete_post(api: Api, request: Request, user: User) -> Answer:
    api.board.delete(user, _known(api, request.args[0]))
    return OK


def _known(api: Api, post_id: str) -> Post:
    """A post to write to: an unknown one is 403, not 404."""
    if not valid_id(post_id):
        raise BAD_URL
    if post_id not in api.board.all_posts:
        raise FORBIDDEN
    return api.board.all_posts[post_id]


def channel_posts(api: Api, request: Request, user: User) -> Answer:
    channel = api.board.readable(user, request.args[0])
    if "since" in request.query:
        return Answer(200, api.board.since_json(channel, _number(request, "since", 0)))
    cursors = {name: request.query.get(name, "") for name in ("before", "after")}
    if any(value and not valid_id(value) for value in cursors.values()):
        raise BAD_URL
    page, per_page = _paging(request)
    threads = request.query.get("skipFetchThreads") != "true"
    return Answer(200, api.board.page_json(channel, page=page, per_page=per_page, threads=threads, **cursors))


def posts_by_ids(api: Api, request: Request, user: User) -> Answer:
    """v11 only; deleted ones are in it."""
    if not api.board.v11:
        raise ApiError(404, "api.context.404.app_error")
    found = [api.board.all_posts[one] for one in _names(request) if one in api.board.all_posts]
    seen = [one for one in found if api.board.can_read(user, api.board.channels[one.channel_id], public=True)]
    if not seen:
        raise ApiError(404, "app.post.get.app_error")
    return Answer(200, [api.board.post_json(one, count=False) for one in seen])


# reactions


def get_reactions(api: Api, request: Request, user: User) -> Answer:
    """Of a deleted post, too; an empty list is `null` on v11."""
    found = _reactions(api, request.args[0], user)
    return Answer(200, found or (None if api.board.v11 else []))


def bulk_reactions(api: Api, request: Request, user: User) -> Answer:
    if request.json() == [] and not api.board.v11:
        # The empty list goes into the query as it is (seen on a running 5.37).
        raise ApiError(500, "app.reaction.bulk_get_for_post_ids.app_error")
    return Answer(200, {one: _reactions(api, one, user) for one in _names(request)})


def _reactions(api: Api, post_id: str, user: User) -> list[Any]:
    post = _known(api, post_id)
    if not api.board.can_read(user, api.board.channels[post.channel_id]):
        raise FORBIDDEN
    return [api.board.reaction_json(one) for one in api.board.reactions(post)]


def add_reaction(api: Api, request: Request, user: User) -> Answer:
    body = request.object()
    emoji, post_id = body.get("emoji_name", ""), body.get("post_id", "")
    if not valid_id(body.get("user_id")) or not valid_id(post_id) or not isinstance(emoji, str) or not emoji:
        raise ApiError(400, "api.reaction.save_reaction.invalid.app_error")
    if body["user_id"] != user.id:
        raise ApiError(403, "api.reaction.save_reaction.user_id.app_error")
    forged = {name: body[name] for name in ("create_at", "remote_id") if body.get(name)}
    return Answer(200, api.board.reaction_json(api.board.react(user, _known(api, post_id), emoji, **forged)))


def remove_reaction(api: Api, request: Request, user: User) -> Answer:
    owner = _person(api, request.args[0], user)
    if owner.id != user.id and not user.admin:
        raise FORBIDDEN
    api.board.unreact(owner, _known(api, request.args[1]), request.args[2])
    return OK


# An anonymous caller may ask the first two; the third and on need a session.
OPEN = {ping, client_config}
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/v4/system/ping", ping),
    ("GET", "/api/v4/config/client", client_config),
    ("GET", "/api/v4/users", list_users),
    ("GET", "/api/v4/users/{user_id}", get_user),
    ("GET", "/api/v4/users/email/{email}", user_by_email),
    ("GET", "/api/v4/users/username/{username}", user_by_username),
    ("POST", "/api/v4/users/ids", users_by_ids),
    ("POST", "/api/v4/users/usernames", users_by_usernames),
    ("GET", "/api/v4/users/me/teams", my_teams),
    ("GET", "/api/v4/users/me/channels", my_channels),
    ("GET", "/api/v4/users/me/teams/{team_id}/channels", my_channels),
    ("GET", "/api/v4/teams/name/{team}", team_by_name),
    ("GET", "/api/v4/teams/name/{team}/channels/name/{channel}", channel_by_name),
    ("GET", "/api/v4/teams/{team_id}/channels/name/{channel}", channel_by_team),
    ("POST", "/api/v4/channels/direct", direct_channel),
    ("GET", "/api/v4/channels/{channel_id}", get_channel),
    ("GET", "/api/v4/channels/{channel_id}/members", channel_members),
    ("POST", "/api/v4/channels/{channel_id}/members", add_channel_member),
    ("GET", "/api/v4/channels/{channel_id}/members/{user_id}", channel_member),
    ("DELETE", "/api/v4/channels/{channel_id}/members/{user_id}", remove_channel_member),
    ("GET", "/api/v4/channels/{channel_id}/posts", channel_posts),
    ("POST", "/api/v4/posts", create_post),
    ("POST", "/api/v4/posts/ids", posts_by_ids),
    ("POST", "/api/v4/posts/ids/reactions", bulk_reactions),
    ("GET", "/api/v4/posts/{post_id}", get_post),
    ("PUT", "/api/v4/posts/{post_id}", put_post),
    ("DELETE", "/api/v4/posts/{post_id}", delete_post),
    ("PUT", "/api/v4/posts/{post_id}/patch", patch_post),
    ("GET", "/api/v4/posts/{post_id}/thread", get_thread),
    ("GET", "/api/v4/posts/{post_id}/reactions", get_reactions),
    ("POST", "/api/v4/reactions", add_reaction),
    ("DELETE", "/api/v4/users/{user_id}/posts/{post_id}/reactions/{emoji_name}", remove_reaction),
]
