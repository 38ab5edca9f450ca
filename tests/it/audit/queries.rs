//! Who did what: finding records, handing them on, and proving that none is missing.

use std::fs;

use callseal::control::audit::{
    AuditError, AuditEvent, BadExport, Cursor, ExportCheck, ExportFormat, Filter, Proof, Span,
};
use callseal::domain::time::UnixMillis;

use super::world::{DAY, HOUR, World, played};

/// Three listeners at two nodes over three days, one play an hour; a grant and somebody unknown.
async fn busy() -> World {
    let world = World::new().await;
    let processes = [world.process("a"), world.process("b")];
    for hour in 0..72_u64 {
        let who =
            [("alice", "192.0.2.1", "k1"), ("bob", "192.0.2.77", "k1"), ("carol", "198.51.100.1", "k2")];
        let (actor, source, key) = who[usize::try_from(hour % 3).unwrap()];
        let process = &processes[usize::from(hour % 2 == 0)];
        process.record(&world.tenant, played(actor, source, key, &format!("r{}", hour % 7))).await;
        process.record(&world.other, played("alice", "192.0.2.1", "k1", "theirs")).await;
        world.time.advance(HOUR);
    }
    let mint = AuditEvent {
        key: Some("k2".to_owned()),
        ..AuditEvent::by_operator("dave", "mint-grant", "r1".to_owned())
    };
    processes[0].record(&world.tenant, mint).await;
    for process in &processes {
        process.end().await;
    }
    world
}

fn begin(world: &World) -> UnixMillis {
    UnixMillis(world.time.now().0 - 3 * DAY)
}

async fn find(world: &World, filter: Filter) -> Vec<AuditEvent> {
    let page = world.reader().query(&world.tenant, &filter, None, usize::MAX).await.unwrap();
    assert!(page.damage.is_empty() && page.next.is_none());
    assert!(page.records.is_sorted_by_key(|record| record.time.clone()), "oldest first");
    page.records.into_iter().map(|record| record.event).collect()
}

#[tokio::test]
async fn records_are_found_by_everything_that_they_say() {
    let world = busy().await;
    let text = |value: &str| Some(value.to_owned());
    let all = find(&world, Filter::default()).await;
    assert_eq!(all.len(), 73, "nothing of the other tenant, and no checkpoint");
    assert!(all.iter().all(|event| event.subject != "theirs"));
    let with_marks = find(&world, Filter { with_marks: true, ..Filter::default() }).await;
    assert_eq!(with_marks.len(), 75, "and the ends of two chains");
    let rows = [
        (Filter { actor: text("alice"), ..Filter::default() }, 24),
        (Filter { actor: text("ali"), ..Filter::default() }, 0),
        (Filter { source: Some("192.0.2.0/24".parse().unwrap()), ..Filter::default() }, 48),
        (Filter { source: Some("192.0.2.77".parse().unwrap()), ..Filter::default() }, 24),
        (Filter { key: text("k2"), ..Filter::default() }, 25),
        (Filter { key: text("k2"), action: text("play"), ..Filter::default() }, 24),
        (Filter { action: text("mint-grant"), ..Filter::default() }, 1),
        (Filter { subject: text("r3"), ..Filter::default() }, 10),
        (Filter { result: text("allowed"), ..Filter::default() }, 73),
        (Filter { result: text("expired"), ..Filter::default() }, 0),
        (Filter { actor: text("\"role\":\"player\""), ..Filter::default() }, 0),
    ];
    for (filter, count) in rows {
        assert_eq!(find(&world, filter.clone()).await.len(), count, "{filter:?}");
    }
    // The blast radius: what did alice touch on the second day?
    let from = UnixMillis(begin(&world).0 + DAY);
    let span = Span { from: Some(from), until: Some(UnixMillis(from.0 + DAY)) };
    let touched = find(&world, Filter { span, actor: text("alice"), ..Filter::default() }).await;
    assert_eq!(touched.len(), 8);
    let edge = Span { from: Some(from), until: Some(UnixMillis(from.0 + 1)) };
    assert_eq!(find(&world, Filter { span: edge, ..Filter::default() }).await.len(), 1);
    let empty = Span { from: Some(UnixMillis(from.0 + 1)), until: Some(UnixMillis(from.0 + HOUR)) };
    assert!(find(&world, Filter { span: empty, ..Filter::default() }).await.is_empty());
}

