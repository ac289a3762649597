//! A plan in words, for a reader who was not there.

use super::plan::{Area, Frames, Plan, Target};
use super::schedule::{Arrivals, Rate};

/// The workload of `plan` in one paragraph.
pub fn workload(plan: &Plan) -> String {
    let mut parts = Vec::new();
    let sockets = plan.connections.min(plan.drivers);
    let parked = plan.drivers - sockets;
    let mut fleet = format!("{sockets} drivers, each on a WebSocket of its own");
    if parked > 0 {
        fleet += &format!(", and {parked} more who came online and reported once");
    }
    parts.push(fleet);
    let (cabs, trips) = (plan.traces.gps.len(), plan.traces.trips.len());
    if !plan.traces.is_empty() {
        parts.push(format!(
            "drivers on the ways of {}, riders as in {}",
            count(cabs as u32, "recorded fleet"),
            count(trips as u32, "file") + " of recorded trips"
        ));
    }
    parts.push(match plan.area {
        Area::City => "in a city of 12 x 12 km with hot spots".to_owned(),
        Area::Even { east_km, north_km } => format!("evenly over {east_km} x {north_km} km"),
    });
    if !plan.pings.is_zero() {
        let frames = match plan.frames {
            Frames::Json => "JSON",
            Frames::Protobuf => "Protobuf",
        };
        parts.push(format!(
            "{} ({frames}, {} a frame, {} a write)",
            rate(&plan.pings, "pings", plan),
            count(plan.pings_per_frame, "ping"),
            count(plan.frames_per_write, "frame")
        ));
    }
    if !plan.rides.is_zero() {
        let shares = plan.shares;
        parts.push(format!(
            "{} from request to completion ({:.0} % of the offers declined, {:.0} % left unanswered, {:.0} % of the rides called off; \
             {} ms to think, {} ms a step)",
            rate(&plan.rides, "rides", plan),
            shares.decline * 100.0,
            shares.ignore * 100.0,
            shares.cancel * 100.0,
            plan.think_ms,
            plan.step_ms
        ));
    }
    if !plan.nearby.is_zero() {
        parts.push(format!(
            "{} for the {} nearest cars within {:.0} m over {} keep-alive connections",
            rate(&plan.nearby, "searches", plan),
            plan.k,
            plan.radius_m,
            plan.nearby_connections
        ));
    }
    let against = match plan.target {
        Target::Cabrank => "a Cabrank",
        Target::Raw => "a bare WebSocket server that only reads",
        Target::Redis => "a Redis (GEOADD, GEOSEARCH)",
    };
    let how = match (plan.closed_loop, plan.arrivals) {
        (Some(n), _) => {
            format!("closed loop with {n} requesters: each sends again as soon as it can")
        }
        (None, Arrivals::Poisson) => "open loop, Poisson arrivals".to_owned(),
        (None, Arrivals::Fixed) => "open loop, equal gaps".to_owned(),
    };
    format!(
        "Against {against}: {}. {how}; {} s after {} s of warm-up; {} generator {} with {} each.",
        parts.join("; "),
        plan.seconds,
        plan.warmup_s,
        plan.parts,
        if plan.parts == 1 {
            "process"
        } else {
            "processes"
        },
        count(plan.threads, "thread")
    )
}

fn rate(rate: &Rate, what: &str, plan: &Plan) -> String {
    if plan.closed_loop.is_some() {
        return format!("as many {what} as are taken");
    }
    if let Some(burst) = rate.burst {
        return format!(
            "{} {what}/s, {} from {} s on for {} s",
            rate.to,
            rate.to * burst.times,
            burst.from_s,
            burst.lasts_s
        );
    }
    if rate.ramp_s > 0.0 {
        return format!(
            "{} to {} {what}/s within {} s",
            rate.from, rate.to, rate.ramp_s
        );
    }
    format!("{} {what}/s", rate.to)
}

fn count(n: u32, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}
