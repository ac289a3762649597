{{- define "cabrank.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- /* Labels of a part: {root, part}. */}}
{{- define "cabrank.selector" -}}
app.kubernetes.io/name: cabrank
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "cabrank.labels" -}}
{{ include "cabrank.selector" . }}
cabrank/city: {{ .root.Values.city }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "cabrank.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* A table as TOML: {path, table}. Scalars first, because tables follow them. Strings, numbers, booleans and lists
of them are the same in JSON and TOML. */}}
{{- define "cabrank.toml" -}}
{{- $path := .path }}
{{- $deeper := dict }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}{{ $_ := set $deeper $key $value }}{{ else if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := $deeper }}
{{- $inner := ternary (printf "%s.%s" $path $key) $key (ne $path "") }}

[{{ $inner }}]
{{- include "cabrank.toml" (dict "path" $inner "table" $value) }}
{{- end }}
{{- end }}

{{- /* The configuration: what the chart knows, over `config`. */}}
{{- define "cabrank.config" -}}
{{- $v := .Values }}
{{- $security := dict "protocol" $v.kafka.security.protocol }}
{{- $files := "/etc/cabrank/kafka" }}
{{- if hasSuffix "ssl" $v.kafka.security.protocol }}
{{- $_ := set $security "ca_file" (printf "%s/ca.pem" $files) }}
{{- end }}
{{- if $v.kafka.security.clientCertificate }}
{{- $_ := set $security "certificate_file" (printf "%s/client.pem" $files) }}
{{- $_ := set $security "key_file" (printf "%s/client.key" $files) }}
{{- end }}
{{- if hasPrefix "sasl" $v.kafka.security.protocol }}
{{- $_ := set $security "sasl_mechanism" $v.kafka.security.saslMechanism }}
{{- $_ := set $security "username" $v.kafka.security.username }}
{{- $_ := set $security "password_file" (printf "%s/password" $files) }}
{{- end }}
{{- $kafka := dict "brokers" (required "kafka.brokers: name the brokers, host:port, separated by commas" $v.kafka.brokers) "prefix" $v.kafka.prefix "shards" $v.kafka.shards "replication" $v.kafka.replication "security" $security }}
{{- $keys := dict "jwks_url" $v.auth.jwksUrl "issuer" $v.auth.issuer "audience" $v.auth.audience }}
{{- if $v.gateway.revocations.existingClaim }}
{{- $_ := set $keys "revocations_file" "/var/lib/cabrank/revocations" }}
{{- end }}
{{- $limits := dict }}
{{- with $v.gateway.trustedNetworks }}{{ $_ := set $limits "exempt_addresses" . }}{{ end }}
{{- $gateway := dict "keys" $keys "limits" $limits }}
{{- if $v.gateway.tls.secretName }}
{{- $_ := set $gateway "tls" (dict "certificate_file" "/etc/cabrank/tls/tls.crt" "key_file" "/etc/cabrank/tls/tls.key") }}
{{- end }}
{{- $own := dict "kafka" $kafka "gateway" $gateway }}
{{- if $v.clusterTls.secretName }}
{{- $papers := "/etc/cabrank/cluster" }}
{{- $_ := set $own "cluster" (dict "tls" (dict "certificate_file" (printf "%s/tls.crt" $papers) "key_file" (printf "%s/tls.key" $papers) "ca_file" (printf "%s/ca.crt" $papers) "name" $v.clusterTls.name)) }}
{{- end }}
{{- $all := mergeOverwrite (deepCopy $v.config) $own }}
{{- include "cabrank.toml" (dict "path" "" "table" $all) | trim }}
{{- end }}

{{- define "cabrank.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cabrank.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "cabrank.env" -}}
- {name: CABRANK_CONFIG, value: /etc/cabrank/cabrank.toml}
- {name: CABRANK_LOG, value: {{ .Values.log | quote }}}
{{- end }}

{{- /* Mounts and volumes that every process has: {root, config}. */}}
{{- define "cabrank.mounts" -}}
- {name: config, mountPath: /etc/cabrank/cabrank.toml, subPath: cabrank.toml, readOnly: true}
{{- if .root.Values.kafka.security.secretName }}
- {name: kafka, mountPath: /etc/cabrank/kafka, readOnly: true}
{{- end }}
{{- end }}
{{- define "cabrank.volumes" -}}
- name: config
  configMap: {name: {{ .config }}}
{{- with .root.Values.kafka.security.secretName }}
- name: kafka
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "cabrank.meshAnnotations" -}}
{{- with .Values.mesh }}
{{- if eq .kind "istio" }}
sidecar.istio.io/inject: "true"
traffic.sidecar.istio.io/excludeOutboundPorts: {{ .kafkaPort | quote }}
proxy.istio.io/config: '{"holdApplicationUntilProxyStarts": true, "terminationDrainDuration": "30s"}'
{{- else if eq .kind "linkerd" }}
linkerd.io/inject: enabled
config.linkerd.io/skip-outbound-ports: {{ .kafkaPort | quote }}
config.alpha.linkerd.io/proxy-wait-before-exit-seconds: "30"
{{- end }}
{{- end }}
{{- end }}

{{- /* Where pods may run and how they spread: {root, part, of}. */}}
{{- define "cabrank.placement" -}}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "cabrank.selector" $ | nindent 8 }}
  {{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "cabrank.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* How long a drain takes, as configured; the program's own defaults where nothing is said. */}}
{{- define "cabrank.gatewayGrace" -}}
{{- $timing := default dict (default dict .Values.config.gateway).timing }}
{{- add .Values.gateway.preStopSeconds (ceil (divf (default 5000 $timing.drain_ms) 1000)) 5 }}
{{- end }}
{{- define "cabrank.matcherGrace" -}}
{{- $kafka := default dict .Values.config.kafka }}
{{- add (ceil (divf (default 10000 $kafka.transaction_timeout_ms) 1000)) 5 }}
{{- end }}

{{- /* What the schema cannot compare. */}}
{{- define "cabrank.check" -}}
{{- $v := .Values }}
{{- $shards := int $v.kafka.shards }}
{{- range $key, $n := dict "matcher.replicas" (default 0 $v.matcher.replicas) "matcher.autoscaling.maxReplicas" (ternary $v.matcher.autoscaling.maxReplicas 0 $v.matcher.autoscaling.enabled) "matcher.keda.maxReplicas" (ternary $v.matcher.keda.maxReplicas 0 $v.matcher.keda.enabled) }}
{{- if gt (int $n) $shards }}
{{- fail (printf "%s is %d, but kafka.shards is %d: a node without a shard does nothing; lower it, or give the city more shards (`cabrank reshard`)" $key (int $n) $shards) }}
{{- end }}
{{- end }}
{{- range $key, $of := dict "gateway.autoscaling" $v.gateway.autoscaling "matcher.autoscaling" $v.matcher.autoscaling "matcher.keda" $v.matcher.keda }}
{{- if and $of.enabled (gt (int $of.minReplicas) (int $of.maxReplicas)) }}
{{- fail (printf "%s.minReplicas is %d, more than its maxReplicas %d" $key (int $of.minReplicas) (int $of.maxReplicas)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "cabrank.portsOut" -}}
# Names, the brokers, and what else the values say.
- to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
- ports: {{- range .Values.networkPolicy.kafkaPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.kafkaTo }}
  to: {{- toYaml . | nindent 8 }}
  {{- end }}
{{- with .Values.networkPolicy.extraPortsOut }}
- ports: {{- range . }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end }}
