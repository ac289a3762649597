//! A load run on one page, for a reader who was not there: words, verdict, pictures. Nothing is fetched.

use std::collections::BTreeMap;

use plotters::prelude::*;

use super::report::{Condition, KindReport, LoadReport};
use super::tally::Times;
use crate::report::Report;

const SIZE: (u32, u32) = (900, 380);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(127, 127, 127),
    RGBColor(188, 140, 20),
];
/// Reasons shown in the picture of refusals; the others are in the table.
const REASONS_MAX: usize = 20;

/// Why no page was made.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// Another kind of run.
    #[error("the report has no section `load`: only load runs have pictures")]
    NoLoad,
    /// A histogram of the report is damaged.
    #[error("the histogram of {kind} cannot be read: {why}")]
    Histogram {
        /// Whose.
        kind: String,
        /// What is wrong.
        why: String,
    },
    /// The pictures cannot be drawn.
    #[error("drawing: {0}")]
    Draw(String),
}

/// A line of a picture: name and points.
type Line = (String, Vec<(f64, f64)>);
type Lines = Vec<Line>;

/// The page.
pub fn page(report: &Report) -> Result<String, PageError> {
    let load = report.load.as_ref().ok_or(PageError::NoLoad)?;
    let mut body = String::new();
    let verdict = if report.valid {
        "<p class=good>The run is valid: the generator kept its schedule, and nothing promised was broken.</p>".to_owned()
    } else {
        let reasons: String = report
            .invalid_because
            .iter()
            .map(|why| format!("<li>{}</li>", escape(why)))
            .collect();
        format!("<p class=bad>The run does not count:</p><ul class=bad>{reasons}</ul>")
    };
    body += &format!(
        "<h1>Load run</h1><p>{}</p>{verdict}",
        escape(&load.workload)
    );
    body += &audit_words(report);
    body += &conditions(load);
    body += &kinds_table(load);
    body += "<h2>How soon? Latency by share of the messages</h2><p>Counted from when a message should have left. \
             Read: at 99 % stands the time that one message in a hundred exceeds.</p>";
    body += &latency_picture(load)?;
    let kinds = kinds_of(load);
    body += "<h2>What was offered and what was done, second by second</h2>";
    body += &picture(
        "messages a second",
        false,
        "second",
        "a second",
        &rates(load, &kinds),
        &whole,
    )?;
    body += "<h2>p99 second by second</h2>";
    body += &picture("p99, ms", true, "second", "ms", &p99s(load, &kinds), &whole)?;
    body += "<h2>CPU</h2>";
    body += &picture("cores used", false, "second", "cores", &cores(load), &whole)?;
    body += &refusals(report, load)?;
    body += &facts(report, load);
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Cabrank load run</title><style>{STYLE}</style><body>{body}</body></html>\n"
    ))
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}\
td:first-child,th:first-child{text-align:left}.good{color:#156615}.bad{color:#a11}svg{max-width:100%;height:auto}\
.words td{text-align:left}.key span{white-space:nowrap;margin-right:1em;font-size:.9em}\
.key i{display:inline-block;width:1.5em;height:3px;margin-right:.4em;vertical-align:middle}code{font-size:.9em;overflow-wrap:anywhere}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn audit_words(report: &Report) -> String {
    match &report.audit {
        Some(audit) if audit.violations == 0 => format!(
            "<p>The audit read {} events of {} rides and found no broken promise; {} rides were promised to riders.</p>",
            audit.events, audit.rides, report.rides.acknowledged
        ),
        Some(audit) => format!(
            "<p class=bad>The audit found {} broken promises.</p>",
            audit.violations
        ),
        None => "<p>There was no log to audit.</p>".into(),
    }
}

/// What had to be kept, if that was judged.
fn conditions(load: &LoadReport) -> String {
    if load.conditions.is_empty() {
        return String::new();
    }
    let row = |one: &Condition| {
        let (class, verdict) = if one.kept {
            ("good", "kept")
        } else {
            ("bad", "not kept")
        };
        let (what, found) = (escape(&one.what), escape(&one.found));
        format!("<tr><td>{what}</td><td class={class}>{verdict}</td><td>{found}</td></tr>")
    };
    let rows: String = load.conditions.iter().map(row).collect();
    format!("<h2>What had to be kept</h2><table class=words>{rows}</table>")
}

/// Kinds with messages; the generator's own lateness last.
fn kinds_of(load: &LoadReport) -> Vec<(&String, &KindReport)> {
    let mut kinds: Vec<_> = load
        .kinds
        .iter()
        .filter(|(_, kind)| kind.done > 0)
        .collect();
    kinds.sort_by_key(|(name, _)| name.as_str() == "lateness");
    kinds
}

fn kinds_table(load: &LoadReport) -> String {
    let mut rows = String::new();
    for (name, kind) in kinds_of(load) {
        let q = &kind.latency_ms;
        rows += &format!(
            "<tr><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.2}</td><td>{:.2}</td><td>{:.2}</td><td>{:.2}</td><td>{:.1}</td></tr>",
            words(name),
            kind.offered_per_second,
            kind.done_per_second,
            q.p50,
            q.p90,
            q.p99,
            q.p999,
            q.max
        );
    }
    format!(
        "<table><tr><th>what</th><th>offered/s</th><th>done/s</th><th>p50 ms</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>{rows}</table>"
    )
}

fn words(kind: &str) -> String {
    match kind {
        "ping" => "ping, until it is on its way",
        "ping_to_visible" => "ping, until a search shows it",
        "nearby" => "search for cars",
        "request" => "ride request, until promised",
        "request_to_offer" => "ride request, until an offer is on a phone",
        "command" => "driver's message, until committed",
        "lateness" => "the generator's own lateness",
        other => other,
    }
    .to_owned()
}

fn latency_picture(load: &LoadReport) -> Result<String, PageError> {
    let mut lines: Lines = Vec::new();
    for (name, kind) in kinds_of(load) {
        let times = Times::from_base64(&kind.histogram).map_err(|why| PageError::Histogram {
            kind: name.clone(),
            why,
        })?;
        // As many nines as the number of messages supports.
        let nines = (times.len() as f64).log10().clamp(1.0, 5.0);
        let points = (0..=(nines * 20.0) as u32).map(|n| {
            let x = f64::from(n) / 20.0;
            (x, times.ms_at(1.0 - 10f64.powf(-x)).max(0.001))
        });
        lines.push((words(name), points.collect()));
    }
    picture(
        "latency, ms",
        true,
        "share of messages",
        "ms",
        &lines,
        &|x| {
            format!(
                "{:.*} %",
                (*x - 2.0).ceil().max(0.0) as usize,
                (1.0 - 10f64.powf(-*x)) * 100.0
            )
        },
    )
}

fn series<'a>(
    load: &'a LoadReport,
    kinds: &'a [(&'a String, &'a KindReport)],
    of: impl Fn(&super::report::SecondKind) -> f64 + Copy + 'a,
) -> impl Iterator<Item = (String, Vec<(f64, f64)>)> + 'a {
    kinds.iter().map(move |(name, _)| {
        let points = load.series.iter().filter_map(|second| {
            let kind = second.kinds.get(*name)?;
            Some((f64::from(second.second), of(kind)))
        });
        (words(name), points.collect())
    })
}

