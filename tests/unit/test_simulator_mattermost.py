"""Rules of the simulated Mattermost that need no socket."""

from __future__ import annotations

import h11
import msgspec
import pytest
import trio.testing

from sidecar.simulator.mattermost.faults import RateLimiter
from sidecar.simulator.mattermost.http import Request
from sidecar.simulator.mattermost.server import ApiError, Channel, MattermostServer, Post, User
from sidecar.simulator.mattermost.values import ALPHABET, go_json, go_runes, new_id, valid_id


class Town:
    """A bot, two people and a guest in one private channel."""

    def __init__(self, version: str = "5.37.0") -> None:
        self.server = MattermostServer(version)
        self.bot: User = self.server.add_bot("teleport-bot")
        self.alice, self.bob = self.server.add_user("alice"), self.server.add_user("bob")
        crew = [self.bot, self.alice, self.bob]
        self.team = self.server.add_team("ops", members=crew)
        self.channel: Channel = self.server.add_channel(self.team, "requests", private=True, members=crew)

    def say(self, message: str = "card", key: str = "") -> Post:
        return self.server.post(self.bot, self.channel, message, pending_post_id=key)


@pytest.fixture(params=["5.37.0", "11.0.0"])
def town(request: pytest.FixtureRequest) -> Town:
    return Town(request.param)


async def test_a_pending_id_is_remembered_for_30_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """Recorded: at 31.4 s a second post was created."""
    town = Town()
    first = town.say(key="k")
    await trio.sleep(29)
    assert town.say(key="k") is first
    await trio.sleep(31.4)
    assert town.say(key="k") is not first


async def test_a_pending_id_is_free_after_a_refusal_and_useless_after_a_deletion(town: Town) -> None:
    with pytest.raises(ApiError, match="400"):
        town.say("x" * 16_384, key="k")
    post = town.say(key="k")
    town.server.delete(town.bot, post)
    with pytest.raises(ApiError, match=r"500 api\.post\.deduplicate_create_post\.failed_to_get"):
        town.say(key="k")


@pytest.mark.parametrize(("version", "taken"), [("5.37.0", True), ("11.0.0", False)])
async def test_a_strangers_pending_id_takes_the_bots_post_on_5_37(*, version: str, taken: bool) -> None:
    """v11 looks away from a post that the caller may not read."""
    town = Town(version)
    elsewhere = town.server.add_channel(town.team, "elsewhere", private=True, members=[town.alice])
    theirs = town.server.post(town.alice, elsewhere, "mine now", pending_post_id="k")
    assert (town.say(key="k") is theirs) is taken


def test_the_limiter_counts_as_recorded() -> None:
    """19-rate-limit.json: PerSec 2, MaxBurst 5; times and headers of the recording."""
    limiter = RateLimiter(2, 5, vary_by_user=True)
    start = [limiter.take("bot", 100.0) for _ in range(7)]
    assert [passes for passes, _ in start] == [True] * 6 + [False]
    assert start[0][1][:3] == (("X-RateLimit-Limit", "6"), ("X-RateLimit-Remaining", "5"), ("X-RateLimit-Reset", "1"))
    assert start[6][1] == (
        ("Retry-After", "1"),
        ("X-RateLimit-Limit", "6"),
        ("X-RateLimit-Remaining", "0"),
        ("X-RateLimit-Reset", "3"),
    )
    assert [limiter.take("bot", 100.53)[0], limiter.take("bot", 100.54)[0]] == [True, False]
    assert dict(limiter.take("bot", 101.545)[1])["X-RateLimit-Remaining"] == "1"
    assert limiter.take("other", 101.545)[0]


def test_the_default_limit_lets_101_pass() -> None:
    limiter = RateLimiter(10, 100)
    assert [limiter.take("", 5.0)[0] for _ in range(103)].index(False) == 101


def test_json_is_written_as_go_writes_it() -> None:
    assert go_json({"k": "<a&b>\u2028"}) == b'{"k":"\\u003ca\\u0026b\\u003e\\u2028"}'
    assert go_runes({"k": "<é"}) == len('{"k":"\\u003cé"}')


def test_ids_look_like_mattermosts() -> None:
    made = new_id()
    assert valid_id(made)
    assert set(made) <= set(ALPHABET)
    assert not valid_id("abc")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("hello @alice.", {"alice"}),
        (r"\@alice", {"alice"}),
        ("@all", {"alice", "bob"}),
        ("_@here_", {"alice", "bob"}),
        ("`@alice` and\n```\n@bob\n```\n", set()),
        ("@\u200balice a@alice.example", set()),
        ("mail alice@example.com", set()),
    ],
)
def test_mentions_follow_the_servers_scan(town: Town, text: str, names: set[str]) -> None:
    post = town.say(text)
    assert {town.server.users[one].username for one in town.server.mentions(post)} == names


