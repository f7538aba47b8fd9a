"""The configuration is an interface: what operators write today, and wrote for the official plugin, goes on working."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sidecar.config import Config, Secret, load, redacted
from sidecar.config.values import parse_duration, split_address
from sidecar.errors import ConfigError, LinkRefused

DATA = Path(__file__).parent / "testdata"
EXAMPLE = Path(__file__).parents[2] / "sidecar" / "config" / "example.toml"

MINIMAL = {
    "mattermost.url": "https://mattermost.example.com",
    "mattermost.token_file": "/run/secrets/token",
    "mattermost.recipients": "ops/requests",
}
WITHOUT_ID = "a username can change hands, so decisions need user ids; `sidecar check --pin` prints the table to paste"
ID = "qr3azbgeipd3tn99i78geigkpa"
POLICY = '{ "*" = { reviewers = ["alice", "ivan"], approvals = 2, denials = 1 } }'


def settings(**flags: str) -> Config:
    """Load a good configuration with some keys changed; `a__b` is a.b."""
    return load(None, {}, MINIMAL | {name.replace("__", "."): text for name, text in flags.items()})


def problems(**flags: str) -> list[str]:
    """Return what is wrong with such a configuration."""
    with pytest.raises(ConfigError) as caught:
        settings(**flags)
    return caught.value.problems


def test_minimal_configuration_has_the_documented_defaults() -> None:
    config = settings()
    assert config.teleport.addr == "localhost:3025"
    assert config.teleport.client_crt == Path("/var/lib/teleport/plugins/mattermost/auth.crt")
    assert config.teleport.identity is None
    assert (config.teleport.lease, config.teleport.verify) == (30.0, "cluster")
    assert config.reviews.submit_as == "none"
    assert config.role_to_recipients == {"*": ("ops/requests",)}
    assert config.endpoints.address == ("127.0.0.1", 9464)
    assert config.notices == ()


def test_example_is_a_configuration() -> None:
    """`sidecar configure > file` starts."""
    config = load(EXAMPLE)
    assert config.notices == ()
    assert config.role_to_recipients == {"*": ("ops/access-requests",)}


def test_example_shows_true_defaults(tmp_path: Path) -> None:
    """A commented key of the example is its default: putting it in changes nothing."""
    uncommented = re.sub(r"^# (\w+ = .*)$", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    people = re.compile(r'^(alice|ivan|bob|# "dbadmin") = .*$', re.MULTILINE)
    assert len(people.findall(uncommented)) == 5
    assert uncommented.count("\n# ") < EXAMPLE.read_text().count("\n# ")
    path = tmp_path / "config.toml"
    path.write_text(people.sub("", uncommented))
    assert load(path) == load(EXAMPLE)


def test_example_names_every_key() -> None:
    """What can be set is in the example: it is the reference at hand."""
    text = EXAMPLE.read_text()
    missing = [
        f"{section}.{key}"
        for section, table in redacted(load(EXAMPLE)).items()
        for key in table
        if not re.search(rf"^#? *{re.escape(key)} = ", text, re.MULTILINE)
    ]
    # The token has a better place, a policy is a table, and "*" is what recipients mean.
    assert missing == ["mattermost.token", "role_to_recipients.*", "reviews.policy"]


def test_file_of_the_buttons_era() -> None:
    """Team and channel are the recipient; what served the buttons is told once for each key, and breaks nothing."""
    config = load(DATA / "official-v0.toml")
    assert config.teleport.addr == "auth.example.com:3025"
    assert config.role_to_recipients == {"*": ("ops/access-requests",)}
    assert config.log.severity == "INFO"
    assert [notice.partition(":")[0] for notice in config.notices] == [
        "http",
        "storage",
        "mattermost.secret",
        "log.output",
        "teleport.auth_server",
        "mattermost.team, mattermost.channel",
        "mattermost.token",
    ]
    assert not any(secret in str(config) for secret in ("signing-secret-value", "not-a-real-token"))


def test_file_of_the_flat_list_era() -> None:
    """A token that is a path is a file, addr beats its old name, team and channel are leftovers."""
    config = load(DATA / "official-v9.toml")
    assert config.teleport.addr == "localhost:3025"
    assert config.teleport.identity == Path("/var/lib/teleport/plugins/mattermost/auth_id")
    assert config.mattermost.token is None
    assert config.mattermost.token_file == Path("/run/secrets/mattermost-token")
    assert config.mattermost.url == "https://mattermost.example.com"
    assert config.role_to_recipients == {"*": ("ops/access-requests", "alice@example.com")}
    assert config.log.severity == "WARN"
    assert [notice.partition(":")[0] for notice in config.notices] == [
        "log.output",
        "teleport.auth_server",
        "mattermost.team, mattermost.channel",
    ]


def test_file_of_today() -> None:
    config = load(DATA / "official-v18.toml")
    assert config.role_to_recipients == {
        "dbadmin": ("dba/requests",),
        "editor": ("ops/requests", "alice@example.com"),
        "*": ("ops/access-requests",),
    }
    assert (config.log.severity, config.log.format) == ("DEBUG", "text")
    assert [notice.partition(":")[0] for notice in config.notices] == [
        "teleport.refresh_identity",
        "teleport.refresh_identity_interval",
        "log.output",
    ]


def test_recipients_are_the_star_entry_and_the_start_says_so() -> None:
    config = load(None, {"SIDECAR_ROLE_TO_RECIPIENTS": '{ dba = "dba/requests", "*" = ["old/old"] }'}, MINIMAL)
    assert config.role_to_recipients == {"dba": ("dba/requests",), "*": ("ops/requests",)}
    assert any(notice.startswith("mattermost.recipients:") for notice in config.notices)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(DATA / "invalid-every-kind.toml")
    assert caught.value.problems == [
        "zeleport: unknown key, did you mean teleport?",
        "teleport.adr: unknown key, did you mean addr?",
        "teleport.client_crt: must be text in quotes, not 3",
        'teleport.verify: must be one of cluster, hostname, not "host"',
        'teleport.lease: must be a duration such as "90s", "10m" or "1h30m", not 30',
        'mattermost.max_connections: must be a whole number from 1 to 100, not "8"',
        "mattermost.recipients: must be text in quotes, not 3 (item 2)",
        "limits.workers: must be a whole number from 1 upwards, not 0",
        "teleport.client_key: is missing: client_crt, client_key, root_cas belong together",
        "mattermost.url: must be an http:// or https:// address, not mattermost.example.com",
        "reviews.policy.dbadmin.approvals: is 2, but reviewers names only 1",
        "reviews.policy.dbadmin.denials: is missing or below 1",
    ]
    assert "s3cret-value" not in str(caught.value)


def test_problems_of_reviews_and_people() -> None:
    with pytest.raises(ConfigError) as caught:
        load(DATA / "invalid-reviews.toml")
    assert caught.value.problems == [
        "reviewers.ivan: has an id that is not a Mattermost user id (26 lower-case letters and digits)",
        'reviewers.eve: is missing its user: write "alice@example.com" or { id = "…", user = "alice@example.com" }',
        "reviewers.david: has the id of reviewers.carol",
        "requesters.a: b stands on both sides of the table, so nobody can tell who is who",
        "reviews.deny: must hold emoji names, such as white_check_mark, not ok, no way",
        "reviews.ways: is empty, and reviews.submit_as is set: name at least one way",
        'reviews.identities: is missing: submit_as = "reviewer" needs the folder with reviewers\' credentials',
        "reviewers: alice without an id: " + WITHOUT_ID,
    ]


def test_a_file_that_is_no_toml_is_one_problem() -> None:
    with pytest.raises(ConfigError, match=r"invalid-syntax\.toml: is not TOML: .*line 1"):
        load(DATA / "invalid-syntax.toml")


def test_a_file_that_is_not_there_is_one_problem() -> None:
    with pytest.raises(ConfigError, match="nowhere: cannot be read: No such file"):
        load(Path("nowhere"))


def test_a_file_that_is_no_text_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(path)


def test_a_mark_at_the_start_is_read_over(tmp_path: Path) -> None:
    """Editors on Windows put it there."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (DATA / "official-v18.toml").read_bytes())
    assert redacted(load(path)) == redacted(load(DATA / "official-v18.toml"))


