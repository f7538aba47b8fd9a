"""A headless Chromium for tests and pictures: as much of the DevTools protocol as a person needs eyes and hands.

https://chromedevtools.github.io/devtools-protocol/: commands and events as JSON over one websocket.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
_FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--no-proxy-server",
    "about:blank",
)
_LONGEST_MESSAGE = 32 << 20
# Resolves when an expression becomes true; looks whenever the page changes.
_UNTIL = """new Promise((resolve) => {{
  let observer;
  const look = () => {{ const found = ({0}); if (found) {{ observer.disconnect(); resolve(found); }} }};
  observer = new MutationObserver(look);
  observer.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
  look();
}})"""
_MIDDLE = """(() => {{
  const one = document.querySelector({0});
  one.scrollIntoView({{block: "center"}});
  const {{x, y, width, height}} = one.getBoundingClientRect();
  return {{x: x + width / 2, y: y + height / 2}};
}})()"""


class Tab:
    """One page. `requested` are the addresses that it asked for, `complaints` what it threw or logged as an error."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._loaded = trio.Event()
        self.session = ""
        self.requested: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give one command; return its result."""
        number = next(self._numbers)
        self._answers[number], answer = trio.open_memory_channel[dict[str, Any]](1)
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_message(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        said = await answer.receive()
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def open(self, url: str) -> None:
        """Go somewhere; return when it is loaded."""
        self._loaded = trio.Event()
        if "loaderId" in await self.call("Page.navigate", url=url):  # else it is another place on the same page
            await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """Evaluate an expression in the page; a promise is awaited."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is true in the page; return its value."""
        return await self.run(_UNTIL.format(condition))

    async def click(self, selector: str) -> None:
        """Click in the middle of an element, with a real mouse."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        box = await self.run(_MIDDLE.format(json.dumps(selector)))
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    async def type(self, selector: str, text: str) -> None:
        """Write into an input, in place of what stands there, and press Enter."""
        await self.click(selector)
        await self.run(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )

    async def size(self, width: int, height: int) -> None:
        """Make the window so big."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def picture(self) -> bytes:
        """What is in the window, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def listen(self) -> None:
        """Take answers and events until the browser goes."""
        try:
            while True:
                self._take(json.loads(await self._socket.get_message()))
        except ConnectionClosed:
            return

    def _take(self, said: dict[str, Any]) -> None:
        if "id" in said:
            self._answers.pop(said["id"]).send_nowait(said)
            return
        facts = said["params"]
        match said["method"]:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Network.requestWillBeSent":
                self.requested.append(facts["request"]["url"])
            case "Network.webSocketCreated":
                self.requested.append(facts["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(facts["exceptionDetails"]))
            case "Log.entryAdded" if facts["entry"]["level"] == "error":
                self.complaints.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")


@asynccontextmanager
async def open_tab(width: int = 1100, height: int = 900) -> AsyncIterator[Tab]:
    """Start a browser with one empty page; it and its profile are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(_run, folder))
            address = await _address(process)
            async with open_websocket_url(address, max_message_size=_LONGEST_MESSAGE) as socket:
                tab = Tab(socket)
                nursery.start_soon(tab.listen)
                target = (await tab.call("Target.createTarget", url="about:blank"))["targetId"]
                tab.session = (await tab.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await tab.call(f"{domain}.enable")
                await tab.size(width, height)
                yield tab
            nursery.cancel_scope.cancel()


async def _run(folder: str, *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED) -> None:
    """Keep the browser running; it has ended afterwards."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [CHROMIUM, f"--user-data-dir={folder}", *root, *_FLAGS]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"HOME": folder},
    )
    try:
        task_status.started(process)
        await trio.sleep_forever()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()


async def _address(process: trio.Process) -> str:
    """Where the browser listens, as it says itself."""
    assert process.stderr is not None
    said = b""
    async for data in process.stderr:
        said += data
        for line in said.decode(errors="replace").split("\n")[:-1]:
            if line.startswith("DevTools listening on "):
                return line.removeprefix("DevTools listening on ").strip()
    raise AssertionError(f"Chromium did not start: {said.decode(errors='replace')}")
