//! Who may do what through the admin API: roles, operations, and the one table that joins them.
//!
//! Deny by default: what is not in the table is not allowed to anybody. The server, `docs/API.md` and the tests read this
//! table.

use std::fmt;
use std::str::FromStr;

use super::ids::{InvalidId, TenantId};

/// What a principal may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Places calls: makes tickets, says that a caller agrees, pauses and resumes.
    Ingest,
    /// Shows recordings to people: lists them and makes links.
    Player,
    /// Works on recordings: holds, releases, deletes. Has to say why, each time.
    Operator,
    /// Turns keys.
    KeyAdmin,
    /// Reads the audit log.
    Auditor,
    /// Everything.
    Admin,
}

impl Role {
    /// All of them, as documents list them.
    pub const ALL: [Self; 6] =
        [Self::Ingest, Self::Player, Self::Operator, Self::KeyAdmin, Self::Auditor, Self::Admin];

    /// Returns its name in tokens and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Player => "player",
            Self::Operator => "operator",
            Self::KeyAdmin => "key-admin",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: ingest, player, operator, key-admin, auditor, admin")]
pub struct NoRole;

impl FromStr for Role {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(NoRole)
    }
}

/// Which tenants a principal may work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// One; of the others it must not even learn that they are there.
    Tenant(TenantId),
    /// All.
    AllTenants,
}

impl Reach {
    /// Reads a tenant's id, or `*`.
    ///
    /// # Errors
    /// [`InvalidId`].
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        if text == "*" { Ok(Self::AllTenants) } else { text.parse().map(Self::Tenant) }
    }

    /// Whether it has this tenant in it.
    pub fn covers(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Tenant(own) => own == tenant,
            Self::AllTenants => true,
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(tenant) => tenant.fmt(f),
            Self::AllTenants => f.write_str("*"),
        }
    }
}

/// Somebody whom the API knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// What the audit log calls it: of its token, or of its issuer.
    pub actor: String,
    /// The id of its token, which tells tokens of one name apart.
    pub key: String,
    /// What it may be.
    pub roles: Vec<Role>,
    /// On whom.
    pub reach: Reach,
}

impl Principal {
    /// Returns the first of its roles that may do this; `None` when none may, or it must reach all tenants for that.
    pub fn role_for(&self, operation: &Operation) -> Option<Role> {
        let reaches = !operation.all_tenants || self.reach == Reach::AllTenants;
        operation.roles.iter().copied().find(|role| reaches && self.roles.contains(role))
    }
}

/// One thing that the API can do.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name in the OpenAPI document.
    pub id: &'static str,
    /// The HTTP method.
    pub method: &'static str,
    /// The path, with names of parameters in braces.
    pub path: &'static str,
    /// Who may, from the least that suffices to the most.
    pub roles: &'static [Role],
    /// Whether a reason must be given. Operators must give one everywhere.
    pub needs_reason: bool,
    /// Whether it needs a token for all tenants: what a tenant may is not for itself to say.
    pub all_tenants: bool,
    /// Whether it makes something that there would be twice if it were asked twice. Then an `Idempotency-Key` counts.
    pub creates: bool,
}

