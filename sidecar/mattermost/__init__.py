"""Mattermost: REST calls, recipients and websocket events (upstream 5.37 to 11)."""
