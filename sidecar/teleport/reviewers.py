"""Reviewers' own credentials: a certificate and a key for each in one folder, looked at whenever they are used.

A file that was removed ends that identity at once; one that was replaced opens a new connection. One that does not
serve changes nothing while the connection of before may be used.
"""

from __future__ import annotations

import logging
import re
import stat
import time
from collections import OrderedDict
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio

from sidecar.errors import ConfigError, LinkRefused, ReviewRejected
from sidecar.files import plain, reviewer_certificates
from sidecar.teleport.credentials import Credentials, read_credentials
from sidecar.teleport.identity import check_credentials
from sidecar.teleport.x509 import read_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from sidecar.model import AccessRequest
    from sidecar.teleport.client import AuthClient
    from sidecar.teleport.x509 import CertificateFacts

log = logging.getLogger(__name__)

# Connections kept open for reviewers; the one unused for longest makes room.
MOST_OPEN = 16

# A Teleport user name as it may stand in a file name: no path, no hidden file.
_USER = re.compile(r"[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,200}")

# What tells a replaced file from the one that was read.
Signature = tuple[tuple[int, ...], ...]


# Opens a connection with one reviewer's credentials.
Connect: TypeAlias = "Callable[[Credentials], AbstractAsyncContextManager[AuthClient]]"


class _Open:
    """One reviewer's connection and the files that it was made from."""

    def __init__(self, client: AuthClient, signature: Signature, not_after: float, stack: AsyncExitStack) -> None:
        self.client = client
        self.signature = signature
        self.not_after = not_after
        self.stack = stack
        self.users = 0
        self.retired = False


class Reviewers:
    """Submits reviews as the reviewers themselves. Made by `open_reviewers`."""

    def __init__(self, folder: Path, root_cas: Path, ca_pins: tuple[str, ...], connect: Connect) -> None:
        self._folder = folder
        self._root_cas = root_cas
        self._ca_pins = ca_pins
        self._connect = connect
        self._open: OrderedDict[str, _Open] = OrderedDict()
        # One at a time opens and closes: two must not open the same one.
        self._turn = trio.Lock()
        # The state of the files that was told of, by event and certificate.
        self._told: dict[tuple[str, Path], Signature] = {}

    async def submit(self, user: str, request_id: str, state: str, reason: str, *, cluster: str) -> AccessRequest:
        """Submit one review with `user`'s own credentials and return the request as it is then.

        Raises ReviewRejected ("credential" where the files do not serve), RequestGone, LinkLost.
        """
        crt, key = self._files(user)
        try:
            return await self._submit(user, request_id, state, reason, cluster)
        except ReviewRejected as exc:
            if exc.reason == "credential" and (detail := self._news("credentials.unusable", crt, key, exc)):
                log.warning("credentials.unusable", extra={"reviewer": user, "detail": detail})
            raise

    async def _submit(self, user: str, request_id: str, state: str, reason: str, cluster: str) -> AccessRequest:
        try:
            async with self._client(user, cluster) as client:
                await client.meet()
                return await client.submit_review(request_id, user, state, reason)
        except LinkRefused as exc:
            # The main link knows that the server is there and right; what was refused is this reviewer.
            raise ReviewRejected("credential", f"Teleport does not accept {user}'s credentials") from exc

    def certificates(self) -> dict[str, CertificateFacts]:
        """Every certificate in the folder that can be read, by the reviewer."""
        found = {}
        for path in self._folder.glob("*.crt"):
            with suppress(OSError, ValueError):
                found[path.stem] = read_certificate(plain(path).read_bytes())
        return found

    @asynccontextmanager
    async def _client(self, user: str, cluster: str) -> AsyncIterator[AuthClient]:
        async with self._turn:
            opened = await self._current(user, cluster)
            opened.users += 1
        try:
            yield opened.client
        finally:
            opened.users -= 1
            if opened.retired and not opened.users:
                await opened.stack.aclose()

    async def _current(self, user: str, cluster: str) -> _Open:
        crt, key = self._files(user)
        signature = self._sign(crt, key)
        if () in signature[:2]:
            await self._retire(user)
            raise ReviewRejected("credential", f"there are no credentials for {user}")
        opened = self._open.get(user)
        if opened is not None and (opened.not_after <= time.time() or opened.client.over):
            await self._retire(user)
            opened = None
        if opened is None or opened.signature != signature:
            try:
                credentials = read_reviewer(user, crt, key, self._root_cas, cluster, self._ca_pins)
            except ReviewRejected as exc:
                # The connection of before is still this very reviewer's.
                if opened is None:
                    raise
                if detail := self._news("credentials.kept", crt, key, exc):
                    log.warning("credentials.kept", extra={"reviewer": user, "reason": exc.reason, "detail": detail})
            else:
                opened = await self._replace(user, credentials, signature)
        self._open.move_to_end(user)
        return opened

    async def _replace(self, user: str, credentials: Credentials, signature: Signature) -> _Open:
        await self._retire(user)
        stack = AsyncExitStack()
        client = await stack.enter_async_context(self._connect(credentials))
        not_after = read_certificate(credentials.certificate).not_after
        opened = self._open[user] = _Open(client, signature, not_after, stack)
        if len(self._open) > MOST_OPEN:
            await self._retire(next(iter(self._open)))
        return opened

    def _files(self, user: str) -> tuple[Path, Path]:
        if not _USER.fullmatch(user):
            raise ReviewRejected("credential", "a Teleport user of this name cannot have a file")
        return self._folder / f"{user}.crt", self._folder / f"{user}.key"

    def _sign(self, crt: Path, key: Path) -> Signature:
        return _sign(crt), _sign(key), _sign(self._root_cas)

    def _news(self, event: str, crt: Path, key: Path, exc: ReviewRejected) -> str:
        """What to say of these files, once for each state of them, with the paths that reviewers are not told.

        "" where it was said already, or where there are no files: who has none is no reviewer.
        """
        state = self._sign(crt, key)
        if not any(state[:2]) or self._told.get((event, crt)) == state:
            return ""
        self._told[event, crt] = state
        cause = exc.__cause__
        return f"{crt}, {key.name}: {cause.detail if isinstance(cause, LinkRefused) else exc.detail}"

    async def _retire(self, user: str) -> None:
        """Close a connection once nobody uses it any more."""
        opened = self._open.pop(user, None)
        if opened is not None:
            opened.retired = True
            if not opened.users:
                await opened.stack.aclose()

    async def aclose(self) -> None:
        """Close everything."""
        for opened in self._open.values():
            await opened.stack.aclose()
        self._open.clear()


