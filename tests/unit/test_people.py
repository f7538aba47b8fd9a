"""When an address proves who somebody is: only where the server's settings leave no way to take one."""

from __future__ import annotations

import pytest

from sidecar.reconcile.people import address_risk

SAFE = {
    "ShowEmailAddress": "true",
    "RequireEmailVerification": "true",
    "EnableSignUpWithEmail": "true",
    "EnableSignInWithEmail": "true",
    "EnableSignInWithUsername": "true",
}
PASSWORDS = ("EnableSignUpWithEmail", "EnableSignInWithEmail", "EnableSignInWithUsername")


def test_verified_addresses_are_trusted() -> None:
    assert address_risk(SAFE) == ""


def test_single_sign_on_alone_is_trusted() -> None:
    assert address_risk(SAFE | {"RequireEmailVerification": "false"} | dict.fromkeys(PASSWORDS, "false")) == ""


@pytest.mark.parametrize("left", PASSWORDS)
def test_one_way_to_sign_in_with_a_password_is_one_too_many(left: str) -> None:
    settings = SAFE | {"RequireEmailVerification": "false"} | dict.fromkeys(PASSWORDS, "false") | {left: "true"}
    assert left in address_risk(settings)


@pytest.mark.parametrize("settings", [{}, {"ShowEmailAddress": "true"}, SAFE | {"ShowEmailAddress": "false"}])
def test_what_a_server_does_not_say_is_no_safety(settings: dict[str, str]) -> None:
    assert address_risk(settings)