/// Every operation.
pub const OPERATIONS: [Operation; 43] = {
    use Role::{Admin, Auditor, Ingest, Operator, Player};
    const fn free(
        id: &'static str,
        method: &'static str,
        path: &'static str,
        roles: &'static [Role],
    ) -> Operation {
        Operation { id, method, path, roles, needs_reason: false, all_tenants: false, creates: false }
    }
    /// Of a tenant, whose key its answers are kept under.
    const fn creating(
        id: &'static str,
        method: &'static str,
        path: &'static str,
        roles: &'static [Role],
    ) -> Operation {
        Operation { id, method, path, roles, needs_reason: false, all_tenants: false, creates: true }
    }
    const fn reasoned(
        id: &'static str,
        method: &'static str,
        path: &'static str,
        roles: &'static [Role],
    ) -> Operation {
        Operation { id, method, path, roles, needs_reason: true, all_tenants: false, creates: false }
    }
    const fn about_tenants(id: &'static str, method: &'static str, path: &'static str) -> Operation {
        Operation { id, method, path, roles: &[Admin], needs_reason: true, all_tenants: true, creates: false }
    }
    [
        free("list_tenants", "GET", "/v1/tenants", &[Auditor, Operator, Admin]),
        free("show_tenant", "GET", "/v1/tenants/{tenant}", &[Auditor, Operator, Admin]),
        about_tenants("create_tenant", "POST", "/v1/tenants"),
        Operation {
            needs_reason: false,
            ..about_tenants("show_settings", "GET", "/v1/tenants/{tenant}/settings")
        },
        about_tenants("update_tenant", "PUT", "/v1/tenants/{tenant}/settings"),
        about_tenants("suspend_tenant", "POST", "/v1/tenants/{tenant}/suspend"),
        about_tenants("resume_tenant", "POST", "/v1/tenants/{tenant}/resume"),
        about_tenants("close_tenant", "POST", "/v1/tenants/{tenant}/close"),
        free("show_retention", "GET", "/v1/tenants/{tenant}/retention", &[Auditor, Operator, Admin]),
        // Its reason is in the body. A tenant may shorten its own days, and propose more.
        free("change_retention", "POST", "/v1/tenants/{tenant}/retention", &[Admin]),
        about_tenants("approve_retention", "POST", "/v1/tenants/{tenant}/retention/approve"),
        reasoned("withdraw_retention", "POST", "/v1/tenants/{tenant}/retention/withdraw", &[Admin]),
        creating("create_ticket", "POST", "/v1/tenants/{tenant}/tickets", &[Ingest, Admin]),
        free("list_streams", "GET", "/v1/tenants/{tenant}/streams", &[Ingest, Operator, Admin]),
        free(
            "list_recordings",
            "GET",
            "/v1/tenants/{tenant}/recordings",
            &[Player, Auditor, Operator, Admin],
        ),
        free(
            "show_recording",
            "GET",
            "/v1/tenants/{tenant}/recordings/{recording}",
            &[Player, Auditor, Operator, Admin],
        ),
        reasoned(
            "delete_recording",
            "DELETE",
            "/v1/tenants/{tenant}/recordings/{recording}",
            &[Operator, Admin],
        ),
        creating(
            "create_grant",
            "POST",
            "/v1/tenants/{tenant}/recordings/{recording}/grants",
            &[Player, Operator, Admin],
        ),
        reasoned("export_recordings", "POST", "/v1/tenants/{tenant}/exports", &[Operator, Admin]),
        reasoned(
            "hold_recording",
            "POST",
            "/v1/tenants/{tenant}/recordings/{recording}/hold",
            &[Operator, Admin],
        ),
        reasoned(
            "release_recording",
            "POST",
            "/v1/tenants/{tenant}/recordings/{recording}/release",
            &[Operator, Admin],
        ),
        free(
            "pause_recording",
            "POST",
            "/v1/tenants/{tenant}/recordings/{recording}/pause",
            &[Ingest, Operator, Admin],
        ),
        free(
            "resume_recording",
            "POST",
            "/v1/tenants/{tenant}/recordings/{recording}/resume",
            &[Ingest, Operator, Admin],
        ),
        reasoned("create_deletion", "POST", "/v1/tenants/{tenant}/deletions", &[Operator, Admin]),
        free(
            "show_receipt",
            "GET",
            "/v1/tenants/{tenant}/recordings/{recording}/receipt",
            &[Player, Auditor, Operator, Admin],
        ),
        free("list_ledger", "GET", "/v1/tenants/{tenant}/ledger", &[Auditor, Operator, Admin]),
        reasoned("open_request", "POST", "/v1/tenants/{tenant}/requests", &[Operator, Admin]),
        free("list_requests", "GET", "/v1/tenants/{tenant}/requests", &[Auditor, Operator, Admin]),
        free("show_request", "GET", "/v1/tenants/{tenant}/requests/{request}", &[Auditor, Operator, Admin]),
        reasoned(
            "report_request",
            "GET",
            "/v1/tenants/{tenant}/requests/{request}/report",
            &[Operator, Admin],
        ),
        reasoned(
            "fulfil_request",
            "POST",
            "/v1/tenants/{tenant}/requests/{request}/fulfil",
            &[Operator, Admin],
        ),
        reasoned(
            "refuse_request",
            "POST",
            "/v1/tenants/{tenant}/requests/{request}/refuse",
            &[Operator, Admin],
        ),
        reasoned("lift_request", "POST", "/v1/tenants/{tenant}/requests/{request}/lift", &[Operator, Admin]),
        free("show_webhook", "GET", "/v1/tenants/{tenant}/webhook", &[Auditor, Operator, Admin]),
        free("test_webhook", "POST", "/v1/tenants/{tenant}/webhook/test", &[Operator, Admin]),
        free("list_notices", "GET", "/v1/tenants/{tenant}/notices", &[Auditor, Operator, Admin]),
        free("show_notice", "GET", "/v1/tenants/{tenant}/notices/{notice}", &[Auditor, Operator, Admin]),
        free(
            "redeliver_notice",
            "POST",
            "/v1/tenants/{tenant}/notices/{notice}/redeliver",
            &[Operator, Admin],
        ),
        free("query_audit", "GET", "/v1/tenants/{tenant}/audit", &[Auditor, Admin]),
        free("verify_audit", "GET", "/v1/tenants/{tenant}/audit/verification", &[Auditor, Admin]),
        free("export_audit", "GET", "/v1/tenants/{tenant}/audit/export", &[Auditor, Admin]),
        free("prove_audit", "GET", "/v1/tenants/{tenant}/audit/proof", &[Auditor, Admin]),
        free(
            "consent_to_recording",
            "POST",
            "/v1/tenants/{tenant}/recordings/{recording}/consent",
            &[Ingest, Operator, Admin],
        ),
    ]
};

