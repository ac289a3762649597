//! Simulated days on one page, for a reader who was not there. Nothing is fetched.

use std::collections::BTreeMap;
use std::str::FromStr;

use h3o::CellIndex;
use plotters::prelude::*;

use crate::compare::Comparison;
use crate::tally::{Area, Outcome, WAIT_STEP_S};

const SIZE: (u32, u32) = (900, 380);
/// The map is at most so wide and high, pixels.
const MAP: (f64, f64) = (520.0, 720.0);
/// Kilometres of a degree of latitude.
const NORTH_KM: f64 = 111.195;
/// Areas are drawn until they hold more than this share of all wishes.
const DRAWN_SHARE: f64 = 0.995;
/// The colours' key: steps, and the width of one in pixels.
const KEY_STEPS: u32 = 6;
const KEY_WIDTH: f64 = 48.0;
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
td:first-child,th:first-child{text-align:left}.bad{color:#a11}svg{max-width:100%}pre{white-space:pre-wrap}figure{margin:0}.maps{display:flex;flex-wrap:wrap;gap:2em}.maps figure{max-width:530px}\
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
    body += &map(&outcome.policy, &outcome.areas);
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
    body += "<div class=maps>";
    for (name, days) in &lines {
        body += &map(name, &merged(days));
    }
    body += "</div>";
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
            .x_label_formatter(&|seconds| format!("{seconds:.0}"))
            .y_label_formatter(&|percent| format!("{percent:.0}"))
            .label_style(("sans-serif", 14))
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

/// Areas of all days together.
fn merged(days: &[&Outcome]) -> Vec<Area> {
    let mut sums: BTreeMap<&str, Area> = BTreeMap::new();
    for area in days.iter().flat_map(|day| &day.areas) {
        let sum = sums.entry(&area.cell).or_insert_with(|| Area {
            asked: 0,
            served: 0,
            wait_mean_s: 0.0,
            ..area.clone()
        });
        let served = sum.served + area.served;
        let waits = sum.wait_mean_s * sum.served as f64 + area.wait_mean_s * area.served as f64;
        sum.wait_mean_s = waits / served.max(1) as f64;
        sum.asked += area.asked;
        sum.served = served;
    }
    let mut areas: Vec<Area> = sums.into_values().collect();
    areas.sort_by(|a, b| (b.asked, &a.cell).cmp(&(a.asked, &b.cell)));
    areas
}

/// The corners of an area: (km east of the meridian, km north of the equator) on a plane that fits at this latitude.
fn corners(area: &Area, east_km: f64) -> Vec<(f64, f64)> {
    let Ok(cell) = CellIndex::from_str(&area.cell) else {
        return Vec::new(); // a report that somebody wrote by hand
    };
    let boundary = cell.boundary();
    boundary
        .iter()
        .map(|corner| (corner.lng() * east_km, corner.lat() * NORTH_KM))
        .collect()
}

/// From light to dark: the fill of an area, and what can be read on it.
fn colours(wait_s: f64) -> (String, &'static str) {
    let dark = (wait_s / DARKEST_S).clamp(0.0, 1.0);
    let light = |from: f64, to: f64| (from + (to - from) * dark) as u8;
    let (r, g, b) = (light(255.0, 128.0), light(240.0, 0.0), light(178.0, 38.0));
    let ink = if dark > 0.55 { "#fff" } else { "#222" };
    (format!("rgb({r},{g},{b})"), ink)
}

/// A map of mean waits: the areas as they lie, darker where riders wait longer, with their mean waits in seconds.
fn map(name: &str, areas: &[Area]) -> String {
    let asked: u64 = areas.iter().map(|area| area.asked).sum();
    let Some(middle) = areas.first() else {
        return String::new();
    };
    // The last few riders ask far outside; with them the town would be a dot. The areas with most wishes come first.
    let mut sum = 0;
    let drawn: Vec<&Area> = areas
        .iter()
        .take_while(|area| {
            let is_wanted = sum as f64 <= DRAWN_SHARE * asked as f64;
            sum += area.asked;
            is_wanted
        })
        .collect();
    let left: u64 = asked - drawn.iter().map(|area| area.asked).sum::<u64>();
    let east_km = NORTH_KM * middle.lat.to_radians().cos();
    let shapes: Vec<Vec<(f64, f64)>> = drawn.iter().map(|area| corners(area, east_km)).collect();
    let all = || shapes.iter().flatten();
    let west = all().fold(f64::MAX, |least, corner| least.min(corner.0));
    let east = all().fold(f64::MIN, |most, corner| most.max(corner.0));
    let south = all().fold(f64::MAX, |least, corner| least.min(corner.1));
    let north = all().fold(f64::MIN, |most, corner| most.max(corner.1));
    if west >= east || south >= north {
        return String::new();
    }
    let scale = (MAP.0 / (east - west)).min(MAP.1 / (north - south));
    let on_page = |corner: (f64, f64)| ((corner.0 - west) * scale, (north - corner.1) * scale);
    let (width, height) = on_page((east, south));
    let mut svg = format!(
        "<svg width=\"{width:.0}\" height=\"{:.0}\" font-family=\"system-ui,sans-serif\" font-size=\"12\">",
        height + 44.0
    );
    for (area, shape) in drawn.iter().zip(&shapes) {
        let points: String = shape
            .iter()
            .map(|corner| {
                let (x, y) = on_page(*corner);
                format!("{x:.1},{y:.1} ")
            })
            .collect();
        let (fill, ink) = match area.served {
            0 => ("#ddd".to_owned(), "#222"),
            _ => colours(area.wait_mean_s),
        };
        let (x, y) = on_page((area.lon * east_km, area.lat * NORTH_KM));
        let told = match area.served {
            0 => "–".to_owned(),
            _ => format!("{:.0}", area.wait_mean_s),
        };
        svg += &format!(
            "<polygon points=\"{}\" fill=\"{fill}\" stroke=\"#fff\"><title>{} asked, {} served, {told} s</title></polygon>\
             <text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{ink}\" text-anchor=\"middle\" pointer-events=\"none\">{told}</text>",
            points.trim_end(),
            area.asked,
            area.served,
            y + 4.0
        );
    }
    for step in 0..=KEY_STEPS {
        let wait_s = DARKEST_S / f64::from(KEY_STEPS) * f64::from(step);
        let (fill, ink) = colours(wait_s);
        let more = if step == KEY_STEPS { "+" } else { "" };
        let x = f64::from(step) * KEY_WIDTH;
        svg += &format!(
            "<rect x=\"{x}\" y=\"{:.0}\" width=\"{KEY_WIDTH}\" height=\"20\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"{:.0}\" fill=\"{ink}\" text-anchor=\"middle\">{wait_s:.0}{more}</text>",
            height + 18.0,
            x + KEY_WIDTH / 2.0,
            height + 32.0
        );
    }
    svg += "</svg>";
    let others = match left {
        0 => String::new(),
        _ => format!(" {left} who asked farther outside are not drawn."),
    };
    format!(
        "<figure><h2>Where do riders wait? {}</h2><p>Mean seconds from the wish to the car, in areas of some 5 km². North is up.{others}</p>{svg}</figure>",
        escape(name)
    )
}

#[cfg(test)]
mod tests {
    use h3o::{LatLng, Resolution};

    use super::*;
    use crate::tally::Day;

    fn area(lat: f64, lon: f64, asked: u64, wait_mean_s: f64) -> Area {
        let at = LatLng::new(lat, lon).unwrap();
        Area {
            cell: at.to_cell(Resolution::Seven).to_string(),
            lat,
            lon,
            asked,
            served: if wait_mean_s > 0.0 { asked } else { 0 },
            wait_mean_s,
        }
    }

    #[test]
    fn a_map_shows_each_area_with_its_wait_and_says_whom_it_leaves_out() {
        // Two areas of San Francisco that touch, the airport where nobody was fetched, and Mountain View far south.
        let areas = [
            area(37.7865, -122.3945, 2_000, 212.4),
            area(37.7958, -122.4196, 1_300, 599.0),
            area(37.6079, -122.3840, 60, 0.0),
            area(37.4095, -122.0290, 5, 36.0),
        ];
        let drawn = map("rematch", &areas);
        assert_eq!(drawn.matches("<polygon").count(), 3, "{drawn}");
        assert!(
            drawn.contains(">212</text>") && drawn.contains(">599</text>"),
            "{drawn}"
        );
        assert!(drawn.contains("60 asked, 0 served, – s"), "{drawn}");
        assert!(drawn.contains(" 5 who asked farther outside"), "{drawn}");
        assert_eq!(map("nobody", &[]), "");
    }

    #[test]
    fn days_are_laid_over_each_other_by_riders() {
        let day = |asked, wait_mean_s| Outcome {
            areas: vec![area(37.7865, -122.3945, asked, wait_mean_s)],
            ..Day::default().outcome("batched", 1, 0.0)
        };
        let (busy, quiet, lost) = (day(300, 100.0), day(100, 200.0), day(50, 0.0));
        let all = merged(&[&busy, &quiet, &lost]);
        assert_eq!((all.len(), all[0].asked, all[0].served), (1, 450, 400));
        assert!((all[0].wait_mean_s - 125.0).abs() < 1e-9);
    }

    #[test]
    fn longer_waits_are_darker() {
        let shades: Vec<String> = [0.0, 200.0, 400.0, 600.0].map(|s| colours(s).0).to_vec();
        assert!(
            shades.windows(2).all(|pair| pair[0] != pair[1]),
            "{shades:?}"
        );
        assert_eq!(colours(600.0), colours(6_000.0));
    }
}
