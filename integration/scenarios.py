"""The story, once, for any servers: what people see in Mattermost while requests come, change and go.

Each scenario is given its own channel. What people decide in Mattermost stands in `decisions`.
"""

from __future__ import annotations

import trio

from integration.decisions import DECISIONS, decided_while_it_could_not_hear
from integration.stage import Channel, Chat, Cluster, Scenario, Stage

# What reviewers must not be rung up, sent elsewhere or shown a false card by; the last byte is no UTF-8.
HOSTILE = (
    b"@all @channel @here @%s\n"
    b"[approve here](https://phish.example) <!channel> ~town-square #tag :x:\n"
    b"```\n**State** APPROVED\n\x00\x1b[2J\xe2\x80\xaereversed | a | b |\n" + b"x" * 2500 + b"\xff"
)


async def announced(stage: Stage) -> None:
    """Bob asks: one card in the channel, one in the direct channel of each suggested reviewer."""
    async with stage.sidecar(mattermost__suggested_reviewers="email"):
        (request_id,) = await stage.ask(reason=b"the billing database is down")
        card = await stage.shows(request_id, "PENDING")
        asks, _, last = card.message.partition("\n")
        assert asks.startswith(f"`{stage.cluster.requester}` asks for `")
        assert asks.endswith("`: `the billing database is down`")
        assert last == f"Access request {request_id}"
        assert {"State", "Expires", "Decide"} <= card.fields.keys()
        for name in ("alice", "ivan"):
            direct = await stage.chat.direct(stage.chat.people[name])
            (private,) = await stage.until(lambda cards: len(cards) == 1, direct)
            assert (private.message, private.fields) == (card.message, card.fields)


async def approved_by_two(stage: Stage) -> None:
    """Alice and Ivan approve: the card counts, the thread tells each review, and with the last one the end."""
    alice, ivan = stage.cluster.reviewers
    async with stage.sidecar():
        (request_id,) = await stage.ask()
        await stage.shows(request_id, "PENDING")
        await stage.cluster.review(request_id, alice, "APPROVED", "ok by me")
        await stage.until(lambda cards: "1 of 2" in cards[0].fields["Reviews"] and len(cards[0].replies) == 1)
        await stage.cluster.review(request_id, ivan, "APPROVED", "go ahead")
        card = await stage.shows(request_id, "APPROVED")
    about = f"{stage.cluster.requester}'s request for {card.message.split('`')[3]}"
    assert card.replies == (
        f"{alice} approved {about} (1 of 2).\n\n```\nok by me\n```",
        f"{ivan} approved {about} (2 of 2). The request is now APPROVED.\n\n```\ngo ahead\n```",
    )


async def denied_by_one(stage: Stage) -> None:
    """One denial is enough."""
    alice, _ = stage.cluster.reviewers
    async with stage.sidecar():
        (request_id,) = await stage.ask()
        await stage.shows(request_id, "PENDING")
        await stage.cluster.review(request_id, alice, "DENIED", "not today")
        card = await stage.shows(request_id, "DENIED")
    about = f"{stage.cluster.requester}'s request for {card.message.split('`')[3]}"
    assert card.replies == (f"{alice} denied {about}. The request is now DENIED.\n\n```\nnot today\n```",)


async def expired(stage: Stage) -> None:
    """Nobody decides in time."""
    async with stage.sidecar():
        (request_id,) = await stage.ask(expires_in=stage.cluster.brief)
        await stage.shows(request_id, "PENDING")
        await _is_expired(stage, request_id)


async def expired_unseen(stage: Stage) -> None:
    """It expires while no sidecar runs: the next one closes the card.

    At once only because Teleport still lists another request: an empty list alone proves nothing. Half a minute after
    it where Teleport goes on to list it.
    """
    async with stage.sidecar() as first:
        (request_id,) = await stage.ask(expires_in=stage.cluster.brief)
        (other,) = await stage.ask()
        await stage.show({request_id: "PENDING", other: "PENDING"})
        await first.stop()
    with trio.move_on_after(2 * stage.cluster.brief):  # 18 keeps it for up to six minutes
        while await stage.cluster.state(request_id):  # noqa: ASYNC110 - a server of its own has no event to wait for
            await trio.sleep(0.1)
    async with stage.sidecar():
        await _is_expired(stage, request_id)


async def _is_expired(stage: Stage, request_id: str) -> None:
    """The card says so; its thread once Teleport does, too: 18 looks for what expired every five minutes."""
    await stage.until(lambda cards: [one.state for one in cards if one.request_id == request_id] == ["EXPIRED"])
    if not await stage.cluster.state(request_id):
        await stage.shows(request_id, "EXPIRED")


