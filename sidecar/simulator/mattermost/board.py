"""What is read back and reacted to: threads, listings, reactions.

Facts: mattermost 5.37 app/reaction.go, store/sqlstore/post_store.go and recordings of a running 5.37.0.
"""

from __future__ import annotations

import re

from sidecar.simulator.mattermost.emoji import SYSTEM_EMOJI
from sidecar.simulator.mattermost.posts import Posts
from sidecar.simulator.mattermost.values import (
    PERMISSION,
    ApiError,
    Channel,
    Json,
    Post,
    Reaction,
    User,
    go_json,
    valid_id,
)

SINCE_LIMIT = 1000
NO_POST = "app.post.get.app_error"
_EMOJI = re.compile(r"[a-zA-Z0-9\-+_]+")


class Board(Posts):
    """The whole state of the simulated Mattermost."""

    def __init__(self, version: str = "5.37.0") -> None:
        super().__init__(version)
        self.emoji = set(SYSTEM_EMOJI)

    def typing(self, user_id: str, data: Json) -> None:
        """The websocket action user_typing: noise for the other members."""
        channel = self.channels.get(data.get("channel_id", ""))
        if channel is not None and user_id in channel.members:
            noise = {"parent_id": data.get("parent_id", ""), "user_id": user_id}
            self.hub.publish("typing", noise, to=channel.members, channel_id=channel.id, omit=user_id)

    # reactions

    def react(self, user: User, post: Post, emoji: str, *, create_at: int = 0, remote_id: str = "") -> Reaction:
        """POST /reactions. A repeat is announced again; `create_at` and `remote_id` are free to forge."""
        channel = self.channels[post.channel_id]
        if not self.can_read(user, channel):
            raise ApiError(403, PERMISSION)
        if post.delete_at:
            raise ApiError(404, NO_POST, "Unable to get the post.")
        if channel.delete_at:
            raise ApiError(403, "api.reaction.save.archived_channel.app_error")
        self._refuse_restricted(user, channel, "api.reaction.save.restricted_dm.error")
        self._check_emoji(post, emoji)
        now = self.now()
        old = post.reactions.get((user.id, emoji))
        reaction = Reaction(
            user_id=user.id, post_id=post.id, emoji_name=emoji, create_at=create_at or now, update_at=now
        )
        reaction.remote_id = remote_id
        self._reaction_event("reaction_added", reaction, channel)
        reaction.create_at = old.create_at if old else reaction.create_at
        post.reactions[user.id, emoji] = reaction
        post.update_at = now
        self.changed()
        return reaction

    def _check_emoji(self, post: Post, emoji: str) -> None:
        if not _EMOJI.fullmatch(emoji) or len(emoji) > 64:
            raise ApiError(400, "model.reaction.is_valid.emoji_name.app_error", "Invalid emoji name.")
        if not self.v11:
            return
        if emoji not in self.emoji:
            raise ApiError(404, "app.emoji.get_by_name.no_result")
        names = {name for _, name in post.reactions}
        if emoji not in names and len(names) >= 50:
            raise ApiError(400, "app.reaction.save.save.too_many_reactions")

    def unreact(self, user: User, post: Post, emoji: str) -> None:
        """DELETE the user's own reaction; an absent one is announced as removed all the same."""
        channel = self.channels[post.channel_id]
        if not self.can_read(user, channel):
            raise ApiError(403, PERMISSION)
        now = self.now()
        post.reactions.pop((user.id, emoji), None)
        post.update_at = now
        gone = Reaction(user_id=user.id, post_id=post.id, emoji_name=emoji, create_at=0, update_at=now)
        self._reaction_event("reaction_removed", gone, channel)
        self.changed()

    def _reaction_event(self, event: str, reaction: Reaction, channel: Channel) -> None:
        body = self.reaction_json(reaction)
        if self.v11 and event == "reaction_removed":
            body["channel_id"] = ""
        self.hub.publish(event, {"reaction": go_json(body).decode()}, to=channel.members, channel_id=channel.id)

    def reactions(self, post: Post) -> list[Reaction]:
        return list(post.reactions.values())

    # reading

    def readable_post(self, user: User, post_id: str, *, deleted: bool = False) -> Post:
        """The post, if it exists and the user may read it (404, 403); a malformed id is 400."""
        if not valid_id(post_id):
            raise ApiError(400, "api.context.invalid_url_param.app_error", "Invalid or missing post_id parameter.")
        post = self.all_posts.get(post_id)
        if post is None or (post.delete_at and not deleted):
            raise ApiError(404, NO_POST, "Unable to get the post.")
        if not self.can_read(user, self.channels[post.channel_id], public=True):
            raise ApiError(403, PERMISSION)
        return post

    def thread_json(self, post: Post) -> Json:
        """The asked-for post first and then again in its place (recorded on 5.37)."""
        root = self.all_posts[post.root_id] if post.root_id else post
        return self._list([post, *self.thread(root), root], count=True)

    def since_json(self, channel: Channel, since: int) -> Json:
        """Everything touched after `since`, deletions and rows of edits too: the oldest 1000, no sign of truncation."""
        touched = [post for post in channel.posts if post.update_at > since]
        roots = {post.root_id: self.all_posts[post.root_id] for post in touched if post.root_id}
        known = {post.id for post in touched}
        touched += [root for root in roots.values() if root.id not in known]
        touched += [post for post in channel.history if post.update_at > since]
        touched.sort(key=lambda post: post.create_at)
        return self._list(touched[SINCE_LIMIT - 1 :: -1] if len(touched) > SINCE_LIMIT else touched[::-1], count=False)

    def page_json(
        self, channel: Channel, *, page: int, per_page: int, before: str = "", after: str = "", threads: bool = True
    ) -> Json:
        """Newest first, with the `threads` of the replies in it, or their roots; cursors leave out their own moment."""
        standing = self.posts(channel)
        if after:
            limit = self._time(after)
            newer = [post for post in standing if limit is not None and post.create_at > limit]
            start = len(standing) - len(newer) + page * per_page if newer else len(standing)
            end = min(start + per_page, len(standing))
        else:
            older = standing
            if before:
                limit = self._time(before)
                older = [post for post in standing if limit is not None and post.create_at < limit]
            end = max(len(older) - page * per_page, 0)
            start = max(end - per_page, 0)
        chosen = standing[start:end][::-1]
        body = self._list(chosen, count=True, threads=threads)
        for post in chosen:
            if post.root_id and not self.v11:
                # 5.37 counts the replies to the reply itself, unlike in a thread (seen on a running one).
                body["posts"][post.id]["reply_count"] = 0
        if chosen:
            body["next_post_id"] = standing[end].id if end < len(standing) else ""
            body["prev_post_id"] = standing[start - 1].id if start else ""
        return body

    def _time(self, post_id: str) -> int | None:
        post = self.all_posts.get(post_id)
        return post.create_at if post else None

    def _list(self, posts: list[Post], *, count: bool, threads: bool = True) -> Json:
        found = {post.id: post for post in posts}
        if count:
            for post in posts:
                if post.root_id:
                    root = self.all_posts[post.root_id]
                    others = self.thread(root) if threads else []
                    found |= {one.id: one for one in (root, *others) if not one.delete_at}
        bodies = {key: self.post_json(found[key], count=count) for key in sorted(found)}
        return {"order": [post.id for post in posts], "posts": bodies, "next_post_id": "", "prev_post_id": ""}
