from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests import patience


def press(file: Path, seconds: float) -> None:
    """Write what the kernel would."""
    file.write_text(f"some avg10=1.00 avg60=1.00 avg300=1.00 total={seconds * 1e6:.0f}\nfull avg10=0.00 total=0\n")


async def pressed(file: Path, share: float) -> None:
    """Processes wait for a core in this share of the time."""
    began = trio.current_time()
    while True:
        press(file, (trio.current_time() - began) * share)
        await trio.sleep(0.05)


@pytest.mark.parametrize(("share", "seconds"), [(0.0, 10.0), (0.5, 20.0), (1.0, 40.0)])
async def test_time_in_which_others_had_the_cores_counts_less(
    share: float,
    seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """But it counts: what hangs beside other work ends too."""
    monkeypatch.setattr(patience, "_PRESSURE", tmp_path / "cpu")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pressed, tmp_path / "cpu", share)
        began = trio.current_time()
        with patience.patient(10.0) as scope:
            await trio.sleep(1000)
        assert scope.cancelled_caught
        assert trio.current_time() - began == pytest.approx(seconds, rel=0.1)
        nursery.cancel_scope.cancel()


async def test_a_test_that_hangs_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    async def hangs() -> None:
        await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError, match=r"within 0\.2 s"):
        await patience.within_patience(hangs, 0.2)()
    assert "in hangs" in capfd.readouterr().err