async def resolved_by_tctl(stage: Stage) -> None:
    """An administrator decides past the reviewers, and then thinks better of it."""
    async with stage.sidecar():
        (request_id,) = await stage.ask()
        await stage.shows(request_id, "PENDING")
        await stage.cluster.approve(request_id, "emergency")
        card = await stage.shows(request_id, "APPROVED")
        assert "emergency" in card.fields["Resolution"]
        await stage.cluster.deny(request_id, "over")
        card = await stage.shows(request_id, "DENIED")
        assert "over" in card.fields["Resolution"]


async def removed(stage: Stage) -> None:
    """`tctl requests rm` of an open request: it was removed, not decided, and its neighbour stays open."""
    async with stage.sidecar():
        gone, stays = await stage.ask(2)
        await stage.show({gone: "PENDING", stays: "PENDING"})
        await stage.cluster.remove(gone)
        await stage.shows(gone, "REMOVED")
        await stage.show({gone: "REMOVED", stays: "PENDING"})


async def auth_service_restarted(stage: Stage) -> None:
    """The Auth Service goes and comes back: what was open is followed on, what is new is announced."""
    async with stage.sidecar():
        (before,) = await stage.ask()
        await stage.shows(before, "PENDING")
        async with stage.cluster.away():
            pass
        (after,) = await stage.ask()
        await stage.shows(after, "PENDING")
        await stage.cluster.approve(before)
        await stage.show({before: "APPROVED", after: "PENDING"})


async def proxy_restarted(stage: Stage) -> None:
    """Only the Proxy goes: what is asked meanwhile is told once it is back, and what was open is followed on."""
    async with stage.sidecar() as sidecar:
        (before,) = await stage.ask()
        await stage.shows(before, "PENDING")
        async with stage.cluster.proxy_away():
            await sidecar.logged("link.lost", link="teleport")
            (meanwhile,) = await stage.ask()
            await stage.cluster.approve(before)
        await stage.show({before: "APPROVED", meanwhile: "PENDING"})


async def credentials_renewed(stage: Stage) -> None:
    """The credentials are signed anew where they are: the sidecar goes over to them, and nobody notices."""
    async with stage.sidecar() as sidecar:
        (before,) = await stage.ask()
        await stage.shows(before, "PENDING")
        await stage.cluster.renew()
        await sidecar.logged("credentials.replaced")
        (after,) = await stage.ask()
        await stage.shows(after, "PENDING")
        await stage.cluster.approve(before)
        await stage.show({before: "APPROVED", after: "PENDING"})
        assert not any(line["event"] == "link.lost" for line in sidecar.lines)


async def routed_by_rule(stage: Stage) -> None:
    """A rule in Teleport names another channel: what it holds for goes there instead, as long as the rule is there."""
    rule, other = f"rule-{stage.plugin_name}", await stage.chat.channel()
    condition = 'access_request.spec.request_reason == "by rule"'

    async def told(request_id: str, place: Channel) -> None:
        await stage.until(lambda cards: any(card.request_id == request_id for card in cards), place)

    async with stage.sidecar(stage.cluster.decider_access, log__severity="DEBUG") as sidecar:
        await stage.cluster.add_rule(rule, condition, stage.plugin_name, other.recipient)
        await sidecar.logged("rule.changed", rule=rule)
        (ruled,), (plain,) = await stage.ask(reason=b"by rule"), await stage.ask(reason=b"else")
        await told(ruled, other)
        await told(plain, stage.channel)
        await stage.cluster.remove_rule(rule)
        await sidecar.logged("rule.changed", 2, rule=rule)
        (after,) = await stage.ask(reason=b"by rule")
        await told(after, stage.channel)
    cards = [await stage.until(lambda _: True, place) for place in (other, stage.channel)]
    assert [[card.request_id for card in some] for some in cards] == [[ruled], [plain, after]]


async def mattermost_restarted(stage: Stage) -> None:
    """Mattermost is away while one request comes and another is decided: both are told afterwards, once."""
    async with stage.sidecar():
        (before,) = await stage.ask()
        await stage.shows(before, "PENDING")
        async with stage.chat.away():
            (meanwhile,) = await stage.ask()
            await stage.cluster.approve(before)
        await stage.show({before: "APPROVED", meanwhile: "PENDING"})
        await stage.shows(before, "APPROVED")


async def a_burst(stage: Stage) -> None:
    """300 requests at once, which stock servers drop every watch for: all announced, none twice."""
    async with stage.sidecar():
        ids = await stage.ask(300)
        await stage.show(dict.fromkeys(ids, "PENDING"))


