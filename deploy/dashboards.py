"""Writes Grafana's dashboards from the tables below: `deploy/dashboards.py`; with `--check` it says whether the files are
what the tables make. A panel is a title, a unit and its queries with their legends."""

import json
import pathlib
import sys

WHERE = pathlib.Path(__file__).parent / "helm/cabrank/files/dashboards"


def rate(metric, by="", of=""):
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{of}}}[$__rate_interval]))"


def quantile(q, metric, by="", of=""):
    le = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({le}) (rate({metric}_bucket{{{of}}}[$__rate_interval])))"


def quantiles(metric, of=""):
    return [(f"p{int(q * 100)}", quantile(q, metric, of=of)) for q in (0.5, 0.9, 0.99)]


GATEWAY, MATCHER = 'job="gateway"', 'job="matcher"'

BOARDS = {
    "engine": ("Cabrank: rides and rounds", [
        ("Request to first offer", "s", quantiles("cabrank_offer_seconds")),
        ("Rides a second", "reqps", [("{{type}}", rate("cabrank_events_total", "type", f'{MATCHER}, type=~"ride.requested|ride.driver_assigned|ride.completed|ride.cancelled|ride.unfulfilled"'))]),
        ("Open and waiting rides", "short", [("open", f"sum(cabrank_open_rides{{{MATCHER}}})"), ("waiting", f"sum(cabrank_waiting_rides{{{MATCHER}}})")]),
        ("Waiting rides by shard", "short", [("{{shard}}", "max by (shard) (cabrank_shard_waiting_rides)")]),
        ("Offers a second", "reqps", [("made", rate("cabrank_events_total", of=f'{MATCHER}, type="ride.offer_made"')), ("declined or expired", rate("cabrank_events_total", of=f'{MATCHER}, type=~"ride.offer_declined|ride.offer_expired"') + " or vector(0)")]),
        ("Requests that find no driver", "percentunit", [("share", "cabrank:rides_unfulfilled:share")]),
        ("Rounds a second", "reqps", [("solved", rate("cabrank_rounds_total", of=MATCHER)), ("at their bound of steps", rate("cabrank_rounds_exhausted_total", of=MATCHER))]),
        ("A round takes", "s", quantiles("cabrank_round_seconds", MATCHER)),
        ("A search takes", "s", quantiles("cabrank_search_seconds", MATCHER)),
        ("Drivers known", "short", [("{{instance}}", f"cabrank_drivers_known{{{MATCHER}}}"), ("room", f"max(cabrank_drivers_max{{{MATCHER}}})")]),
        ("Positions at nodes", "reqps", [("{{result}}", rate("cabrank_node_pings_total", "result", MATCHER))]),
        ("Events a second by type", "reqps", [("{{type}}", rate("cabrank_events_total", "type", MATCHER))]),
    ]),
    "gateway": ("Cabrank: gateways", [
        ("Sockets", "short", [("{{role}} {{instance}}", f"cabrank_sockets_open{{{GATEWAY}}}")]),
        ("Sockets of what there is room for", "percentunit", [("{{instance}}", "cabrank:sockets_used:share")]),
        ("Sockets closed a second", "reqps", [("{{role}} {{cause}}", rate("cabrank_sockets_closed_total", "role, cause", GATEWAY))]),
        ("Positions a second", "reqps", [("{{result}}", rate("cabrank_pings_total", "result", GATEWAY))]),
        ("Refused positions by reason", "reqps", [("{{reason}}", rate("cabrank_pings_total", "reason", f'{GATEWAY}, result="refused"'))]),
        ("Positions without a node, or replaced on the way", "reqps", [("no node", rate("cabrank_pings_unrouted_total", of=GATEWAY)), ("replaced", rate("cabrank_pings_replaced_total", of=GATEWAY))]),
        ("Commands a second", "reqps", [("{{type}} {{outcome}}", rate("cabrank_commands_total", "type, outcome", GATEWAY))]),
        ("Command until its outcome", "s", quantiles("cabrank_command_ack_seconds", GATEWAY)),
        ("Queues of what they may hold", "percentunit", [("new rides {{instance}}", "cabrank:requests_waiting:share"), ("all commands {{instance}}", f"cabrank_outcomes_waiting{{{GATEWAY}}} / cabrank_outcomes_waiting_max")]),
        ("Refused calls a second", "reqps", [("{{name}}", rate("cabrank_http_problems_total", "name", GATEWAY) + " or vector(0)")]),
        ("Refused by limits a second", "reqps", [("{{limit}}", rate("cabrank_limit_refusals_total", "limit", GATEWAY) + " or vector(0)")]),
        ("Behind the log", "s", [("{{instance}}", f"cabrank_follower_behind_seconds{{{GATEWAY}}}")]),
        ("Answers of old owners thrown away", "reqps", [("a second", rate("cabrank_stale_answers_total", of=GATEWAY))]),
        ("Memory", "bytes", [("{{instance}}", f"process_resident_memory_bytes{{{GATEWAY}}}")]),
        ("Cores", "short", [("{{instance}}", f"rate(process_cpu_seconds_total{{{GATEWAY}}}[$__rate_interval])")]),
        ("Open files", "percentunit", [("{{instance}}", f"cabrank:open_files:share{{{GATEWAY}}}")]),
    ]),
    "log": ("Cabrank: log and takeovers", [
        ("Shards nobody serves", "short", [("shards", "cabrank:shards_unserved")]),
        ("Shards by node", "short", [("{{instance}}", "sum by (instance) (cabrank_shard_served)")]),
        ("Lag: commands that wait", "short", [("shard {{shard}}", "cabrank:shard_lag:max")]),
        ("Leases", "short", [("{{instance}}", f"cabrank_lease_held{{{MATCHER}}}")]),
        ("Commit takes", "s", quantiles("cabrank_commit_seconds", MATCHER)),
        ("Commit p99 by node", "s", [("{{instance}}", "cabrank:commit_seconds:p99")]),
        ("Commits a second", "reqps", [("{{instance}}", rate("cabrank_commit_seconds_count", "instance", MATCHER)), ("failed {{instance}}", "cabrank:commits_failed:rate")]),
        ("Events in a commit", "short", [("mean", f'{rate("cabrank_commit_events_sum", of=MATCHER)} / {rate("cabrank_commit_events_count", of=MATCHER)}'), ("p99", quantile(0.99, "cabrank_commit_events", of=MATCHER))]),
        ("Takeovers in 5 minutes", "short", [("{{instance}}", f"sum by (instance) (increase(cabrank_takeover_seconds_count{{{MATCHER}}}[5m]))")]),
        ("Takeover takes, last 15 minutes", "s", [("p50", f"histogram_quantile(0.5, sum by (le) (increase(cabrank_takeover_seconds_bucket{{{MATCHER}}}[15m])))"), ("p99", f"histogram_quantile(0.99, sum by (le) (increase(cabrank_takeover_seconds_bucket{{{MATCHER}}}[15m])))")]),
        ("Shards refused", "short", [("{{instance}}", f"cabrank_shards_refused{{{MATCHER}}}")]),
        ("Memory", "bytes", [("{{instance}}", f"process_resident_memory_bytes{{{MATCHER}}}")]),
        ("Cores", "short", [("{{instance}}", f"rate(process_cpu_seconds_total{{{MATCHER}}}[$__rate_interval])")]),
        ("Versions", "short", [("{{version}} wire {{wire}} state {{state}}", "count by (version, wire, state) (cabrank_build_info)")]),
        ("Calls refused between versions", "reqps", [("{{instance}}", "cabrank:releases_apart:rate")]),
        ("Mutual TLS: handshakes a second", "reqps", [("{{instance}} {{side}} {{result}}", rate("cabrank_cluster_handshakes_total", "instance, side, result"))]),
        ("Mutual TLS: until the own certificate ends; 0: nobody believes it", "s", [("{{instance}}", "clamp_min(cabrank:papers_left_seconds, 0)")]),
    ]),
    "services": ("Cabrank: services", [
        ("Events applied a second", "reqps", [("{{service}}", rate("cabrank_service_events_applied_total", "service"))]),
        ("How far behind: the oldest event that is not applied", "s", [("{{service}}", "cabrank:service_lag_seconds:max")]),
        ("Messages that wait", "short", [("{{service}}", "max by (service) (cabrank_service_behind)")]),
        ("Part of the time spent applying", "percentunit", [("{{service}}", rate("cabrank_service_busy_seconds_total", "service"))]),
        ("Set aside in 15 minutes", "short", [("{{service}}", "cabrank:dead_letters:increase")]),
        ("Came again, or tried again, a second", "reqps", [("again {{service}}", rate("cabrank_service_events_repeated_total", "service")), ("retries {{service}}", rate("cabrank_service_retries_total", "service"))]),
        ("Messages told a second", "reqps", [("{{service}}", rate("cabrank_service_messages_told_total", "service"))]),
        ("Calls to the payment provider a second", "reqps", [("all", rate("cabrank_provider_calls_total")), ("without an answer", rate("cabrank_provider_failures_total")), ("kept back", rate("cabrank_provider_kept_back_total"))]),
        ("The breaker before it: 0 closed, 1 half open, 2 open", "short", [("{{instance}}", "cabrank_provider_breaker")]),
        ("Processes that answer", "short", [("{{job}}", 'sum by (job) (up{job=~"order|payment|forecast"})')]),
    ]),
}


def board(name, title, panels):
    source = {"type": "prometheus", "uid": "${datasource}"}

    def panel(n, title, unit, queries):
        return {
            "id": n + 1, "type": "timeseries", "title": title, "datasource": source,
            "gridPos": {"h": 8, "w": 8, "x": n % 3 * 8, "y": n // 3 * 8},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [{"refId": chr(65 + k), "datasource": source, "expr": expr, "legendFormat": legend} for k, (legend, expr) in enumerate(queries)],
        }

    return {
        "uid": f"cabrank-{name}", "title": title, "tags": ["cabrank"], "schemaVersion": 39, "version": 1, "editable": False,
        "refresh": "10s", "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [{"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus"}]},
        "panels": [panel(n, *of) for n, of in enumerate(panels)],
    }


def main(check):
    other = []
    WHERE.mkdir(parents=True, exist_ok=True)
    for name, (title, panels) in BOARDS.items():
        path, text = WHERE / f"{name}.json", json.dumps(board(name, title, panels), indent=1) + "\n"
        if check and (not path.exists() or path.read_text() != text):
            other.append(path.name)
        elif not check:
            path.write_text(text)
    if other:
        print(f"not what deploy/dashboards.py writes: {', '.join(other)}")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
