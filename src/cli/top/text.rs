//! Figures as text and as JSON. Pure.

use serde_json::{Map, Value, json};

use super::figures::{Figure, Level, Section, Unit, Verdict, View};

/// What is said of a verdict, and how bad it is.
pub(super) fn verdict(verdict: Verdict) -> (&'static str, Level) {
    match verdict {
        Verdict::No => ("NO", Level::Normal),
        Verdict::AtRisk => ("NOT YET, AT RISK", Level::Bad),
        Verdict::Lost => ("SOME WAS LOST", Level::Bad),
        Verdict::Now => ("YES, NOW", Level::Bad),
        Verdict::Unknown => ("UNKNOWN", Level::Bad),
    }
}

/// What stands behind the verdict in the first row: losses and the three ages.
pub(super) fn reasons(view: &View) -> String {
    let value = |name| view.figure(name).map_or_else(|| "-".to_owned(), value);
    format!(
        "lost {}, unsaved {}, store lag {}, loop {}",
        bytes(view.audio_lost()),
        value("oldest_unsaved_seconds"),
        value("store_lag_seconds"),
        value("event_loop_longest_lag_seconds"),
    )
}

/// The node's version and how long it has run.
pub(super) fn node(view: &View) -> String {
    let uptime = view.uptime_seconds.map_or_else(|| "-".to_owned(), seconds);
    format!("callseal {}, up {uptime}", view.version)
}