def test_what_never_ends_or_is_nested_too_deeply_is_one_problem(tmp_path: Path) -> None:
    deep, pipe = tmp_path / "deep.toml", tmp_path / "pipe"
    deep.write_text(f"a = {'[' * 100_000}")
    os.mkfifo(pipe)
    for path, problem in (
        (deep, "is nested"),
        (pipe, "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert len(caught.value.problems) == 1
        assert problem in caught.value.problems[0]


def test_a_variable_that_resembles_none_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        load(DATA / "official-v18.toml", {"SIDECAR_FOO": "1", "SIDECAR_MATTERMOST_URL": "x"})
    assert caught.value.problems == [
        "SIDECAR_FOO: unknown variable, write it as SIDECAR_SECTION__KEY",
        "SIDECAR_MATTERMOST_URL: unknown variable, did you mean SIDECAR_MATTERMOST__URL?",
    ]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"mattermost__url": ""}, "mattermost.url: is missing"),
        (
            {"mattermost__url": "https://bot:pw@chat.example.com"},
            "mattermost.url: must not contain a user name or a password",
        ),
        ({"mattermost__url": "https://chat.example.com/?a=b"}, "mattermost.url: must end with its path"),
        ({"mattermost__url": "https://[::1"}, "mattermost.url: must be an http:// or https:// address"),
        ({"mattermost__url": "https://a b"}, "mattermost.url: must be an http:// or https:// address"),
        (
            {"mattermost__url": "https://chat.example.com:99999"},
            "mattermost.url: must have a port between 1 and 65535, not 99999",
        ),
        ({"teleport__auth-server": "auth:3025"}, "teleport.auth-server: unknown key, did you mean addr?"),
        ({"mattermost__token_file": ""}, "mattermost.token_file: is missing"),
        ({"mattermost__recipients": ""}, "mattermost.recipients: is missing"),
        (
            {"mattermost__max_posts_per_second": "0"},
            "mattermost.max_posts_per_second: must be a number from 0.01 to 1000",
        ),
        ({"teleport__addr": "https://auth:3025"}, "teleport.addr: must be host:port"),
        ({"teleport__addr": "auth"}, "teleport.addr: must be host:port"),
        ({"teleport__addr": ":3025"}, "teleport.addr: must be host:port"),
        ({"teleport__web_url": "teleport.example.com"}, "teleport.web_url: must be an http:// or https:// address"),
        ({"teleport__plugin_name": "a b"}, "teleport.plugin_name: must be one word"),
        ({"teleport__lease": "2h"}, "teleport.lease: must be between"),
        ({"teleport__client_crt": "a.crt", "teleport__root_cas": "a.cas"}, "teleport.client_key: is missing"),
        ({"announce__delay": "2d"}, "announce.delay: must be at most one day"),
        ({"announce__resolved": "perhaps"}, "announce.resolved: must be true or false"),
        ({"messages__time_zone": "Europe/Atlantis"}, "messages.time_zone: must be a time zone"),
        ({"messages__time_zone": "/etc/passwd"}, "messages.time_zone: must be a time zone"),
        ({"endpoints__listen": "9464"}, "endpoints.listen: must be host:port"),
        ({"endpoints__tls_crt": "a"}, "endpoints.tls_crt: and endpoints.tls_key belong together"),
        ({"log__severity": "loud"}, "log.severity: must be one of TRACE, DEBUG"),
        ({"reviews__approve": "[]"}, "reviews.approve: is empty"),
        ({"reviews__deny": "white_check_mark,x"}, "reviews.deny: and reviews.approve share white_check_mark"),
        (
            {"reviews__ways": '["reply", "carrier pigeon"]'},
            'reviews.ways: must be one of reaction, reply, direct, not "carrier pigeon" (item 2)',
        ),
        ({"reviews__ways": "letter"}, 'reviews.ways: must be one of reaction, reply, direct, not "letter" (item 1)'),
        ({"reviews__looking": "x"}, "reviews.looking: and reviews.deny share x"),
        ({"reviews__looking": "no way"}, "reviews.looking: must hold emoji names"),
        ({"teleport__ca_pin": "sha256:abc"}, "teleport.ca_pin: must be sha256: and 64 hexadecimal digits"),
        ({"rules__mode": "both"}, "rules.mode: must be one of replace, add, off"),
        (
            {"mattermost__max_suggested_reviewers": "0"},
            "mattermost.max_suggested_reviewers: must be a whole number from 1",
        ),
        ({"reminders__after": "31d"}, "reminders.after: must be at most 30 days"),
        ({"reminders__every": "0s"}, "reminders.every: must be between one second and 30 days"),
        ({"reminders__most": "many"}, "reminders.most: must be a whole number from 1 to 100"),
        ({"reviews__submit_as": "plugin"}, 'reviews.policy: is missing: submit_as = "plugin"'),
        ({"reviews__submit_as": "state"}, 'reviews.policy: is missing: submit_as = "state"'),
        ({"reviews__policy": "{ dba = 3 }"}, "reviews.policy.dba: must be a table of keys, not a value"),
        ({"reviews__policy": "3"}, "reviews.policy: must be a table of keys, not a value"),
        ({"reviews__policy": "{ dba = { approvals = 1, denials = 1 } }"}, "reviews.policy.dba.reviewers: is empty"),
        ({"requesters__bob": ""}, "requesters.bob: must name one Mattermost user"),
        ({"requesters__bob": '{ id = "short" }'}, "requesters.bob: has an id that is not a Mattermost user id"),
        ({"requesters__bob": f'{{ id = "{ID}", name = "@bob" }}'}, "requesters.bob: must name one Mattermost user"),
        ({"role_to_recipients__dba": "[1]"}, "role_to_recipients.dba: must be text in quotes, not 1 (item 1)"),
        ({"teleport__lease": "soon"}, "teleport.lease: must be a duration"),
        ({"mattermost": "x"}, "mattermost: expected section.key"),
        ({"notices__x": "y"}, "notices: unknown key"),
        ({"mattermost__role": "y"}, "mattermost.role: unknown key"),
        ({"mattermost__recipients": "[" * 5000}, "mattermost.recipients: is nested too deeply"),
    ],
)
def test_what_is_refused(flags: dict[str, str], problem: str) -> None:
    found = problems(**flags)
    assert len(found) == 1, found
    assert found[0].startswith(problem)


