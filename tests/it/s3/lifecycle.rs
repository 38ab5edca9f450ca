//! Rules of the bucket: given, read back, obeyed, and taken back where the store does not keep them.

use std::collections::BTreeSet;

use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, ExpirationStatus, LifecycleExpiration, LifecycleRule, LifecycleRuleFilter,
};
use callseal::config::{S3, S3Claims};
use callseal::store::s3::{LifecycleError, Rule};
use tempfile::TempDir;

use crate::support::{Home, Setup};

use super::servers::{ALL, Server, ceph, garage, open, table};

fn windows(days: &[u32], bucket: &S3) -> Vec<Rule> {
    Rule::wanted(&days.iter().copied().collect::<BTreeSet<_>>(), 30, &bucket.prefix, bucket.claims.versions)
}

/// Gives the bucket a rule of somebody else.
async fn add_foreign(server: &Server, bucket: &S3, prefix: &str) {
    let rule = LifecycleRule::builder()
        .id("theirs")
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix(prefix).build())
        .expiration(LifecycleExpiration::builder().days(4000).build())
        .build()
        .unwrap();
    let configuration = BucketLifecycleConfiguration::builder().rules(rule).build().unwrap();
    let put = server.client().put_bucket_lifecycle_configuration().bucket(&bucket.bucket);
    put.lifecycle_configuration(configuration).send().await.unwrap();
}

/// Names the rules of a bucket as somebody else sees them.
async fn ids(server: &Server, bucket: &S3) -> Vec<String> {
    let asked = server.client().get_bucket_lifecycle_configuration().bucket(&bucket.bucket).send().await;
    let rules = asked.map(|answer| answer.rules.unwrap_or_default()).unwrap_or_default();
    let mut ids: Vec<_> = rules.iter().map(|rule| rule.id().unwrap_or_default().to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn ceph_keeps_our_rules_and_those_of_others() {
    let Some(ceph) = ceph() else { return };
    for (prefix, versions) in [("", false), ("", true), ("eu/", false)] {
        let claims = S3Claims { versions, ..ALL };
        let bucket = S3 { prefix: prefix.to_owned(), ..ceph.bucket(claims).await };
        let store = open(&bucket).await;
        assert!(store.lifecycle().await.unwrap().ours().is_empty());
        add_foreign(&ceph, &bucket, "elsewhere/").await;
        let wanted = windows(&[90, 365], &bucket);
        store.apply_lifecycle(&wanted).await.unwrap();
        let rules = store.lifecycle().await.unwrap();
        assert_eq!(rules.of_others(), 1);
        assert!(wanted.iter().all(|rule| rules.ours().contains(rule)), "{:?}", rules.ours());
        let expected: &[&str] = if prefix.is_empty() { &["theirs"] } else { &[] };
        assert_eq!(rules.dangers(&wanted), expected, "below {prefix:?}");
        // Applied again with fewer: those of others stay.
        store.apply_lifecycle(&windows(&[90], &bucket)).await.unwrap();
        assert_eq!(ids(&ceph, &bucket).await, ["callseal-90-days", "callseal-unfinished", "theirs"]);
    }
}

#[tokio::test]
async fn a_store_that_drops_filters_has_no_rules_afterwards() {
    let Some(garage) = garage() else { return };
    let bucket = garage.bucket(ALL).await;
    let refused = open(&bucket).await.apply_lifecycle(&windows(&[90], &bucket)).await;
    assert!(matches!(refused, Err(LifecycleError::TakenBack)), "{refused:?}");
    assert_eq!(ids(&garage, &bucket).await, [""; 0]);
}

#[tokio::test]
async fn a_store_that_drops_filters_gets_the_rules_from_before_again() {
    let Some(garage) = garage() else { return };
    let bucket = garage.bucket(ALL).await;
    add_foreign(&garage, &bucket, "elsewhere/").await;
    let refused = open(&bucket).await.apply_lifecycle(&windows(&[90], &bucket)).await;
    assert!(matches!(refused, Err(LifecycleError::TakenBack)), "{refused:?}");
    assert_eq!(ids(&garage, &bucket).await, ["theirs"]);
}

fn node(server: &Server, bucket: &S3, secrets: &TempDir, change: impl FnOnce(Setup) -> Setup) -> Home {
    let options = table(secrets.path(), server, bucket);
    let setup = options
        .into_iter()
        .fold(Setup::new(), |setup, (option, value)| setup.option("store", option, &value));
    change(setup).write()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_and_applies_them() {
    let Some(ceph) = ceph() else { return };
    let (bucket, secrets) = (ceph.bucket(ALL).await, TempDir::new().unwrap());
    let home = node(&ceph, &bucket, &secrets, |setup| setup.option("retention", "grace_days", "5"));
    let missing = home.run(&["lifecycle", "show"]);
    assert_eq!(missing.code, Some(1), "{}", missing.err);
    assert!(missing.out.contains("missing   callseal-365-days: delete after 370 days"), "{}", missing.out);
    let dry = home.run_ok(&["lifecycle", "apply", "--dry-run"]);
    assert_eq!(dry, missing.out);
    assert_eq!(ids(&ceph, &bucket).await, [""; 0]);
    assert!(home.run_ok(&["lifecycle", "apply", "--yes"]).contains("applied, read back, and found as given"));
    assert!(home.run_ok(&["lifecycle", "show"]).contains("in place  callseal-365-days"));

    let longer = node(&ceph, &bucket, &secrets, |setup| {
        setup.option("retention", "grace_days", "9").tenant(|tenant| {
            "[retention]\nprofile = \"ring-the-pro\"\ncall_audio_days = 7\n".clone_into(&mut tenant.top);
        })
    });
    longer.run_ok(&["lifecycle", "apply", "--yes"]);
    let both = ["callseal-365-days", "callseal-7-days", "callseal-unfinished"];
    assert_eq!(ids(&ceph, &bucket).await, both, "recordings of 365 days are still there");
    let shown = longer.run_ok(&["lifecycle", "show"]);
    assert!(shown.contains("callseal-365-days: delete after 374 days"), "{shown}");
    longer.run_ok(&["lifecycle", "apply", "--yes", "--prune"]);
    assert_eq!(ids(&ceph, &bucket).await, ["callseal-7-days", "callseal-unfinished"]);

    add_foreign(&ceph, &bucket, "").await;
    let danger = longer.run(&["lifecycle", "show"]);
    assert_eq!(danger.code, Some(1));
    assert!(danger.err.contains("may delete recordings before their time: theirs"), "{}", danger.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_are_no_tags_there_are_no_rules() {
    let folder = Setup::new().write().run(&["lifecycle", "apply", "--yes"]);
    assert!(folder.err.contains("a folder has no lifecycle rules"), "{}", folder.err);
    let Some(garage) = garage() else { return };
    let secrets = TempDir::new().unwrap();
    let bucket = garage.bucket(super::servers::NO_TAGS).await;
    let refused = node(&garage, &bucket, &secrets, |setup| setup).run(&["lifecycle", "apply", "--yes"]);
    assert!(refused.err.contains("the store keeps no tags"), "{}", refused.err);
    let lying = node(&garage, &bucket, &secrets, |setup| setup.option("store", "tags", "true"));
    let refused = lying.run(&["lifecycle", "apply", "--yes"]);
    assert!(refused.err.contains("not seen to keep tags"), "{}", refused.err);
    assert_eq!(ids(&garage, &bucket).await, [""; 0]);
}
