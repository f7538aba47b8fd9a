"""Whom a post notifies, roughly as the server's markdown scan does.

mattermost 5.37 app/notification.go: `message` and an attachment's pretext, text and string field values; text in code
spans and fences does not count, a backslash before the @ does not help. 5.37 also reads entities.
"""

from __future__ import annotations

import html
import re

from sidecar.simulator.mattermost.values import Post

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}\1[`~]*\s*$|\Z)", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_AT = re.compile(r"(?<![A-Za-z0-9])_?@([A-Za-z0-9][A-Za-z0-9._\-]*)")
EVERYBODY = frozenset({"all", "channel", "here"})


def mentioned_names(post: Post, *, entities: bool) -> set[str]:
    """The lower-case names after an @ that counts, "all", "channel" and "here" among them."""
    names: set[str] = set()
    for text in _texts(post):
        if "@" not in text and "&" not in text:
            continue
        plain = _SPAN.sub(" ", _FENCE.sub(" ", text))
        for name in _AT.findall(html.unescape(plain) if entities else plain):
            names |= {name.lower(), name.lower().rstrip("._-")}
    return names


def _texts(post: Post) -> list[str]:
    texts: list[object] = [post.message]
    attachments = post.props.get("attachments")
    for one in attachments if isinstance(attachments, list) else ():
        texts += [one.get("pretext"), one.get("text")]
        texts += [field.get("value") for field in one.get("fields") or ()]
    return [text for text in texts if isinstance(text, str)]
