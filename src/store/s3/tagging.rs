//! Tags of objects.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object_tagging::GetObjectTaggingError;
use aws_sdk_s3::types::{Tag, Tagging};

use crate::domain::percent;
use crate::store::{ObjectName, StoreError, Tags};

use super::Bucket;

const UNSUPPORTED: StoreError = StoreError::Unsupported { feature: "tags" };

impl Bucket {
    pub(super) async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        if !self.options.claims.tags {
            return Err(UNSUPPORTED);
        }
        let asked = self.client.get_object_tagging().bucket(self.name()).key(self.key(name)).send().await;
        match asked {
            Ok(answer) => {
                let mut tags = Tags::new();
                for tag in answer.tag_set() {
                    // Somebody else may have added tags that no tag of ours can be.
                    tags.insert(tag.key(), tag.value()).unwrap_or_default();
                }
                Ok(tags)
            }
            Err(error) if is_empty_answer(&error) => Ok(Tags::new()),
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_code("NoSuchTagSet") { Ok(Tags::new()) } else { Err(failed.during("read tags")) }
            }
        }
    }

    pub(super) async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        if !self.options.claims.tags {
            return Err(UNSUPPORTED);
        }
        if tags.is_empty() {
            return self.clear_tags(name).await;
        }
        let set = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
        let set: Result<Vec<Tag>, _> = set.collect();
        let tagging = set.and_then(|set| Tagging::builder().set_tag_set(Some(set)).build());
        let tagging = tagging.map_err(|_| StoreError::Refused { rule: "a tag has a key and a value" })?;
        let put = self.client.put_object_tagging().bucket(self.name()).key(self.key(name)).tagging(tagging);
        put.send().await.map(drop).map_err(|error| self.failed(error).during("write tags"))
    }

    async fn clear_tags(&self, name: &ObjectName) -> Result<(), StoreError> {
        // Stores differ on whether clearing the tags of nothing is an error.
        self.look_at(name).await?.ok_or(StoreError::NotFound)?;
        let delete = self.client.delete_object_tagging().bucket(self.name()).key(self.key(name));
        delete.send().await.map(drop).map_err(|error| self.failed(error).during("clear tags"))
    }
}

/// Whether a store said "yes" and sent no tags in a form that cannot be read: what RGW does for objects that were
/// uploaded in parts and have none.
fn is_empty_answer(error: &SdkError<GetObjectTaggingError, HttpResponse>) -> bool {
    error.raw_response().is_some_and(|raw| {
        let body = raw.body().bytes().unwrap_or_default();
        raw.status().as_u16() == 200 && memchr::memmem::find(body, b"<Key>").is_none()
    })
}

/// Writes tags as the header of a put: `key=value&…`; no tags are no header.
pub(super) fn header(tags: &Tags) -> Option<String> {
    let mut header = String::new();
    for (key, value) in tags.iter() {
        if !header.is_empty() {
            header.push('&');
        }
        percent::encode_into(key, &mut header);
        header.push('=');
        percent::encode_into(value, &mut header);
    }
    (!header.is_empty()).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_one_header() {
        let mut tags = Tags::new();
        assert_eq!(header(&tags), None);
        tags.insert("a+b", "c d=/").unwrap();
        tags.insert("empty", "").unwrap();
        assert_eq!(header(&tags).as_deref(), Some("a%2Bb=c%20d%3D%2F&empty="));
    }
}