async def replaced(stage: Stage) -> None:
    """A new sidecar takes over from one that was stopped: what changed between them is told, nothing is told twice."""
    async with stage.sidecar() as first:
        approved, denied, gone, stays = await stage.ask(4)
        await stage.show(dict.fromkeys((approved, denied, gone, stays), "PENDING"))
        assert await first.stop() == 0
    await stage.cluster.approve(approved)
    await stage.cluster.deny(denied)
    await stage.cluster.remove(gone)
    (new,) = await stage.ask()
    states = {approved: "APPROVED", denied: "DENIED", gone: "REMOVED", stays: "PENDING", new: "PENDING"}
    async with stage.sidecar():
        await stage.show(states)
        await stage.cluster.approve(stays)
        await stage.show(states | {stays: "APPROVED"})


async def two_sidecars(stage: Stage) -> None:
    """Two share the work without a second card; when one is killed, the other goes on."""
    async with stage.sidecar(teleport__lease="3s") as first, stage.sidecar(teleport__lease="3s"):
        ids = await stage.ask(10)
        await stage.show(dict.fromkeys(ids, "PENDING"))
        first.process.kill()
        more = await stage.ask(2)
        await stage.cluster.approve(ids[0])
        await stage.show(dict.fromkeys([*ids, *more], "PENDING") | {ids[0]: "APPROVED"})


async def host_name_verified(stage: Stage) -> None:
    """A stock certificate bears no address: fine for the cluster's name, refused for the host's in Teleport's words."""
    async with stage.sidecar(teleport__verify="cluster"):
        (request_id,) = await stage.ask()
        await stage.shows(request_id, "PENDING")
    async with stage.sidecar(teleport__verify="hostname", ready=False) as strict:
        refused = await strict.logged("link.refused", link="teleport")
    host = str(stage.cluster.access["teleport.addr"]).rpartition(":")[0]
    assert refused["detail"].startswith(
        (f"x509: cannot validate certificate for {host} because it doesn't contain any IP SANs", "x509: certificate is")
    )


async def hostile_reason(stage: Stage) -> None:
    """A reason can neither ring anybody up, nor pass as the card's own words, nor stop the watch."""
    people = stage.chat.people
    async with stage.sidecar():
        (plain,) = await stage.ask()
        await stage.shows(plain, "PENDING")
        # Being added to the channel was a mention already, counted a moment after it.
        before = {name: await stage.chat.mentions(stage.channel, person) for name, person in people.items()}
        (request_id,) = await stage.ask(reason=HOSTILE % people["alice"].username.encode())
        card = await stage.shows(request_id, "PENDING")
        assert card.fields["State"].split()[-1] == "PENDING"
        assert card.fields["Reason"].startswith("```")
        assert "\x1b" not in card.fields["Reason"]
        await stage.cluster.deny(request_id, "@all [no](https://phish.example)")
        await stage.shows(request_id, "DENIED")
        after = {name: await stage.chat.mentions(stage.channel, person) for name, person in people.items()}
        assert after == before


async def talk_is_no_decision(stage: Stage) -> None:
    """Where the operator has not turned decisions on, a reaction and a reply are only talk."""
    alice = stage.chat.people["alice"]
    async with stage.sidecar():
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        await stage.chat.react(alice, card, "white_check_mark")
        await stage.chat.say(alice, stage.channel, "approve", card)
        (later,) = await stage.ask()
        await stage.shows(later, "PENDING")
        assert await stage.cluster.state(request_id) == "PENDING"
        await stage.cluster.approve(request_id)
        card = await stage.shows(request_id, "APPROVED")
        assert not any("reviewed" in reply for reply in card.replies)


SCENARIOS: tuple[Scenario, ...] = (
    announced,
    approved_by_two,
    denied_by_one,
    expired,
    expired_unseen,
    resolved_by_tctl,
    removed,
    auth_service_restarted,
    proxy_restarted,
    credentials_renewed,
    routed_by_rule,
    mattermost_restarted,
    a_burst,
    replaced,
    two_sidecars,
    host_name_verified,
    hostile_reason,
    talk_is_no_decision,
    *DECISIONS,
)


def unplayable(scenario: Scenario, cluster: Cluster | None, chat: Chat | None) -> str:
    """Say why these servers cannot play a scenario, "" where they can; None is a simulator without a Proxy."""
    no_proxy = "the Auth Service is reached directly" if cluster is None else cluster.no_proxy
    if scenario is proxy_restarted:
        return no_proxy
    if scenario is host_name_verified and not no_proxy:
        return "a Proxy is judged by the CAs of the web"
    if cluster is not None and scenario in (approved_by_two, denied_by_one, *DECISIONS) and cluster.no_reviews:
        return cluster.no_reviews
    if cluster is not None and scenario is routed_by_rule:
        return cluster.no_rules
    if cluster is not None and scenario is auth_service_restarted:
        return cluster.no_restart
    if chat is not None and scenario in (mattermost_restarted, decided_while_it_could_not_hear):
        return chat.no_restart
    return ""
