{{- define "sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sidecar.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sidecar.labels" -}}
{{ include "sidecar.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sidecar.tokenSecret" -}}
{{- .Values.mattermost.tokenFromSecret | default (printf "%s-token" (include "sidecar.fullname" .)) -}}
{{- end -}}

{{- /* A JSON text is a TOML text, so no value can end the one it stands in. */ -}}
{{- define "sidecar.toml" -}}
{{- $identity := "/run/secrets/teleport/" -}}
[teleport]
addr = {{ required "teleport.address is missing: host:port of the Auth Service" .Values.teleport.address | toJson }}
{{- if .Values.teleport.identitySecretPath }}
identity = {{ print $identity .Values.teleport.identitySecretPath | toJson }}
{{- else }}
client_crt = {{ print $identity "auth.crt" | toJson }}
client_key = {{ print $identity "auth.key" | toJson }}
root_cas = {{ print $identity "auth.cas" | toJson }}
{{- end }}

[mattermost]
url = {{ required "mattermost.url is missing" .Values.mattermost.url | toJson }}
token_file = {{ print "/run/secrets/mattermost/" .Values.mattermost.tokenSecretPath | toJson }}
{{- with .Values.mattermost.recipients }}
recipients = {{ toJson . }}
{{- end }}
{{- if .Values.mattermost.caFromSecret }}
ca_file = {{ print "/run/secrets/mattermost-ca/" .Values.mattermost.caSecretPath | toJson }}
{{- end }}
{{- with .Values.roleToRecipients }}

[role_to_recipients]
{{- range $role, $recipients := . }}
{{ toJson $role }} = {{ toJson $recipients }}
{{- end }}
{{- end }}

[endpoints]
# Kubelet and Prometheus ask from outside the pod; no secret is there.
listen = "0.0.0.0:9464"

[log]
severity = {{ .Values.log.severity | toJson }}
format = "json"
{{- with .Values.extraConfig }}

{{ . }}
{{- end }}
{{- end -}}
