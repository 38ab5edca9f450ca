use std::path::Path;

use super::*;
use crate::config::{Secret, SecretRef};
use crate::simulate::{ApiAnswer, ApiRequest, TwilioApiServer};

const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const CALL: &str = "CA0123456789abcdef0123456789abcdef";
/// Longer than any answer takes.
const PATIENT: Duration = Duration::from_secs(20);
/// Short enough to wait for in vain.
const HASTY: Duration = Duration::from_millis(300);

fn user(sid: &str, secret: &str) -> ApiUser {
    ApiUser { sid: sid.to_owned(), secret: SecretRef::fixed(Secret::new(secret.as_bytes().to_vec())) }
}

fn owner() -> Vec<ApiUser> {
    vec![user(ACCOUNT, "token")]
}

async fn end(hang_ups: &HangUps, users: Vec<ApiUser>) -> Outcome {
    hang_ups.end(&ACCOUNT.parse().unwrap(), &CALL.parse().unwrap(), users).await
}

/// Ends a call at an API that answers so; returns what became of it, and what was asked.
async fn end_as(
    users: Vec<ApiUser>,
    timeout: Duration,
    answers: impl IntoIterator<Item = ApiAnswer>,
) -> (Outcome, Vec<ApiRequest>) {
    let api = TwilioApiServer::start(answers).await.unwrap();
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), api.certificate_pem()).unwrap();
    let ca_file = Some(ca_file.path().to_owned());
    let hang_ups = HangUps::new(&TwilioApi { url: api.url(), ca_file, timeout }).unwrap();
    let outcome = end(&hang_ups, users).await;
    (outcome, api.requests())
}

/// The value of `Authorization` for a user.
fn basic(sid: &str, secret: &str) -> String {
    format!("Basic {}", encode_base64(format!("{sid}:{secret}").as_bytes()))
}

#[tokio::test]
async fn a_call_is_ended_by_one_request_of_its_account() {
    let (outcome, requests) = end_as(owner(), PATIENT, [ApiAnswer::status(200)]).await;
    assert_eq!(outcome, Outcome::Ended);
    let [request] = requests.as_slice() else { panic!("{} requests", requests.len()) };
    assert_eq!(request.line, format!("POST /2010-04-01/Accounts/{ACCOUNT}/Calls/{CALL}.json"));
    assert_eq!(request.header("authorization"), basic(ACCOUNT, "token"));
    assert_eq!(request.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(request.body, "Status=completed");

    let key = "SK0123456789abcdef0123456789abcdef";
    let (_, requests) = end_as(vec![user(key, "a:b c")], PATIENT, []).await;
    assert_eq!(requests[0].header("authorization"), basic(key, "a:b c"));
}

#[tokio::test]
async fn a_call_that_is_over_is_no_trouble() {
    for answer in [ApiAnswer::status(404), ApiAnswer::not_in_progress()] {
        let (outcome, requests) = end_as(owner(), PATIENT, [answer]).await;
        assert_eq!((outcome, requests.len()), (Outcome::Over, 1));
    }
    let other = ApiAnswer::Status(400, r#"{"code":20001}"#.to_owned());
    for (answer, wanted) in [(other, 400), (ApiAnswer::status(307), 307), (ApiAnswer::status(410), 410)] {
        let (outcome, requests) = end_as(owner(), PATIENT, [answer]).await;
        assert_eq!((outcome, requests.len()), (Outcome::Unexpected(wanted), 1), "asked once");
    }
}

#[tokio::test]
async fn a_token_that_was_changed_is_followed_by_the_next() {
    let users = || vec![user(ACCOUNT, "old"), user(ACCOUNT, "new"), user(ACCOUNT, "never asked")];
    let refused = || ApiAnswer::status(401);
    let (outcome, requests) = end_as(users(), PATIENT, [refused()]).await;
    let asked: Vec<_> = requests.iter().map(|request| request.header("authorization")).collect();
    assert_eq!((outcome, asked), (Outcome::Ended, vec![&*basic(ACCOUNT, "old"), &*basic(ACCOUNT, "new")]));
    let (outcome, requests) = end_as(users(), PATIENT, [refused(), refused(), refused()]).await;
    assert_eq!((outcome, requests.len()), (Outcome::Refused(401), 2), "two tries in all");
    let (outcome, requests) = end_as(owner(), PATIENT, [ApiAnswer::status(403)]).await;
    assert_eq!((outcome, requests.len()), (Outcome::Refused(403), 1), "nobody else to ask as");
    let (outcome, requests) = end_as(Vec::new(), PATIENT, []).await;
    assert_eq!((outcome, requests.len()), (Outcome::NoSecret, 0));
}

#[tokio::test]
async fn trouble_gets_a_second_try_and_no_third() {
    for trouble in [ApiAnswer::status(500), ApiAnswer::status(503), ApiAnswer::status(429), ApiAnswer::Reset]
    {
        let (outcome, requests) = end_as(owner(), PATIENT, [trouble.clone()]).await;
        assert_eq!((outcome, requests.len()), (Outcome::Ended, 2), "{trouble:?}");
    }
    let twice = |answer: ApiAnswer| [answer.clone(), answer];
    for (answers, wanted) in [
        (twice(ApiAnswer::status(502)), Outcome::Failed(502)),
        (twice(ApiAnswer::status(429)), Outcome::Throttled),
        (twice(ApiAnswer::Reset), Outcome::Unreachable),
        ([ApiAnswer::status(500), ApiAnswer::status(404)], Outcome::Over),
    ] {
        let (outcome, requests) = end_as(owner(), PATIENT, answers).await;
        assert_eq!((outcome, requests.len()), (wanted, 2));
    }
}

#[tokio::test]
async fn nobody_is_waited_for_longer_than_a_time_for_each_try() {
    let late = ApiAnswer::Late(Duration::from_secs(3600));
    let (outcome, requests) = end_as(owner(), HASTY, [ApiAnswer::Hang, late]).await;
    assert_eq!((outcome, requests.len()), (Outcome::TimedOut, 2));
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_told_nothing() {
    let api = TwilioApiServer::start([]).await.unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), other.cert.pem()).unwrap();
    let options = |ca_file| TwilioApi { url: api.url(), ca_file, timeout: PATIENT };
    for ca_file in [Some(ca_file.path().to_owned()), None] {
        let hang_ups = HangUps::new(&options(ca_file)).unwrap();
        assert_eq!(end(&hang_ups, owner()).await, Outcome::Unreachable);
    }
    assert_eq!(api.requests(), []);
}

#[tokio::test]
async fn a_secret_that_is_gone_ends_no_call() {
    let missing = ApiUser { sid: ACCOUNT.to_owned(), secret: SecretRef::file(Path::new("/nowhere/at/all")) };
    let (outcome, requests) = end_as(vec![missing], PATIENT, []).await;
    assert_eq!((outcome, requests.len()), (Outcome::NoSecret, 0));
}

#[tokio::test]
async fn when_too_many_calls_are_ended_at_once_the_rest_is_given_back() {
    let api = TwilioApiServer::start([]).await.unwrap();
    let hang_ups = HangUps::new(&TwilioApi { url: api.url(), ca_file: None, timeout: HASTY }).unwrap();
    let places = u32::try_from(MAX_AT_ONCE).unwrap();
    let all = hang_ups.places.acquire_many(places).await.unwrap();
    assert_eq!(end(&hang_ups, owner()).await, Outcome::Busy);
    drop(all);
    assert_eq!(end(&hang_ups, owner()).await, Outcome::Unreachable, "its place is free again");
}
