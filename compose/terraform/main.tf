# The sidecar's role, its bot and how the bot joins from Kubernetes: what `sidecar configure --rbac` and compose/tbot/
# say, for Teleport's own provider (16 or newer). A cluster that has a role access-plugin (17 and newer) needs
# `terraform import teleport_role.access_plugin access-plugin` first, or another name for ours.

terraform {
  required_providers {
    teleport = {
      source  = "terraform.releases.teleport.dev/gravitational/teleport"
      version = ">= 16.0.0"
    }
  }
}

# The provider reads TF_TELEPORT_ADDR and TF_TELEPORT_IDENTITY_FILE_PATH.
provider "teleport" {}

resource "teleport_role" "access_plugin" {
  version = "v7"
  metadata = {
    name = "access-plugin"
  }
  spec = {
    allow = {
      rules = [
        { resources = ["access_request"], verbs = ["list", "read"] },
        { resources = ["access_plugin_data"], verbs = ["list", "read", "update"] },
      ]
    }
  }
}

resource "teleport_bot" "mattermost" {
  metadata = {
    name = "mattermost"
  }
  spec = {
    roles = [teleport_role.access_plugin.metadata.name]
  }
}

resource "teleport_provision_token" "mattermost_bot" {
  version = "v2"
  metadata = {
    name = "mattermost-bot"
  }
  spec = {
    roles       = ["Bot"]
    bot_name    = teleport_bot.mattermost.metadata.name
    join_method = "kubernetes"
    kubernetes = {
      type  = "in_cluster"
      allow = [{ service_account = "teleport:teleport-mattermost-tbot" }]
    }
  }
}
