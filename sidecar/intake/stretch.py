"""What the sweep reads of Mattermost: how far a channel has to be read, and what was met on the way."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.model import Post, Reaction, User

# The most that Mattermost gives at once.
PAGE = 200
MAX_PAGES = 25
CARDS_A_PAGE = 100


class Channel(Protocol):
    """A channel of the bot, and when something was last posted there, in Mattermost's milliseconds."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def last_post_at(self) -> int: ...


class Reading(Protocol):
    """What is read of Mattermost."""

    @property
    def bot(self) -> User | None: ...

    async def reactions_at_once(self, post_ids: list[str]) -> dict[str, list[Reaction]]: ...

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = PAGE) -> list[Post]: ...

    async def my_channels(self) -> Iterable[Channel]: ...

    async def direct_channel(self, user_id: str, bot_id: str) -> str: ...


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
