//! The result as one page of HTML: tables, and charts as SVG. It loads nothing and runs no script.
//!
//! It is well-formed XML too. Everything that is not written here is escaped.

use std::fmt::Write;

use crate::sampler::{CHARTS, Chart, Sample};
use crate::sheet::{Better, Sheet, number};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 220.0;
/// Room for numbers and names: left, right, above, below.
const MARGINS: [f64; 4] = [64.0, 12.0, 10.0, 26.0];
/// Points of a line at most; of more, the highest of each stretch is drawn, so that no peak is lost.
const MAX_POINTS: usize = 700;
/// Lines across a chart.
const STEPS: u32 = 4;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --dim: #6a7383; --line: #d9dee6; --paper: #fff;
  --bad: #b3261e; --good: #1a7f45; --c0: #2f6fde; --c1: #d9730d; --c2: #8a4fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #99a2b3; --line: #343b48; --paper: #14181f;
  --bad: #ff8a80; --good: #6fd39a; --c0: #7aa7ff; --c1: #ffab5e; --c2: #c4a0ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 800px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1rem; margin: 2rem 0 .4rem; }
p { color: var(--dim); margin: .2rem 0; } pre { white-space: pre-wrap; font-size: 13px; }
table { border-collapse: collapse; width: 100%; }
td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
.grid { stroke: var(--line); stroke-width: 1; } .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.l0 { stroke: var(--c0); } .l1 { stroke: var(--c1); } .l2 { stroke: var(--c2); }
.k0 { color: var(--c0); } .k1 { color: var(--c1); } .k2 { color: var(--c2); }
";

/// Writes the page.
pub(crate) fn page(sheet: &Sheet, compared: &[String]) -> String {
    let title = escape(&format!("callseal-load {}", sheet.scenario));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width\"/><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body>\n\
         <h1>{title}</h1>\n<p>{}, seed {}, callseal-load {}</p>\n",
        verdict(sheet),
        sheet.seed,
        env!("CARGO_PKG_VERSION")
    );
    for note in &sheet.notes {
        page.push_str(&format!("<p>{}</p>\n", escape(note)));
    }
    bounds(sheet, &mut page);
    figures(sheet, &mut page);
    failures(sheet, &mut page);
    for chart in &CHARTS {
        draw(chart, &sheet.samples, &mut page);
    }
    if !compared.is_empty() {
        page.push_str(&format!("<h2>Comparison</h2>\n<pre>{}</pre>\n", escape(&compared.join("\n"))));
    }
    settings(sheet, &mut page);
    page.push_str("</body>\n</html>\n");
    page
}

fn verdict(sheet: &Sheet) -> &'static str {
    match (sheet.all_went_well(), sheet.bounds.is_empty()) {
        (true, true) => "no bounds were set",
        (true, false) => "<span class=\"good\">all bounds are kept</span>",
        (false, _) => "<span class=\"bad\">bounds are broken</span>",
    }
}

fn bounds(sheet: &Sheet, page: &mut String) {
    if sheet.bounds.is_empty() {
        return;
    }
    page.push_str("<h2>Bounds</h2>\n<table>\n");
    for bound in &sheet.bounds {
        let class = if bound.broken { "bad" } else { "good" };
        page.push_str(&format!("<tr><td class=\"{class}\">{}</td></tr>\n", escape(&bound.text())));
    }
    page.push_str("</table>\n");
}

fn figures(sheet: &Sheet, page: &mut String) {
    page.push_str("<h2>Figures</h2>\n<table>\n");
    for figure in &sheet.figures {
        let better = match figure.better {
            Better::Lower => "less is better",
            Better::Higher => "more is better",
            Better::Neither => "",
        };
        page.push_str(&format!(
            "<tr><td>{}</td><td class=\"n\">{}</td><td>{}</td><td><p>{better}</p></td></tr>\n",
            escape(&figure.name),
            number(figure.value),
            escape(figure.unit)
        ));
    }
    page.push_str("</table>\n");
}

