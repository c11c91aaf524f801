{{/* Labels of every object. */}}
{{- define "portcullis.labels" -}}
app.kubernetes.io/name: portcullis
app.kubernetes.io/part-of: portcullis
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What selects the agents. It can never change: a DaemonSet's selector is immutable. */}}
{{- define "portcullis.selector" -}}
app.kubernetes.io/name: portcullis
app.kubernetes.io/component: agent
{{- end }}

{{- define "portcullis.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Settings as environment variables: service-cidr becomes PORTCULLIS_SERVICE_CIDR. */}}
{{- define "portcullis.settings" -}}
PORTCULLIS_SOCKET: /run/portcullis/portcullis.sock
{{- range $name, $value := .Values.settings }}
{{- $text := $value }}
{{- if kindIs "slice" $value }}{{ $text = join "," $value }}{{ end }}
{{- /* A number in values is a float, which prints large ones as 1e+06. */}}
{{- if kindIs "float64" $text }}{{ if eq (float64 (int64 $text)) $text }}{{ $text = int64 $text }}{{ end }}{{ end }}
PORTCULLIS_{{ $name | upper | replace "-" "_" }}: {{ $text | toString | quote }}
{{- end }}
{{- end }}
