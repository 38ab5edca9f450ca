//! A folder keeps its claims; a store that answers "yes" to what it ignores is found out.

use async_trait::async_trait;

use super::*;
use crate::store::folder::Folder;
use crate::store::{Fetched, ObjectInfo, StoreProfile, Upload};

/// Claims everything and ignores tags and create-once, as some stores do.
struct Liar(Folder);

#[async_trait]
impl Store for Liar {
    async fn put_new(&self, name: &ObjectName, body: Bytes, _tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.0.delete(name).await?;
        self.0.put_new(name, body, &Tags::new()).await?;
        Ok(PutOutcome::Created)
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.0.get(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.0.head(name).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.0.list_after(prefix, after, limit).await
    }

    /// Keeps what it was told to delete, as a bucket with versions does.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        if name.as_str().contains("versions") { Ok(()) } else { self.0.delete(name).await }
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.0.tags(name).await
    }

    async fn set_tags(&self, _name: &ObjectName, _tags: &Tags) -> Result<(), StoreError> {
        Err(StoreError::Unsupported { feature: "tags" })
    }

    /// Says yes and locks nothing.
    async fn lock(&self, _name: &ObjectName, _until: UnixMillis) -> Result<(), StoreError> {
        Ok(())
    }

    async fn begin_upload(&self, name: &ObjectName, _tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.0.begin_upload(name, &Tags::new()).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.0.ping().await
    }

    fn profile(&self) -> StoreProfile {
        StoreProfile { tags: true, create_once: true, versions: false, object_lock: true }
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        Ok(UnixMillis(0))
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        self.0.delete_all(names).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.0.purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.0.abort_uploads(name, before).await
    }
}

fn broken(findings: &[Finding]) -> Vec<Feature> {
    findings.iter().filter(|finding| finding.is_broken_claim()).map(|finding| finding.feature).collect()
}

#[tokio::test]
async fn a_folder_keeps_its_claims() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).await.unwrap();
    let findings = run(&folder).await.unwrap();
    assert_eq!(broken(&findings), []);
    let yes = findings.iter().filter(|finding| finding.found == Found::Yes).count();
    assert_eq!(
        yes,
        Feature::ALL.len() - 3,
        "all but versions, locks and what no folder is asked: {findings:?}"
    );
    assert!(folder.list_after("", None, 1).await.unwrap().is_empty(), "the probe leaves nothing");
}

#[tokio::test]
async fn a_store_that_ignores_what_it_claims_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).await.unwrap();
    let findings = run(&Liar(folder.clone())).await.unwrap();
    let expected = [
        Feature::TagsOnPut,
        Feature::TagsOnUpload,
        Feature::CreateOnce,
        Feature::CreateOnceRace,
        Feature::Versions,
        Feature::ObjectLock,
        Feature::Clock,
    ];
    assert_eq!(broken(&findings), expected);
    let tags = findings.iter().find(|finding| finding.feature == Feature::TagsOnPut).unwrap();
    assert_eq!(tags.why.as_deref(), Some("store has no tags"));
    assert!(folder.list_after("", None, 1).await.unwrap().is_empty(), "the probe leaves nothing");
}

#[test]
fn every_broken_claim_says_what_to_do() {
    for feature in Feature::ALL {
        assert!(!feature.remedy().is_empty() && !feature.instead().is_empty(), "{feature:?}");
    }
}
