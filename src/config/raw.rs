//! The options as they are written: names and TOML kinds only, every one optional.
//!
//! No value is judged here. Numbers are signed, so that a negative one gets the text that names the allowed range.
//! Secrets stay unread TOML values and nothing here prints them, because somebody may have written one in plain.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use toml::{Table, Value};

/// One table of options.
pub(super) trait RawSection: DeserializeOwned + Default {
    /// Options of the design that this version cannot obey; they are refused by name.
    const LATER: &'static [&'static str] = &[];

    /// Returns the names of the options, as written.
    fn names() -> &'static [&'static str] {
        let mut names = FieldNames(&[]);
        // The collector ends every reading with an error; the names are what it is for.
        Self::deserialize(&mut names).err();
        names.0
    }
}

/// Makes a table of options whose fields are all optional.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? } later [$($later:literal),*]) => {
        $(#[$doc])*
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $field: Option<$kind>,)*
        }

        impl RawSection for $name {
            const LATER: &'static [&'static str] = &[$($later),*];
        }
    };
}

section!(
    /// The top of the node's file.
    Node {
        public_url: String,
        node: String,
        data_dir: String,
        trusted_proxies: Vec<String>,
        client_ip_header: String,
        listen: Table,
        tls: Table,
        store: Table,
        keys: Table,
        aws_kms: Table,
        vault: Table,
        pkcs11: Table,
        recipient: Table,
        journal: Table,
        segments: Table,
        ingest: Table,
        relay: Table,
        vapi: Table,
        webhook: Table,
        upload: Table,
        playback: Table,
        audit: Table,
        repair: Table,
        retention: Table,
        index: Table,
        requests: Table,
        drain: Table,
        log: Table,
        traces: Table,
        tenants: Table,
        hipaa: Table,
        admin: Table,
        admin_jwt: Table,
    } later ["require_client_cert"]
);
section!(Listen { public: String, admin: String, ops: String } later ["require_client_cert"]);
section!(Admin { tokens_file: String, requests_per_sec: i64, request_timeout_ms: i64 } later []);
section!(
    AdminJwt {
        issuer: String,
        audience: Vec<String>,
        azp: Vec<String>,
        jwks_url: String,
        jwks_file: String,
        ca_file: String,
        allow_private: bool,
        algorithms: Vec<String>,
        tenant_claim: String,
        role_claim: String,
        roles: Table,
        required: Table,
        mfa_claim: String,
        mfa_values: Vec<String>,
        mfa_roles: Vec<String>,
        leeway_secs: i64,
        max_age_secs: i64,
        refresh_secs: i64,
        unknown_kid_secs: i64,
        stale_secs: i64,
    } later []
);
section!(Tls { self_signed: bool, cert_file: String, key_file: String, client_ca_file: String } later []);
section!(
    Store {
        kind: String,
        path: String,
        endpoint: String,
        region: String,
        bucket: String,
        prefix: String,
        profile: String,
        tags: bool,
        create_once: bool,
        versions: bool,
        batch_delete: bool,
        checksum: String,
        sse: String,
        kms_key_id: String,
        path_style: bool,
        ca_file: String,
        credentials: String,
        access_key_id: Value,
        secret_access_key: Value,
        session_token: Value,
        connect_timeout_ms: i64,
        attempt_timeout_ms: i64,
        object_lock: String,
    } later []
);
section!(
    Keys {
        role: String,
        require_locked_memory: bool,
        provider: String,
        keyring_file: String,
        kek: String,
        former_keks: Vec<Table>,
        attempt_timeout_ms: i64,
        concurrency: i64,
        rotate: String,
        rotate_after_days: i64,
    } later []
);
section!(
    AwsKms {
        endpoint: String,
        ca_file: String,
        credentials: String,
        access_key_id: Value,
        secret_access_key: Value,
        session_token: Value,
        connect_timeout_ms: i64,
    } later []
);
section!(
    Vault {
        address: String,
        namespace: String,
        ca_file: String,
        auth: String,
        token: Value,
        role_id: Value,
        secret_id: Value,
        approle_mount: String,
        connect_timeout_ms: i64,
    } later []
);
section!(Pkcs11 { module: String, token_label: String, pin: Value } later []);
section!(Recipient { open_files: Vec<String>, wrap_files: Vec<String> } later []);
section!(
    /// A tenant's table of the same name.
    TenantKeys { provider: String, kek: String, former_keks: Vec<Table>, rotate_after_days: i64 } later []
);
section!(FormerKek { provider: String, kek: String } later []);
section!(
    Journal {
        dir: String,
        flush_interval_ms: i64,
        sync_interval_ms: i64,
        file_bytes: i64,
        max_bytes: i64,
    } later []
);
section!(Segments { max_age_ms: i64, max_bytes: i64 } later []);
section!(
    Ingest {
        max_connections: i64,
        max_message_bytes: i64,
        max_json_depth: i64,
        max_dropped_messages: i64,
        max_stream_hours: i64,
        tls_handshake_timeout_ms: i64,
        header_timeout_ms: i64,
        start_timeout_ms: i64,
        ping_after_ms: i64,
        dead_after_ms: i64,
        read_buffer_bytes: i64,
        write_buffer_bytes: i64,
    } later []
);
section!(
    Relay {
        ca_file: String,
        connect_timeout_ms: i64,
        queue_bytes: i64,
        twilio_api_url: String,
        twilio_api_ca_file: String,
        twilio_api_timeout_ms: i64,
    } later []
);
section!(
    Upload {
        concurrency: i64,
        budget_bytes: i64,
        catch_up_bytes_per_sec: i64,
        try_timeout_ms: i64,
        retry_base_ms: i64,
        retry_max_ms: i64,
    } later []
);
section!(
    Playback {
        default_ttl_secs: i64,
        max_ttl_secs: i64,
        clock_skew_secs: i64,
        cut_after_exp_secs: i64,
    } later []
);
section!(Audit { timeout_ms: i64, file: String, file_timeout_ms: i64, refusals_per_min: i64 } later []);
section!(Repair { enabled: bool, after_secs: i64, interval_secs: i64 } later []);
section!(
    /// How the node sweeps; a tenant's table of the same name says how long things are kept.
    Sweep {
        sweep: bool,
        interval_secs: i64,
        grace_days: i64,
        max_deletions_per_run: i64,
        concurrency: i64,
        max_share_percent: i64,
    } later []
);
section!(Drain { max_secs: i64 } later []);
section!(Log { format: String, level: String } later []);
section!(
    Traces {
        endpoint: String,
        headers: Table,
        ca_file: String,
        sample_percent: f64,
        interval_ms: i64,
        timeout_ms: i64,
    } later []
);
section!(
    Tenants {
        dir: String,
        keys: Value,
        kid: String,
        allow_private_hosts: bool,
        close_after_days: i64,
    } later []
);