fn rates(load: &LoadReport, kinds: &[(&String, &KindReport)]) -> Lines {
    let kinds: Vec<_> = kinds
        .iter()
        .copied()
        .filter(|(name, _)| name.as_str() != "lateness")
        .collect();
    let mut lines: Lines = series(load, &kinds, |kind| kind.done as f64).collect();
    if let Some((name, _)) = kinds.iter().max_by_key(|(_, kind)| kind.offered) {
        let offered = load.series.iter().filter_map(|second| {
            Some((
                f64::from(second.second),
                second.kinds.get(*name)?.offered as f64,
            ))
        });
        lines.push((format!("offered: {}", words(name)), offered.collect()));
    }
    lines
}

fn p99s(load: &LoadReport, kinds: &[(&String, &KindReport)]) -> Lines {
    series(load, kinds, |kind| kind.p99.max(0.001)).collect()
}

fn cores(load: &LoadReport) -> Lines {
    let of = |value: fn(&super::report::SecondReport) -> Option<f64>| {
        load.series
            .iter()
            .filter_map(move |s| Some((f64::from(s.second), value(s)?)))
            .collect::<Vec<_>>()
    };
    vec![
        ("server".to_owned(), of(|s| s.server_cores)),
        ("generator".to_owned(), of(|s| Some(s.generator_cores))),
    ]
}

