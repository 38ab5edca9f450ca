//! Draws what was seen: a pure function of that, the time and the size of the terminal.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::figures::{Figure, Level, Section, View};
use super::text;
use super::watch::Watch;

/// From this width on there are two columns.
const TWO_COLUMNS: u16 = 78;
/// The sections of the first column; 80 by 24 shows everything.
const FIRST_COLUMN: usize = 3;
/// Cells of a row before its bars: label, value and mark.
const BEFORE_BARS: u16 = 19 + 1 + 10 + 1 + 2 + 1;

const HELP: [&str; 14] = [
    "q, Esc, Ctrl-C   end",
    "p                hold the screen; looks go on behind it",
    "?                this; any key goes back",
    "",
    "!   yellow       somebody should look",
    "!!  red          audio is lost, or would be; losses stay",
    "-                the node does not say, or nothing came",
    "≤                upper bound of a histogram's bucket",
    "p99, /s, cores   of the last 10 seconds",
    "bars             the last 300 looks, from 0 to their largest",
    "",
    "Losses count from the start of the node, and go on",
    "counting here when it is started anew. What to do about",
    "each: docs/RUNBOOK.md; what it is: docs/METRICS.md.",
];

/// Everything on the screen.
pub(super) struct Screen<'a> {
    /// Where the figures come from.
    pub(super) source: &'a str,
    /// What was seen.
    pub(super) watch: &'a Watch,
    /// How often somebody looks.
    pub(super) interval: Duration,
    /// The monotonic clock.
    pub(super) now: Instant,
    /// Whether the screen is held.
    pub(super) is_paused: bool,
    /// Whether the keys are explained.
    pub(super) shows_help: bool,
}

/// Draws it.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen<'_>) {
    // Where there is one row only, it is the first.
    let [first, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(frame.area());
    let [body, last] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(rest);
    frame.render_widget(Paragraph::new(first_row(screen)), first);
    frame.render_widget(Paragraph::new(last_row(screen)), last);
    if let Some(view) = screen.watch.view() {
        draw_figures(frame, body, screen, view);
    }
    if screen.shows_help {
        draw_help(frame, body);
    }
}

fn draw_figures(frame: &mut Frame<'_>, body: Rect, screen: &Screen<'_>, view: &View) {
    let columns = if body.width >= TWO_COLUMNS {
        let [one, _, other] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)]).areas(body);
        vec![
            (one, view.sections.iter().take(FIRST_COLUMN).collect()),
            (other, view.sections.iter().skip(FIRST_COLUMN).collect::<Vec<_>>()),
        ]
    } else {
        vec![(body, view.sections.iter().collect())]
    };
    let mut place = 0;
    for (area, sections) in columns {
        let mut lines = Vec::new();
        for Section { title, figures, .. } in sections {
            lines.push(title_row(title, area.width));
            for figure in figures {
                lines.push(row(figure, place, screen, area.width));
                place += 1;
            }
        }
        // What does not fit is cut off at the end, where the least important is.
        frame.render_widget(Paragraph::new(lines), area);
    }
}

fn title_row(title: &str, width: u16) -> Line<'static> {
    let rest = usize::from(width).saturating_sub(title.chars().count() + 1);
    Line::styled(format!("{title} {}", "─".repeat(rest)), Style::new().add_modifier(Modifier::BOLD))
}

/// One figure; `place` is its place among all.
fn row(figure: &Figure, place: usize, screen: &Screen<'_>, width: u16) -> Line<'static> {
    let style = match figure.level {
        // Whatever is bad stays so while nobody answers.
        Level::Odd | Level::Normal if screen.watch.trouble().is_some() => {
            Style::new().add_modifier(Modifier::DIM)
        }
        Level::Bad | Level::Odd | Level::Normal => style(figure.level),
    };
    let value = format!("{:>10} {:<2}", text::value(figure), text::mark(figure.level));
    let bars = text::spark(&screen.watch.history(place), usize::from(width.saturating_sub(BEFORE_BARS)));
    Line::from(vec![
        Span::raw(format!("{:<19} ", figure.label)),
        Span::styled(value, style),
        Span::styled(format!(" {bars}"), Style::new().fg(Color::Cyan)),
    ])
}

fn style(level: Level) -> Style {
    match level {
        Level::Normal => Style::new(),
        Level::Odd => Style::new().fg(Color::Yellow),
        Level::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

/// Whether audio is being lost; nobody knows while the node does not answer.
fn first_row(screen: &Screen<'_>) -> Line<'static> {
    let view = screen.watch.view();
    let (word, level, rest) = match (screen.watch.trouble(), view) {
        (None, None) => ("...", Level::Normal, "looking".to_owned()),
        (Some(why), None) => (
            "UNKNOWN",
            Level::Bad,
            format!("{why}; tried every {}", text::seconds(screen.interval.as_secs_f64())),
        ),
        (Some(why), Some(view)) => {
            let age = screen.now.saturating_duration_since(view.at).as_secs();
            let age = text::seconds(Duration::from_secs(age).as_secs_f64());
            let every = text::seconds(screen.interval.as_secs_f64());
            ("UNKNOWN", Level::Bad, format!("figures are {age} old, tried every {every}: {why}"))
        }
        (None, Some(view)) => {
            let (word, level) = text::verdict(view.verdict);
            (word, level, text::reasons(view))
        }
    };
    let style = match level {
        Level::Normal => Style::new().fg(Color::Green),
        Level::Odd | Level::Bad => style(level),
    };
    Line::from(vec![
        Span::styled("losing audio? ", Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(word, style.add_modifier(Modifier::BOLD)),
        Span::styled(format!("  {rest}"), style.remove_modifier(Modifier::BOLD)),
    ])
}

fn last_row(screen: &Screen<'_>) -> Line<'static> {
    let keys = match (screen.is_paused, screen.watch.view()) {
        (true, Some(view)) => {
            let held = screen.now.saturating_duration_since(view.at).as_secs();
            format!("HELD, {} old: p goes on", text::seconds(Duration::from_secs(held).as_secs_f64()))
        }
        (true, None) => "HELD: p goes on".to_owned(),
        (false, _) => "q quit  p hold  ? help".to_owned(),
    };
    let node = screen.watch.view().map(|view| format!("  {}", text::node(view))).unwrap_or_default();
    let style = if screen.is_paused {
        Style::new().add_modifier(Modifier::REVERSED)
    } else {
        Style::new().add_modifier(Modifier::DIM)
    };
    Line::styled(format!("{keys}{node}  {}", screen.source), style)
}

fn draw_help(frame: &mut Frame<'_>, body: Rect) {
    let height = u16::try_from(HELP.len()).unwrap_or(u16::MAX).saturating_add(2);
    let [area] = Layout::vertical([Constraint::Max(height)]).areas(body);
    let [area] = Layout::horizontal([Constraint::Max(62)]).areas(area);
    frame.render_widget(Clear, area);
    let lines: Vec<_> = HELP.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" callseal top ")), area);
}