/// The whole view as lines of text.
pub(super) fn plain(view: &View, source: &str) -> String {
    let (word, _) = verdict(view.verdict);
    let mut text = format!("losing audio? {word}  {}\n{}  {source}\n", reasons(view), node(view));
    for Section { title, figures, .. } in &view.sections {
        text.push_str(&format!("\n{title}\n"));
        for figure in figures {
            let line = format!("  {:<19} {:>10} {}", figure.label, value(figure), mark(figure.level));
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

/// The whole view as one JSON object; its shape is in `docs/OPERATIONS.md`. What the page does not say is null.
pub(super) fn json(view: &View, source: &str) -> Value {
    let mut object = Map::new();
    object.insert("source".to_owned(), json!(source));
    object.insert("version".to_owned(), json!(view.version));
    object.insert("uptime_seconds".to_owned(), json!(view.uptime_seconds));
    let losing = match view.verdict {
        Verdict::No => "no",
        Verdict::AtRisk => "at_risk",
        Verdict::Lost => "lost",
        Verdict::Now => "now",
        Verdict::Unknown => "unknown",
    };
    object.insert("losing_audio".to_owned(), json!(losing));
    for Section { name, figures, .. } in &view.sections {
        let figures = figures.iter().map(|figure| {
            let value = match (figure.unit, figure.value) {
                (Unit::YesNo, Some(value)) => json!(value > 0.0),
                (_, value) => json!(value),
            };
            (figure.name.to_owned(), value)
        });
        object.insert((*name).to_owned(), Value::Object(figures.collect()));
    }
    Value::Object(object)
}

/// What shows a level where there are no colours.
pub(super) fn mark(level: Level) -> &'static str {
    match level {
        Level::Normal => "",
        Level::Odd => "!",
        Level::Bad => "!!",
    }
}

/// The value of a figure, at most 10 characters for what a node can have.
pub(super) fn value(figure: &Figure) -> String {
    let Some(value) = figure.value else { return "-".to_owned() };
    match figure.unit {
        Unit::Count => format!("{value:.0}"),
        Unit::PerSecond if value < 10.0 => format!("{value:.1}/s"),
        Unit::PerSecond => format!("{value:.0}/s"),
        Unit::Seconds => seconds(value),
        Unit::AtMostSeconds => format!("≤ {}", seconds(value)),
        Unit::Bytes => bytes(value),
        Unit::BytesPerSecond => format!("{}/s", bytes(value)),
        Unit::Cores => format!("{value:.2}"),
        Unit::Share => format!("{:.0} %", value * 100.0),
        Unit::YesNo => if value > 0.0 { "YES" } else { "no" }.to_owned(),
    }
}

/// A time in the unit that people would say.
pub(super) fn seconds(value: f64) -> String {
    let (minutes, hours, days) =
        ((value / 60.0).floor(), (value / 3600.0).floor(), (value / 86_400.0).floor());
    if value <= 0.0 {
        "0 s".to_owned()
    } else if value < 0.001 {
        format!("{:.0} µs", value * 1e6)
    } else if value < 0.0995 {
        format!("{:.1} ms", value * 1e3)
    } else if value < 0.9995 {
        format!("{:.0} ms", value * 1e3)
    } else if value < 60.0 {
        format!("{value:.1} s")
    } else if hours < 1.0 {
        format!("{minutes:.0} min {:.0} s", (value - minutes * 60.0).floor())
    } else if days < 1.0 {
        format!("{hours:.0} h {:.0} min", minutes - hours * 60.0)
    } else {
        format!("{days:.0} d {:.0} h", hours - days * 24.0)
    }
}

fn bytes(value: f64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if value < 1000.0 {
        return format!("{value:.0} B");
    }
    let (mut value, mut units) = (value / 1024.0, UNITS.iter().peekable());
    while value >= 1000.0 && units.len() > 1 {
        units.next();
        value /= 1024.0;
    }
    let unit = units.next().copied().unwrap_or_default();
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Draws values as bars of one cell each, scaled from 0 to the largest, older ones to the left. More values than cells
/// share a cell, which shows the largest of them. A hole is a space; values that are all the same are nothing.
pub(super) fn spark(values: &[Option<f64>], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let known = || values.iter().flatten().copied();
    let most = known().fold(0.0, f64::max);
    if width == 0 || known().all(|value| known().next() == Some(value)) {
        return String::new();
    }
    let bar = |values: &[Option<f64>]| {
        let Some(value) = values.iter().flatten().copied().reduce(f64::max) else { return ' ' };
        let height = (value / most * 8.0).ceil();
        let at = (1..BARS.len()).take_while(|at| height > *at as f64).count();
        BARS.get(at).copied().unwrap_or(' ')
    };
    let cells = values.rchunks(values.len().div_ceil(width)).map(bar);
    cells.collect::<Vec<_>>().into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        let shown = |unit, value| {
            let figure = Figure { name: "", label: "", unit, value: Some(value), level: Level::Normal };
            super::value(&figure)
        };
        for (unit, number, wanted) in [
            (Unit::Count, 3.0, "3"),
            (Unit::PerSecond, 0.25, "0.2/s"),
            (Unit::PerSecond, 4999.6, "5000/s"),
            (Unit::Seconds, 0.0, "0 s"),
            (Unit::Seconds, 0.000_05, "50 µs"),
            (Unit::AtMostSeconds, 0.0025, "≤ 2.5 ms"),
            (Unit::Seconds, 0.131, "131 ms"),
            (Unit::Seconds, 4.21, "4.2 s"),
            (Unit::Seconds, 754.2, "12 min 34 s"),
            (Unit::Seconds, 7322.0, "2 h 2 min"),
            (Unit::Seconds, 93_900.0, "1 d 2 h"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Bytes, 1000.0, "1.0 KiB"),
            (Unit::Bytes, 14_700_000_000.0, "14 GiB"),
            (Unit::Bytes, 1e18, "909495 TiB"),
            (Unit::BytesPerSecond, 280_000.0, "273 KiB/s"),
            (Unit::Cores, 0.123, "0.12"),
            (Unit::Share, 0.856, "86 %"),
            (Unit::YesNo, 1.0, "YES"),
        ] {
            assert_eq!(shown(unit, number), wanted);
        }
    }

    #[test]
    fn bars_show_the_largest_of_a_cell_and_leave_holes() {
        let values = |values: &[f64]| values.iter().map(|value| Some(*value)).collect::<Vec<_>>();
        assert_eq!(spark(&values(&[0.0, 1.0, 4.0, 8.0]), 4), "▁▁▄█");
        assert_eq!(spark(&values(&[0.0, 8.0, 0.0, 1.0, 0.0]), 3), "▁█▁", "the newest cells are full");
        assert_eq!(spark(&[Some(1.0), None, Some(2.0)], 5), "▄ █");
        for none in [vec![], vec![None; 3], values(&[2.0, 2.0]), values(&[0.0])] {
            assert_eq!(spark(&none, 5), "");
        }
        assert_eq!(spark(&values(&[1.0, 2.0]), 0), "");
    }
}