fn whole(x: &f64) -> String {
    format!("{x:.0}")
}

/// One picture with lines.
fn picture(
    title: &str,
    is_log: bool,
    x_words: &str,
    y_words: &str,
    lines: &Lines,
    x_label: &dyn Fn(&f64) -> String,
) -> Result<String, PageError> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let most = |value: fn(&(f64, f64)) -> f64| points().map(value).fold(0.0f64, f64::max);
    let (x_most, y_most) = (
        most(|p| p.0).max(1.0),
        most(|p| p.1).max(if is_log { 0.01 } else { 1.0 }) * 1.1,
    );
    let y_least = points()
        .map(|p| p.1)
        .fold(f64::INFINITY, f64::min)
        .clamp(0.001, y_most / 10.0);
    let mut svg = String::new();
    let drawn = if is_log {
        draw(
            &mut svg,
            title,
            0.0..x_most,
            (y_least..y_most).log_scale(),
            x_words,
            y_words,
            lines,
            x_label,
        )
    } else {
        draw(
            &mut svg,
            title,
            0.0..x_most,
            0.0..y_most,
            x_words,
            y_words,
            lines,
            x_label,
        )
    };
    drawn.map_err(|why| PageError::Draw(why.to_string()))?;
    Ok(key(lines) + &svg)
}

/// Which line is what: above the picture, where it hides none of them.
fn key(lines: &Lines) -> String {
    let one = |(n, (name, _)): (usize, &Line)| {
        let RGBColor(r, g, b) = COLOURS[n % COLOURS.len()];
        format!(
            "<span><i style=background:rgb({r},{g},{b})></i>{}</span> ",
            escape(name)
        )
    };
    let drawn = lines
        .iter()
        .enumerate()
        .filter(|(_, (_, points))| !points.is_empty());
    format!("<p class=key>{}</p>", drawn.map(one).collect::<String>())
}

#[expect(clippy::too_many_arguments, reason = "one call for each kind of axis")]
fn draw<Y>(
    svg: &mut String,
    title: &str,
    x: std::ops::Range<f64>,
    y: Y,
    x_words: &str,
    y_words: &str,
    lines: &Lines,
    x_label: &dyn Fn(&f64) -> String,
) -> Result<(), Box<dyn std::error::Error>>
where
    Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .caption(title, ("sans-serif", 18))
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(x_words)
        .y_desc(y_words)
        .x_label_formatter(&|value| x_label(value))
        .light_line_style(RGBColor(238, 238, 238))
        .draw()?;
    for (n, (_, points)) in lines.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()].stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), colour))?;
    }
    root.present()?;
    Ok(())
}

