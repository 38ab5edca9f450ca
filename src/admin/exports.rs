//! Many recordings at a time, as one tar archive that is made while it is sent.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::control::audit::AuditEvent;
use crate::control::export::{Exporter, Form, Selection};
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::index::Term;
use crate::keys::Recipient;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input;
use super::recordings::{time, wanted};
use super::stream;

/// Which recordings, and as what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewExport {
    /// These, by their ids. Without them: those of `call` or `party`, or all of the time from `from` to `to`.
    #[serde(default)]
    recordings: Vec<String>,
    /// Of this call: the provider's id of it.
    call: Option<String>,
    /// Of calls with this party: a telephone number in international form, or a SIP address.
    party: Option<String>,
    /// Begun at this time or later.
    #[schema(format = DateTime)]
    from: Option<String>,
    /// Begun before this time.
    #[schema(format = DateTime)]
    to: Option<String>,
    /// `wav`, which is the default: 16-bit PCM, caller left and agent right; or `sealed`: the objects and wrapped keys as
    /// they are stored.
    format: Option<String>,
    /// With `sealed`: the content of a wrap file (`callseal keys recipient init`). Keys are wrapped for whoever has its open
    /// file, and for nobody else.
    #[schema(value_type = Option<Object>)]
    recipient: Option<serde_json::Value>,
}

/// Export recordings into one tar archive
///
/// `about.json`, the files of each recording, `manifest.json`, which says what of each is in the archive and why others are
/// not, and `SHA256SUMS`. Each recording is verified and in the audit log before its bytes are sent. At most 10000
/// recordings; an archive that is cut off has no manifest.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/exports", operation_id = "export_recordings", tag = "recordings",
    params(("tenant" = String, Path, description = "The tenant's id")),
    request_body = NewExport,
    responses(
        (status = 200, description = "The archive", content((Vec<u8> = "application/x-tar"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    input::Json(mut new): input::Json<NewExport>,
) -> Result<Response, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?.id.clone());
    let form = form(&tenant, new.format.as_deref(), new.recipient.take())?;
    let selection = selection(&new)?;
    let busy = |_| ApiError::Busy("exports");
    let place = Arc::clone(&shared.exporters).try_acquire_owned().map_err(busy)?;
    let event = caller.event("export-recordings", tenant.to_string());
    let detail = Some(format!("{} by={}", form.detail(), by(&selection)));
    node.audit.record(&tenant, AuditEvent { detail, ..event.clone() }).await?;
    let file = format!("recordings-{tenant}.tar");
    let (store, keys) = (Arc::clone(&node.store), Arc::clone(&node.keys));
    let exporter = Exporter::new(store, keys, node.audit.clone(), (tenant, form));
    stream::written("application/x-tar", &file, |out| async move {
        let _place = place;
        exporter.run(&selection, &event, out).await?;
        Ok(())
    })
    .await
}

/// Reads as what they are wanted.
fn form(
    tenant: &TenantId,
    format: Option<&str>,
    recipient: Option<serde_json::Value>,
) -> Result<Form, ApiError> {
    match (format, recipient) {
        (None | Some("wav"), None) => Ok(Form::Wav),
        (None | Some("wav"), Some(_)) => {
            Err(ApiError::invalid("recipient", "allowed with format sealed only"))
        }
        (Some("sealed"), None) => Ok(Form::Sealed),
        (Some("sealed"), Some(file)) => {
            let recipient =
                Recipient::sent(file).map_err(|problem| ApiError::invalid("recipient", problem))?;
            Ok(Form::sealed_for(tenant, recipient))
        }
        (Some(_), _) => Err(ApiError::invalid("format", "allowed: wav, sealed")),
    }
}

/// Reads which recordings are wanted. Nothing at all is refused rather than taken for everything.
fn selection(new: &NewExport) -> Result<Selection, ApiError> {
    let ids = new.recordings.iter().enumerate().map(|(index, text)| {
        let wrong = |_| {
            ApiError::invalid(format!("recordings[{index}]"), "allowed: 32 lower-case hexadecimal digits")
        };
        text.parse::<RecordingId>().map_err(wrong)
    });
    let selection = Selection {
        recordings: ids.collect::<Result<_, _>>()?,
        term: wanted(new.call.as_deref(), new.party.as_deref())?,
        from: new.from.as_deref().map(|text| time("from", text)).transpose()?,
        until: new.to.as_deref().map(|text| time("to", text)).transpose()?,
    };
    if selection.is_empty() {
        let problem = "is missing; say which: recordings, call or party, from or to";
        return Err(ApiError::invalid("recordings", problem));
    }
    if !selection.recordings.is_empty() && selection.term.is_some() {
        return Err(ApiError::invalid("recordings", "allowed without call and party only"));
    }
    if selection.from.zip(selection.until).is_some_and(|(from, until)| from >= until) {
        return Err(ApiError::invalid("to", "allowed: a time after that of from"));
    }
    Ok(selection)
}

fn by(selection: &Selection) -> &'static str {
    match &selection.term {
        Some(term) => Term::kind(term).name(),
        None if selection.recordings.is_empty() => "time",
        None => "id",
    }
}
