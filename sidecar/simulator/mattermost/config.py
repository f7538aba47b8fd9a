"""Settings as /config/client shows them, with the product's defaults."""

from __future__ import annotations

# What a stranger may see, and the rest: mattermost config/client.go and a recorded 5.37.0.
PUBLIC_CONFIG = {
    "BuildEnterpriseReady": "",
    "BuildNumber": "",
    "DiagnosticsEnabled": "false",
    "EnableBotAccountCreation": "true",
    "EnableCustomEmoji": "true",
    "EnableGuestAccounts": "false",
    "EnableLdap": "false",
    "EnableOpenServer": "false",
    "EnableSaml": "false",
    "EnableSignInWithEmail": "true",
    "EnableSignInWithUsername": "true",
    "EnableSignUpWithEmail": "true",
    "EnableSignUpWithGitLab": "false",
    "EnableSignUpWithGoogle": "false",
    "EnableSignUpWithOffice365": "false",
    "EnableSignUpWithOpenId": "false",
    "EnableUserCreation": "true",
    "SiteName": "Mattermost",
    "Version": "",
    "WebsocketPort": "80",
    "WebsocketSecurePort": "443",
    "WebsocketURL": "",
}
PRIVATE_CONFIG = {
    "EnableCluster": "false",
    "EnableCommands": "true",
    "EnableIncomingWebhooks": "true",
    "EnableLinkPreviews": "true",
    "EnablePostIconOverride": "false",
    "EnablePostUsernameOverride": "false",
    "EnableReliableWebSockets": "true",
    "EnableUserAccessTokens": "true",
    "ExperimentalSharedChannels": "false",
    "MaxFileSize": "104857600",
    "MaxNotificationsPerChannel": "1000",
    "MaxPostSize": "16383",
    "PostEditTimeLimit": "-1",
    "RequireEmailVerification": "false",
    "RestrictDirectMessage": "any",
    "ShowEmailAddress": "true",
    "ShowFullName": "true",
    "SiteURL": "http://localhost:8065",
}