fn failures(sheet: &Sheet, page: &mut String) {
    if sheet.failures.is_empty() {
        return;
    }
    page.push_str("<h2>Failed calls</h2>\n<table>\n");
    for failure in &sheet.failures {
        let (what, calls) = (escape(&failure.what), failure.calls);
        page.push_str(&format!("<tr><td class=\"n\">{calls}</td><td>{what}</td></tr>\n"));
    }
    page.push_str("</table>\n");
}

fn settings(sheet: &Sheet, page: &mut String) {
    page.push_str("<h2>Settings</h2>\n<table>\n");
    for (name, value) in &sheet.settings {
        page.push_str(&format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(value)));
    }
    page.push_str("</table>\n");
}

/// Where values are on the paper.
struct Scale {
    last_secs: f64,
    top: f64,
}

impl Scale {
    fn x(&self, secs: f64) -> f64 {
        let [left, right, _, _] = MARGINS;
        left + (WIDTH - left - right) * secs / self.last_secs
    }

    fn y(&self, value: f64) -> f64 {
        let [_, _, above, below] = MARGINS;
        HEIGHT - below - (HEIGHT - above - below) * value / self.top
    }
}

/// Draws one chart; nothing where no second has a value.
fn draw(chart: &Chart, samples: &[Sample], page: &mut String) {
    let lines: Vec<_> = chart.lines.iter().map(|(column, name)| (*name, points(samples, column))).collect();
    let values = lines.iter().flat_map(|(_, points)| points).filter_map(|(_, value)| *value);
    let Some(highest) = values.reduce(f64::max) else { return };
    let last_secs = samples.last().map_or(1.0, |sample| sample.at.as_secs_f64()).max(1.0);
    let scale = Scale { last_secs, top: round_up(highest) };
    let unit = if chart.unit.is_empty() { String::new() } else { format!(" ({})", chart.unit) };
    page.push_str(&format!("<h2>{}{}</h2>\n<p>", escape(chart.title), escape(&unit)));
    for (index, (name, points)) in lines.iter().enumerate() {
        let peak = points.iter().filter_map(|(_, value)| *value).reduce(f64::max);
        let Some(peak) = peak else { continue };
        let text = format!("<span class=\"k{index}\">■</span> {}, at most {} ", escape(name), number(peak));
        page.push_str(&text);
    }
    page.push_str(&format!("</p>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n"));
    page.push_str(&format!("<title>{}</title>\n", escape(chart.title)));
    grid(&scale, page);
    for (index, (_, points)) in lines.iter().enumerate() {
        for stretch in stretches(points) {
            let coordinates: Vec<_> = stretch
                .iter()
                .map(|(at, value)| format!("{:.1},{:.1}", scale.x(*at), scale.y(*value)))
                .collect();
            let coordinates = coordinates.join(" ");
            page.push_str(&format!("<polyline class=\"line l{index}\" points=\"{coordinates}\"/>\n"));
        }
    }
    page.push_str("</svg>\n");
}

fn grid(scale: &Scale, page: &mut String) {
    let [left, right, _, _] = MARGINS;
    for step in 0..=STEPS {
        let share = f64::from(step) / f64::from(STEPS);
        let (y, x) = (scale.y(scale.top * share), scale.x(scale.last_secs * share));
        let (value, secs) = (number(scale.top * share), number((scale.last_secs * share).round()));
        let anchor = if step == STEPS { "end" } else { "middle" };
        page.push_str(&format!(
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{secs} s</text>\n",
            WIDTH - right,
            left - 6.0,
            y + 4.0,
            HEIGHT - 8.0,
        ));
    }
}

