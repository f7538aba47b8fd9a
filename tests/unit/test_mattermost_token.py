"""Which token is used when its file changes, and whose refusal counts."""

from __future__ import annotations

import pytest

from sidecar.errors import LinkRefused
from sidecar.mattermost.auth import Token


class File:
    """A token file; "" cannot be read."""

    def __init__(self, content: str) -> None:
        self.content = content
        self.token = Token(self.read, "/run/token")

    def read(self) -> str:
        if not self.content:
            raise LinkRefused("mattermost", "token", "/run/token: the token file is empty")
        return self.content


@pytest.fixture
def file() -> File:
    """A file whose token Mattermost has accepted."""
    file = File("first")
    file.token.accepted(file.token())
    return file


def details(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.__dict__["detail"] for record in caplog.records if record.getMessage() == "credentials.kept"]


def test_nothing_is_kept_that_was_never_accepted() -> None:
    file = File("first")
    assert file.token() == "first"
    assert not file.token.refused("first")
    file.content = ""
    with pytest.raises(LinkRefused, match="empty"):
        file.token()


def test_a_broken_file_is_told_of_once_for_each_state(file: File, caplog: pytest.LogCaptureFixture) -> None:
    for content in ("", "", "two words", ""):
        file.content = content
        assert file.token() == "first"
        file.token.accepted("first")
    empty = "/run/token: the token file is empty"
    assert details(caplog) == [
        empty,
        "/run/token: the bot token is empty or holds characters that no token has",
        empty,
    ]


@pytest.mark.parametrize("between", ["first", "second", ""])
def test_a_wrong_token_is_tried_again_when_the_file_has_changed(
    file: File, between: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        file.content = "wrong"
        assert file.token() == "wrong"
        assert file.token.refused("wrong")
        assert file.token() == file.token() == "first"
        file.content = between
        assert file.token() == (between or "first")
    assert details(caplog).count("/run/token: Mattermost does not accept this token") == 2
    assert "wrong" not in caplog.text


def test_two_calls_with_a_wrong_token_are_told_of_once(file: File, caplog: pytest.LogCaptureFixture) -> None:
    file.content = "wrong"
    assert (file.token(), file.token()) == ("wrong", "wrong")
    assert file.token.refused("wrong")
    assert file.token.refused("wrong")
    assert file.token() == "first"
    assert len(details(caplog)) == 1


def test_a_late_refusal_of_the_old_token_is_not_the_new_ones(file: File, caplog: pytest.LogCaptureFixture) -> None:
    """Two calls were under way with it while the file changed."""
    file.content = "second"
    assert file.token.refused("first")
    file.token.accepted(file.token())
    assert file.token.refused("first")
    assert file.token() == "second"
    file.content = ""
    assert file.token.refused("first")
    assert file.token() == "second"
    assert details(caplog) == ["/run/token: the token file is empty"]


def test_a_kept_token_that_is_refused_lets_the_files_be_tried_once_more(file: File) -> None:
    file.content = "wrong"
    assert file.token.refused(file.token())
    assert file.token.refused(file.token())
    assert file.token() == "wrong"
    assert not file.token.refused("wrong")


def test_a_kept_token_that_is_refused_beside_a_broken_file_is_the_last_word(file: File) -> None:
    """It is asked with again later: Mattermost refuses everybody while its database is away."""
    file.content = ""
    assert not file.token.refused(file.token())
    assert file.token() == "first"
