//! What goes wrong, as problem details (RFC 9457) with stable codes.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::Fault;
use crate::control::answers::AnswersError;
use crate::control::audit::AuditError;
use crate::control::erase::EraseError;
use crate::control::export::ExportError;
use crate::control::index::IndexError;
use crate::control::ledger::LedgerError;
use crate::control::mint::MintRefused;
use crate::control::recordings::RecordingError;
use crate::control::redate::RedateError;
use crate::control::requests::RequestError;
use crate::control::retention::RetentionError;
use crate::domain::access::Operation;
use crate::domain::policy::PolicyRefusal;
use crate::notices::OutboxError;
use crate::notices::manage::RedeliverError;
use crate::store::StoreError;
use crate::tenants::{ChangeError, NotAdmitted};

/// Seconds after which it is worth trying again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// Why a request is not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// A field of the body, a parameter or a header is not allowed.
    #[error("{field}: {problem}")]
    Invalid {
        /// Its name.
        field: String,
        /// What is wrong with it, and what is allowed.
        problem: String,
    },
    /// Several fields of the body are not allowed.
    #[error("{} fields are not allowed", .0.len())]
    Faults(Vec<Fault>),
    /// A change does not say what it is a change of.
    #[error("if-match: is missing; allowed: the ETag that was read")]
    NoPrecondition,
    /// It is a change of something that has changed since.
    #[error("{0}")]
    Stale(String),
    /// Not JSON by its header.
    #[error("the body must be application/json")]
    NotJson,
    /// More than a body may have.
    #[error("the body may have at most 65536 bytes")]
    TooLarge,
    /// Nobody whom we know.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Somebody who may not.
    #[error("this needs one of the roles {}", names(.0))]
    Forbidden(&'static Operation),
    /// Nothing of that name, or of another tenant.
    #[error("nothing is here")]
    NotFound,
    /// The path has other methods.
    #[error("allowed: {0}")]
    MethodNotAllowed(String),
    /// What is there does not allow it.
    #[error("{detail}")]
    Conflict {
        /// A stable code.
        code: &'static str,
        /// Why.
        detail: String,
    },
    /// The same request, by its `Idempotency-Key`, is being worked on.
    #[error("the request with this Idempotency-Key is being worked on; ask again")]
    InProgress,
    /// Its `Idempotency-Key` was that of another request.
    #[error("this Idempotency-Key was used for another request; allowed: a new key for each request")]
    KeyReused,
    /// It was there.
    #[error("{0}")]
    Gone(String),
    /// Somebody has asked that it not be used.
    #[error("the use of the recording is restricted at somebody's request")]
    Restricted,
    /// Too many requests of one principal.
    #[error("more requests than this token may make in a second")]
    TooMany,
    /// As much of this as may run at the same time runs.
    #[error("{0} are running, as many as may; ask again later")]
    Busy(&'static str),
    /// Store, keys or audit log do not answer; nothing was done, or doing it again is safe.
    #[error("{0} is not available now")]
    Unavailable(&'static str),
    /// Stored bytes are not what was stored.
    #[error("what is stored is damaged")]
    Damaged,
}

/// Problem details (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// `about:blank`: the status and the code say it all.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What it is, for programs; stable.
    code: &'static str,
    /// What it is, for people.
    detail: String,
    /// The field, parameter or header that is wrong, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// Everything that is wrong, where that is more than one field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<FaultView>,
    /// The request's id, as in `X-Request-Id` and the audit log.
    request: String,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct FaultView {
    /// The field.
    field: String,
    /// What is wrong with it, and what is allowed.
    problem: String,
}

/// What an error carries until the request's id is known.
#[derive(Clone)]
struct Untold {
    code: &'static str,
    detail: String,
    field: Option<String>,
    faults: Vec<FaultView>,
}

impl ApiError {
    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } | Self::Faults(_) => StatusCode::BAD_REQUEST,
            Self::NoPrecondition => StatusCode::PRECONDITION_REQUIRED,
            Self::Stale(_) => StatusCode::PRECONDITION_FAILED,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict { .. } | Self::InProgress => StatusCode::CONFLICT,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Gone(_) => StatusCode::GONE,
            Self::Restricted => StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy(_) | Self::Unavailable(_) | Self::Damaged => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } | Self::Faults(_) => "invalid",
            Self::NoPrecondition => "precondition_required",
            Self::Stale(_) => "stale",
            Self::NotJson => "not_json",
            Self::TooLarge => "too_large",
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::Conflict { code, .. } => code,
            Self::InProgress => "in_progress",
            Self::KeyReused => "idempotency_key_reused",
            Self::Gone(_) => "deleted",
            Self::Restricted => "restricted",
            Self::TooMany => "too_many_requests",
            Self::Busy(_) => "busy",
            Self::Unavailable(_) => "unavailable",
            Self::Damaged => "damaged",
        }
    }
}

