{{/* Pieces that several templates share. Each takes the root, or a dict of "root" and "component". */}}

{{- define "runledger.labels" -}}
app.kubernetes.io/name: runledger
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "runledger.selector" -}}
app.kubernetes.io/name: runledger
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* What every pod of the chart's has in its spec: PodSecurity "restricted", and where the image is from. */}}
{{- define "runledger.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
enableServiceLinks: false
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "runledger.container" -}}
image: {{ required "images.runledger is empty: name the image made from images/runledger/Containerfile" .Values.images.runledger | quote }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "runledger.databaseEnv" -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "database.existingSecret is empty: name a Secret of this namespace that has a Postgres URI in its key `uri`" .root.Values.database.existingSecret }}
      key: {{ .key | default .root.Values.database.key }}
{{- with .root.Values.database.caKey }}
# Its text, not a path; libpq's own variable takes a path only, the driver takes either.
- name: PGSSLROOTCERT
  valueFrom:
    secretKeyRef:
      name: {{ $.root.Values.database.existingSecret }}
      key: {{ . }}
      optional: true
{{- end }}
{{- end }}

{{/* Not empty where something of the ledger is ever too old. */}}
{{- define "runledger.prunes" -}}
{{- range .Values.prune.keepDays }}{{ with . }}{{ . }}{{ end }}{{ end }}
{{- end }}

{{/* Where the pods of a Deployment run: its own values, and not all on one node. */}}
{{- define "runledger.placement" -}}
{{- $values := index .root.Values .component -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "runledger.selector" . | nindent 8 }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Newest API version of MutatingAdmissionPolicies that the cluster has; nothing where it has none, or
where none is wanted. */}}
{{- define "runledger.admissionVersion" -}}
{{- $version := "" }}
{{- range list "v1beta1" "v1" }}
{{- if $.Capabilities.APIVersions.Has (printf "admissionregistration.k8s.io/%s/MutatingAdmissionPolicy" .) }}{{ $version = . }}{{ end }}
{{- end }}
{{- if .Values.admissionPolicy.enabled }}{{ $version }}{{ end }}
{{- end }}
