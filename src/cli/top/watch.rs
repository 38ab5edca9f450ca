//! What was seen of a node over time: looks that were answered and looks that were not. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::observe::page::Page;

use super::figures::{Counted, KINDS_OF_LOSS, View, started};

/// Rates and quantiles are those of this time. Calls add to the counters once a segment, which is 5 s by default: a
/// shorter time would show nothing and then twice as much.
const WINDOW: Duration = Duration::from_secs(10);
/// Looks that are remembered for rates: those of the window at the shortest interval.
const MAX_RECENT: usize = 64;
/// Looks that are remembered for the bars: five minutes at the default interval.
const MAX_HISTORY: usize = 300;

/// Everything that was seen. The copy is what a paused screen shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    /// Oldest first; the first is what rates are made against.
    recent: VecDeque<Counted>,
    /// The values of all figures at each look, oldest first; empty where nobody answered.
    history: VecDeque<Vec<Option<f64>>>,
    /// What was lost before the node was started anew.
    carried: [f64; KINDS_OF_LOSS],
    view: Option<View>,
    trouble: Option<String>,
}

impl Watch {
    /// Takes a page that was looked at `at`, when the wall clock said `wall_seconds`.
    pub(super) fn answered(&mut self, page: &Page, at: Instant, wall_seconds: f64) {
        let now = Counted::of(page, at);
        if let Some(last) = &self.view
            && last.started != started(page)
        {
            // Its counters begin with 0 again; what was lost is lost.
            self.carried = last.lost();
            self.recent.clear();
        }
        while self.recent.get(1).is_some_and(|next| at.saturating_duration_since(next.at) >= WINDOW)
            || self.recent.len() >= MAX_RECENT
        {
            self.recent.pop_front();
        }
        let view = View::new(page, &now, self.recent.front(), &self.carried, wall_seconds);
        self.recent.push_back(now);
        self.remember(view.figures().map(|figure| figure.value).collect());
        (self.view, self.trouble) = (Some(view), None);
    }

    /// Takes note that nobody answered, and why.
    pub(super) fn failed(&mut self, why: String) {
        self.remember(Vec::new());
        self.trouble = Some(why);
    }

    fn remember(&mut self, values: Vec<Option<f64>>) {
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(values);
    }

    /// The last that was seen; none before the first answer.
    pub(super) fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Why there is nothing newer.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The values of the figure with this place among all, oldest first.
    pub(super) fn history(&self, figure: usize) -> Vec<Option<f64>> {
        self.history.iter().map(|values| values.get(figure).copied().flatten()).collect()
    }
}
