"""Emoji names that the v11 profile knows: the common ones of the web client's picker (v5.37 accepts any name)."""

from __future__ import annotations

_PLAIN = """
+1 -1 thumbsup thumbsdown ok_hand clap raised_hands pray wave eyes tada fire heart smile joy thinking warning
white_check_mark heavy_check_mark ballot_box_with_check x negative_squared_cross_mark no_entry no_entry_sign stop_sign
lock unlock key rocket hourglass question exclamation grey_question red_circle large_green_circle large_blue_circle
green_circle yellow_circle no_good ok_woman o heavy_multiplication_x
"""
_TONES = ("light", "medium_light", "medium", "medium_dark", "dark")
_HANDS = ("+1", "-1", "thumbsup", "thumbsdown", "ok_hand", "clap", "wave", "pray")

SYSTEM_EMOJI = frozenset(_PLAIN.split()) | {f"{hand}_{tone}_skin_tone" for hand in _HANDS for tone in _TONES}
