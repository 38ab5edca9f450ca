//! Reads a metrics page as `metrics-exporter-prometheus` writes it: one series a line, no timestamps.
//!
//! Whatever the bytes are, reading them cannot fail: a line that is no series of a finite number is left out.

/// Bounds that a histogram may have; further ones are left out. Those of callseal have some twenty.
const MAX_BOUNDS: usize = 100;

/// One look at `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Page(String);

/// One line of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Series<'a> {
    /// The name of the metric; of a histogram with `_bucket`, `_sum` or `_count` behind it.
    pub name: &'a str,
    labels: &'a str,
    /// The value, a finite number.
    pub value: f64,
}

/// A histogram: upper bounds in its unit, and how many values were at most that, from the start of the server on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Buckets(Vec<(f64, f64)>);

impl Page {
    /// Takes the text of a page.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns all series in their order.
    pub fn series(&self) -> impl Iterator<Item = Series<'_>> {
        self.0.lines().filter_map(Series::read)
    }

    /// Returns all series of a name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Series<'a>> {
        let lines = self.0.lines().filter(move |line| line.starts_with(name));
        lines.filter_map(Series::read).filter(move |series| series.name == name)
    }

    /// Returns the sum of all series of a name; `None` when there is none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.named(name).map(|series| series.value).reduce(|sum, value| sum + value)
    }

    /// Returns the sum of the series of a name whose label has this value; `None` when there is none.
    pub fn sum_where(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let with = self.named(name).filter(|series| series.label(label) == Some(value));
        with.map(|series| series.value).reduce(|sum, value| sum + value)
    }

    /// Returns a histogram, all its series together.
    pub fn buckets(&self, name: &str) -> Buckets {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for series in self.named(&format!("{name}_bucket")) {
            // The last is "+Inf", which Rust reads as it is.
            let Some(bound) = series.label("le").and_then(|bound| bound.parse::<f64>().ok()) else {
                continue;
            };
            let is_full = buckets.len() >= MAX_BOUNDS;
            match buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                Some((_, count)) => *count += series.value,
                None if is_full => {}
                None => buckets.push((bound, series.value)),
            }
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        Buckets(buckets)
    }
}

impl<'a> Series<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        is_name.then_some(Self { name, labels, value })
    }

    /// Returns the labels with their values. Escapes are not read: no label of callseal has one.
    pub fn labels(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = self.labels;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_once("=\"")?;
            let (value, after) = after.split_once('"')?;
            rest = after.strip_prefix(',').unwrap_or(after);
            Some((name, value))
        })
    }

    /// Returns the value of a label.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        self.labels().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl Buckets {
    /// Returns the upper bound of the bucket with this share (0 to 1) of what was counted since `before`; `None` when
    /// nothing was. What is above the last bound counts as that.
    pub fn quantile_since(&self, before: &Self, share: f64) -> Option<f64> {
        let earlier = |bound: f64| {
            let same = before.0.iter().find(|(known, _)| known.total_cmp(&bound).is_eq());
            same.map_or(0.0, |(_, count)| *count)
        };
        let counts: Vec<_> = self.0.iter().map(|(bound, count)| (*bound, count - earlier(*bound))).collect();
        let (_, total) = counts.last()?;
        if *total <= 0.0 {
            return None;
        }
        let highest = counts.iter().rev().map(|(bound, _)| *bound).find(|bound| bound.is_finite())?;
        let reached = counts.iter().find(|(_, count)| *count >= total * share);
        reached.map(|(bound, _)| bound.min(highest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(text: &str) -> Page {
        Page::new(text.to_owned())
    }

    #[test]
    fn series_are_summed_by_their_whole_name_and_by_label() {
        let page = page("# HELP a b\na 1.5\na_b 7\nc{reason=\"x y\",d=\"e\"} 2\nc{reason=\"z\"} 3\n");
        assert_eq!((page.sum("a"), page.sum("c"), page.sum("d")), (Some(1.5), Some(5.0), None));
        assert_eq!(page.sum_where("c", "reason", "x y"), Some(2.0));
        assert_eq!([page.sum_where("c", "reason", "x"), page.sum_where("c", "e", "z")], [None; 2]);
        let labels: Vec<_> = page.named("c").map(|series| series.labels().collect::<Vec<_>>()).collect();
        assert_eq!(labels, [vec![("reason", "x y"), ("d", "e")], vec![("reason", "z")]]);
    }

    #[test]
    fn what_is_no_series_is_left_out() {
        let page = page("<html>\na b\n{x=\"1\"} 1\na{x=\"1\" 1\na NaN\na +Inf\na\nä 1\n\n \na 4");
        let series: Vec<_> = page.series().map(|series| (series.name, series.value)).collect();
        assert_eq!(series, [("a", 4.0)]);
    }

    #[test]
    fn quantiles_are_those_of_the_time_between() {
        let before = page("t_bucket{le=\"0.1\"} 90\nt_bucket{le=\"1\"} 100\nt_bucket{le=\"+Inf\"} 100\n");
        let now = page(
            "t_bucket{d=\"a\",le=\"0.1\"} 60\nt_bucket{d=\"a\",le=\"1\"} 150\nt_bucket{d=\"a\",le=\"+Inf\"} 151\n\
             t_bucket{d=\"b\",le=\"0.1\"} 40\nt_bucket{d=\"b\",le=\"1\"} 49\nt_bucket{d=\"b\",le=\"+Inf\"} 49\n",
        );
        let (before, now) = (before.buckets("t"), now.buckets("t"));
        assert_eq!(now.quantile_since(&before, 0.1), Some(0.1));
        assert_eq!(now.quantile_since(&before, 0.5), Some(1.0));
        assert_eq!(now.quantile_since(&before, 1.0), Some(1.0), "above the last bound counts as that");
        assert_eq!(now.quantile_since(&now, 0.5), None);
        assert_eq!(Buckets::default().quantile_since(&before, 0.5), None);
    }

    #[test]
    fn a_histogram_has_so_many_bounds() {
        let text: String = (0..1000).map(|i| format!("t_bucket{{le=\"{i}\"}} {i}\n")).collect();
        assert_eq!(page(&text).buckets("t").0.len(), MAX_BOUNDS);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "([ab_]{0,2}(\\{([a-z]{0,2}=?\"?[^\n]{0,2}\"?,?){0,3}\\}?)? ?[-+0-9.eINnaf]{0,4}\n|\\PC{0,9}\n?){0,9}") {
            let page = page(&text);
            for series in page.series() {
                prop_assert!(series.value.is_finite() && !series.name.is_empty());
                prop_assert!(page.sum(series.name).is_some());
                let _labels: Vec<_> = series.labels().collect();
            }
            let buckets = page.buckets("a");
            let _quantile = buckets.quantile_since(&Buckets::default(), 0.5);
        }
    }
}