def test_an_entity_mentions_on_5_37_only() -> None:
    assert [bool(town.server.mentions(town.say("&#64;alice"))) for town in (Town(), Town("11.0.0"))] == [True, False]


def test_attachments_mention_in_text_and_fields_not_in_titles(town: Town) -> None:
    attachment = {"title": "@bob", "footer": "@bob", "text": "x", "fields": [{"title": "@bob", "value": "@alice"}]}
    post = town.server.post(town.bot, town.channel, "card", props={"attachments": [attachment]})
    assert town.server.mentions(post) == {town.alice.id}


def test_patching_props_replaces_them_and_leaves_a_deleted_row(town: Town) -> None:
    post = town.say("before")
    town.server.edit(town.bot, post, "after", props={"k": 1})
    assert (post.message, post.props, bool(post.edit_at)) == ("after", {"k": 1}, True)
    assert [row.original_id for row in town.channel.history] == [post.id]


async def test_putting_a_post_empties_what_it_leaves_out(town: Town) -> None:
    post = town.server.post(town.bot, town.channel, "before", props={"k": 1})
    for post_id, status in ((new_id(), 400), (post.id, 200)):
        headers = [("Host", "chat"), ("Authorization", f"Bearer {town.bot.token}")]
        request = Request(h11.Request(method="PUT", target=f"/api/v4/posts/{post.id}", headers=headers))
        request.body = go_json({"id": post_id, "message": "after"})
        assert (await town.server.handle(request)).status == status
    assert (post.message, post.props) == ("after", {})


def test_writing_to_what_is_gone_or_not_ones_own_is_403(town: Town) -> None:
    post = town.say()
    with pytest.raises(ApiError, match="403"):
        town.server.edit(town.alice, post, "pwned")
    town.server.delete(town.bot, post)
    for act in (town.server.delete, town.server.edit):
        with pytest.raises(ApiError, match="403"):
            act(town.bot, post)


def test_deleting_a_root_deletes_its_replies(town: Town) -> None:
    root = town.say()
    town.server.post(town.alice, town.channel, "reply", root_id=root.id)
    assert len(town.server.thread(root)) == 1
    town.server.delete(town.bot, root)
    assert town.server.posts(town.channel) == []


def test_post_all_writes_where_it_may_not_read() -> None:
    town = Town()
    town.server.set_roles(town.bot, "system_user system_post_all")
    town.server.leave(town.channel, town.bot)
    post = town.say()
    for act in (lambda: town.server.edit(town.bot, post, "x"), lambda: town.server.react(town.bot, post, "x")):
        with pytest.raises(ApiError, match="403"):
            act()


def test_archived_channels_take_no_posts(town: Town) -> None:
    post = town.say()
    town.server.archive(town.channel)
    with pytest.raises(ApiError, match="can_not_post_to_deleted"):
        town.say()
    with pytest.raises(ApiError, match="can_not_update_post_in_deleted"):
        town.server.edit(town.bot, post, "x")
    town.server.unarchive(town.channel)
    assert town.say() in town.server.posts(town.channel)


def test_only_v11_knows_which_emoji_exist() -> None:
    old, new = Town(), Town("11.0.0")
    assert old.server.react(old.alice, old.say(), "no_such_emoji_zz").emoji_name == "no_such_emoji_zz"
    with pytest.raises(ApiError, match="404"):
        new.server.react(new.alice, new.say(), "no_such_emoji_zz")
    assert new.server.react(new.alice, new.say(), "white_check_mark").emoji_name == "white_check_mark"


def test_v11_keeps_at_most_50_different_emoji() -> None:
    town = Town("11.0.0")
    post = town.say()
    town.server.emoji |= {f"e{number}" for number in range(51)}
    for number in range(50):
        town.server.react(town.alice, post, f"e{number}")
    with pytest.raises(ApiError, match="too_many_reactions"):
        town.server.react(town.bob, post, "e50")
    town.server.react(town.bob, post, "e7")
    assert len(town.server.reactions(post)) == 51


