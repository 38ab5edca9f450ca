//! Whether the store holds what arrives against the digest that was signed.

use std::sync::atomic::Ordering;

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;

use crate::store::{ObjectName, StoreError};

use super::Bucket;
use super::error::Failed;

const SIGNED: &str = "these bytes are signed";
/// Of the same length, so that only a digest shows the difference.
const SENT: &str = "other bytes are sent..";

impl Bucket {
    /// Puts an object whose bytes change after they were signed, as they would on a faulty way, and keeps in mind what comes
    /// of it.
    pub(super) async fn refuses_damage(&self, name: &ObjectName) -> Result<bool, StoreError> {
        let body = ByteStream::from_static(SIGNED.as_bytes());
        let put = self.client.put_object().bucket(self.name()).key(self.key(name)).body(body);
        let is_refused = match put.customize().interceptor(Damage).send().await {
            Ok(_) => false,
            Err(error) => {
                // Not by way of `failed`: no credentials are in doubt here.
                let failed = Failed::from(error);
                // Stores that make the signature themselves, of what has arrived, say that it is another.
                if !failed.is_damage() && !failed.is_code("SignatureDoesNotMatch") {
                    return Err(failed.during("put damaged bytes"));
                }
                true
            }
        };
        self.refuses_damage.store(is_refused, Ordering::Relaxed);
        Ok(is_refused)
    }
}

/// Changes the body behind its signature.
#[derive(Debug)]
struct Damage;

impl Intercept for Damage {
    fn name(&self) -> &'static str {
        "Damage"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *context.request_mut().body_mut() = SdkBody::from(SENT);
        Ok(())
    }
}