/// Finds an operation by method and path; `HEAD` is `GET` without a body.
pub fn operation(method: &str, path: &str) -> Option<&'static Operation> {
    let method = if method == "HEAD" { "GET" } else { method };
    OPERATIONS.iter().find(|operation| operation.method == method && operation.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_operation_once_and_admins_may_do_all() {
        for (index, one) in OPERATIONS.iter().enumerate() {
            assert!(one.roles.contains(&Role::Admin), "{}", one.id);
            assert!(one.path.starts_with("/v1/"), "{}", one.id);
            assert!(!one.creates || (one.method == "POST" && one.path.contains("{tenant}")), "{}", one.id);
            for other in &OPERATIONS[index + 1..] {
                assert_ne!(one.id, other.id);
                assert_ne!((one.method, one.path), (other.method, other.path));
            }
            assert_eq!(operation(one.method, one.path), Some(one));
        }
        assert_eq!(operation("HEAD", "/v1/tenants"), operation("GET", "/v1/tenants"));
        assert_eq!(operation("PUT", "/v1/tenants"), None);
        assert_eq!(operation("GET", "/v2/tenants"), None);
    }

    #[test]
    fn a_principal_acts_in_the_least_of_its_roles_that_suffices() {
        let principal = |roles: &[Role]| Principal {
            actor: "x".to_owned(),
            key: "y".to_owned(),
            roles: roles.to_vec(),
            reach: Reach::AllTenants,
        };
        let hold = operation("POST", "/v1/tenants/{tenant}/recordings/{recording}/hold").unwrap();
        assert_eq!(principal(&[Role::Player, Role::Ingest]).role_for(hold), None);
        assert_eq!(principal(&[Role::Admin, Role::Operator]).role_for(hold), Some(Role::Operator));
        assert_eq!(principal(&[]).role_for(hold), None);
        let suspend = operation("POST", "/v1/tenants/{tenant}/suspend").unwrap();
        let everywhere = principal(&[Role::Admin]);
        let at_home = Principal { reach: Reach::parse("acme").unwrap(), ..everywhere.clone() };
        assert_eq!((everywhere.role_for(suspend), at_home.role_for(suspend)), (Some(Role::Admin), None));
        assert_eq!(at_home.role_for(hold), Some(Role::Admin));
    }

    #[test]
    fn a_reach_is_one_tenant_or_all() {
        let (acme, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let one = Reach::parse("acme").unwrap();
        assert!(one.covers(&acme) && !one.covers(&other));
        assert!(Reach::parse("*").unwrap().covers(&other));
        assert!(Reach::parse("").is_err() && Reach::parse("**").is_err());
        assert_eq!([one.to_string(), Reach::AllTenants.to_string()], ["acme", "*"]);
    }

    #[test]
    fn roles_are_read_by_their_names() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert_eq!("Admin".parse::<Role>(), Err(NoRole));
    }
}
