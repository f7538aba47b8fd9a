"""Teleport access requests in Mattermost."""

__version__ = "0.1.0"
