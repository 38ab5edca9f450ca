//! The view as a whole: pages in, figures, text, JSON and screens out.

use std::fs;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

use super::draw::{Screen, draw};
use super::figures::{Level, Verdict};
use super::watch::Watch;
use super::*;

const SOURCE: &str = "http://127.0.0.1:9464/metrics";
const STARTED: f64 = 1000.0;

/// A page of an invented node, `second` seconds after the first look, with more lines.
fn page(second: u32, more: &str) -> Page {
    let all = 200 * second;
    let longest = f64::from(1 + second % 4) / 500.0;
    Page::new(format!(
        "callseal_build_info{{version=\"0.1.0\"}} 1\nprocess_start_time_seconds {STARTED}\n\
         ingest_live_streams 14\nrelay_live_calls 4\nstreams_longest_pause_seconds 301\n\
         streams{{provider=\"twilio\",state=\"recording\"}} 9\nstreams{{provider=\"twilio\",state=\"paused\"}} 1\n\
         streams{{provider=\"vapi\",state=\"recording\"}} {}\n\
         ingest_messages_total {}\nseal_audio_milliseconds_total {}\nseal_frames_total {}\n\
         journal_records_total {all}\nupload_segments_stored_total {}\nupload_retries_total {}\n\
         store_written_bytes_total{{operation=\"put\"}} {}\nprocess_cpu_milliseconds_total {}\n\
         event_loop_lag_seconds_bucket{{le=\"0.001\"}} {all}\nevent_loop_lag_seconds_bucket{{le=\"+Inf\"}} {all}\n\
         relay_read_to_written_seconds_bucket{{direction=\"to_agent\",le=\"0.00025\"}} {all}\n\
         relay_read_to_written_seconds_bucket{{direction=\"to_agent\",le=\"+Inf\"}} {all}\n\
         event_loop_longest_lag_seconds {longest}\nstore_lag_seconds {}\noldest_unsaved_seconds 0.131\n\
         audio_lost_bytes_total{{reason=\"overload\"}} 0\naudio_lost_bytes_total{{reason=\"lost_before_us\"}} 0\n\
         upload_dropping 0\nupload_breaker_open 0\nupload_waiting_bytes 134217728\nupload_spilled_bytes 0\n\
         calls_unrecorded_total 0\njournal_failures_total{{step=\"sync\",kind=\"disk\"}} 0\n\
         integrity_failures_total 0\nrecordings_recovery_failed_total 0\n\
         ingest_messages_dropped_total{{reason=\"binary\"}} 0\nnotices_dead_total 0\n\
         notices_lost_total{{reason=\"random\"}} 0\nnotices_waiting 3\nnotices_oldest_waiting_seconds 75\n\
         journal_disk_bytes 5000000000\njournal_max_bytes 17179869184\nkeys_waiting 8\n\
         process_resident_memory_bytes 301989888\nprocess_open_fds 64\nprocess_max_fds 1024\n{more}",
        second % 5,
        1400 * second,
        28_000 * second,
        1400 * second,
        3 * second,
        second / 4,
        280_000 * second,
        120 * second,
        3.0 + f64::from(second % 5) / 2.0,
    ))
}

/// Everything after so many looks, one a second; `more` is added to the last page.
fn watched(began: Instant, looks: u32, more: &str) -> Watch {
    let mut watch = Watch::default();
    for second in 0..looks {
        let more = if second + 1 == looks { more } else { "" };
        let wall = STARTED + 93_900.0 + f64::from(second);
        watch.answered(&page(second, more), began + Duration::from_secs(second.into()), wall);
    }
    watch
}

fn screen(watch: &Watch, now: Instant) -> Screen<'_> {
    let interval = Duration::from_secs(1);
    Screen { source: SOURCE, watch, interval, now, is_paused: false, shows_help: false }
}

fn drawn(width: u16, height: u16, screen: &Screen<'_>) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, screen)).unwrap();
    terminal.backend().clone()
}

