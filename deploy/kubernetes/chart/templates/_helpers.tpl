{{- define "labels" -}}
app.kubernetes.io/name: inference-svc
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "registries" -}}
{{- $name := printf "%s-registry" .Release.Name -}}
{{- range $number := until (int .Values.registry.replicas) -}}
{{- if $number }},{{ end }}http://{{ $name }}-{{ $number }}.{{ $name }}:18000
{{- end -}}
{{- end -}}

{{- define "store" -}}
{{- if .Values.etcd.enabled -}}
{{- $name := printf "%s-etcd" .Release.Name -}}
etcd://{{ range $number := until (int .Values.etcd.members) }}{{ if $number }},{{ end }}{{ $name }}-{{ $number }}.{{ $name }}:2379{{ end }}
{{- else -}}
{{ required "registry.store: name an etcd, or set etcd.enabled" .Values.registry.store }}
{{- end -}}
{{- end -}}

{{- define "pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Secrets are mounted readable for a group; our programs want them readable for their owner alone. */}}
{{- define "tokens" -}}
{{- if .Values.auth.secret -}}
initContainers:
  - name: tokens
    image: {{ .Values.image }}
    imagePullPolicy: {{ .Values.imagePullPolicy }}
    command: [sh, -c, "umask 077 && cp /secret/* /tokens/"]
    {{- include "container" . | nindent 4 }}
    volumeMounts:
      - { name: secret, mountPath: /secret, readOnly: true }
      - { name: tokens, mountPath: /tokens }
{{- else if not .Values.auth.insecure -}}
{{- fail "auth.secret: name a secret with tokens, or set auth.insecure to let everybody in" -}}
{{- end -}}
{{- end -}}

{{- define "tokenVolumes" -}}
{{- if .root.Values.auth.secret }}
- name: tokens
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
- name: secret
  secret:
    secretName: {{ .root.Values.auth.secret }}
    items:
      {{- range .files }}
      - { key: {{ . }}, path: {{ . }} }
      {{- end }}
{{- end }}
{{- end -}}

{{- define "tokenMount" -}}
{{- if .Values.auth.secret }}
- { name: tokens, mountPath: /tokens, readOnly: true }
{{- end }}
{{- end -}}