def test_a_reaction_again_keeps_its_row_and_a_client_may_forge_its_time(town: Town) -> None:
    post = town.say()
    town.server.react(town.alice, post, "x", create_at=1, remote_id="r")
    town.server.react(town.alice, post, "x")
    (reaction,) = town.server.reactions(post)
    assert reaction.create_at == 1 < reaction.update_at


def test_emails_are_hidden_when_the_setting_says_so(town: Town) -> None:
    town.server.configure(ShowEmailAddress="false")
    assert town.server.user_json(town.alice, town.bot)["email"] == ""
    assert town.server.user_json(town.alice, town.alice)["email"] == "alice@example.com"


def test_an_unverified_address_changes_nothing_when_it_must_be_verified(town: Town) -> None:
    town.server.change_email(town.alice, "Ivan@example.com")
    assert town.alice.email == "ivan@example.com"
    town.server.configure(RequireEmailVerification="true")
    town.server.change_email(town.alice, "other@example.com")
    assert town.server.user_by_email("IVAN@example.com") is town.alice
    with pytest.raises(ApiError, match="email_exists"):
        town.server.change_email(town.bob, "Ivan@example.com")


def test_user_names_are_freed_and_taken_again(town: Town) -> None:
    with pytest.raises(ApiError, match="username_exists"):
        town.server.rename(town.alice, "Bob")
    town.server.rename(town.bob, "bob9")
    town.server.rename(town.alice, "bob")
    assert town.server.user_by_name("bob") is town.alice


def test_direct_channels_can_be_restricted_to_teams() -> None:
    """5.37 looks only when the channel is made, v11 at every post."""
    for version in ("5.37.0", "11.0.0"):
        town = Town(version)
        carol, dave = town.server.add_user("carol"), town.server.add_user("dave")
        direct = town.server.open_direct(town.bot, carol)
        town.server.configure(RestrictDirectMessage="team")
        with pytest.raises(ApiError, match="team_restricted_error"):
            town.server.open_direct(town.bot, dave)
        assert town.server.open_direct(carol, town.bot) is direct
        if town.server.v11:
            with pytest.raises(ApiError, match="can_not_post_in_restricted_dm"):
                town.server.post(town.bot, direct, "x")
        else:
            assert town.server.post(town.bot, direct, "x").channel_id == direct.id


def test_a_webhook_posts_with_its_owners_id(town: Town) -> None:
    post = town.server.post_as_webhook(town.alice, town.channel, "approve", username="bob")
    assert (post.user_id, post.props["from_webhook"]) == (town.alice.id, "true")


def test_since_lists_the_oldest_thousand_and_pages_skip_their_own_millisecond() -> None:
    town = Town()
    for number in range(1005):
        town.say(str(number)).create_at = number
    listed = town.server.since_json(town.channel, 0)
    assert (len(listed["order"]), listed["posts"][listed["order"][0]]["message"]) == (1000, "999")
    posts = town.server.posts(town.channel)
    posts[500].create_at = posts[501].create_at
    page = town.server.page_json(town.channel, page=0, per_page=2, after=posts[500].id)
    assert page["order"] == [posts[503].id, posts[502].id]
    assert page["prev_post_id"] == posts[501].id
    page = town.server.page_json(town.channel, page=0, per_page=2, before=posts[501].id)
    assert page["order"] == [posts[499].id, posts[498].id]
    assert page["next_post_id"] == posts[500].id
    assert town.server.page_json(town.channel, page=9, per_page=200, after=posts[1004].id)["order"] == []


def test_post_edit_time_limit_binds_messages_on_v11_only() -> None:
    for town in (Town(), Town("11.0.0")):
        town.server.configure(PostEditTimeLimit="60")
        post = town.say()
        town.server.clock_offset += 120
        town.server.edit(town.bot, post, props={"attachments": [{"text": "APPROVED"}]})
        if town.server.v11:
            with pytest.raises(ApiError, match="permissions_time_limit"):
                town.server.edit(town.bot, post, "late")
        else:
            town.server.edit(town.bot, post, "late")


def test_profiles_are_two() -> None:
    with pytest.raises(ValueError, match="no profile"):
        MattermostServer("7.0.0")


def test_a_post_goes_over_the_wire_as_json(town: Town) -> None:
    body = msgspec.json.decode(go_json(town.server.post_json(town.say("<b>"), count=True)))
    assert body["message"] == "<b>"
    assert body["props"] == {"from_bot": "true"}


async def test_wait_for_wakes_at_a_change() -> None:
    town = Town()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(town.server.wait_for, lambda: town.server.posts(town.channel))
            await trio.testing.wait_all_tasks_blocked()
            town.say()