def test_credentials_are_given_in_one_way_only(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[teleport]\nidentity = "a.pem"\nclient_crt = "a.crt"\n[mattermost]\ntoken = "a"\ntoken_file = "b"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {"mattermost.url": "http://localhost", "mattermost.recipients": "a/b"})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["teleport.identity", "mattermost.token"]


def test_half_of_the_legacy_pair_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[mattermost]\nurl = "https://chat.example.com"\ntoken = "/token"\nteam = "ops"\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.problems[0].startswith("mattermost.team, mattermost.channel: give recipients")


def test_flags_beat_the_environment_which_beats_the_file() -> None:
    environment = {
        "SIDECAR_MATTERMOST__URL": "https://environment.example.com",
        "SIDECAR_TELEPORT__PLUGIN_NAME": "environment",
        "SIDECAR_LIMITS__WORKERS": "7",
        "SIDECAR_MATTERMOST__NOTIFY_REQUESTER": "false",
        "SIDECAR_LOG__FORMAT": "",
        "SIDECAR_PORT": "tcp://10.0.0.1:80",
        "OTHER_LIMITS__QUEUE": "1",
    }
    config = load(DATA / "official-v18.toml", environment, {"teleport.plugin_name": "flag"})
    assert config.mattermost.url == "https://environment.example.com"
    assert config.mattermost.notify_requester is False
    assert config.teleport.plugin_name == "flag"
    assert config.limits.workers == 7
    assert config.limits.queue == 10_000
    assert config.log.format == "text"


