//! The other end of the socket, for `portcullis status`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::status::Status;

/// An agent that needs longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

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
        PATIENCE.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The agent cannot say.
    #[error("the agent cannot tell its status now: {reason}")]
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
    let silent = |_| FetchError::Silent { path: path.to_owned() };
    tokio::time::timeout(PATIENCE, ask(path)).await.map_err(silent)?
}

async fn ask(path: &Path) -> Result<Status, FetchError> {
    let unintelligible = |what| FetchError::Unintelligible { path: path.to_owned(), what };
    let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => FetchError::Denied { path: path.to_owned() },
        _ => FetchError::NoAgent { path: path.to_owned(), source },
    })?;
    let (code, _, body) = get(stream, "/status").await.map_err(|error| unintelligible(error.to_string()))?;
    match code {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|error| unintelligible(error.to_string())),
        StatusCode::SERVICE_UNAVAILABLE => {
            Err(FetchError::Unavailable { reason: String::from_utf8_lossy(&body).trim_end().to_owned() })
        }
        code => Err(unintelligible(format!("its answer is {code}"))),
    }
}

/// One request over a connection of its own.
pub(super) async fn get<S>(stream: S, path: &str) -> Result<(StatusCode, HeaderMap, Bytes), axum::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(axum::Error::new)?;
    // It ends when the sender goes.
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, "portcullis").body(Body::empty());
    let response = sender.send_request(request.map_err(axum::Error::new)?).await.map_err(axum::Error::new)?;
    let (parts, body) = response.into_parts();
    Ok((parts.status, parts.headers, to_bytes(Body::new(body), LONGEST).await?))
}
