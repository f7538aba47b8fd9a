"""The Teleport roles, users and commands that each way of submitting reviews needs, as `sidecar configure` prints them.

Role version v3 is the one that every Teleport from 7 on reads. It opens all apps, clusters and databases to a role
that does not mention them, and `none: none` matches nothing (lib/services/role.go, api/types/role.go).
"""

from __future__ import annotations

import textwrap

_CLOSED = """\
    app_labels: {none: none}
    kubernetes_labels: {none: none}
    db_labels: {none: none}
"""
_RULES = """\
    rules:
      - resources: [access_request]
        verbs: [%s]
      - resources: [access_plugin_data]
        verbs: [list, read, update]
      # For access monitoring rules that name us; without it, [role_to_recipients] alone says who is told.
      - resources: [access_monitoring_rule]
        verbs: [list, read]
      # For such rules that ask for the requester's traits; without it, whoever they name is told of every request.
      - resources: [user, user_login_state]
        verbs: [read]
"""
# What allow holds beyond the rules.
_REVIEWS = {
    "plugin": """\
    # The sidecar's one review, once the people of reviews.policy agreed. Name the roles that people ask for.
    review_requests:
      roles: [example-dbadmin]
""",
    "on_behalf": """\
    # Whose reviews it may submit (Teleport 18.11 or newer); their own rights are judged as well.
    review_requests:
      submit_for_users: ["alice@example.com", "ivan@example.com"]
""",
}
_TWO = """\
        # Two approvals, or one denial, decide.
        - approve: 2
          deny: 1
"""
_THRESHOLDS = {
    "plugin": """\
        # Each of the two is enough: two people on Teleport, or the sidecar for those of its policy.
        - name: people
          approve: 2
          deny: 1
          filter: 'contains(reviewer.roles, "example-reviewer")'
        - name: mattermost
          approve: 1
          deny: 1
          filter: 'contains(reviewer.roles, "access-plugin")'
""",
    # The community edition refuses a role with thresholds: there the sidecar's policy counts.
    "state": "",
}
_NOTES = {
    "none": "Nobody decides from Mattermost: messages link to Teleport and show the tsh commands.",
    "reviewer": (
        "Reviews are submitted with each reviewer's own credentials, and Teleport counts them. The reviewers must be "
        "local users, best ones that hold a role to review and no other, for the sidecar holds their keys. "
        "The commands below sign for alice@example.com and ivan@example.com: name yours."
    ),
    "plugin": (
        "The sidecar counts the people of [reviews.policy] and then submits one review as its own user, whose reason "
        "names them. It works for single sign-on users."
    ),
    "on_behalf": (
        "The sidecar submits each person's own review under its own user. Teleport 18.11 or newer; older ones drop "
        "submit_for_users without a word. Experimental."
    ),
    "state": (
        "For the community edition alone, which has no reviews: the sidecar counts the people of [reviews.policy] and "
        "then sets the state. Its user can approve anything, so guard these credentials well."
    ),
}


def render(mode: str) -> str:
    """One file for `tctl create`: the sidecar's own role and user. Everything that is no YAML stands in comments."""
    # Without a separator after the comment: tctl takes a document of comments alone for one without a kind.
    return _head(mode) + "---\n".join(_own(mode)) + _commands(mode)


def render_example(mode: str) -> str:
    """One file for `tctl create`: dual authorization as in Teleport's guide, under names that nobody has yet."""
    who = "the people of reviews.policy" if mode == "state" else "two who hold example-reviewer"
    text = f"""\
Dual authorization, an example for reviews.submit_as = "{mode}": who holds \
example-requester may ask for example-dbadmin, and {who} must agree.
Change names and labels to yours. Then on the Auth Service host: tctl create example.yaml (it refuses names that are \
taken; -f would replace them)."""
    return _comment(text) + "---\n".join(_examples(mode))


def render_bot() -> str:
    """One file for `tctl create`: the role, and a bot that holds it, so that tbot renews the sidecar's certificates."""
    text = """\
Teleport's side of the sidecar where tbot renews its certificates.
On the Auth Service host: tctl create bot.yaml
The commands that come after that stand at the end. For another reviews.submit_as than "none" take the role that \
`sidecar configure --rbac MODE` prints."""
    bot = "kind: bot\nversion: v1\nmetadata:\n  name: mattermost\nspec:\n  roles: [access-plugin]\n"
    after = """
After that, a token of one use, with which tbot joins:
  tctl bots instances add mattermost
It belongs into tbot's configuration, whose one service is this; a folder holds all that the sidecar reads:
  services:
    - type: identity
      destination: {type: directory, path: /var/lib/teleport-mattermost-tbot/identity}
In the sidecar's configuration:
  [teleport]
  identity = "/var/lib/teleport-mattermost-tbot/identity/identity"
Whole files, also for Kubernetes and Terraform: compose/tbot, compose/systemd, compose/terraform."""
    return _comment(text) + "---\n".join([_own("none")[0], bot]) + _lines(after)


