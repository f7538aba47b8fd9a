"""What waits to be looked at: nobody's doing is lost because somebody else did something on the same post."""

from __future__ import annotations

from sidecar.mattermost.frames import PostedHint, ReactionHint
from sidecar.mattermost.inbox import Events


async def test_one_users_reaction_never_takes_the_place_of_anothers() -> None:
    """The bot seeds its reactions on a card while people already react; the bot's own are ignored later on."""
    events = Events()
    events.put(ReactionHint("card", "channel", "alice"))
    events.put(ReactionHint("card", "channel", "bot"))
    events.put(ReactionHint("card", "channel", "alice"))
    events.put(PostedHint("card", "", "channel", "bot"))
    waiting = [await anext(events) for _ in range(3)]
    assert waiting == [
        ReactionHint("card", "channel", "alice"),
        ReactionHint("card", "channel", "bot"),
        PostedHint("card", "", "channel", "bot"),
    ]
