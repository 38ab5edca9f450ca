//! The ops listener of a server: whether it is ready, and its metrics page.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one look at the ops listener may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A page has some tens of KiB; more is none of callseal's.
const MAX_PAGE_BYTES: u64 = 16 * 1024 * 1024;

/// Gets a path of an ops listener; answers status and body.
pub(crate) async fn get(ops: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let asking = async {
        let mut stream = TcpStream::connect(ops).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(MAX_PAGE_BYTES).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, asking).await.context("the ops listener hangs")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("the ops listener's answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the ops listener's status")?, body.to_owned()))
}

/// One look at `/metrics`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page(String);

/// A histogram: upper bounds in seconds, and how many were at most that, from the start of the server on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Buckets(Vec<(f64, f64)>);

impl Page {
    pub(crate) async fn get(ops: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(get(ops, "/metrics").await?.1))
    }

    /// Returns the sum of all series of a name; `None` when there is none.
    pub(crate) fn sum(&self, name: &str) -> Option<f64> {
        self.series(name).map(|(_, value)| value).reduce(|sum, value| sum + value)
    }

    /// Returns a histogram, all its series together.
    pub(crate) fn buckets(&self, name: &str) -> Buckets {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, count) in self.series(&format!("{name}_bucket")) {
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            // The last is "+Inf", which Rust reads as it is.
            let Some(bound) = bound.and_then(|bound| bound.parse::<f64>().ok()) else { continue };
            match buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                Some((_, known)) => *known += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        Buckets(buckets)
    }

    fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_whole_name = labels.is_empty() || labels.starts_with('{');
            Some((labels, value.parse().ok()?)).filter(|_| is_whole_name)
        })
    }
}

impl Buckets {
    /// Returns the upper bound of the bucket with this share of what was counted since `before`, in seconds; `None`
    /// when nothing was. What is above the last bound counts as that.
    pub(crate) fn quantile_since(&self, before: &Self, share: f64) -> Option<f64> {
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

    fn page(text: &str) -> Page {
        Page(text.to_owned())
    }

    #[test]
    fn series_are_summed_by_their_whole_name() {
        let page = page("# HELP a b\na 1.5\na_b 7\nc{reason=\"x y\"} 2\nc{reason=\"z\"} 3\n");
        assert_eq!((page.sum("a"), page.sum("c"), page.sum("d")), (Some(1.5), Some(5.0), None));
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
}