def _head(mode: str) -> str:
    text = f"""\
Teleport's side of the sidecar, for reviews.submit_as = "{mode}".
{_NOTES[mode]}
On the Auth Service host: tctl create rbac.yaml (with -f it replaces what bears these names).
The commands that come after that stand at the end."""
    return _comment(text)


def _comment(text: str) -> str:
    lines = [wrapped for line in text.splitlines() for wrapped in textwrap.wrap(line, 110) or [""]]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _role(name: str, allow: str, about: str = "") -> str:
    comment = f"# {about}\n" if about else ""
    return f"{comment}kind: role\nversion: v3\nmetadata:\n  name: {name}\nspec:\n  allow:\n{allow}{_CLOSED}"


def _own(mode: str) -> list[str]:
    verbs = "list, read, update" if mode == "state" else "list, read"
    role = _role("access-plugin", _RULES % verbs + _REVIEWS.get(mode, ""), "What the sidecar itself may do.")
    user = "kind: user\nversion: v2\nmetadata:\n  name: access-plugin\nspec:\n  roles: [access-plugin]\n"
    return [role, user]


def _examples(mode: str) -> list[str]:
    """Roles first that others name."""
    thresholds = _THRESHOLDS.get(mode, _TWO)
    asks = "    request:\n      roles: [example-dbadmin]\n" + (f"      thresholds:\n{thresholds}" if thresholds else "")
    dbadmin = "    # Root on the servers that bear this label.\n    logins: [root]\n    node_labels:\n      env: db\n"
    review = "    review_requests:\n      roles: [example-dbadmin]\n"
    found = [
        _role("example-dbadmin", dbadmin, "What is asked for. Nobody holds it for good."),
        _role("example-requester", asks, "Who holds this may ask for it."),
    ]
    return [*found, _role("example-reviewer", review, "Who holds this may review it.")] if thresholds else found


def _commands(mode: str) -> str:
    text = """
After that, a few seconds later, still on the Auth Service host:
  tctl auth sign --format=tls --user=access-plugin --ttl=8760h --out=auth
"""
    if mode == "reviewer":
        text += """\
  mkdir -m 700 reviewers
  tctl auth sign --format=tls --user=alice@example.com --ttl=8760h --out=reviewers/alice@example.com
  tctl auth sign --format=tls --user=ivan@example.com --ttl=8760h --out=reviewers/ivan@example.com
The sidecar needs the .crt and .key of each reviewer; remove the .cas. reviews.identities names the folder.
"""
    if mode in {"plugin", "state"}:
        text += """
In the sidecar's configuration:
  [reviews.policy."*"]
  reviewers = ["alice@example.com", "ivan@example.com"]
  approvals = 2
  denials = 1
"""
    text += """
In Kubernetes, where the sidecar finds them as files of a Secret:
  kubectl create secret generic teleport-mattermost --from-file=auth.crt --from-file=auth.key --from-file=auth.cas \\
    --from-file=token=mattermost-token
"""
    if mode == "reviewer":
        text += """\
Keys of a Secret bear no @, so the volume gives the files their names:
  kubectl create secret generic teleport-mattermost-reviewers \\
    --from-file=alice.crt=reviewers/alice@example.com.crt --from-file=alice.key=reviewers/alice@example.com.key \\
    --from-file=ivan.crt=reviewers/ivan@example.com.crt --from-file=ivan.key=reviewers/ivan@example.com.key
A mounted Secret is readable by a group, and the sidecar refuses such keys: an init container of its user copies them.
The copies are made when the pod starts, so renewed ones need a new pod.
  initContainers:
    - name: reviewers
      image: busybox
      command: [sh, -c, "cp -L /secret/* /reviewers/ && chmod 600 /reviewers/*"]
      securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532}
      volumeMounts:
        - {name: reviewers-secret, mountPath: /secret, readOnly: true}
        - {name: reviewers, mountPath: /reviewers}
  volumes:
    - name: reviewers  # mounted by the sidecar at reviews.identities
      emptyDir: {medium: Memory}
    - name: reviewers-secret
      secret:
        secretName: teleport-mattermost-reviewers
        defaultMode: 0440  # for the pod's fsGroup, 65532 where it has none
        items:
          - {key: alice.crt, path: alice@example.com.crt}
          - {key: alice.key, path: alice@example.com.key}
          - {key: ivan.crt, path: ivan@example.com.crt}
          - {key: ivan.key, path: ivan@example.com.key}
"""
    text += """
Then: sidecar check --config FILE"""
    return _lines(text)


def _lines(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