section!(
    /// The top of a tenant's file.
    Tenant {
        id: String,
        status: String,
        no_key_policy: String,
        retention: Table,
        hipaa: Table,
        keys: Table,
        limits: Table,
        twilio: Table,
        vapi: Table,
        tickets: Table,
        playback: Table,
        webhook: Table,
        route: Vec<Table>,
    } later []
);
section!(Retention { profile: String, call_audio_days: i64, access_log_days: i64 } later []);
section!(
    /// The rules for health data of a tenant; the node's table of the same name says what holds for all.
    Hipaa {
        mode: String,
        baa: String,
        baa_reference: String,
        vendors: Vec<String>,
        regions: Vec<String>,
        local_key_reason: String,
    } later []
);
section!(HipaaNode { mode: String, second_factor: String } later []);
section!(Limits { max_streams: i64, max_starts_per_sec: i64, max_stream_hours: i64 } later []);
section!(
    Twilio {
        account_sids: Vec<String>,
        auth_tokens: Value,
        shared_keys: Value,
        require_shared_key: bool,
        api_keys: Table,
    } later []
);
section!(TwilioApiKey { sid: String, secret: Value } later []);
section!(
    /// How the node reaches Vapi; a tenant's table of the same name says how Vapi proves who it is.
    VapiNode { ca_file: String, allow_private_hosts: bool } later []
);
section!(
    Vapi {
        secrets: Value,
        bearer_tokens: Value,
        hmac: Table,
        org_ids: Vec<String>,
        listen_hosts: Vec<String>,
        listen_key: Value,
        listen_channels: String,
    } later []
);
section!(
    VapiHmac {
        secrets: Value,
        algorithm: String,
        encoding: String,
        prefix: String,
        payload: String,
        secret_is_base64: bool,
        signature_header: String,
        timestamp_header: String,
        message_id_header: String,
    } later []
);
section!(
    /// How the node delivers notices; a tenant's table of the same name says where to.
    WebhookNode {
        ca_file: String,
        attempt_timeout_ms: i64,
        first_retry_secs: i64,
        give_up_hours: i64,
        scan_interval_secs: i64,
        concurrency: i64,
    } later []
);
section!(
    Webhook {
        url: String,
        secrets: Value,
        events: Vec<String>,
        allow_private: bool,
        call_ids: bool,
    } later []
);
section!(Index { party_keys: Vec<String> } later []);
section!(Requests { due_days: i64 } later []);
section!(Tickets { keys: Value, kid: String, max_ttl_secs: i64 } later []);
section!(
    TenantPlayback {
        max_ttl_secs: i64,
        allowed_origins: Vec<String>,
        grant_keys: Value,
        grant_kid: String,
    } later []
);
section!(
    Route {
        name: String,
        provider: String,
        mode: String,
        record: String,
        record_only: bool,
        dtmf: String,
        upstream: Table,
        require_ticket: bool,
    } later []
);
section!(
    Upstream {
        url: String,
        headers: Value,
        secrets: Value,
        on_loss: String,
        hold_secs: i64,
    } later []
);

