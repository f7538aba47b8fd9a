"""An embedded Mattermost server: REST and websocket on one real port."""