def test_a_later_layer_takes_the_rival_of_its_key_back() -> None:
    """Who sets a token or an identity by flag means it instead of what the file says, not beside it."""
    config = load(
        DATA / "official-v9.toml",
        {"SIDECAR_MATTERMOST__TOKEN": "inline"},
        {"teleport.client_crt": "a.crt", "teleport.client_key": "a.key", "teleport.root_cas": "a.cas"},
    )
    assert config.mattermost.token is not None
    assert config.mattermost.token_file is None
    assert config.teleport.identity is None
    assert config.teleport.client_crt == Path("a.crt")


def test_free_tables_from_the_environment_keep_the_case_of_their_keys() -> None:
    environment = {
        "SIDECAR_REVIEWERS": '{ Alice = "alice@example.com" }',
        "SIDECAR_ROLE_TO_RECIPIENTS__DbAdmin": "a/b, c/d",
    }
    config = load(None, environment, MINIMAL)
    assert config.role_to_recipients["DbAdmin"] == ("a/b", "c/d")
    assert config.reviewers["alice"].user == "alice@example.com"


def test_an_unknown_variable_of_ours_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"mattermost\.urll: unknown key, did you mean url\?"):
        load(None, {"SIDECAR_MATTERMOST__URLL": "x"}, MINIMAL)