fn rows(backend: &TestBackend) -> String {
    let buffer = backend.buffer();
    let row = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..buffer.area.height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
}

fn row_of(backend: &TestBackend, text: &str) -> (String, u16) {
    let all = rows(backend);
    let found = all.lines().enumerate().find(|(_, row)| row.contains(text));
    let (y, row) = found.unwrap_or_else(|| panic!("{text:?} is missing in\n{all}"));
    (row.to_owned(), u16::try_from(y).unwrap())
}

/// Compares with a file beside this one; with `CALLSEAL_WRITE_DOCS` set it is written instead.
fn is_golden(name: &str, text: &str) {
    let file = format!("{}/src/cli/top/tests/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("CALLSEAL_WRITE_DOCS").is_some() {
        fs::write(&file, text).unwrap();
    }
    let wanted = fs::read_to_string(&file).unwrap_or_default();
    assert!(wanted == text, "{name} should be\n{wanted}\nand is\n{text}");
}

fn figure(watch: &Watch, name: &str) -> (String, Level) {
    let figure = watch.view().unwrap().figure(name).unwrap_or_else(|| panic!("{name}"));
    (text::value(figure), figure.level)
}

#[test]
fn screens_text_and_json_are_as_they_were_looked_over() {
    let began = clock::monotonic();
    let watch = watched(began, 40, "");
    let now = began + Duration::from_secs(40);
    for (width, height) in [(80, 24), (120, 40)] {
        is_golden(&format!("{width}x{height}.txt"), &rows(&drawn(width, height, &screen(&watch, now))));
    }
    let help = Screen { shows_help: true, ..screen(&watch, now) };
    is_golden("help.txt", &rows(&drawn(80, 24, &help)));
    let view = watch.view().unwrap();
    is_golden("plain.txt", &text::plain(view, SOURCE));
    is_golden("view.json", &(serde_json::to_string_pretty(&text::json(view, SOURCE)).unwrap() + "\n"));
}

#[test]
fn eighty_by_twenty_four_shows_every_figure_and_names_are_unique() {
    let began = clock::monotonic();
    let watch = watched(began, 3, "");
    let all = rows(&drawn(80, 24, &screen(&watch, began)));
    let view = watch.view().unwrap();
    for figure in view.figures() {
        assert!(all.contains(figure.label), "{} is missing in\n{all}", figure.label);
        assert!(figure.label.chars().count() <= 19, "{}", figure.label);
        assert_eq!(view.figures().filter(|other| other.name == figure.name).count(), 1);
    }
}

#[test]
fn what_is_wrong_is_said_first() {
    let began = clock::monotonic();
    for (more, verdict, name, level) in [
        ("", Verdict::No, "audio_overload_bytes", Level::Normal),
        (
            "audio_lost_bytes_total{reason=\"overload\"} 160\n",
            Verdict::Lost,
            "audio_overload_bytes",
            Level::Bad,
        ),
        ("audio_lost_bytes_total{reason=\"else\"} 160\n", Verdict::Lost, "audio_other_bytes", Level::Bad),
        (
            "journal_failures_total{step=\"write\",kind=\"disk\"} 1\n",
            Verdict::AtRisk,
            "journal_failures",
            Level::Bad,
        ),
        ("ingest_messages_dropped_total{reason=\"a\"} 1\n", Verdict::No, "messages_dropped", Level::Odd),
        ("calls_unrecorded_total 1\n", Verdict::Lost, "calls_unrecorded", Level::Bad),
        ("upload_dropping 1\n", Verdict::Now, "audio_overload_bytes", Level::Normal),
        ("oldest_unsaved_seconds 2\n", Verdict::AtRisk, "oldest_unsaved_seconds", Level::Bad),
        ("store_lag_seconds 60\n", Verdict::AtRisk, "store_lag_seconds", Level::Bad),
        ("upload_breaker_open 1\n", Verdict::AtRisk, "store_away", Level::Bad),
        ("event_loop_longest_lag_seconds 0.1\n", Verdict::No, "event_loop_longest_lag_seconds", Level::Odd),
        ("journal_disk_bytes 12000000000\n", Verdict::AtRisk, "journal_used_share", Level::Bad),
        ("process_open_fds 800\n", Verdict::No, "open_files", Level::Bad),
    ] {
        let watch = watched(began, 2, more);
        let (view, (_, found)) = (watch.view().unwrap(), figure(&watch, name));
        assert_eq!((view.verdict, found), (verdict, level), "{more}");
        let (word, _) = text::verdict(verdict);
        let first = rows(&drawn(80, 1, &screen(&watch, began)));
        assert!(first.starts_with(&format!("losing audio? {word}  lost ")), "{more}: {first}");
    }
    let mut watch = Watch::default();
    watch.answered(&Page::new("callseal_build_info{version=\"9\"} 1\n".to_owned()), began, 0.0);
    assert_eq!(watch.view().unwrap().verdict, Verdict::Unknown, "an unknown page does not calm anybody");
}

