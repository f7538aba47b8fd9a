#!/bin/sh
# One shot beside a running Mattermost: Alice, Ivan and Bob, the team `ops`, its channel `access-requests`, the bot
# `teleport` in it, and the bot's token. Can be run again at any time; needs curl and nothing else.
set -eu

URL=${MATTERMOST_URL:-http://mattermost:8065}
OUT=${CREDENTIALS:-/credentials}
PEOPLE=${PEOPLE:-/people}
OWNER=${SIDECAR_USER:-65532:65532}

umask 077
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
: >"$WORK/headers"

# METHOD PATH [BODY]: print the answer; fail where Mattermost refuses. Secrets never stand on a command line.
call() {
  printf '%s' "${3-}" | curl --silent --show-error --fail --max-time 30 --request "$1" --header "@$WORK/headers" \
    --dump-header "$WORK/answered" ${3+--data-binary @-} "$URL/api/v4$2"
}

# The first value of a key in the JSON on standard input.
value() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4; }

# PATH of what may exist, PATH to make it at, BODY: print it, found or made.
ensure() { call GET "$1" 2>/dev/null || call POST "$2" "$3"; }

authorize() { printf 'Authorization: Bearer %s\n' "$1" >"$WORK/headers"; }

sign_in() {
  call POST /users/login "{\"login_id\":\"admin\",\"password\":\"$password\"}" >/dev/null 2>"$WORK/said" || return 1
  authorize "$(sed -n 's/^[Tt]oken: *\([a-z0-9]*\).*/\1/p' "$WORK/answered")"
}

person() {
  ensure "/users/username/$1" /users "{\"email\":\"$1@example.com\",\"username\":\"$1\",\"password\":\"$password\"}" | value id
}

if [ -s "$PEOPLE/password" ]; then
  password=$(cat "$PEOPLE/password")
else
  password="$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')-Aa1"
  printf '%s' "$password" >"$PEOPLE/password"
fi

# Compose waits for health; not every engine that reads compose files does.
tries=60
until call GET /system/ping >/dev/null 2>"$WORK/said"; do
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || { cat "$WORK/said" >&2; exit 1; }
  sleep 2
done

# The first person of an empty Mattermost becomes its administrator.
if ! sign_in; then
  call POST /users "{\"email\":\"admin@example.com\",\"username\":\"admin\",\"password\":\"$password\"}" >/dev/null
  sign_in || { cat "$WORK/said" >&2; exit 1; }
fi
session=$(cat "$WORK/headers")

team=$(ensure /teams/name/ops /teams '{"name":"ops","display_name":"Operations","type":"O"}' | value id)
channel=$(ensure "/teams/$team/channels/name/access-requests" /channels \
  "{\"team_id\":\"$team\",\"name\":\"access-requests\",\"display_name\":\"Access requests\",\"type\":\"P\"}" | value id)

alice=$(person alice)
ivan=$(person ivan)
bob=$(person bob)
if bot=$(call GET /users/username/teleport 2>/dev/null); then
  bot=$(printf '%s' "$bot" | value id)
else
  bot=$(call POST /bots '{"username":"teleport","display_name":"Teleport","description":"Access requests"}' | value user_id)
fi
for member in "$alice" "$ivan" "$bob" "$bot"; do
  call POST "/teams/$team/members" "{\"team_id\":\"$team\",\"user_id\":\"$member\"}" >/dev/null
  call POST "/channels/$channel/members" "{\"user_id\":\"$member\"}" >/dev/null
done

# By id: names can change hands.
cat >"$OUT/reviewers.toml" <<TOML

[reviewers]
alice = { id = "$alice", user = "alice@example.com" }
ivan = { id = "$ivan", user = "ivan@example.com" }
TOML

works() {
  [ -e "$OUT/mattermost-token" ] || return 1
  authorize "$1"
  call GET /users/me >/dev/null 2>&1
}

# The sidecar's user owns the token; it is kept here too, so that a second run need not make another one.
if ! works "$(cat "$PEOPLE/token" 2>/dev/null)"; then
  printf '%s\n' "$session" >"$WORK/headers"
  call POST "/users/$bot/tokens" '{"description":"sidecar"}' | value token >"$PEOPLE/token"
  cp "$PEOPLE/token" "$OUT/.mattermost-token"
  chown "$OWNER" "$OUT/.mattermost-token"
  mv "$OUT/.mattermost-token" "$OUT/mattermost-token"
fi
chmod 755 "$OUT"
echo "Open $URL (from outside: http://localhost:8065) as alice, ivan, bob or admin; the password is $password"
