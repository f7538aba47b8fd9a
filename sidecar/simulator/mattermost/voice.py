"""What is told of a post: its JSON, its events, whom it notifies.

Facts: mattermost 5.37 and v11 app/notification.go, model/post.go; recordings of a running 5.37.0.
"""

from __future__ import annotations

from sidecar.simulator.mattermost.mentions import EVERYBODY, mentioned_names
from sidecar.simulator.mattermost.places import Places
from sidecar.simulator.mattermost.values import Json, Post, Reaction, User, go_json


class Voice(Places):
    """All posts by id, and how they are told."""

    def __init__(self, version: str = "5.37.0") -> None:
        super().__init__(version)
        self.all_posts: dict[str, Post] = {}

    def publish_post(self, event: str, post: Post) -> None:
        channel = self.channels[post.channel_id]
        text = go_json(self.post_json(post, count=event == "post_edited")).decode()
        self.hub.publish(event, {"post": text}, to=channel.members, channel_id=channel.id)
        self.changed()

    def publish_posted(self, post: Post, pending_post_id: str) -> None:
        channel, sender = self.channels[post.channel_id], self.users[post.user_id]
        direct = channel.type == "D"
        data: Json = {
            "channel_display_name": f"@{sender.username}" if direct else channel.display_name,
            "channel_name": channel.name,
            "channel_type": channel.type,
            "post": go_json(self.post_json(post, count=True, pending=pending_post_id)).decode(),
            "sender_name": self._sender_name(post, sender, direct=direct),
            "set_online": True,
            "team_id": channel.team_id,
        }
        mentions = sorted(self.mentions(post))
        if mentions and not self.v11:
            data = dict(sorted((data | {"mentions": go_json(mentions).decode()}).items()))

        def own(listener: str) -> Json:
            return {"mentions": f'["{listener}"]'} if listener in mentions else {}

        personal = own if self.v11 and mentions else None
        self.hub.publish("posted", data, to=channel.members, channel_id=channel.id, personal=personal)
        self.changed()

    def _sender_name(self, post: Post, sender: User, *, direct: bool) -> str:
        if post.type.startswith("system_"):
            return "System"
        shown = post.props.get("override_username")
        allowed = self.private_config["EnablePostUsernameOverride"] == "true" and not direct
        if allowed and isinstance(shown, str) and post.props.get("from_webhook") == "true":
            return shown
        return f"@{sender.username}"

    def mentions(self, post: Post) -> set[str]:
        """The ids of the members whom this post notifies."""
        channel = self.channels[post.channel_id]
        if channel.type == "D" or post.type == "system_add_to_channel":
            added = post.props.get("addedUserId")
            return {str(added)} if added else {one for one in channel.members if one != post.user_id}
        names = mentioned_names(post, entities=not self.v11)
        if not names or post.type.startswith("system_"):
            return set()
        if names & EVERYBODY:
            return {one for one in channel.members if one != post.user_id}
        return {one for one in channel.members if self.users[one].username in names and one != post.user_id}

    def post_json(self, post: Post, *, count: bool, pending: str = "", metadata: bool = True) -> Json:
        """A post as Go writes it; `count` because 5.37 fills reply_count only in some answers."""
        root = self.all_posts[post.root_id] if post.root_id else post
        body: Json = {
            "id": post.id,
            "create_at": post.create_at,
            "update_at": post.update_at,
            "edit_at": post.edit_at,
            "delete_at": post.delete_at,
            "is_pinned": False,
            "user_id": post.user_id,
            "channel_id": post.channel_id,
            "root_id": post.root_id,
            "parent_id": post.root_id,
            "original_id": post.original_id,
            "message": "" if post.delete_at else post.message,
            "type": post.type,
            "props": dict(sorted(post.props.items())),
            "hashtags": "",
            "pending_post_id": pending,
        }
        if self.v11:
            del body["parent_id"]
        if post.reactions:
            body["has_reactions"] = True
        replies = sum(not reply.delete_at for reply in root.replies) if count and root.replies else 0
        body |= {"reply_count": replies, "last_reply_at": 0, "participants": None}
        return body | {"metadata": self._metadata(post)} if metadata else body

    def _metadata(self, post: Post) -> Json:
        found: Json = {}
        if post.props.get("attachments"):
            found["embeds"] = [{"type": "message_attachment"}]
        if post.reactions:
            found["reactions"] = [self.reaction_json(one) for one in post.reactions.values()]
        return found

    def reaction_json(self, reaction: Reaction) -> Json:
        body: Json = {name: getattr(reaction, name) for name in reaction.__struct_fields__}
        return body | {"channel_id": self.all_posts[reaction.post_id].channel_id} if self.v11 else body