#[test]
fn what_was_lost_stays_and_is_red_over_restarts_and_silence() {
    let began = clock::monotonic();
    let lost = "audio_lost_bytes_total{reason=\"overload\"} 4096\n";
    let mut watch = watched(began, 5, lost);
    let anew = |second: u64, lost: u64| {
        let text = format!(
            "callseal_build_info{{version=\"0.1.0\"}} 1\nprocess_start_time_seconds 2000\nupload_dropping 0\n\
             store_lag_seconds 0\noldest_unsaved_seconds 0\ningest_messages_total {}\n\
             audio_lost_bytes_total{{reason=\"overload\"}} {lost}\n",
            100 * second
        );
        (Page::new(text), began + Duration::from_secs(10 + second))
    };
    for (second, lost, wanted) in [(0, 0, "4.0 KiB"), (1, 0, "4.0 KiB"), (2, 1024, "5.0 KiB")] {
        let (page, at) = anew(second, lost);
        watch.answered(&page, at, 2001.0);
        assert_eq!(figure(&watch, "audio_overload_bytes"), (wanted.to_owned(), Level::Bad));
    }
    assert_eq!(watch.view().unwrap().verdict, Verdict::Lost);
    assert_eq!(figure(&watch, "messages_per_second").0, "100/s", "no rate goes over a restart");

    watch.failed("nobody answers at 127.0.0.1:9464: connection refused".to_owned());
    let backend = drawn(120, 24, &screen(&watch, began + Duration::from_secs(24)));
    let (first, _) = row_of(&backend, "losing audio?");
    assert_eq!(
        first,
        "losing audio? UNKNOWN  figures are 12.0 s old, tried every 1.0 s: nobody answers at 127.0.0.1:9464: connection refused"
    );
    let styles = |text: &str| {
        let (row, y) = row_of(&backend, text);
        let x = row.chars().position(|c| c.is_ascii_digit()).unwrap();
        let cell = &backend.buffer()[(u16::try_from(x).unwrap(), y)];
        (cell.fg, cell.modifier)
    };
    assert_eq!(styles("audio, overload").0, Color::Red);
    assert_eq!(styles("audio, overload").1, Modifier::BOLD);
    assert_eq!(styles("store lag").1, Modifier::DIM);
}

#[test]
fn a_node_that_was_never_seen_and_a_held_screen_say_so() {
    let began = clock::monotonic();
    let mut watch = Watch::default();
    assert!(rows(&drawn(80, 24, &screen(&watch, began))).starts_with("losing audio? ...  looking\n"));
    watch.failed("no answer within 3 seconds".to_owned());
    let first = rows(&drawn(80, 1, &screen(&watch, began)));
    assert_eq!(first, "losing audio? UNKNOWN  no answer within 3 seconds; tried every 1.0 s\n");
    let watch = watched(began, 3, "");
    let held = Screen { is_paused: true, ..screen(&watch, began + Duration::from_secs(9)) };
    let (last, y) = row_of(&drawn(80, 24, &held), "HELD");
    assert!(last.starts_with("HELD, 7.0 s old: p goes on  callseal 0.1.0, up 1 d 2 h"), "{last}");
    assert_eq!(y, 23);
}