/// Returns every table of the node's file with the names that an override may give; the top's name is empty.
pub(super) fn node_sections() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("", all_names::<Node>()),
        ("listen", all_names::<Listen>()),
        ("admin", all_names::<Admin>()),
        ("admin_jwt", all_names::<AdminJwt>()),
        ("tls", all_names::<Tls>()),
        ("store", all_names::<Store>()),
        ("keys", all_names::<Keys>()),
        ("aws_kms", all_names::<AwsKms>()),
        ("vault", all_names::<Vault>()),
        ("pkcs11", all_names::<Pkcs11>()),
        ("recipient", all_names::<Recipient>()),
        ("journal", all_names::<Journal>()),
        ("segments", all_names::<Segments>()),
        ("ingest", all_names::<Ingest>()),
        ("relay", all_names::<Relay>()),
        ("vapi", all_names::<VapiNode>()),
        ("webhook", all_names::<WebhookNode>()),
        ("upload", all_names::<Upload>()),
        ("playback", all_names::<Playback>()),
        ("audit", all_names::<Audit>()),
        ("repair", all_names::<Repair>()),
        ("retention", all_names::<Sweep>()),
        ("index", all_names::<Index>()),
        ("requests", all_names::<Requests>()),
        ("drain", all_names::<Drain>()),
        ("log", all_names::<Log>()),
        ("traces", all_names::<Traces>()),
        ("tenants", all_names::<Tenants>()),
        ("hipaa", all_names::<HipaaNode>()),
    ]
}

fn all_names<T: RawSection>() -> Vec<&'static str> {
    [T::names(), T::LATER].concat()
}

/// Reads nothing; keeps the field names that a type asks for.
struct FieldNames(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut FieldNames {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0 = fields;
        Err(Self::Error::custom("only the names are wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("only structs have names"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