def test_a_variable_with_one_underscore_is_an_error() -> None:
    """Ignored, it would leave the default in effect without a word."""
    environment = {
        "SIDECAR_TELEPORT_ADDR": "auth:3025",
        "SIDECAR_MATTERMOST_TOKEN_FILE": "/run/secrets/token",
        "SIDECAR_REVIEWER": "{}",
        "SIDECAR_ZZZZZ": "x",
        "SIDECAR_EMPTY": "",
    }
    with pytest.raises(ConfigError) as caught:
        load(None, environment, MINIMAL)
    assert caught.value.problems == [
        "SIDECAR_MATTERMOST_TOKEN_FILE: unknown variable, did you mean SIDECAR_MATTERMOST__TOKEN_FILE?",
        "SIDECAR_REVIEWER: unknown variable, did you mean SIDECAR_REVIEWERS?",
        "SIDECAR_TELEPORT_ADDR: unknown variable, did you mean SIDECAR_TELEPORT__ADDR?",
        "SIDECAR_ZZZZZ: unknown variable, write it as SIDECAR_SECTION__KEY",
    ]


def test_what_kubernetes_says_of_a_service_is_no_setting() -> None:
    """A Service "sidecar" or "sidecar-mattermost" in the namespace must not keep the sidecar from starting."""
    for service in ("SIDECAR", "SIDECAR_MATTERMOST"):
        told = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_METRICS", "PORT", "PORT_9464_TCP", "PORT_9464_TCP_ADDR")
        load(None, {f"{service}_{name}": "tcp://10.0.0.1:9464" for name in told}, MINIMAL)


def test_policies_and_people_are_read() -> None:
    config = settings(
        reviews__submit_as="plugin",
        reviews__policy=POLICY,
        reviews__approve=":+1:,ok",
        reviewers__ivan=f'{{ id = "{ID}", user = "ivan" }}',
    )
    assert config.reviews.approve == ("+1", "ok")
    assert config.reviews.policy["*"].approvals == 2
    assert config.reviewers["ivan"].id == ID
    assert config.notices == ()


@pytest.mark.parametrize(
    ("flags", "notice"),
    [
        ({"mattermost__url": "http://chat.example.com"}, "mattermost.url: without https"),
        ({"mattermost__token": "inline"}, "mattermost.token: the token stands"),
        ({"mattermost__recipients": "", "role_to_recipients__dba": "a/b"}, 'role_to_recipients: has no "*" entry'),
        (
            {"role_to_recipients__ dbadmin ": "a/b"},
            'role_to_recipients: " dbadmin " begins or ends with a blank',
        ),
        ({"role_to_recipients__^prod-.*$": "a/b"}, 'role_to_recipients: "^prod-.*$" is a regular expression'),
        ({"role_to_recipients__DBADMIN": "a/b"}, 'role_to_recipients: "DBADMIN" matches only a role of exactly'),
        ({"reviews__submit_as": "on_behalf"}, "reviewers: is empty"),
    ],
)
def test_what_is_only_noticed(flags: dict[str, str], notice: str) -> None:
    notices = [one for one in settings(**flags).notices if "read as the" not in one]
    assert len(notices) == 1
    assert notices[0].startswith(notice)


def test_a_regular_expression_is_told_how_to_write_it() -> None:
    _, notice = settings(**{"role_to_recipients__^prod-.*$": "c/d"}).notices
    assert notice.endswith('is a regular expression, but only * is special here: write "prod-*"')
    assert len(settings(**{"role_to_recipients__prod-*": "c/d"}).notices) == 1


