//! Objects made in parts.
//!
//! Not every store refuses to complete an upload over an object that has come meanwhile (RGW does not), so the name is
//! looked at before; two uploads that complete at the same moment may still both succeed there. Not every store keeps
//! the tags that were given at the beginning (RGW does not), so they are set when the object is there; until then, and
//! after a crash in between, it has none.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use crate::config::S3Checksum;
use crate::store::{MIN_PART_BYTES, ObjectName, PutOutcome, StoreError, Tags, Upload};

use super::objects::{base64_of, marked, md5_of};
use super::{Bucket, random_mark, tagging};

/// The most parts that S3 takes.
const MAX_PARTS: usize = 10_000;

pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    name: ObjectName,
    tags: Tags,
    /// What the finished object carries, so that it is known as ours.
    mark: String,
    /// Gone after `complete` or `abort`.
    id: Option<String>,
    parts: Vec<CompletedPart>,
    /// A part below the least size was put, so that no other may follow.
    ended: bool,
    /// How a repeated `complete` answers.
    outcome: Option<PutOutcome>,
}

impl S3Upload {
    pub(super) async fn begin(
        bucket: Arc<Bucket>,
        name: &ObjectName,
        tags: &Tags,
    ) -> Result<Self, StoreError> {
        let mark = random_mark()?;
        let create = bucket
            .client
            .create_multipart_upload()
            .bucket(bucket.name())
            .key(bucket.key(name))
            .set_metadata(Some(marked(&mark)))
            .set_tagging(bucket.options.claims.tags.then(|| tagging::header(tags)).flatten())
            .set_checksum_algorithm(bucket.part_checksum())
            .set_server_side_encryption(bucket.encryption())
            .set_ssekms_key_id(bucket.kms_key_id());
        let answer = create.send().await.map_err(|error| bucket.failed(error).during("begin upload"))?;
        let id = answer.upload_id().ok_or(StoreError::Corrupt { what: "store gives an upload no id" })?;
        Ok(Self {
            name: name.clone(),
            tags: tags.clone(),
            mark,
            id: Some(id.to_owned()),
            parts: Vec::new(),
            ended: false,
            outcome: None,
            bucket,
        })
    }

    fn id(&self) -> Result<String, StoreError> {
        self.id.clone().ok_or(StoreError::Refused { rule: "an upload ends when it is completed or aborted" })
    }

    /// Asks the store to make the object.
    async fn make(&self, id: &str) -> Result<PutOutcome, StoreError> {
        let bucket = &self.bucket;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.parts.clone())).build();
        let complete = bucket
            .client
            .complete_multipart_upload()
            .bucket(bucket.name())
            .key(bucket.key(&self.name))
            .upload_id(id)
            .multipart_upload(parts)
            .set_if_none_match(bucket.options.claims.create_once.then(|| "*".to_owned()));
        match complete.send().await {
            Ok(_) => Ok(PutOutcome::Created),
            Err(error) => {
                let failed = bucket.failed(error);
                let is_gone = failed.is_code("NoSuchUpload");
                if !failed.is_taken() && !is_gone {
                    return Err(failed.during("complete upload"));
                }
                // The upload may be gone because an earlier attempt made the object and its answer was lost.
                match bucket.whose(&self.name, &self.mark).await {
                    Err(StoreError::Busy { .. }) if is_gone => {
                        Err(StoreError::Refused { rule: "an upload is completed before somebody aborts it" })
                    }
                    outcome => outcome,
                }
            }
        }
    }

    /// Makes the object unless the name is taken by somebody else.
    async fn make_once(&self, id: &str) -> Result<PutOutcome, StoreError> {
        match self.bucket.look_at(&self.name).await? {
            None => self.make(id).await,
            Some(seen) if seen.mark.as_ref() == Some(&self.mark) => Ok(PutOutcome::Created),
            Some(_) => Ok(PutOutcome::AlreadyExists),
        }
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let id = self.id()?;
        if self.ended {
            return Err(StoreError::Refused { rule: "every part but the last has at least 5 MiB" });
        }
        if part.is_empty() {
            return Err(StoreError::Refused { rule: "a part has at least one byte" });
        }
        let number = i32::try_from(self.parts.len() + 1).ok().filter(|_| self.parts.len() < MAX_PARTS);
        let number = number.ok_or(StoreError::Refused { rule: "an upload has at most 10000 parts" })?;
        let length = part.len();
        let content_md5 =
            (self.bucket.options.checksum == S3Checksum::Md5).then(|| base64_of(&md5_of(&part)));
        let put = self
            .bucket
            .client
            .upload_part()
            .bucket(self.bucket.name())
            .key(self.bucket.key(&self.name))
            .upload_id(id)
            .part_number(number)
            .body(ByteStream::from(part))
            .set_checksum_algorithm(self.bucket.part_checksum())
            .set_content_md5(content_md5);
        let answer = put.send().await.map_err(|error| self.bucket.failed(error).during("put part"))?;
        let completed = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag().map(str::to_owned))
            .set_checksum_crc32(answer.checksum_crc32().map(str::to_owned))
            .build();
        self.parts.push(completed);
        self.ended = length < MIN_PART_BYTES;
        Ok(())
    }

    async fn complete(&mut self) -> Result<PutOutcome, StoreError> {
        if let Some(outcome) = self.outcome {
            return Ok(outcome);
        }
        let id = self.id()?;
        if self.parts.is_empty() {
            return Err(StoreError::Refused { rule: "an upload has at least one part" });
        }
        let outcome = self.make_once(&id).await?;
        match outcome {
            PutOutcome::Created if self.bucket.options.claims.tags && !self.tags.is_empty() => {
                self.bucket.set_tags(&self.name, &self.tags).await?;
            }
            PutOutcome::Created => {}
            // Parts that stay behind cost space only, and are found by whoever aborts the uploads of this name.
            PutOutcome::AlreadyExists => {
                self.bucket.abort_upload(&self.bucket.key(&self.name), &id).await.unwrap_or_default();
            }
        }
        self.outcome = Some(outcome);
        self.id = None;
        Ok(outcome)
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        if let Some(id) = &self.id {
            self.bucket.abort_upload(&self.bucket.key(&self.name), id).await?;
        }
        self.id = None;
        Ok(())
    }
}

impl Bucket {
    /// The checksum of parts, which must be said when the upload begins.
    fn part_checksum(&self) -> Option<ChecksumAlgorithm> {
        (self.options.checksum == S3Checksum::Crc32).then_some(ChecksumAlgorithm::Crc32)
    }
}