/// Returns the values of a column, thinned out.
fn points(samples: &[Sample], column: &str) -> Vec<(f64, Option<f64>)> {
    let each = samples.len().div_ceil(MAX_POINTS).max(1);
    let highest = |samples: &[Sample]| {
        let values = samples.iter().filter_map(|sample| sample.value(column));
        let at = samples.first().map_or(0.0, |sample| sample.at.as_secs_f64());
        (at, values.filter(|value| value.is_finite()).reduce(f64::max))
    };
    samples.chunks(each).map(highest).collect()
}

/// Cuts a line where it has holes; a single value becomes a short line.
fn stretches(points: &[(f64, Option<f64>)]) -> Vec<Vec<(f64, f64)>> {
    let mut stretches = vec![Vec::new()];
    for (at, value) in points {
        match (value, stretches.last_mut()) {
            (Some(value), Some(stretch)) => stretch.push((*at, *value)),
            (None, Some(stretch)) if !stretch.is_empty() => stretches.push(Vec::new()),
            _ => {}
        }
    }
    stretches.retain(|stretch| !stretch.is_empty());
    for stretch in &mut stretches {
        if let [(at, value)] = *stretch.as_slice() {
            stretch.push((at + 0.5, value));
        }
    }
    stretches
}

/// Returns the next of 1, 2, 2.5, 5 and their tenfolds.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let ten = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * ten).into_iter().find(|step| *step >= value).unwrap_or(value)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no others; they are not worth a hole in the page.
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => escaped.push('\u{fffd}'),
            letter => write!(escaped, "{letter}").expect("writing to a String never fails"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sheet::tests::invented;

    /// Checks that every tag is closed in order, that every attribute is quoted, and that `&` begins an entity.
    fn check_well_formed(page: &str) {
        let mut open = Vec::new();
        let body = page.strip_prefix("<!DOCTYPE html>").expect("a type of document");
        for part in body.split('<').skip(1) {
            let (tag, text) = part.split_once('>').expect("a tag ends");
            for entity in text.split('&').skip(1) {
                let (name, _) = entity.split_once(';').expect("an entity ends");
                assert!(["lt", "gt", "amp", "quot", "#39"].contains(&name), "&{name};");
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            assert_eq!(tag.matches("=\"").count() * 2, tag.matches('"').count(), "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let mut sheet = invented();
        sheet.scenario = "<script>alert(1)</script>\u{1}".to_owned();
        sheet.bound("cpu_ms_per_call_second", Some(0.1));
        let page = page(&sheet, &["a < b & c".to_owned()]);
        check_well_formed(&page);
        for part in
            ["bounds are broken", "<polyline", "2</td><td>the server said &lt;no&gt;", "a &lt; b &amp; c"]
        {
            assert!(page.contains(part), "{part}");
        }
        for part in ["<script", "http://", "https://", "url(", "@import", "src=", "href="] {
            assert!(!page.contains(part), "{part}");
        }
        check_well_formed(&super::page(&Sheet::default(), &[]));
    }

    #[test]
    fn lines_have_holes_where_nothing_was_seen_and_keep_their_peaks() {
        let some = |at: f64| (at, Some(at));
        assert_eq!(
            stretches(&[(0.0, None), some(1.0), some(2.0), (3.0, None), (4.0, None), some(5.0)]),
            [vec![(1.0, 1.0), (2.0, 2.0)], vec![(5.0, 5.0), (5.5, 5.0)]]
        );
        let many: Vec<_> = (0..5_000)
            .map(|at| Sample::invented(at, vec![("open_calls", Some(if at == 777 { 9.0 } else { 1.0 }))]))
            .collect();
        let points = points(&many, "open_calls");
        assert!(points.len() <= MAX_POINTS);
        assert_eq!(points.iter().filter(|(_, value)| *value == Some(9.0)).count(), 1);
    }

    #[test]
    fn scales_end_in_round_numbers() {
        let rounded = [0.0, 0.9, 1.0, 1.01, 2.3, 7.0, 120.0, 26.0].map(round_up);
        assert_eq!(rounded, [1.0, 1.0, 1.0, 2.0, 2.5, 10.0, 200.0, 50.0]);
    }
}