fn refusals(report: &Report, load: &LoadReport) -> Result<String, PageError> {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for (kind, reasons) in &load.refused {
        for (reason, count) in reasons {
            all.insert(format!("{kind}: {reason}"), *count);
        }
    }
    for (reason, count) in report.pings.refused.iter().filter(|(_, count)| **count > 0) {
        all.insert(format!("ping: {reason}"), *count);
    }
    let mut bars: Vec<(String, u64)> = all.into_iter().collect();
    bars.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let head = "<h2>Refusals by reason</h2>";
    if bars.is_empty() {
        return Ok(format!("{head}<p>Nothing was refused.</p>"));
    }
    let rows: String = bars
        .iter()
        .map(|(why, n)| format!("<tr><td>{}</td><td>{n}</td></tr>", escape(why)))
        .collect();
    bars.truncate(REASONS_MAX);
    let mut svg = String::new();
    draw_bars(&mut svg, &bars).map_err(|why| PageError::Draw(why.to_string()))?;
    Ok(format!(
        "{head}{svg}<table><tr><th>reason</th><th>count</th></tr>{rows}</table>"
    ))
}

fn draw_bars(svg: &mut String, bars: &[(String, u64)]) -> Result<(), Box<dyn std::error::Error>> {
    let size = (SIZE.0, 60 + 28 * bars.len() as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(1) as f64;
    let rows = bars.len();
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .x_label_area_size(30)
        .build_cartesian_2d(0.0..most * 1.05, 0.0..rows as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .draw()?;
    for (n, (name, count)) in bars.iter().enumerate() {
        let top = (rows - n) as f64;
        let bar = [(0.0, top - 0.85), (*count as f64, top - 0.15)];
        chart.draw_series([Rectangle::new(bar, COLOURS[1].mix(0.45).filled())])?;
        let label = format!("{name} ({count})");
        chart.draw_series([Text::new(
            label,
            (most * 0.01, top - 0.3),
            ("sans-serif", 14),
        )])?;
    }
    root.present()?;
    Ok(())
}

fn facts(report: &Report, load: &LoadReport) -> String {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| {
        rows.push(format!(
            "<tr><td>{name}</td><td>{}</td></tr>",
            escape(&value)
        ))
    };
    let machine = &report.machine;
    row(
        "machine",
        format!(
            "{} ({} cores, {} MiB, {})",
            machine.cpu, machine.cores, machine.memory_mib, machine.system
        ),
    );
    row("version", report.version.clone());
    row("seed", report.seed.to_string());
    if let Some(taken) = load.pings_taken_per_second {
        row("pings the server took", format!("{taken:.0}/s"));
    }
    if let Some(server) = &load.server {
        row(
            "server",
            format!(
                "{:.2} cores, memory {:.0} to {:.0} MiB",
                server.cores, server.memory_begin_mib, server.memory_end_mib
            ),
        );
    }
    row("generator", format!("{:.2} cores", load.generator.cores));
    if let Some(took) = load.host_took_cores {
        row(
            "other guests of the machine's host",
            format!("{took:.2} cores"),
        );
    }
    if let Some(ghosts) = &load.ghosts {
        row(
            "stale cars after all moved 5 km",
            format!(
                "{} in {} searches",
                ghosts.stale_after_move, ghosts.searches_after_move
            ),
        );
        row(
            "stale cars after all went offline",
            format!(
                "{} in {} searches",
                ghosts.stale_after_offline, ghosts.searches_after_offline
            ),
        );
    }
    let trials: String = load
        .search
        .iter()
        .map(|t| {
            format!(
                "<tr><td>{:.0}/s</td><td>{:.0}/s</td><td>{:.2} ms</td><td>{}</td></tr>",
                t.per_second,
                t.done_per_second,
                t.p99_ms,
                if t.kept {
                    "kept".to_owned()
                } else {
                    escape(&t.why)
                }
            )
        })
        .collect();
    let trials = if trials.is_empty() {
        trials
    } else {
        format!(
            "<h2>The search for the highest rate</h2><table><tr><th>offered</th><th>done</th><th>p99</th><th>the bound</th></tr>{trials}</table>"
        )
    };
    let notes: String = report
        .notes
        .iter()
        .map(|note| format!("<li>{}</li>", escape(note)))
        .collect();
    format!(
        "{trials}<h2>Where and how</h2><table>{}</table><p><code>cabrank {}</code></p><ul>{notes}</ul>",
        rows.concat(),
        escape(&report.arguments.join(" "))
    )
}
