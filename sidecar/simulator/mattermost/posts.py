"""What is said: posts, edits, deletions, each with the events of a real server.

Facts: mattermost 5.37 api4/post.go, app/post.go, app/notification.go and recordings of a running 5.37.0; for the v11
profile the same files of v11, never observed.
"""

from __future__ import annotations

import bisect

from sidecar.simulator.mattermost.pending import PendingPosts
from sidecar.simulator.mattermost.values import (
    PERMISSION,
    ApiError,
    Channel,
    Json,
    Post,
    User,
    go_runes,
    new_id,
    normal_attachments,
)
from sidecar.simulator.mattermost.voice import Voice

MAX_RUNES = 16383
NO_ROOT = "api.post.create_post.root_id.app_error"


class Posts(Voice):
    """Every change here is what the REST call of that name does; what REST refuses raises ApiError."""

    def __init__(self, version: str = "5.37.0") -> None:
        super().__init__(version)
        self.pending = PendingPosts()
        self.max_props = 800_000 if self.v11 else 8_000

    def posts(self, channel: Channel) -> list[Post]:
        """What stands in a channel, oldest first, replies included."""
        return [post for post in channel.posts if not post.delete_at]

    def thread(self, root: Post) -> list[Post]:
        """The replies to a post that still stand, oldest first."""
        return [reply for reply in root.replies if not reply.delete_at]

    # create

    def post(
        self,
        user: User,
        channel: Channel,
        message: str = "",
        *,
        root_id: str = "",
        props: Json | None = None,
        type: str = "",
        pending_post_id: str = "",
    ) -> Post:
        """POST /posts by `user`; may return an older post when `pending_post_id` was used within 30 s."""
        draft = {"channel_id": channel.id, "message": message, "root_id": root_id, "props": props or {}, "type": type}
        draft["pending_post_id"] = pending_post_id
        self.check_post(user, draft)
        return self.found_post(user, draft) or self.save_post(user, draft)

    def check_post(self, user: User, draft: Json) -> None:
        """The checks that come before the memory of pending ids is asked."""
        channel = self.channels.get(draft.get("channel_id", ""))
        if channel is None or not self.can_post(user, channel):
            raise ApiError(403, PERMISSION, "You do not have the appropriate permissions.")
        if draft.get("type", "").startswith("system_"):
            raise ApiError(400, "api.context.invalid_param.app_error", "Invalid post.type parameter.")
        if channel.delete_at:
            raise ApiError(400, "api.post.create_post.can_not_post_to_deleted.error")
        self._refuse_restricted(user, channel, "api.post.create_post.can_not_post_in_restricted_dm.error")

    def _refuse_restricted(self, user: User, channel: Channel, error_id: str) -> None:
        """v11: an old direct channel is closed, too, to people without a common team."""
        if self.v11 and channel.type == "D" and any(self.restricted(user, self.users[one]) for one in channel.members):
            raise ApiError(400, error_id)

    def found_post(self, user: User, draft: Json) -> Post | None:
        """The post that this pending id made already; v11 looks away from one that the caller may not read."""
        post = self.pending.claim(draft.get("pending_post_id", ""))
        if post is not None and self.v11 and not self.can_read(user, self.channels[post.channel_id]):
            return None
        return post

    def save_post(self, user: User, draft: Json) -> Post:
        key = draft.get("pending_post_id", "")
        try:
            root = self._root(draft)
            props = dict(draft.get("props") or {})
            if user.is_bot:
                props["from_bot"] = "true"
            if "attachments" in props:
                props["attachments"] = normal_attachments(props["attachments"])
            self._check_content(draft.get("message", ""), props)
        except ApiError:
            self.pending.settle(key, None)
            raise
        now = self.now()
        post = Post(id=new_id(), channel_id=draft["channel_id"], user_id=user.id, create_at=now, update_at=now)
        if user.admin and draft.get("create_at"):
            post.create_at = post.update_at = draft["create_at"]
        post.message, post.type, post.props = draft.get("message", ""), draft.get("type", ""), props
        self._store_post(post, root)
        self.pending.settle(key, post)
        self.publish_posted(post, key)
        return post

    def _root(self, draft: Json) -> Post | None:
        root_id = draft.get("root_id", "")
        if not root_id:
            return None
        root = self.all_posts.get(root_id)
        if root is None or root.delete_at:
            raise ApiError(400, NO_ROOT, "Invalid RootId parameter.")
        if root.channel_id != draft["channel_id"]:
            raise ApiError(400, "api.post.create_post.channel_root_id.app_error", "Invalid ChannelId for RootId.")
        if root.root_id:
            raise ApiError(400, NO_ROOT, "Invalid RootId parameter.")
        return root

    def _check_content(self, message: str, props: Json) -> None:
        if len(message) > MAX_RUNES:
            name = "message_length" if self.v11 else "msg"
            raise ApiError(400, f"model.post.is_valid.{name}.app_error", "Invalid message.")
        if go_runes(props) > self.max_props:
            raise ApiError(400, "model.post.is_valid.props.app_error", "Invalid props.")
        if "\0" in message:
            raise ApiError(500, "app.post.save.app_error", "Unable to save the Post.")

    def _store_post(self, post: Post, root: Post | None) -> None:
        channel = self.channels[post.channel_id]
        bisect.insort(channel.posts, post, key=lambda one: one.create_at)
        channel.last_post_at = max(channel.last_post_at, post.create_at)
        channel.total += 1
        self.all_posts[post.id] = post
        if root is not None:
            post.root_id = root.id
            root.replies.append(post)
            root.update_at = post.create_at

    def system_post(self, user: User, channel: Channel, message: str, type: str, props: Json) -> Post:
        """What the server writes by itself, in the name of `user`."""
        now = self.now()
        post = Post(id=new_id(), channel_id=channel.id, user_id=user.id, create_at=now, update_at=now)
        post.message, post.type, post.props = message, type, props
        self._store_post(post, None)
        self.publish_posted(post, "")
        return post

    def post_as_webhook(self, owner: User, channel: Channel, message: str, *, username: str = "") -> Post:
        """An incoming webhook: the post bears the owner's id without the owner doing anything; any channel."""
        props: Json = {"from_webhook": "true", "webhook_display_name": "hook"}
        if username and self.private_config["EnablePostUsernameOverride"] == "true":
            props["override_username"] = username
        return self.system_post(owner, channel, message, "", props)

    def add_member(self, by: User, channel: Channel, user: User) -> None:
        """POST /channels/{id}/members: `join`, and the system post that says so."""
        self.join(channel, user)
        names = {"userId": by.id, "username": by.username, "addedUserId": user.id, "addedUsername": user.username}
        text = f"{user.username} added to the channel by {by.username}."
        self.system_post(by, channel, text, "system_add_to_channel", names)

    def remove_member(self, by: User, channel: Channel, user: User) -> None:
        """DELETE /channels/{id}/members/{id}: `leave`, and the system post that says so."""
        self.leave(channel, user, remover=by)
        names = {"removedUserId": user.id, "removedUsername": user.username}
        text = f"@{user.username} removed from the channel."
        self.system_post(by, channel, text, "system_remove_from_channel", names)

    # edit and delete

    def edit(self, user: User, post: Post, message: str | None = None, *, props: Json | None = None) -> None:
        """PUT /posts/{id}/patch: `props` replaces the whole map; the former text becomes a deleted row."""
        channel = self._editable(user, post)
        changes_text = message is not None and message != post.message
        limit = int(self.private_config["PostEditTimeLimit"])
        if self.v11 and changes_text and 0 <= limit * 1000 < self.now() - post.create_at:
            raise ApiError(400, "api.post.update_post.permissions_time_limit.app_error")
        new_props = post.props if props is None else dict(props)
        if "attachments" in new_props:
            new_props["attachments"] = normal_attachments(new_props["attachments"])
        new_message = post.message if message is None else message
        self._check_content(new_message, new_props)
        now = self.now()
        channel.history.append(self._former(post, now))
        if changes_text or new_props.get("attachments") != post.props.get("attachments"):
            post.edit_at = now
        post.message, post.props, post.update_at = new_message, new_props, now
        self.publish_post("post_edited", post)

    def _editable(self, user: User, post: Post) -> Channel:
        channel = self.channels[post.channel_id]
        allowed = self.can_read(user, channel) and not post.delete_at
        if not allowed or (post.user_id != user.id and not user.admin):
            raise ApiError(403, PERMISSION, "You do not have the appropriate permissions.")
        if channel.delete_at:
            raise ApiError(400, "api.post.update_post.can_not_update_post_in_deleted.error")
        self._refuse_restricted(user, channel, "api.post.update_post.can_not_update_post_in_restricted_dm.error")
        return channel

    def _former(self, post: Post, now: int) -> Post:
        former = Post(
            id=new_id(), channel_id=post.channel_id, user_id=post.user_id, create_at=post.create_at, update_at=now
        )
        former.edit_at, former.delete_at, former.original_id = post.edit_at, now, post.id
        former.root_id, former.props = post.root_id, post.props
        return former

    def delete(self, user: User, post: Post) -> None:
        """DELETE /posts/{id}: replies go too, but only the root's event is sent."""
        channel = self.channels[post.channel_id]
        mine = post.user_id == user.id and self.can_read(user, channel)
        if post.delete_at or not (mine or user.admin):
            raise ApiError(403, PERMISSION, "You do not have the appropriate permissions.")
        self.publish_post("post_deleted", post)
        now = self.now()
        for one in (post, *post.replies):
            if not one.delete_at:
                one.delete_at = one.update_at = now
                one.props = one.props | {"deleteBy": user.id}
        self.changed()
