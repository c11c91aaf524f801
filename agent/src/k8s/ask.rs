//! Requests to the API server: the answer's body, or why there is none.
//!
//! Not by kube's own `request_text` and `request_stream`: these tell the status and lose the header `Retry-After`, which is
//! all that a busy API server says (its flow control answers 429 in plain text).

use std::pin::Pin;
use std::time::Duration;

use futures::{AsyncBufRead, TryStreamExt};
use http::header::{HeaderMap, RETRY_AFTER};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;

use super::failure::Failure;
use super::object::Marker;

/// Bytes of a refusal that are read.
const REFUSAL: usize = 64 * 1024;
/// Characters of a refusal that is no Status and is shown: some proxy's page.
const SHOWN: usize = 200;

/// An answer that goes on, line by line.
pub(super) type Lines = Pin<Box<dyn AsyncBufRead + Send>>;

/// The whole answer.
pub(super) async fn text(client: &Client, request: http::Request<Vec<u8>>) -> Result<String, Failure> {
    let bytes = send(client, request).await?.collect_bytes().await.map_err(|error| Failure::of(&error))?;
    String::from_utf8(bytes.into()).map_err(|_| Failure::other("the answer is no text: is this an API server?"))
}

/// An answer that is read as it comes.
pub(super) async fn lines(client: &Client, request: http::Request<Vec<u8>>) -> Result<Lines, Failure> {
    let body = send(client, request).await?;
    Ok(Box::pin(body.into_data_stream().map_err(std::io::Error::other).into_async_read()))
}

async fn send(client: &Client, request: http::Request<Vec<u8>>) -> Result<Body, Failure> {
    let answer = client.send(request.map(Body::from)).await.map_err(|error| Failure::of(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer.into_body());
    }
    let asked = retry_after(answer.headers());
    let body = Limited::new(answer.into_body(), REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    Err(refusal(status.as_u16(), asked, &body))
}

/// Seconds alone: no API server gives a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds)).filter(|asked| !asked.is_zero())
}

/// What an answer that is no success says, be its body a Status or some proxy's page.
fn refusal(code: u16, asked: Option<Duration>, body: &[u8]) -> Failure {
    let marker = serde_json::from_slice::<Marker>(body).ok().filter(|marker| marker.code != 0);
    let marker = marker.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(body);
        let words: Vec<&str> = text.split_whitespace().collect();
        Marker { code, message: words.join(" ").chars().take(SHOWN).collect(), ..Marker::default() }
    });
    Failure::of_marker(marker, asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_when_to_come_again() {
        let second = Duration::from_secs;
        let status = |seconds: u32| {
            format!(r#"{{"kind":"Status","code":429,"message":"busy","details":{{"retryAfterSeconds":{seconds}}}}}"#)
        };
        let rows: [(&str, Option<&str>, String, Option<Duration>); 7] = [
            ("flow control: a header and words", Some("7"), "Too many requests".into(), Some(second(7))),
            ("a Status", None, status(3), Some(second(3))),
            ("both: the longer", Some("7"), status(3), Some(second(7))),
            ("both: the longer, of the Status", Some("2"), status(3), Some(second(3))),
            ("a date is not understood", Some("Wed, 21 Oct 2026 07:28:00 GMT"), String::new(), None),
            ("nothing", Some("0"), status(0), None),
            ("more than anybody may ask for", Some("99999999"), String::new(), Some(second(300))),
        ];
        for (why, header, body, wanted) in rows {
            let mut headers = HeaderMap::new();
            if let Some(value) = header {
                headers.insert(RETRY_AFTER, value.parse().unwrap());
            }
            assert_eq!(refusal(429, retry_after(&headers), body.as_bytes()).retry_after(), wanted, "{why}");
        }
    }

    #[test]
    fn a_page_of_a_proxy_is_told_in_a_line() {
        let page = format!("<html>\n <b>502 Bad\nGateway</b>{}", "x".repeat(9000));
        let said = refusal(502, None, page.as_bytes());
        assert!(said.reason().starts_with("the API server answers 502: <html> <b>502 Bad Gateway</b>x"), "{said:?}");
        assert!(said.reason().chars().count() < 300, "{said:?}");
        assert_eq!(refusal(410, None, b""), Failure::Expired, "the status alone");
    }
}
