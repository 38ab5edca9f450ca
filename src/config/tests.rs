//! The configuration is checked whole, reports everything at once, and shows no secret.

mod admin_jwt;
mod hipaa;
mod keys;
mod secrets;
mod store;
mod traces;
mod twilio;
mod vapi;
mod webhook;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::raw::{self, RawSection};
use super::*;

/// No fault and no debug text may ever contain this.
const CANARY: &str = "canary-Zq7-0123456789abcdef0123456789";
const NO_ENV: [(&str, &str); 0] = [];
const NODE: &str = "public_url = \"wss://media.example.com\"\n[tls]\nself_signed = true\n";
const ACME: &str = include_str!("../../config/tenants/acme-dental.toml");
const REFERENCE: &str = include_str!("../../config/callseal.toml");

/// Files of a test: any certificate, any secret that is not called `missing`, and some tenants.
#[derive(Default)]
struct Shelf {
    tenants: Vec<(&'static str, String)>,
}

impl Shelf {
    fn with(tenants: &[(&'static str, &str)]) -> Self {
        Self { tenants: tenants.iter().map(|(name, text)| (*name, (*text).to_owned())).collect() }
    }
}

impl Files for Shelf {
    fn read_secret(&self, path: &Path) -> Result<Secret, String> {
        match path.file_name().and_then(|name| name.to_str()) {
            Some("missing") => Err(format!("cannot read {}: not found", path.display())),
            Some("short") => Ok(Secret::new(CANARY.as_bytes()[..31].to_vec())),
            _ => Ok(Secret::new(CANARY.as_bytes().to_vec())),
        }
    }

    fn check_readable(&self, path: &Path) -> Result<(), String> {
        if path.ends_with("missing") { Err(format!("cannot read {}", path.display())) } else { Ok(()) }
    }

    fn tenant_files(&self, dir: &Path) -> Result<Vec<TenantFile>, String> {
        if dir.ends_with("missing") {
            return Err(format!("cannot read {}", dir.display()));
        }
        let file =
            |(name, text): &(&str, String)| TenantFile { name: (*name).to_owned(), text: Ok(text.clone()) };
        Ok(self.tenants.iter().map(file).collect())
    }
}

fn check(text: &str, env: &[(&str, &str)], files: &Shelf) -> Result<Config, Faults> {
    let checked = Config::from_toml(text, Path::new("/etc/callseal"), env.iter().copied(), files);
    let shown = match &checked {
        Ok(config) => format!("{config:?} {config:#?}"),
        Err(faults) => format!("{faults} {faults:?}"),
    };
    assert!(!shown.contains("canary"), "a secret is shown: {shown}");
    checked
}

fn faults_of(text: &str, env: &[(&str, &str)], files: &Shelf) -> BTreeMap<String, String> {
    let faults = check(text, env, files).expect_err("the configuration has faults");
    let listed: BTreeMap<_, _> =
        faults.iter().map(|fault| (fault.option.clone(), fault.problem.clone())).collect();
    assert_eq!(faults.to_string().lines().count(), faults.iter().count() + 1, "one line each: {faults}");
    listed
}

fn tenant_faults(text: &str) -> BTreeMap<String, String> {
    let faults = faults_of(NODE, &[], &Shelf::with(&[("t.toml", text)]));
    let own = |(option, problem): (String, String)| {
        let option = option.strip_prefix("tenants/t.toml: ").map(str::to_owned);
        (option.expect("the fault names the tenant's file"), problem)
    };
    faults.into_iter().map(own).collect()
}

fn names(faults: &BTreeMap<String, String>) -> Vec<&str> {
    faults.keys().map(String::as_str).collect()
}

#[test]
fn the_commented_file_states_the_defaults() {
    let minimal = "public_url = \"wss://media.example.com\"\n[tls]\n\
                   cert_file = \"tls/fullchain.pem\"\nkey_file = \"tls/privkey.pem\"\n";
    let files = Shelf::default();
    let written = check(REFERENCE, &[], &files).expect("config/callseal.toml has no fault");
    let implied = check(minimal, &[], &files).expect("only two things are required");
    assert_eq!(format!("{written:#?}"), format!("{implied:#?}"));
    assert_eq!(written.listen.public.to_string(), "0.0.0.0:8443");
    assert_eq!(written.journal.flush_interval, Duration::from_millis(20));
    assert_eq!(written.segments.max_bytes, 262_144);
    assert_eq!(written.ingest.max_stream, Duration::from_secs(86_400));
    assert_eq!(written.drain.max, Duration::from_secs(14_400));
    let Tls::Files { cert_file, .. } = written.tls else { panic!("a certificate file is given") };
    assert_eq!(cert_file, Path::new("/etc/callseal/tls/fullchain.pem"));
}

#[test]
fn the_commented_tenant_states_the_defaults() {
    let implied = "id = \"acme-dental\"\n[twilio]\naccount_sids = [\"AC000000000000000000000000c0ffee01\"]\n\
                   auth_tokens = [{ file = \"t\" }]\n[tickets]\nkeys.t1 = { file = \"k\" }\n[playback]\ngrant_keys.k1 = { file = \"g\" }\n\
                   [[route]]\nname = \"reception\"\n\
                   [[route]]\nname = \"agent\"\nmode = \"bidirectional\"\n\
                   [route.upstream]\nurl = \"wss://agent.example.com/twilio\"\non_loss = \"hold\"\n\
                   secrets = [{ file = \"a\" }]\n\
                   [[route]]\nname = \"agent-test\"\nmode = \"bidirectional\"\nrecord_only = true\n";
    let tenant = |text: &str| {
        let config = check(NODE, &[], &Shelf::with(&[("acme.toml", text)])).expect("the tenant has no fault");
        format!("{:#?}", config.tenants)
    };
    assert_eq!(tenant(ACME), tenant(implied));
}

/// Finds the options of a commented file: `name =` and `# name =` lines under each `[table]`.
fn options_in(text: &str) -> Vec<String> {
    let mut table = "";
    let mut options = Vec::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_matches(['[', ']']);
        } else if let Some((name, _)) = line.split_once(" = ") {
            let separator = if table.is_empty() { "" } else { "." };
            options.push(format!("{table}{separator}{name}"));
        }
    }
    options
}

fn assert_has_options<T: RawSection>(options: &[String], table: &str) {
    assert!(!T::names().is_empty());
    for name in T::names() {
        let option = if table.is_empty() { (*name).to_owned() } else { format!("{table}.{name}") };
        let is_table = options.iter().any(|known| known.starts_with(&format!("{option}.")));
        assert!(is_table || options.contains(&option), "{option} is not in the commented file");
    }
}

#[test]
fn the_commented_files_have_every_option() {
    let node = options_in(REFERENCE);
    assert_has_options::<raw::Node>(&node, "");
    assert_has_options::<raw::Listen>(&node, "listen");
    assert_has_options::<raw::Admin>(&node, "admin");
    assert_has_options::<raw::AdminJwt>(&node, "admin_jwt");
    assert_has_options::<raw::Tls>(&node, "tls");
    assert_has_options::<raw::Store>(&node, "store");
    assert_has_options::<raw::Keys>(&node, "keys");
    assert_has_options::<raw::AwsKms>(&node, "aws_kms");
    assert_has_options::<raw::Vault>(&node, "vault");
    assert_has_options::<raw::Pkcs11>(&node, "pkcs11");
    assert_has_options::<raw::Recipient>(&node, "recipient");
    assert_has_options::<raw::Journal>(&node, "journal");
    assert_has_options::<raw::Segments>(&node, "segments");
    assert_has_options::<raw::Ingest>(&node, "ingest");
    assert_has_options::<raw::Relay>(&node, "relay");
    assert_has_options::<raw::VapiNode>(&node, "vapi");
    assert_has_options::<raw::WebhookNode>(&node, "webhook");
    assert_has_options::<raw::Upload>(&node, "upload");
    assert_has_options::<raw::Playback>(&node, "playback");
    assert_has_options::<raw::Audit>(&node, "audit");
    assert_has_options::<raw::Sweep>(&node, "retention");
    assert_has_options::<raw::Drain>(&node, "drain");
    assert_has_options::<raw::Log>(&node, "log");
    assert_has_options::<raw::Tenants>(&node, "tenants");
    assert_has_options::<raw::HipaaNode>(&node, "hipaa");
    let tenant = options_in(ACME);
    assert_has_options::<raw::Tenant>(&tenant, "");
    assert_has_options::<raw::Retention>(&tenant, "retention");
    assert_has_options::<raw::Hipaa>(&tenant, "hipaa");
    assert_has_options::<raw::TenantKeys>(&tenant, "keys");
    assert_has_options::<raw::Limits>(&tenant, "limits");
    assert_has_options::<raw::Twilio>(&tenant, "twilio");
    assert_has_options::<raw::Vapi>(&tenant, "vapi");
    assert_has_options::<raw::VapiHmac>(&tenant, "vapi.hmac");
    assert_has_options::<raw::Webhook>(&tenant, "webhook");
    assert_has_options::<raw::Tickets>(&tenant, "tickets");
    assert_has_options::<raw::TenantPlayback>(&tenant, "playback");
    assert_has_options::<raw::Route>(&tenant, "route");
    assert_has_options::<raw::Upstream>(&tenant, "route.upstream");
}

#[test]
fn every_table_of_the_node_can_be_overridden() {
    let sections = raw::node_sections();
    let tables: Vec<_> = sections.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let options = options_in(REFERENCE);
    for option in options {
        let (table, name) = option.split_once('.').unwrap_or(("", &option));
        let (_, known) = sections.iter().find(|(known, _)| *known == table).expect("the table is listed");
        assert!(known.contains(&name) || tables.contains(&name), "{option}");
    }
}

#[test]
fn the_examples_have_no_fault() {
    let tenants = Shelf::with(&[("acme-dental.toml", ACME)]);
    let dev = check(include_str!("../../config/dev.toml"), &[], &tenants).expect("dev.toml has no fault");
    assert!(dev.listen.public.ip().is_loopback());
    let example = include_str!("../../config/production.example.toml");
    let production = check(example, &[], &tenants).expect("production.example.toml has no fault");
    assert!(production.proxies.trusted[0].contains("173.245.49.1".parse().unwrap()));
    assert!(matches!(production.store, StoreKind::S3(_)));
    let example = include_str!("../../config/supabase.example.toml");
    let supabase = check(example, &[], &tenants).expect("supabase.example.toml has no fault");
    let StoreKind::S3(store) = supabase.store else { panic!("Supabase is an S3 store") };
    assert_eq!(store.endpoint.unwrap(), "https://abcdefghijklmnopqrst.supabase.co/storage/v1/s3");
    assert!(!store.claims.tags && !store.claims.create_once);
}

#[test]
fn the_places_of_secrets_are_found_without_them() {
    let dev = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/dev.toml");
    let places = Config::secret_places(&dev, NO_ENV).expect("dev.toml has no fault");
    assert_eq!(places.keyring_file, Path::new("data/keyring.json"));
    let secrets = dev.parent().unwrap().join("tenants").join("../../data/secrets");
    let named =
        ["agent-secret", "grant-k1", "ticket-t1", "twilio-token"].map(|name| format!("acme-dental.{name}"));
    let named = named.map(|name| secrets.join(name));
    assert_eq!(places.secret_files, named);
}

#[test]
fn all_faults_of_all_files_come_at_once() {
    let node = "public_url = \"https://media.example.com/\"\ncolour = \"red\"\nlisten = 5\n\
                [segments]\nmax_age_ms = 99999\nmax_bytes = -1\nmax_agee = 1\n\
                [ingest]\nmax_connections = \"many\"\nmax_json_depth = 1\n\
                [store]\nkind = \"tape\"\n[journal]\nmax_bytes = 1\nsync_interval_ms = 10\n";
    let first = "id = \"acme\"\nstatus = \"asleep\"\n[[route]]\nmode = \"both\"\n";
    let second = "id = \"acme\"\n[hipaa]\nmode = \"on\"\n";
    let broken = "id = \"other\"\nstatus = \n";
    let files = Shelf::with(&[("a.toml", first), ("b.toml", second), ("c.toml", broken)]);
    let faults = faults_of(node, &[], &files);
    let expected = [
        "colour",
        "ingest.max_connections",
        "ingest.max_json_depth",
        "journal.max_bytes",
        "journal.sync_interval_ms",
        "listen",
        "public_url",
        "segments.max_age_ms",
        "segments.max_agee",
        "segments.max_bytes",
        "store.kind",
        "tenants/a.toml: route[0].mode",
        "tenants/a.toml: route[0].name",
        "tenants/a.toml: status",
        "tenants/a.toml: twilio.account_sids",
        "tenants/a.toml: twilio.auth_tokens",
        "tenants/b.toml: hipaa.baa",
        "tenants/b.toml: hipaa.baa_reference",
        "tenants/b.toml: hipaa.mode",
        "tenants/b.toml: hipaa.regions",
        "tenants/b.toml: id",
        "tenants/b.toml: keys.provider",
        "tenants/c.toml",
        "tls",
    ];
    assert_eq!(names(&faults), expected);
    assert_eq!(faults["segments.max_age_ms"], "99999 is given; allowed: 1000 to 30000");
    assert_eq!(faults["segments.max_bytes"], "-1 is given; allowed: 1024 to 16777216");
    assert_eq!(faults["segments.max_agee"], "is not an option; allowed here: max_age_ms, max_bytes");
    assert_eq!(faults["ingest.max_connections"], "the text \"many\" is given; allowed: a whole number");
    assert_eq!(faults["listen"], "5 is given; allowed: a table");
    assert_eq!(faults["store.kind"], "\"tape\" is not a choice; allowed: \"folder\", \"s3\"");
    assert_eq!(faults["journal.max_bytes"], "1 is given; allowed: 4194304 to 17592186044416");
    assert_eq!(
        faults["tenants/a.toml: route[0].mode"],
        "\"both\" is not a choice; allowed: \"fork\", \"bidirectional\""
    );
    assert_eq!(faults["tenants/b.toml: id"], "\"acme\" is already the id of tenants/a.toml");
    assert!(
        faults["tenants/c.toml"].starts_with("is not TOML at line 2, column"),
        "{}",
        faults["tenants/c.toml"]
    );
}

#[test]
fn what_comes_later_is_refused_by_name() {
    let node = format!("{NODE}[listen]\nrequire_client_cert = true\n");
    let faults = faults_of(&node, &[], &Shelf::default());
    assert_eq!(names(&faults), ["listen.require_client_cert"]);
    assert!(faults.values().all(|problem| problem.contains("not supported by this version")), "{faults:?}");
}

#[test]
fn listeners_are_checked() {
    let listen = |public: &str, ops: &str| {
        let text = format!("{NODE}[listen]\npublic = \"{public}\"\nops = \"{ops}\"\n");
        check(&text, &[], &Shelf::default())
    };
    assert!(listen("0.0.0.0:0", "127.0.0.1:0").is_ok());
    assert!(listen("127.0.0.1:8443", "[::1]:8443").is_ok());
    for (public, ops) in [
        ("0.0.0.0:8443", "0.0.0.0:9464"),
        ("0.0.0.0:8443", "10.0.0.1:9464"),
        ("127.0.0.1:9464", "127.0.0.1:9464"),
        ("0.0.0.0:9464", "127.0.0.1:9464"),
        ("[::]:9464", "127.0.0.1:9464"),
        ("0.0.0.0:8443", "localhost:9464"),
    ] {
        let faults = listen(public, ops).expect_err("the ops listener is wrong");
        assert_eq!(
            faults.iter().map(|fault| fault.option.as_str()).collect::<Vec<_>>(),
            ["listen.ops"],
            "{public} {ops}"
        );
    }
}

#[test]
fn certificates_come_one_of_two_ways() {
    let tls = |text: &str| check(&format!("public_url = \"wss://a\"\n[tls]\n{text}"), &[], &Shelf::default());
    assert!(tls("self_signed = true").is_ok());
    assert!(tls("cert_file = \"c\"\nkey_file = \"k\"").is_ok());
    for bad in ["", "cert_file = \"c\"", "self_signed = true\ncert_file = \"c\"\nkey_file = \"k\""] {
        assert!(tls(bad).is_err(), "{bad}");
    }
    assert!(tls("self_signed = true\nclient_ca_file = \"c\"").is_ok());
    let faults = tls("cert_file = \"missing\"\nkey_file = \"\"\nclient_ca_file = \"missing\"");
    let faults = faults.expect_err("no file can be read");
    assert_eq!(faults.iter().count(), 3, "{faults}");
}

#[test]
fn variables_override_the_file() {
    let env = [
        ("CALLSEAL_PUBLIC_URL", "wss://other.example.com:443"),
        ("CALLSEAL_LISTEN__PUBLIC", "127.0.0.1:1"),
        ("CALLSEAL_SEGMENTS__MAX_AGE_MS", "1500"),
        ("CALLSEAL_STORE__PATH", "/srv/store"),
        ("CALLSEAL_TRUSTED_PROXIES", "[\"10.0.0.0/8\"]"),
        ("CALLSEAL_NODE", "\"7\""),
        ("CALLSEAL_LOG__LEVEL", "warn"),
        ("CALLSEAL_SECRET_ACME", CANARY),
        ("PATH", "/bin"),
    ];
    let config = check(NODE, &env, &Shelf::default()).expect("the overrides have no fault");
    assert_eq!(config.public_url.as_str(), "wss://other.example.com:443");
    assert_eq!(config.listen.public.to_string(), "127.0.0.1:1");
    assert_eq!(config.segments.max_age, Duration::from_millis(1500));
    assert_eq!(config.node.as_str(), "7");
    assert_eq!(config.log.level, tracing::Level::WARN);
    let StoreKind::Folder { path } = config.store else { panic!("the store is a folder") };
    assert_eq!(path, Path::new("/srv/store"));
    assert_eq!(config.proxies.client_ip_header.expect("a proxy is trusted"), "cf-connecting-ip");
}

#[test]
fn overrides_with_faults_name_the_variable() {
    let env = [
        ("CALLSEAL_SEGMENTS__MAX_AGE", CANARY),
        ("CALLSEAL_SEGMENTS", "canary"),
        ("CALLSEAL_NOTHING", "canary"),
        ("CALLSEAL_UPLOAD__CONCURRENCY", "0"),
        ("CALLSEAL_LISTEN__ADMIN", "localhost"),
        ("CALLSEAL_TRUSTED_PROXIES", "[\"10.0.0.1/8\"]"),
    ];
    let faults = faults_of(NODE, &env, &Shelf::default());
    let expected = [
        "CALLSEAL_NOTHING",
        "CALLSEAL_SEGMENTS",
        "CALLSEAL_SEGMENTS__MAX_AGE",
        "listen.admin (set by CALLSEAL_LISTEN__ADMIN)",
        "trusted_proxies[0] (set by CALLSEAL_TRUSTED_PROXIES)",
        "upload.concurrency (set by CALLSEAL_UPLOAD__CONCURRENCY)",
    ];
    assert_eq!(names(&faults), expected);
}

#[test]
fn retention_follows_profile_then_days() {
    let days = |lines: &str| {
        let text = format!("id = \"acme\"\n[retention]\n{lines}");
        let config = check(NODE, &[], &Shelf::with(&[("t.toml", &text)])).expect("the tenant has no fault");
        let retention = config.tenants[0].retention.clone();
        (retention.call_audio_days, retention.access_log_days)
    };
    assert_eq!(days(""), (365, 365));
    assert_eq!(days("profile = \"1string\""), (365, 365));
    assert_eq!(days("profile = \"ring-the-pro\""), (90, 365));
    assert_eq!(days("profile = \"ring-the-pro\"\ncall_audio_days = 30\naccess_log_days = 730"), (30, 730));
    let faults = tenant_faults(
        "id = \"a\"\n[retention]\nprofile = \"x\"\ncall_audio_days = 0\naccess_log_days = 3651",
    );
    assert_eq!(faults.len(), 3);
}

#[test]
fn routes_are_checked() {
    let text = format!(
        "{ACME}[[route]]\nname = \"reception\"\n[[route]]\nname = \"x\"\nmode = \"bidirectional\"\n\
         [[route]]\nname = \"A b\"\n"
    );
    let faults = tenant_faults(&text);
    assert_eq!(names(&faults), ["route[3].name", "route[4].upstream", "route[5].name"]);
    assert!(faults["route[4].upstream"].contains("record_only = true"));
}

#[test]
fn upstreams_are_checked() {
    let route = |lines: &str| {
        let text = format!("{ACME}[[route]]\nname = \"x\"\nmode = \"bidirectional\"\n{lines}");
        check(NODE, &[], &Shelf::with(&[("acme.toml", &text)]))
    };
    let upstream = |lines: &str| route(&format!("[route.upstream]\n{lines}"));
    let given =
        "url = \"wss://a\"\nheaders = { X-Token = { file = \"h\" } }\non_loss = \"hold\"\nhold_secs = 5\n";
    let upstream_of = |config: &Config| config.tenants[0].routes.last().unwrap().upstream.clone().unwrap();
    let found = upstream_of(&upstream(given).expect("no fault"));
    assert_eq!(found.on_loss, OnLoss::Hold(Duration::from_secs(5)));
    assert_eq!(found.headers["x-token"], CANARY);
    assert_eq!(upstream_of(&upstream("url = \"wss://a\"").unwrap()).on_loss, OnLoss::Close);
    let hangup = "url = \"wss://a\"\non_loss = \"hangup\"\n";
    assert_eq!(upstream_of(&upstream(hangup).unwrap()).on_loss, OnLoss::HangUp(None));
    let later = upstream(&format!("{hangup}hold_secs = 7")).unwrap();
    assert_eq!(upstream_of(&later).on_loss, OnLoss::HangUp(Some(Duration::from_secs(7))));
    for (lines, option) in [
        ("", "url"),
        ("url = \"ws://a\"", "url"),
        ("url = \"https://a\"", "url"),
        ("url = \"wss://a\"\non_loss = \"shout\"", "on_loss"),
        ("url = \"wss://a\"\non_loss = \"hangup\"\nhold_secs = 0", "hold_secs"),
        ("url = \"wss://a\"\nhold_secs = 5", "hold_secs"),
        ("url = \"wss://a\"\non_loss = \"hold\"\nhold_secs = 601", "hold_secs"),
        ("url = \"wss://a\"\nheaders = { Host = { file = \"h\" } }", "headers.Host"),
        (
            "url = \"wss://a\"\nheaders = { Sec-WebSocket-Key = { file = \"h\" } }",
            "headers.Sec-WebSocket-Key",
        ),
        ("url = \"wss://a\"\nheaders = { X-Token = \"in the clear\" }", "headers.X-Token"),
        ("url = \"wss://a\"\nsecrets = [{ file = \"missing\" }]", "secrets[0]"),
        ("url = \"wss://a\"\nverify = false", "verify"),
    ] {
        let faults = upstream(lines).expect_err(lines).to_string();
        assert!(faults.contains(&format!("route[3].upstream.{option}")), "{lines}: {faults}");
    }
    let both = route("record_only = true\n[route.upstream]\nurl = \"wss://a\"");
    assert!(both.expect_err("both").to_string().contains("contradicts record_only = true"));
}

#[test]
fn kinds_of_values_are_said_in_words() {
    let faults =
        tenant_faults("id = \"a\"\nroute = \"x\"\n[twilio]\naccount_sids = [5]\nrequire_shared_key = []\n");
    assert_eq!(faults["route"], "a text is given; allowed: a list");
    assert_eq!(
        faults["twilio.account_sids"],
        "a list with another kind of entry is given; allowed: a text in quotes"
    );
    assert_eq!(faults["twilio.require_shared_key"], "a list is given; allowed: true or false");
}

#[test]
fn tenants_stay_below_the_node() {
    let faults = tenant_faults(
        "id = \"a\"\n[playback]\nmax_ttl_secs = 901\nallowed_origins = [\"https://a/\", \"http://a\"]",
    );
    assert_eq!(
        names(&faults),
        ["playback.allowed_origins[0]", "playback.allowed_origins[1]", "playback.max_ttl_secs"]
    );
    let node = format!("{NODE}[tenants]\ndir = \"missing\"\n");
    assert_eq!(names(&faults_of(&node, &[], &Shelf::default())), ["tenants.dir"]);
}

#[test]
fn one_of_several_grant_keys_signs() {
    let keys = "id = \"a\"\n[playback]\ngrant_keys = { k1 = { file = \"a\" }, k2 = { file = \"b\" } }\n";
    assert_eq!(names(&tenant_faults(keys)), ["playback.grant_kid"]);
    assert_eq!(names(&tenant_faults(&format!("{keys}grant_kid = \"k3\"\n"))), ["playback.grant_kid"]);
    let config = check(NODE, &[], &Shelf::with(&[("t.toml", &format!("{keys}grant_kid = \"k2\"\n"))]));
    assert_eq!(config.expect("k2 is a key").tenants[0].playback.grant_kid.as_deref(), Some("k2"));
}

#[test]
fn a_header_needs_a_proxy() {
    let node = |lines: &str| check(&format!("{lines}\n{NODE}"), &[], &Shelf::default());
    assert!(node("").expect("no proxy is fine").proxies.client_ip_header.is_none());
    assert!(node("client_ip_header = \"x-real-ip\"").is_err());
    assert!(node("trusted_proxies = [\"::1\"]\nclient_ip_header = \"a b\"").is_err());
    let proxies = node("trusted_proxies = [\"::1\"]\nclient_ip_header = \"X-Real-IP\"")
        .expect("both are given")
        .proxies;
    assert_eq!(proxies.client_ip_header.expect("it is given"), "x-real-ip");
}