@asynccontextmanager
async def open_reviewers(
    folder: Path, root_cas: Path, connect: Connect, *, ca_pins: tuple[str, ...] = ()
) -> AsyncIterator[Reviewers]:
    """Serve the credentials in `folder` until the block ends; nothing is read before it is used, or there is to be.

    Where none is there by now, the log says so: nobody could decide.
    """
    try:
        reviewer_certificates(folder)
    except ConfigError as exc:
        log.warning("identities.missing", extra={"detail": exc.problems[0]})
    reviewers = Reviewers(folder, root_cas, ca_pins, connect)
    try:
        yield reviewers
    finally:
        with trio.CancelScope(shield=True):
            await reviewers.aclose()


def read_reviewer(
    user: str, crt: Path, key: Path, cas: Path, cluster: str, ca_pins: tuple[str, ...] = ()
) -> Credentials:
    """Read one reviewer's credentials and hold them to what they claim.

    The certificate must be exactly this user's and of our cluster, its dates must hold, the key must be its own, and
    nobody else may read the key. Raises ReviewRejected("credential") with a sentence that names no secret.
    """
    try:
        credentials = read_credentials(crt, key, cas, ca_pins)
        facts = read_certificate(credentials.certificate)
        mode = stat.S_IMODE(key.stat().st_mode)
    except (LinkRefused, OSError) as exc:
        raise ReviewRejected("credential", f"{user}'s credentials cannot be read") from exc
    except ValueError as exc:
        raise ReviewRejected("credential", f"the certificate in {crt.name} cannot be read") from exc
    problems: tuple[tuple[bool, str], ...] = (
        (facts.user != user, f"the certificate in {crt.name} is not {user}'s"),
        (bool(cluster) and facts.cluster not in ("", cluster), f"{user}'s certificate is of another cluster"),
        (facts.not_after <= time.time(), f"{user}'s certificate has expired"),
        (facts.not_before > time.time() + 60, f"{user}'s certificate is not valid yet"),
        (bool(mode & (stat.S_IRWXG | stat.S_IRWXO)), f"others may read {key.name}: its mode must be 0600"),
        (_broken(credentials), f"{user}'s key and certificate do not belong together"),
    )
    for wrong, sentence in problems:
        if wrong:
            raise ReviewRejected("credential", sentence)
    return credentials


def _broken(credentials: Credentials) -> bool:
    return any(
        finding.status == "failure" and finding.id.startswith(("teleport.key", "teleport.certificate.garbled"))
        for finding in check_credentials(credentials, time.time())
    )


def _sign(path: Path) -> tuple[int, ...]:
    """The state of a file, () where there is none to be seen."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
