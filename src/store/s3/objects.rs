//! Whole objects: put once, looked at.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ServerSideEncryption};
use bytes::Bytes;
use md5::{Digest, Md5};

use crate::config::{S3Checksum, S3Encryption};
use crate::store::{ObjectInfo, ObjectName, PutOutcome, StoreError, Tags};

use super::clock::millis_of;
use super::{Bucket, MARK, random_mark, tagging};

/// What a look at an object tells.
pub(super) struct Seen {
    pub(super) info: ObjectInfo,
    /// Who made it; see [`MARK`].
    pub(super) mark: Option<String>,
}

impl Bucket {
    pub(super) async fn put_new(
        &self,
        name: &ObjectName,
        body: Bytes,
        tags: &Tags,
    ) -> Result<PutOutcome, StoreError> {
        let claims = &self.options.claims;
        if !claims.create_once && self.look_at(name).await?.is_some() {
            return Ok(PutOutcome::AlreadyExists);
        }
        let mark = random_mark()?;
        let (checksum, content_md5) = match self.options.checksum {
            S3Checksum::None => (None, None),
            S3Checksum::Crc32 => (Some(ChecksumAlgorithm::Crc32), None),
            S3Checksum::Md5 => (None, Some(base64_of(&md5_of(&body)))),
        };
        let put = self
            .client
            .put_object()
            .bucket(self.name())
            .key(self.key(name))
            .body(ByteStream::from(body.clone()))
            .metadata(MARK, &mark)
            .set_if_none_match(claims.create_once.then(|| "*".to_owned()))
            .set_tagging(claims.tags.then(|| tagging::header(tags)).flatten())
            .set_checksum_algorithm(checksum)
            .set_content_md5(content_md5)
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.kms_key_id());
        match put.send().await {
            Ok(answer) => {
                self.check_stored(name, &answer, &body).await?;
                Ok(PutOutcome::Created)
            }
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_taken() {
                    self.whose(name, &mark).await
                } else {
                    Err(failed.during("put object"))
                }
            }
        }
    }

    /// Tells whether the object under a taken name is the one with our mark, whose answer was lost.
    pub(super) async fn whose(&self, name: &ObjectName, mark: &str) -> Result<PutOutcome, StoreError> {
        match self.look_at(name).await? {
            Some(seen) if seen.mark.as_deref() == Some(mark) => Ok(PutOutcome::Created),
            Some(_) => Ok(PutOutcome::AlreadyExists),
            // It was deleted meanwhile.
            None => Err(StoreError::Busy { retry_after: None }),
        }
    }

    /// Looks at an object without reading it.
    pub(super) async fn look_at(&self, name: &ObjectName) -> Result<Option<Seen>, StoreError> {
        let head = self.client.head_object().bucket(self.name()).key(self.key(name));
        match head.send().await {
            Ok(seen) => {
                let size = seen.content_length().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or(StoreError::Corrupt { what: "store tells no size" })?;
                let modified = seen.last_modified().and_then(millis_of);
                let mark = seen.metadata().and_then(|metadata| metadata.get(MARK)).cloned();
                Ok(Some(Seen { info: ObjectInfo { name: name.clone(), size, modified }, mark }))
            }
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_missing() { Ok(None) } else { Err(failed.during("look at object")) }
            }
        }
    }

    /// Compares what the store says it holds with what was sent.
    ///
    /// The signature has covered the body's SHA-256 already, so this is for stores that were not seen to look at it: an MD5
    /// costs as much as all of the rest of a put. Not every store's ETag is an MD5, though it may look like one: before
    /// anything is called corrupt it is read back, and a store whose ETags mean something else is not asked again.
    async fn check_stored(
        &self,
        name: &ObjectName,
        answer: &PutObjectOutput,
        body: &Bytes,
    ) -> Result<(), StoreError> {
        let is_known =
            self.refuses_damage.load(Ordering::Relaxed) || !self.etag_is_md5.load(Ordering::Relaxed);
        if is_known || !may_compare(&self.options.encryption, answer) {
            return Ok(());
        }
        let etag = answer.e_tag().unwrap_or_default().trim_matches('"');
        if etag.len() != 32 || etag.eq_ignore_ascii_case(&hex(&md5_of(body))) {
            return Ok(());
        }
        if self.get(name, None).await?.bytes == *body {
            self.etag_is_md5.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.delete_key(&self.key(name), None).await?;
        Err(StoreError::Corrupt { what: "the store had other bytes than it was given; they were deleted" })
    }

    pub(super) fn encryption(&self) -> Option<ServerSideEncryption> {
        match self.options.encryption {
            S3Encryption::None => None,
            S3Encryption::Aes256 => Some(ServerSideEncryption::Aes256),
            S3Encryption::AwsKms { .. } => Some(ServerSideEncryption::AwsKms),
        }
    }

    pub(super) fn kms_key_id(&self) -> Option<String> {
        match &self.options.encryption {
            S3Encryption::AwsKms { key_id } => key_id.clone(),
            S3Encryption::None | S3Encryption::Aes256 => None,
        }
    }
}

/// Returns the metadata of an object.
pub(super) fn marked(mark: &str) -> HashMap<String, String> {
    HashMap::from([(MARK.to_owned(), mark.to_owned())])
}

/// Whether the ETag can be the MD5 of the body: not where the store encrypts with keys of its own.
fn may_compare(encryption: &S3Encryption, answer: &PutObjectOutput) -> bool {
    *encryption == S3Encryption::None
        && answer.sse_customer_algorithm().is_none()
        && answer.server_side_encryption().is_none_or(|used| *used == ServerSideEncryption::Aes256)
}

pub(super) fn md5_of(body: &[u8]) -> [u8; 16] {
    Md5::digest(body).into()
}

pub(super) fn base64_of(digest: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(digest)
}

fn hex(digest: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*digest))
}