#[tokio::test]
async fn pages_together_are_the_whole() {
    let world = busy().await;
    let whole =
        world.reader().query(&world.tenant, &Filter::default(), None, usize::MAX).await.unwrap().records;
    for limit in [1, 2, 7, 72, 73, 74] {
        let (mut records, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = world.reader().query(&world.tenant, &Filter::default(), cursor, limit).await.unwrap();
            assert!(page.records.len() <= limit);
            records.extend(page.records);
            pages += 1;
            // Through text, as whoever asks over HTTP has it.
            match page.next.map(|next| next.to_string().parse::<Cursor>().unwrap()) {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(records, whole, "pages of {limit}");
        assert_eq!(pages, whole.len().div_ceil(limit));
    }
}

#[tokio::test]
async fn records_of_one_object_come_on_different_pages() {
    let world = World::new().await;
    let process = world.process("a");
    let records = (0..40)
        .map(|number| process.record(&world.tenant, played("alice", "::1", "k1", &number.to_string())));
    // They wait at the same time, and so are put into few objects.
    let all: Vec<_> = records.map(Box::pin).collect();
    futures_util::future::join_all(all).await;
    assert!(world.objects(&world.tenant).await.len() < 40);
    let (mut cursor, mut subjects) = (None, Vec::new());
    loop {
        let page = world.reader().query(&world.tenant, &Filter::default(), cursor, 3).await.unwrap();
        subjects.extend(page.records.into_iter().map(|record| record.event.subject));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(subjects, (0..40).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_hides_nothing_else() {
    let world = busy().await;
    let objects = world.objects(&world.tenant).await;
    fs::write(world.file(&objects[5]), b"not a record").unwrap();
    fs::write(world.file(&objects[9].replace(".car", ".x")), b"not a record").unwrap();
    let page = world.reader().query(&world.tenant, &Filter::default(), None, usize::MAX).await.unwrap();
    assert_eq!((page.records.len(), page.damage.len()), (72, 2));
}

async fn export(world: &World, span: Span, format: ExportFormat) -> Result<(Vec<u8>, Proof), AuditError> {
    let mut out = Vec::new();
    let proof = world.reader().export(&world.tenant, span, format, &mut out).await?;
    Ok((out, proof))
}

fn check<'l>(lines: impl IntoIterator<Item = &'l [u8]>) -> Result<Proof, BadExport> {
    let mut check = ExportCheck::default();
    lines.into_iter().try_for_each(|line| check.line(line))?;
    check.finish()
}

#[tokio::test]
async fn an_export_proves_that_nothing_is_missing() {
    let world = busy().await;
    let span = Span {
        from: Some(UnixMillis(begin(&world).0 + DAY)),
        until: Some(UnixMillis(begin(&world).0 + 2 * DAY)),
    };
    for (span, records) in [(Span::default(), 75), (span, 24)] {
        let (out, proof) = export(&world, span, ExportFormat::JsonLines).await.unwrap();
        assert_eq!((proof.records, proof.chains.len(), proof.tenant.as_str()), (records, 2, "acme"));
        let lines: Vec<&[u8]> = out.trim_ascii_end().split(|byte| *byte == b'\n').collect();
        assert_eq!(check(lines.iter().copied()), Ok(proof.clone()));
        let verified = world.verify().await;
        if span == Span::default() {
            let heads: Vec<_> = verified.chains.iter().map(|chain| chain.head.as_str()).collect();
            let proved: Vec<_> = proof.chains.iter().map(|chain| chain.head.as_str()).collect();
            assert_eq!(heads, proved, "the proof ends where the log ends");
        }
        let last = lines.len() - 1;
        assert_eq!(check(lines[..last].iter().copied()), Err(BadExport::NoProof));
        let without =
            |gone: usize| lines.iter().enumerate().filter(move |(at, _)| *at != gone).map(|(_, line)| *line);
        for gone in 0..last {
            assert!(check(without(gone)).is_err(), "line {gone} is missing");
        }
        let mut swapped = lines.clone();
        swapped.swap(3, 5);
        assert!(check(swapped).is_err());
        let edited = String::from_utf8(lines[4].to_vec()).unwrap().replace("player", "nobody");
        let mut forged = lines.clone();
        forged[4] = edited.as_bytes();
        assert!(check(forged).is_err());
        let mut twice = lines.clone();
        twice.insert(4, lines[4]);
        assert!(check(twice).is_err());
        assert!(check([&lines[..], &lines[..1]].concat()).is_err(), "nothing comes after the proof");
        assert_eq!(check([&b"x"[..]]), Err(BadExport::NotARecord(1)));
    }
    let objects = world.objects(&world.tenant).await;
    fs::remove_file(world.file(&objects[10])).unwrap();
    for format in [ExportFormat::JsonLines, ExportFormat::Csv] {
        let refused = export(&world, Span::default(), format).await.unwrap_err();
        assert!(matches!(refused, AuditError::Broken(_)), "{refused}");
    }
}

#[tokio::test]
async fn no_value_of_a_table_is_a_formula_or_breaks_out_of_its_cell() {
    let world = World::new().await;
    let process = world.process("a");
    let hostile = [
        "=HYPERLINK(\"http://evil.example\")",
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r\n=1",
        " =1",
        "a\"b,c\nd",
        "'=1",
        "\u{202e}gnp.exe",
        "\u{ff1d}1",
    ];
    for actor in hostile {
        process.record(&world.tenant, played(actor, "192.0.2.1", "k1", "r")).await;
    }
    process.end().await;
    let (out, proof) = export(&world, Span::default(), ExportFormat::Csv).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    let rows: Vec<&str> = text.split("\r\n").filter(|row| !row.is_empty()).collect();
    assert_eq!(rows.len() as u64, 1 + proof.records, "no value makes a row");
    assert!(rows[0].starts_with("\"time\",\"chain\",\"number\",\"node\",\"actor\""));
    for (row, given) in rows[1..].iter().zip(hostile) {
        let cells: Vec<&str> =
            row.strip_prefix('"').unwrap().strip_suffix('"').unwrap().split("\",\"").collect();
        assert_eq!(cells.len(), 17, "{given:?}");
        assert!(
            !cells[4].starts_with(['=', '+', '-', '@', '\t', '\r', ' ', '\u{ff1d}'])
                || cells[4].starts_with("' "),
            "{given:?}: {}",
            cells[4]
        );
        assert!(!row.contains(|c: char| c.is_control() || c == '\u{202e}'), "{given:?}");
    }
    assert!(rows[8].contains("\"a\"\"b,c\\u{a}d\""));
}