def test_who_decides_is_named_by_id() -> None:
    """A username can be given up and taken. `check --pin` reads the file all the same: it prints what is missing."""
    flags = MINIMAL | {"reviews.submit_as": "on_behalf", "reviewers.ivan": "i", "reviewers.alice": "a"}
    sentence = "reviewers: alice, ivan without an id: " + WITHOUT_ID
    with pytest.raises(ConfigError) as caught:
        load(None, {}, flags)
    assert caught.value.problems == [sentence]
    assert load(None, {}, flags, pinning=True).notices == (sentence,)
    assert load(None, {}, flags | {"reviews.submit_as": "none"}).notices == ()


def test_require_ids_says_nothing_any_more() -> None:
    (notice,) = settings(reviews__require_ids="true").notices
    assert notice == "reviews.require_ids: ignored, wherever decisions are on, [reviewers] is by id"


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", ":9464", "[::]:9464", "10.0.0.5:9464"])
def test_endpoints_for_everybody_are_noticed(listen: str) -> None:
    (notice,) = settings(endpoints__listen=listen).notices
    assert notice.startswith(
        f"endpoints.listen: others can reach {listen}, and neither TLS nor a bearer token guards it"
    )
    assert notice.endswith(": give bearer_token_file, and tls_crt with tls_key, or listen on 127.0.0.1 alone")


@pytest.mark.parametrize(
    "flags",
    [
        {"endpoints__listen": "127.0.0.1:9464"},
        {"endpoints__listen": "[::1]:9464"},
        {"endpoints__listen": ":9464", "endpoints__bearer_token_file": "/run/secrets/scrape"},
        {"endpoints__listen": ":9464", "endpoints__tls_crt": "/tls.crt", "endpoints__tls_key": "/tls.key"},
    ],
)
def test_endpoints_that_somebody_guards_are_not(flags: dict[str, str]) -> None:
    assert settings(**flags).notices == ()


@pytest.mark.parametrize(
    ("requesters", "user", "recipient"),
    [
        ('{ bob = "bob@example.com" }', "bob", "bob@example.com"),
        ('{ bob = "bob@example.com" }', "bob@example.com", "@bob"),
        ('{ "bob@example.com" = "bobby" }', "bob@example.com", "@bobby"),
        ('{ bob = "@bobby" }', "bob", "@bobby"),
        ('{ bob = "bob" }', "bob", "@bob"),
        (f'{{ bob = {{ id = "{ID}" }} }}', "bob", f"user:{ID}"),
        (f'{{ bob = {{ id = "{ID}" }} }}', "", ""),
        ('{ bob = "bob@example.com" }', "carol", ""),
        ('{ bob = "shared", carol = "shared" }', "shared", ""),
    ],
)
def test_requesters_read_either_way(requesters: str, user: str, recipient: str) -> None:
    config = load(None, {"SIDECAR_REQUESTERS": requesters}, MINIMAL)
    assert config.requester_recipient(user) == recipient


def test_token_is_read_anew_each_time(tmp_path: Path) -> None:
    """A rotated token needs no restart."""
    path = tmp_path / "token"
    mattermost = settings(mattermost__token_file=str(path)).mattermost
    with pytest.raises(LinkRefused, match="cannot be read: No such file"):
        mattermost.read_token()
    path.write_text("first\n")
    assert mattermost.read_token() == "first"
    path.write_text("second")
    assert mattermost.read_token() == "second"


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xff"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(LinkRefused, match=str(path)):
        settings(mattermost__token_file=str(path)).mattermost.read_token()


def test_secrets_hide() -> None:
    config = settings(mattermost__token="s3cret-value")
    assert config.mattermost.read_token() == "s3cret-value"
    assert "s3cret-value" not in f"{config} {config!r} {redacted(config)}"
    assert redacted(config)["mattermost"]["token"] == "***"
    assert f"{Secret('x')}" == "***"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("1d", 86400), ("0", 0), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "1 m", "10min", "1h-3m", "1.m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:3025", ("localhost", 3025)),
        ("[::1]:80", ("::1", 80)),
        (":9464", ("", 9464)),
        ("::1:80", None),
        ("a b:80", None),
        ("a:65536", None),
        ("a:", None),
        ("https://a:80", None),
    ],
)
def test_addresses(address: str, parts: tuple[str, int] | None) -> None:
    assert split_address(address) == parts
