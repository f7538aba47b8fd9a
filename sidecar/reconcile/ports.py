"""What the controller needs of the two peers; see `sidecar.teleport.client` and `sidecar.mattermost.client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.model import AccessRequest, Draft, Ping, Post, Reaction


class Teleport(Protocol):
    """The calls that the sidecar makes as itself; they raise LinkLost while there is no connection."""

    info: Ping | None

    async def ready(self) -> None:
        """Return when there is a connection to try; the caller owns the deadline."""
        ...

    async def get_request(self, request_id: str) -> AccessRequest | None: ...

    async def read_plugin_data(self, request_id: str) -> dict[str, str]: ...

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None: ...

    async def submit_review(
        self, request_id: str, author: str, proposed_state: str, reason: str, *, on_behalf_by: str = ""
    ) -> AccessRequest: ...

    async def set_state(self, request_id: str, state: str, reason: str, delegator: str) -> None: ...


class Mattermost(Protocol):
    """The calls that reading and writing posts need."""

    @property
    def clock_offset(self) -> float: ...

    async def create_post(
        self,
        channel_id: str,
        draft: Draft,
        *,
        key: str,
        tm: dict[str, object],
        root_id: str = "",
        announces: bool = False,
        guard: Callable[[], None] = ...,
    ) -> Post: ...

    async def patch_post(
        self,
        post_id: str,
        draft: Draft,
        *,
        tm: dict[str, object],
        message: bool = False,
        guard: Callable[[], None] = ...,
    ) -> int: ...

    async def shared(self, channel_id: str) -> bool: ...

    async def delete_post(self, post_id: str, *, guard: Callable[[], None] = ...) -> None: ...

    async def get_post(self, post_id: str) -> Post | None: ...

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = 200) -> list[Post]: ...

    async def thread(self, post_id: str) -> list[Post]: ...

    async def reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]: ...

    async def add_reaction(self, user_id: str, post_id: str, emoji: str) -> None: ...

    async def remove_reaction(self, user_id: str, post_id: str, emoji: str) -> None: ...
