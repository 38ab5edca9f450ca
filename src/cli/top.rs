//! `callseal top`: what a node does now, from the metrics page of its ops listener alone.
//!
//! Knows no key, no tenant and no store. However it ends, by key, signal, error or panic, the terminal is as it was.

mod draw;
mod fetch;
mod figures;
#[cfg(test)]
mod tests;
mod text;
mod watch;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::config::{Config, process_environment};
use crate::observe::page::Page;

use super::{CommandResult, Failure, output};
use draw::Screen;
use fetch::{FetchError, Target};
use figures::View;
use watch::Watch;

/// How often keys and news are looked at.
const KEY_INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `callseal top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// The metrics page of the node: its ops listener, or the near end of a tunnel to it; plain HTTP only
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9464/metrics")]
    url: Target,
    /// Take the address from listen.ops of a node's configuration instead
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// Milliseconds between two looks, 500 to 60000
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(500..=60_000))]
    interval_ms: u64,
    /// Look twice, one interval apart, write the figures as text and end; so it does where it has no terminal
    #[arg(long)]
    once: bool,
    /// As --once, but one JSON object
    #[arg(long)]
    json: bool,
}

/// A page, and when it was there.
struct Look {
    page: Page,
    at: Instant,
    wall_seconds: f64,
}

/// What the watching thread tells.
enum News {
    Looked(Result<Look, FetchError>),
    /// A signal asks to end.
    End,
}

/// Shows a node until somebody has seen enough.
pub(super) fn run(args: &TopArgs) -> CommandResult {
    let target = args.target()?;
    let interval = Duration::from_millis(args.interval_ms);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let source = target.to_string();
    if args.once || args.json || !std::io::stdout().is_terminal() {
        let view = runtime.block_on(two_looks(&target, interval))?;
        match args.json {
            true => output::line(&serde_json::to_string_pretty(&text::json(&view, &source))?),
            false => output::line(text::plain(&view, &source).trim_end()),
        }
        return Ok(());
    }
    let signals = {
        let _within = runtime.enter();
        [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(signal)
    };
    let [terminate, hangup, interrupt] = signals;
    let signals = [terminate?, hangup?, interrupt?];
    let (tell, news) = mpsc::channel();
    std::thread::Builder::new()
        .name("looks".to_owned())
        .spawn(move || runtime.block_on(watch(&target, interval, signals, &tell)))?;
    let restore = Restore;
    let mut terminal = ratatui::try_init().context("this terminal cannot be drawn on; say --once")?;
    let shown = show(&mut terminal, &source, interval, &news);
    drop(restore);
    shown?;
    Ok(())
}

impl TopArgs {
    fn target(&self) -> Result<Target, Failure> {
        let Some(file) = &self.config else { return Ok(self.url.clone()) };
        let ops = Config::ops_address(file, process_environment()).map_err(Failure::Config)?;
        if ops.port() == 0 {
            Err(anyhow::anyhow!(
                "listen.ops has port 0; say --url with the address that the node's log names as ops"
            ))?;
        }
        Ok(ops.into())
    }
}

/// Puts the terminal back.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn look(target: &Target) -> Result<Look, FetchError> {
    let page = target.look().await?;
    let wall = Duration::from_millis(clock::wall().0);
    Ok(Look { page, at: clock::monotonic(), wall_seconds: wall.as_secs_f64() })
}

async fn two_looks(target: &Target, interval: Duration) -> anyhow::Result<View> {
    let mut watch = Watch::default();
    for is_second in [false, true] {
        if is_second {
            tokio::time::sleep(interval).await;
        }
        let Look { page, at, wall_seconds } = look(target).await?;
        watch.answered(&page, at, wall_seconds);
    }
    let Some(view) = watch.view() else { bail!("nothing was seen") };
    Ok(view.clone())
}

/// Looks at every interval and waits for signals, until nobody listens any more.
async fn watch(target: &Target, interval: Duration, signals: [Signal; 3], tell: &Sender<News>) {
    let looking = async {
        let mut turns = tokio::time::interval(interval);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            if tell.send(News::Looked(look(target).await)).is_err() {
                return;
            }
        }
    };
    let [mut terminate, mut hangup, mut interrupt] = signals;
    tokio::select! {
        () = looking => return,
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Whoever is not there to be told has ended already.
    tell.send(News::End).unwrap_or_default();
}

/// Draws whatever is new until somebody ends it.
fn show(
    terminal: &mut DefaultTerminal,
    source: &str,
    interval: Duration,
    news: &Receiver<News>,
) -> std::io::Result<()> {
    let mut watch = Watch::default();
    let (mut held, mut shows_help) = (None::<Watch>, false);
    loop {
        let screen = Screen {
            source,
            watch: held.as_ref().unwrap_or(&watch),
            interval,
            now: clock::monotonic(),
            is_paused: held.is_some(),
            shows_help,
        };
        terminal.draw(|frame| draw::draw(frame, &screen))?;
        if event::poll(KEY_INTERVAL)? {
            match key(&event::read()?) {
                Some(Key::End) => return Ok(()),
                Some(_) if shows_help => shows_help = false,
                Some(Key::Hold) => held = if held.is_some() { None } else { Some(watch.clone()) },
                Some(Key::Help) => shows_help = true,
                Some(Key::Other) | None => {}
            }
        }
        match news.try_recv() {
            Ok(News::Looked(Ok(Look { page, at, wall_seconds }))) => watch.answered(&page, at, wall_seconds),
            Ok(News::Looked(Err(error))) => watch.failed(format!("{:#}", anyhow::Error::new(error))),
            Ok(News::End) | Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => {}
        }
    }
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    End,
    Hold,
    Help,
    Other,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other keys do the same")]
fn key(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return None };
    match code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::End),
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Some(Key::End),
        KeyCode::Char('p') => Some(Key::Hold),
        KeyCode::Char('?') => Some(Key::Help),
        _ => Some(Key::Other),
    }
}