fn names(operation: &Operation) -> String {
    let roles = operation.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
    if operation.all_tenants { format!("{roles}, and a token for all tenants") } else { roles }
}

fn views(faults: &[Fault]) -> Vec<FaultView> {
    let view = |fault: &Fault| FaultView { field: fault.option.clone(), problem: fault.problem.clone() };
    faults.iter().map(view).collect()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        if let Self::Unauthorized(_) = &self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"callseal\""));
        }
        if let Self::MethodNotAllowed(allowed) = &self
            && let Ok(allowed) = allowed.parse()
        {
            headers.insert(header::ALLOW, allowed);
        }
        if let Self::TooMany | Self::InProgress | Self::Busy(_) | Self::Unavailable(_) | Self::Damaged = &self
        {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        let (code, detail) = (self.code(), self.to_string());
        let faults = if let Self::Faults(faults) = &self { views(faults) } else { Vec::new() };
        let first = faults.first().map(|fault| fault.field.clone());
        let field = if let Self::Invalid { field, .. } = self { Some(field) } else { first };
        response.extensions_mut().insert(Untold { code, detail, field, faults });
        response
    }
}

/// Gives every answer the request's id, and problems their body.
pub(super) fn with_request(mut response: Response, id: &str) -> Response {
    if let Some(Untold { code, detail, field, faults }) = response.extensions_mut().remove::<Untold>() {
        let status = response.status();
        let title = status.canonical_reason().unwrap_or("Error");
        let request = id.to_owned();
        let problem = Problem {
            r#type: "about:blank",
            title,
            status: status.as_u16(),
            code,
            detail,
            field,
            faults,
            request,
        };
        *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
        let kind = HeaderValue::from_static("application/problem+json");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind);
        // Of the body that was empty until now.
        headers.remove(header::CONTENT_LENGTH);
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

impl From<AuditError> for ApiError {
    fn from(error: AuditError) -> Self {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "an action is refused for want of an audit record"
        );
        Self::Unavailable("the audit log")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if let StoreError::NotFound = error {
            return Self::NotFound;
        }
        tracing::warn!(error = &error as &dyn std::error::Error, "store fails for the admin API");
        Self::Unavailable("the store")
    }
}

impl From<AnswersError> for ApiError {
    fn from(error: AnswersError) -> Self {
        match error {
            AnswersError::Damaged => {
                tracing::error!("a kept answer of the admin API is damaged");
                Self::Damaged
            }
            AnswersError::Key(_)
            | AnswersError::Store(_)
            | AnswersError::TimedOut
            | AnswersError::TooLarge => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "answers cannot be kept or looked up"
                );
                Self::Unavailable("the store of kept answers")
            }
        }
    }
}

impl From<OutboxError> for ApiError {
    fn from(error: OutboxError) -> Self {
        match error {
            OutboxError::Damaged(_) => {
                tracing::error!("a notice in the store is damaged");
                Self::Damaged
            }
            OutboxError::Store(_) | OutboxError::Key(_) | OutboxError::TimedOut | OutboxError::Seal => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "notices cannot be read or sent again"
                );
                Self::Unavailable("the store of notices")
            }
        }
    }
}

impl From<RedeliverError> for ApiError {
    fn from(error: RedeliverError) -> Self {
        match error {
            RedeliverError::NotFound => Self::NotFound,
            RedeliverError::Waiting => Self::Conflict { code: "waiting", detail: error.to_string() },
            RedeliverError::Outbox(error) => error.into(),
        }
    }
}

impl From<IndexError> for ApiError {
    fn from(error: IndexError) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "the index cannot be asked");
        Self::Unavailable("the index")
    }
}

