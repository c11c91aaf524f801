//! The other end of the socket, for `portcullis status`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::status::{Status, Told};

/// An agent that needs longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question about a large cluster takes its time.
const THOUGHT: Duration = Duration::from_secs(120);

/// Bytes of an answer. A node has some hundred pods; this is room for a hundred times as much.
const LONGEST: usize = 64 << 20;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody serves the socket.
    #[error(
        "no agent answers on {path} ({source}): is `portcullis run` running on this node? If it runs with --socket, \
         give the same path here"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket is not ours to ask.
    #[error("may not ask the agent on {path}: only root may; try again with sudo")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The agent is silent.
    #[error(
        "the agent on {path} has not answered within {} s: it is stuck or overloaded; its log says more",
        limit.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// There is no answer to what was asked.
    #[error("{reason}")]
    Refused {
        /// The agent's words.
        reason: String,
    },
    /// The agent cannot say.
    #[error("the agent cannot answer now: {reason}")]
    Unavailable {
        /// The agent's words.
        reason: String,
    },
    /// What answers is no agent, or it ended meanwhile.
    #[error("what answers on {path} does not speak as an agent does: {what}; is it an agent of this version?")]
    Unintelligible {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Asks the agent that serves a socket for its status.
///
/// # Errors
/// When no agent answers, or it cannot tell.
pub async fn fetch_status(path: &Path) -> Result<Status, FetchError> {
    let body = ask(path, PATIENCE, Method::GET, "/status", String::new()).await?;
    understood(path, &body)
}

/// Asks it about the cluster that it knows.
///
/// # Errors
/// When no agent answers, or there is no answer.
pub async fn ask_cluster(path: &Path, question: String) -> Result<Told, FetchError> {
    let body = ask(path, THOUGHT, Method::POST, "/cluster", question).await?;
    understood(path, &body)
}

/// Asks it what it logs, or tells it what to log from now on.
///
/// # Errors
/// When no agent answers, or it does not take the filter.
pub async fn log_level(path: &Path, to: Option<String>) -> Result<String, FetchError> {
    let method = if to.is_some() { Method::PUT } else { Method::GET };
    let body = ask(path, PATIENCE, method, "/log-level", to.unwrap_or_default()).await?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn understood<T: serde::de::DeserializeOwned>(path: &Path, body: &[u8]) -> Result<T, FetchError> {
    let unintelligible = |what| FetchError::Unintelligible { path: path.to_owned(), what };
    serde_json::from_slice(body).map_err(|error| unintelligible(error.to_string()))
}

async fn ask(path: &Path, limit: Duration, method: Method, what: &str, body: String) -> Result<Bytes, FetchError> {
    let silent = |_| FetchError::Silent { path: path.to_owned(), limit };
    tokio::time::timeout(limit, answered(path, method, what, body)).await.map_err(silent)?
}

async fn answered(path: &Path, method: Method, what: &str, body: String) -> Result<Bytes, FetchError> {
    let unintelligible = |what| FetchError::Unintelligible { path: path.to_owned(), what };
    let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => FetchError::Denied { path: path.to_owned() },
        _ => FetchError::NoAgent { path: path.to_owned(), source },
    })?;
    let answer = request(stream, method, what, Body::from(body)).await;
    let (code, _, body) = answer.map_err(|error| unintelligible(error.to_string()))?;
    let reason = || String::from_utf8_lossy(&body).trim_end().to_owned();
    match code {
        StatusCode::OK => Ok(body),
        StatusCode::SERVICE_UNAVAILABLE => Err(FetchError::Unavailable { reason: reason() }),
        StatusCode::UNPROCESSABLE_ENTITY => Err(FetchError::Refused { reason: reason() }),
        code => Err(unintelligible(format!("its answer is {code}"))),
    }
}

/// What is at a path.
#[cfg(test)]
pub(super) async fn get<S>(stream: S, path: &str) -> Result<(StatusCode, HeaderMap, Bytes), axum::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    request(stream, Method::GET, path, Body::empty()).await
}

/// One request over a connection of its own.
async fn request<S>(
    stream: S,
    method: Method,
    path: &str,
    body: Body,
) -> Result<(StatusCode, HeaderMap, Bytes), axum::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(axum::Error::new)?;
    // It ends when the sender goes.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, "portcullis").body(body);
    let response = sender.send_request(request.map_err(axum::Error::new)?).await.map_err(axum::Error::new)?;
    let (parts, body) = response.into_parts();
    Ok((parts.status, parts.headers, to_bytes(Body::new(body), LONGEST).await?))
}
