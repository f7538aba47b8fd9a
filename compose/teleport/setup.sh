#!/bin/sh
# One shot beside a running Auth Service: the guide's roles and users, the credentials of the sidecar and of the
# reviewers, and the configuration that fits the edition. Can be run again at any time.
set -eu

HERE=${TELEPORT_FILES:-/etc/teleport}
FRAGMENTS=${SIDECAR_FILES:-/etc/sidecar}
OUT=${CREDENTIALS:-/credentials}
OWNER=${SIDECAR_USER:-65532:65532}

tctl() { command "${TCTL:-tctl}" --config="${AUTH_CONFIG:-$HERE/teleport.yaml}" "$@"; }

# Files appear whole, with the sidecar's rights, or not at all: sign beside, then move.
umask 077
NEW=$OUT/.new
rm -rf "$NEW"
mkdir -p "$NEW" "$OUT/reviewers"
chmod 755 "$OUT" "$OUT/reviewers"
hand_over() { chown "$OWNER" "$@"; }

# Compose waits for health; not every engine that reads compose files does.
tries=60
until tctl status >"$NEW/said" 2>&1; do
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || { cat "$NEW/said" >&2; exit 1; }
  sleep 2
done

if said=$(tctl create -f "$HERE/roles-enterprise.yaml" 2>&1); then
  edition=enterprise
else
  case $said in
    *enterprise*) edition=community ;;
    *) echo "$said" >&2; exit 1 ;;
  esac
  tctl create -f "$HERE/roles-community.yaml"
fi
tctl create -f "$HERE/people.yaml"

# The Auth Service learns of a new user from its own cache.
sign() {
  tries=10
  until tctl auth sign --format=tls --user="$1" --out="$2" --ttl=720h --overwrite >"$NEW/said" 2>&1; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { cat "$NEW/said" >&2; exit 1; }
    sleep 1
  done
}

sign access-plugin "$NEW/auth"
hand_over "$NEW"/auth.*
mv "$NEW"/auth.* "$OUT/"

if [ "$edition" = enterprise ]; then
  mkdir "$NEW/reviewers"
  for reviewer in alice@example.com ivan@example.com; do
    sign "$reviewer" "$NEW/reviewers/$reviewer"
  done
  hand_over "$NEW"/reviewers/*
  mv "$NEW"/reviewers/* "$OUT/reviewers/"
fi

cat "$FRAGMENTS/sidecar.toml" "$FRAGMENTS/reviews-$edition.toml" "$OUT/reviewers.toml" >"$NEW/sidecar.toml"
hand_over "$NEW/sidecar.toml"
mv "$NEW/sidecar.toml" "$OUT/"
rm -rf "$NEW"
echo "The sidecar's credentials and its configuration for the $edition edition are in place."
