//! The store's own clock, and the cheapest request there is.

use std::io;
use std::sync::{Arc, OnceLock};

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;

use crate::domain::time::UnixMillis;
use crate::store::StoreError;

use super::Bucket;

const ACTION: &str = "look at the bucket";

impl Bucket {
    /// Reads the clock from the `Date` of an answer; it tells whole seconds.
    pub(super) async fn now(&self) -> Result<UnixMillis, StoreError> {
        let date =
            self.date().await?.and_then(|text| DateTime::from_str(&text, DateTimeFormat::HttpDate).ok());
        date.as_ref().and_then(millis_of).ok_or_else(|| StoreError::Io {
            action: "read the store's clock",
            source: io::Error::new(io::ErrorKind::InvalidData, "its answers have no date"),
        })
    }

    /// Looks at the bucket and returns the `Date` of the answer.
    pub(super) async fn date(&self) -> Result<Option<String>, StoreError> {
        let date = Date::default();
        let head = self.client.head_bucket().bucket(self.name()).customize().interceptor(date.clone());
        match head.send().await {
            Ok(_) => Ok(date.0.get().cloned()),
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_missing() {
                    let source = io::Error::new(io::ErrorKind::NotFound, "there is no such bucket");
                    return Err(StoreError::Denied { action: ACTION, source });
                }
                Err(failed.during(ACTION))
            }
        }
    }
}

/// Keeps the `Date` of the first answer.
#[derive(Debug, Clone, Default)]
struct Date(Arc<OnceLock<String>>);

impl Intercept for Date {
    fn name(&self) -> &'static str {
        "Date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.0.get_or_init(|| date.to_owned());
        }
        Ok(())
    }
}

/// Converts a moment; those before 1970 are none.
pub(super) fn millis_of(at: &DateTime) -> Option<UnixMillis> {
    u64::try_from(at.to_millis().ok()?).ok().map(UnixMillis)
}
