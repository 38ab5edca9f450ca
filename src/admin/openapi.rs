//! The description of the API (OpenAPI 3.1), made from the code that answers.

use axum::Json;
use axum::response::IntoResponse;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::Type;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, License, ObjectBuilder, OpenApi, Required};

use crate::domain::access::{OPERATIONS, Role};

/// Returns the whole document.
pub fn document() -> OpenApi {
    let (_, mut document) = super::operations().split_for_parts();
    document.info = InfoBuilder::new()
        .title("callseal admin API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Tickets for calls, live recordings, stored recordings and links to them. Errors are problem details (RFC 9457) \
             with a stable `code`.",
        ))
        .license(Some(License::builder().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let components = document.components.get_or_insert_with(Components::new);
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("token", bearer);
    document.security = Some(vec![SecurityRequirement::new("token", [] as [&str; 0])]);
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let known = OPERATIONS.iter().find(|known| operation.operation_id.as_deref() == Some(known.id));
            let Some(known) = known else { continue };
            let roles: Vec<_> = known.roles.iter().map(|role| role.name()).collect();
            let mut description = operation.description.take().unwrap_or_default();
            description.push_str(&format!("\n\nRoles: {}.", roles.join(", ")));
            if known.all_tenants {
                description.push_str(" It needs a token for all tenants.");
            }
            if known.needs_reason {
                description.push_str(" A reason is required, in the header `X-Callseal-Reason`.");
            } else if known.roles.contains(&Role::Operator) {
                description
                    .push_str(" As an operator, a reason is required, in the header `X-Callseal-Reason`.");
            }
            operation.description = Some(description.trim().to_owned());
            if known.creates {
                operation.parameters.get_or_insert_default().push(idempotency_key().into());
            }
        }
    }
    document
}

/// Describes the header by which a request may come again.
fn idempotency_key() -> Parameter {
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(128))))
        .description(Some(
            "Within 24 hours the same request with the same key is given the same answer and does nothing again; another \
             request with it is refused with 422 `idempotency_key_reused`.",
        ))
        .build()
}

/// Serves it. It is the same for everybody and holds no secret.
pub(super) async fn serve() -> impl IntoResponse {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_roles_and_the_document_have_the_same_operations() {
        let document = document();
        let mut described = Vec::new();
        for (path, item) in &document.paths.paths {
            let methods =
                [("GET", &item.get), ("POST", &item.post), ("PUT", &item.put), ("DELETE", &item.delete)];
            for (method, operation) in methods {
                let Some(operation) = operation else { continue };
                described.push((operation.operation_id.clone().unwrap(), method, path.clone()));
            }
            assert!(item.patch.is_none() && item.head.is_none());
        }
        described.sort();
        let mut allowed: Vec<_> =
            OPERATIONS.iter().map(|o| (o.id.to_owned(), o.method, o.path.to_owned())).collect();
        allowed.sort();
        assert_eq!(described, allowed);
    }
}
