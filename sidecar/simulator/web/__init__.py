"""The page that shows the embedded Mattermost to a person."""
