"""The page of a sidecar that has really worked, read by Prometheus's own tool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import trio

from tests.world import running, world


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: package prometheus)")
async def test_promtool_has_nothing_to_say_of_the_page(tmp_path: Path) -> None:
    """Names, help texts, types and labels, after a request from its announcement to its approval."""
    async with world(tmp_path) as here, running(here.config()) as sidecar:
        await here.recorded(lambda: here.auth.watchers > 0)
        request_id = here.auth.create_request("bob@example.com", ["dbadmin"], reason="fix it")
        await here.shows("PENDING")
        for reviewer in ("alice@example.com", "ivan@example.com"):
            here.auth.review(request_id, reviewer, "APPROVED", "")
        await here.shows("APPROVED")
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"{sidecar.url}/metrics")).content
        done = await trio.run_process(
            ["promtool", "check", "metrics"], stdin=page, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    assert (done.returncode, done.stdout.decode()) == (0, "")