#[test]
fn rates_and_quantiles_are_those_of_the_last_ten_seconds() {
    let began = clock::monotonic();
    let mut watch = Watch::default();
    // A counter that moves every fifth second, as a call's does.
    for second in 0..40 {
        let more = format!(
            "ingest_messages_total {}\nevent_loop_lag_seconds_bucket{{le=\"0.1\"}} {second}\n",
            500 * (second / 5)
        );
        let text = format!("callseal_build_info{{version=\"1\"}} 1\n{more}");
        watch.answered(&Page::new(text), began + Duration::from_secs(second), 0.0);
        if second > 10 {
            assert_eq!(figure(&watch, "messages_per_second").0, "100/s", "{second}");
            assert_eq!(figure(&watch, "event_loop_lag_p99_seconds").0, "≤ 100 ms");
        }
    }
    assert_eq!(figure(&watch, "relay_p99_seconds").0, "-");
}

#[test]
fn no_terminal_is_too_small() {
    let began = clock::monotonic();
    let mut watch = watched(began, 3, "");
    for (width, height) in [(0, 0), (1, 1), (2, 2), (3, 40), (200, 1), (40, 5), (78, 3), (300, 100)] {
        for shows_help in [false, true] {
            let _rows = drawn(width, height, &Screen { shows_help, ..screen(&watch, began) });
        }
    }
    watch.failed("x".repeat(1000));
    let _rows = drawn(10, 3, &screen(&watch, began));
    let one_column = rows(&drawn(60, 60, &screen(&watch, began)));
    assert!(one_column.contains("stored"), "{one_column}");
}

#[test]
fn keys_are_told_apart() {
    let press = |code, modifiers| key(&Event::Key(KeyEvent::new(code, modifiers)));
    let none = KeyModifiers::NONE;
    assert_eq!(press(KeyCode::Char('q'), none), Some(Key::End));
    assert_eq!(press(KeyCode::Esc, none), Some(Key::End));
    assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::End));
    assert_eq!(press(KeyCode::Char('c'), none), Some(Key::Other));
    assert_eq!(press(KeyCode::Char('p'), none), Some(Key::Hold));
    assert_eq!(press(KeyCode::Char('?'), KeyModifiers::SHIFT), Some(Key::Help));
    assert_eq!(key(&Event::Resize(80, 24)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_no_fault(
        looks in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200), "[a-z_]{0,30}"), 1..4),
        numbers in prop::collection::vec(any::<f64>(), 8),
        (width, height) in (0u16..130, 0u16..50),
    ) {
        let began = clock::monotonic();
        let mut watch = Watch::default();
        for (second, (is_page, bytes, name)) in looks.into_iter().enumerate() {
            let [a, b, c, d, e, f, g, h] = numbers.as_slice() else { unreachable!() };
            let known = format!(
                "store_lag_seconds {a}\nprocess_start_time_seconds {b}\ningest_messages_total {c}\n\
                 event_loop_lag_seconds_bucket{{le=\"{d}\"}} {e}\nprocess_max_fds {f}\nprocess_open_fds {g}\n{name} {h}\n"
            );
            let bytes = [if is_page { known.as_bytes() } else { b"" }, &bytes].concat();
            let page = Page::new(String::from_utf8_lossy(&bytes).into_owned());
            watch.answered(&page, began + Duration::from_secs(second as u64), *h);
            let view = watch.view().unwrap();
            let plain = text::plain(view, SOURCE);
            prop_assert!(plain.chars().all(|c| c == '\n' || !c.is_control()), "{plain:?}");
            let _json = serde_json::to_string(&text::json(view, SOURCE)).unwrap();
            let _rows = drawn(width, height, &screen(&watch, began));
        }
    }
}
