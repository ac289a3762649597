//! Simulated days on one page, for a reader who was not there. Nothing is fetched.

use plotters::prelude::*;

use crate::compare::Comparison;
use crate::tally::{Area, Outcome, WAIT_STEP_S};

const SIZE: (u32, u32) = (900, 380);
const MAP: (u32, u32) = (700, 600);
const COLOURS: [RGBColor; 6] = [
    RGBColor(127, 127, 127),
    RGBColor(255, 127, 14),
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
];
/// Waits from here on have the last colour of the map, s.
const DARKEST_S: f64 = 600.0;
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0;font-size:.9em}td,th{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}\
td:first-child,th:first-child{text-align:left}.bad{color:#a11}svg{max-width:100%;height:auto}\
.key span{margin-right:1em}.key i{display:inline-block;width:1.5em;height:3px;margin-right:.4em;vertical-align:middle}\
code{font-size:.9em;overflow-wrap:anywhere}";

/// The pictures cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("drawing: {0}")]
pub struct DrawError(String);

fn drawing(why: impl std::fmt::Display) -> DrawError {
    DrawError(why.to_string())
}

/// One day.
pub fn page(outcome: &Outcome) -> Result<String, DrawError> {
    let mut body = format!(
        "<h1>A simulated day: {}</h1><pre>{}</pre>",
        escape(&outcome.policy),
        escape(&outcome.to_string())
    );
    body += &waits(&[(&outcome.policy, vec![outcome])])?;
    body += &map(&outcome.policy, &outcome.areas)?;
    body += &command(&outcome.arguments);
    Ok(whole(&body))
}

/// Several policies over the same days.
pub fn compared(comparison: &Comparison) -> Result<String, DrawError> {
    let mut body = "<h1>The same days under several policies</h1>".to_owned();
    body += &table(&comparison.table());
    let sides = &comparison.sides;
    let lines: Vec<(&String, Vec<&Outcome>)> = sides
        .iter()
        .map(|side| (&side.policy, side.days.iter().collect()))
        .collect();
    body += &waits(&lines)?;
    for side in sides {
        if let Some(day) = side.days.first() {
            body += &map(&side.policy, &day.areas)?;
        }
    }
    body += &command(&comparison.arguments);
    Ok(whole(&body))
}

fn whole(body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Cabrank simulation</title><style>{STYLE}</style><body>{body}</body></html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn command(arguments: &[String]) -> String {
    format!(
        "<h2>Again</h2><p><code>cabrank {}</code></p>",
        escape(&arguments.join(" "))
    )
}

/// A table in Markdown as one of HTML; other lines become paragraphs.
fn table(markdown: &str) -> String {
    let mut html = String::new();
    let mut rows = 0;
    for line in markdown.lines() {
        if !line.starts_with('|') {
            if rows > 0 {
                html += "</table>";
                rows = 0;
            }
            html += &format!("<p>{}</p>", escape(line));
            continue;
        }
        if line.starts_with("|---") {
            continue;
        }
        let cell = if rows == 0 { "th" } else { "td" };
        if rows == 0 {
            html += "<table>";
        }
        rows += 1;
        let cells = line.trim_matches('|').split('|');
        let cells: String = cells
            .map(|text| format!("<{cell}>{}</{cell}>", escape(text.trim())))
            .collect();
        html += &format!("<tr>{cells}</tr>");
    }
    if rows > 0 {
        html += "</table>";
    }
    html
}

/// How many riders wait how long, as shares of all wishes.
fn waits(lines: &[(&String, Vec<&Outcome>)]) -> Result<String, DrawError> {
    let step_s = f64::from(WAIT_STEP_S);
    let share_lines: Vec<(&String, Vec<(f64, f64)>)> = lines
        .iter()
        .map(|(name, days)| {
            let asked: u64 = days.iter().map(|day| day.rides.requested).sum();
            let steps = days.iter().map(|day| day.wait_steps.len()).max();
            let mut sum = 0;
            let mut points = vec![(0.0, 0.0)];
            points.extend((0..steps.unwrap_or(0)).map(|step| {
                let here = days.iter().filter_map(|day| day.wait_steps.get(step));
                sum += here.sum::<u64>();
                let percent = sum as f64 / asked.max(1) as f64 * 100.0;
                ((step + 1) as f64 * step_s, percent)
            }));
            (*name, points)
        })
        .collect();
    let ends = share_lines.iter().filter_map(|(_, line)| line.last());
    let right = ends.fold(step_s, |right, (x, _)| right.max(*x));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..right, 0.0..100.0)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .x_desc("seconds from the wish")
            .y_desc("% in the car")
            .light_line_style(WHITE)
            .draw()
            .map_err(drawing)?;
        for (n, (_, line)) in share_lines.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()].stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.iter().copied(), colour))
                .map_err(drawing)?;
        }
        root.present().map_err(drawing)?;
    }
    let key: String = lines
        .iter()
        .enumerate()
        .map(|(n, (name, _))| {
            let RGBColor(r, g, b) = COLOURS[n % COLOURS.len()];
            format!(
                "<span><i style=\"background:rgb({r},{g},{b})\"></i>{}</span>",
                escape(name)
            )
        })
        .collect();
    Ok(format!(
        "<h2>How soon are riders in the car?</h2><p>Of all who asked.</p><p class=key>{key}</p>{svg}"
    ))
}

/// A map of mean waits: one disc an area, as large as its demand, darker where riders wait longer.
fn map(name: &str, areas: &[Area]) -> Result<String, DrawError> {
    let used: Vec<&Area> = areas.iter().filter(|area| area.served > 0).collect();
    let Some(most) = used.iter().map(|area| area.asked).max() else {
        return Ok(String::new());
    };
    let bounds = |of: fn(&Area) -> f64| {
        let (least, most) = used.iter().fold((f64::MAX, f64::MIN), |(least, most), a| {
            (least.min(of(a)), most.max(of(a)))
        });
        (least - 0.01)..(most + 0.01)
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, MAP).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(bounds(|area| area.lon), bounds(|area| area.lat))
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .draw()
            .map_err(drawing)?;
        let discs = used.iter().map(|area| {
            let dark = (area.wait_mean_s / DARKEST_S).clamp(0.0, 1.0);
            let light = |from: f64, to: f64| (from + (to - from) * dark) as u8;
            let colour = RGBColor(light(255.0, 140.0), light(235.0, 10.0), light(160.0, 30.0));
            let size = 4.0 + 22.0 * (area.asked as f64 / most as f64).sqrt();
            Circle::new((area.lon, area.lat), size as i32, colour.filled())
        });
        chart.draw_series(discs).map_err(drawing)?;
        root.present().map_err(drawing)?;
    }
    Ok(format!(
        "<h2>Where do riders wait? {}</h2><p>A disc is an area of some 5 km²: the larger the more riders, the darker the \
         longer they wait on average (darkest from {DARKEST_S:.0} s).</p>{svg}",
        escape(name)
    ))
}