impl From<RecordingError> for ApiError {
    fn from(error: RecordingError) -> Self {
        match error {
            RecordingError::NotFound => Self::NotFound,
            RecordingError::Unavailable(cause) => {
                tracing::warn!(error = &*cause as &dyn std::error::Error, "recording cannot be read");
                Self::Unavailable("the recording")
            }
            RecordingError::Integrity(cause) => {
                tracing::error!(error = &*cause as &dyn std::error::Error, "recording is damaged");
                Self::Damaged
            }
        }
    }
}

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Audit(error) => error.into(),
            ExportError::List(error) => error.into(),
            ExportError::Index(error) => error.into(),
            // Whoever reads is gone.
            ExportError::Tar(_) | ExportError::Manifest(_) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an export is not whole");
                Self::Unavailable("the archive")
            }
        }
    }
}

impl From<RetentionError> for ApiError {
    fn from(error: RetentionError) -> Self {
        match error {
            RetentionError::NotFound => Self::NotFound,
            RetentionError::Deleted(_) => Self::Gone(error.to_string()),
            RetentionError::Refused(refusal) => {
                Self::Conflict { code: refusal.code(), detail: refusal.to_string() }
            }
            RetentionError::Contended => Self::Conflict { code: "contended", detail: error.to_string() },
            RetentionError::Audit(error) => error.into(),
            RetentionError::Ledger(error) => error.into(),
            RetentionError::Store(error) => error.into(),
        }
    }
}

impl From<RedateError> for ApiError {
    fn from(error: RedateError) -> Self {
        match error {
            RedateError::Recordings(error) => error.into(),
            RedateError::Order(error) => error.into(),
            RedateError::Store(error) => error.into(),
            RedateError::Audit(error) => error.into(),
            RedateError::Book(error) => ChangeError::from(error).into(),
            RedateError::Note(error) => error.into(),
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the deletion ledger cannot be used");
        match error {
            LedgerError::Broken(_)
            | LedgerError::CutOff { .. }
            | LedgerError::Mismatch { .. }
            | LedgerError::OtherEnd(_) => Self::Damaged,
            LedgerError::Key(_) | LedgerError::Store(_) | LedgerError::Seal(_) | LedgerError::Contended => {
                Self::Unavailable("the deletion ledger")
            }
        }
    }
}

impl From<EraseError> for ApiError {
    fn from(error: EraseError) -> Self {
        match error {
            EraseError::Store(error) => error.into(),
            EraseError::Audit(error) => error.into(),
            EraseError::Index(error) => error.into(),
            EraseError::Recordings(error) => error.into(),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NotFound => Self::NotFound,
            RequestError::Refused(why) => Self::Conflict { code: why.code(), detail: why.to_string() },
            RequestError::Contended => Self::Conflict { code: "contended", detail: error.to_string() },
            RequestError::Damaged => {
                tracing::error!(error = &error as &dyn std::error::Error, "a request is damaged");
                Self::Damaged
            }
            RequestError::Key(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the key of a request is away");
                Self::Unavailable("the key of requests")
            }
            RequestError::Store(error) => error.into(),
            RequestError::Audit(error) => error.into(),
            RequestError::Index(error) => error.into(),
            RequestError::Erase(error) => error.into(),
            RequestError::Recordings(error) => error.into(),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let detail = error.to_string();
        match error {
            ChangeError::Invalid(faults) => Self::Faults(faults),
            ChangeError::NotFound => Self::NotFound,
            ChangeError::OfFile => Self::Conflict { code: "file_tenant", detail },
            ChangeError::Exists => Self::Conflict { code: "exists", detail },
            ChangeError::Stale { .. } | ChangeError::Contended => Self::Stale(detail),
            ChangeError::Status { .. } => Self::Conflict { code: "status", detail },
            ChangeError::DaysInSettings { .. } => Self::Conflict { code: "retention_days", detail },
            ChangeError::Retention(PolicyRefusal::Invalid { field, problem }) => {
                Self::invalid(field, problem)
            }
            ChangeError::Retention(refusal) => Self::Conflict { code: refusal.code(), detail },
            ChangeError::Book(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a tenant cannot be read or written"
                );
                Self::Unavailable("the store")
            }
        }
    }
}

impl From<NotAdmitted> for ApiError {
    fn from(NotAdmitted { option, problem }: NotAdmitted) -> Self {
        Self::Faults(vec![Fault { option: option.to_owned(), problem }])
    }
}

impl From<MintRefused> for ApiError {
    fn from(MintRefused { field, problem }: MintRefused) -> Self {
        match field {
            "" => Self::Conflict { code: "not_configured", detail: problem },
            field => Self::invalid(field, problem),
        }
    }
}
