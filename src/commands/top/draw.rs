//! How it looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::figures::{Process, View};

/// Lines of the city's own panel, borders included.
const CITY_LINES: u16 = 4;
/// Border and heading of a table.
const AROUND: u16 = 3;

/// As many lines as show all of it.
pub fn lines(view: &View) -> u16 {
    let rows = view.processes.len() + view.shards.len();
    u16::try_from(rows)
        .unwrap_or(u16::MAX)
        .saturating_add(CITY_LINES + 2 * AROUND)
}

fn ms(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| format!("{:.0} ms", seconds * 1_000.0))
}

/// Draws one frame.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let processes = u16::try_from(view.processes.len()).unwrap_or(u16::MAX);
    let parts = [
        Constraint::Length(CITY_LINES),
        Constraint::Length(processes.saturating_add(AROUND)),
        Constraint::Min(AROUND),
    ];
    let [city, of_processes, of_shards] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(city_of(view), city);
    frame.render_widget(processes_of(view), of_processes);
    frame.render_widget(shards_of(view), of_shards);
}

fn city_of(view: &View) -> Paragraph<'static> {
    let first = format!(
        "{:.1} rides/s, request to offer p50 {} p99 {}; {:.0} positions/s ({:.1} refused)",
        view.rides,
        ms(view.offer_p50),
        ms(view.offer_p99),
        view.positions,
        view.refused,
    );
    let second = format!(
        "{} open rides, {} waiting; {} drivers; lag {} commands; {} takeovers",
        view.open_rides,
        view.waiting_rides,
        view.drivers,
        view.lag(),
        view.takeovers,
    );
    let block = Block::bordered().title(" cabrank: the city; q ends ");
    Paragraph::new(Text::from(vec![
        Line::from(first).bold(),
        Line::from(second),
    ]))
    .block(block)
}

fn processes_of(view: &View) -> Table<'static> {
    let heads = [
        "process",
        "state",
        "version",
        "pos/s",
        "cmds/s",
        "ack p99",
        "commit p99",
        "sockets",
        "cores",
        "memory",
    ];
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(11),
        Constraint::Length(5),
        Constraint::Length(8),
    ];
    let rows = view.processes.iter().map(row_of);
    Table::new(rows, widths)
        .header(Row::new(heads).bold())
        .block(Block::bordered().title(" processes "))
}

fn row_of(process: &Process) -> Row<'static> {
    let bad = Style::new().fg(Color::Red);
    if !process.is_up {
        return Row::new([process.url.clone(), "no answer".into()]).style(bad);
    }
    let state = if process.is_ready {
        "ready"
    } else {
        "not ready"
    };
    let sockets = process
        .sockets
        .map_or("-".into(), |(used, max)| format!("{used}/{max}"));
    let row = Row::new([
        process.url.clone(),
        state.into(),
        process.version.clone(),
        format!("{:.0}", process.positions),
        format!("{:.1}", process.commands),
        ms(process.ack_p99),
        ms(process.commit_p99),
        sockets,
        format!("{:.2}", process.cores),
        format!("{:.0} MiB", process.memory_bytes / f64::from(1 << 20)),
    ]);
    if process.is_ready {
        row
    } else {
        row.style(bad)
    }
}

fn shards_of(view: &View) -> Table<'static> {
    let widths = [
        Constraint::Length(6),
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(8),
    ];
    let rows = view.shards.iter().map(|(number, shard)| {
        let by = shard.by.clone().unwrap_or_else(|| "nobody".into());
        let row = Row::new([
            number.to_string(),
            by,
            format!("{}", shard.lag),
            format!("{}", shard.waiting),
        ]);
        match shard.by {
            Some(_) => row,
            None => row.style(Style::new().fg(Color::Red)),
        }
    });
    Table::new(rows, widths)
        .header(Row::new(["shard", "served by", "lag", "waiting"]).bold())
        .block(Block::bordered().title(" shards "))
}
