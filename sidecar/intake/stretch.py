"""How far a channel has to be read, and what was met on the way."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.model import Post

# The most that Mattermost gives at once.
PAGE = 200
MAX_PAGES = 25
CARDS_A_PAGE = 100


class Stretch:
    """What is being read of a channel: back to `until`, and to every card in `unmet`.

    Of a direct channel the messages that may be commands are kept until all is read, and what we said.
    """

    def __init__(self, channel_id: str, until: float, cards: set[str], *, direct: bool) -> None:
        self.channel_id = channel_id
        self.until = until
        self.cards = cards
        self.direct = direct
        self.unmet = set(cards)
        self.commands: deque[Post] = deque()
        self.ours: list[Post] = []
        self.newest = 0
        self.skipped = False
        self.page = 0
        # Cards that are not met on that many pages cost less when their threads are read one by one.
        self.most = MAX_PAGES + len(cards) // CARDS_A_PAGE

    def over(self, posts: list[Post]) -> bool:
        """Take a page; whether it was the last one."""
        self.page += 1
        self.unmet -= {post.id for post in posts}
        self.newest = max(self.newest, *(post.create_at for post in posts), 0)
        # A page that was read in pieces may be shorter than it should.
        skipped = any(post.skipped for post in posts)
        self.skipped = self.skipped or skipped
        end = not posts or (len(posts) < PAGE and not skipped)
        return end or (min(post.create_at for post in posts) < self.until and not self.unmet)
