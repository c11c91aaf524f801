//! Metrics and health over TCP, status over a unix socket: the only room that knows axum and hyper.
//!
//! | where | path | answer |
//! |---|---|---|
//! | TCP | `/metrics` | OpenMetrics text |
//! | TCP | `/healthz` | 200 while the main loop beats, else 503: restarting the agent may help |
//! | TCP | `/readyz` | 200 while in sync, else 503 with the reason |
//! | socket | `/status` | [`Status`] as JSON |
//! | socket | `/cluster` | POST: a question about the cluster, answered by [`Told`] as JSON; 422 with the reason if there is none |
//! | socket | `/log-level` | what is logged; PUT: log by this filter from now on |
//!
//! The server knows nothing of what it tells: it reads [`Views`], and asks [`Answers`] anew at each request. What is on
//! TCP names policies but no pods or addresses; the rest is for root alone, by the socket's mode.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Figures;
use crate::status::{Status, Told};

mod client;
mod routes;
mod socket;

pub use client::{FetchError, ask_cluster, fetch_status, log_level};

use socket::StatusSocket;

#[cfg(test)]
mod tests;

/// Where metrics and health are, if nothing else is asked for: only this node reaches it.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9470);

/// Where the status socket is, if nothing else is asked for.
pub const DEFAULT_SOCKET: &str = "/run/portcullis/portcullis.sock";

/// How long connections may take to end after the server was told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else listens there.
    #[error(
        "cannot serve metrics and health on {address}: the address is in use, perhaps by another portcullis agent; \
         `ss -ltnp` shows by whom. Stop it, or choose another address with --listen"
    )]
    AddressInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The kernel refuses the address.
    #[error(
        "cannot serve metrics and health on {address}: {source}; choose an address of this node and a free port with \
         --listen"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another agent, or another program, serves the socket.
    #[error(
        "the socket {path} is in use by a running process, probably another portcullis agent: stop it, or choose \
         another path with --socket"
    )]
    SocketInUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// Something else than a socket is at the path.
    #[error("{path} exists and is not a socket, so it is left alone: remove it, or choose another path with --socket")]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error(
        "cannot serve status on a socket: cannot {what} {path}: {source}; see to the directory and its rights, or \
         choose another path with --socket"
    )]
    Socket {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Whether the agent enforces what its sources ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It does not, for this reason.
    NotReady(String),
}

/// A question that cannot be answered now, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Not as it was asked.
    #[error("{0}")]
    Question(String),
}

/// What is found out anew for each request.
pub trait Answers: Send + Sync + 'static {
    /// Everything that is counted.
    fn figures(&self) -> impl Future<Output = Result<Figures, Unavailable>> + Send;
    /// The agent's state.
    fn status(&self) -> impl Future<Output = Result<Status, Unavailable>> + Send;
    /// What follows from the cluster as the agent knows it. The question is in the words of the command line.
    fn cluster(&self, question: String) -> impl Future<Output = Result<Told, Refusal>> + Send;
    /// What is logged, after it was changed to `to` if that is given.
    fn log_level(&self, to: Option<String>) -> impl Future<Output = Result<String, Refusal>> + Send;
}

/// What the server tells.
#[derive(Debug)]
pub struct Views<A> {
    /// Whether the agent is in sync. When the sender is gone it is not.
    pub readiness: watch::Receiver<Readiness>,
    /// The main loop's last beat. When the sender is gone there is no main loop.
    pub beat: watch::Receiver<Instant>,
    /// The agent is unhealthy when the last beat is longer ago.
    pub beat_limit: Duration,
    /// Counters and status.
    pub answers: A,
}

/// A server whose address and socket are taken, and which does not answer yet.
#[derive(Debug)]
pub struct Server {
    http: TcpListener,
    address: SocketAddr,
    socket: StatusSocket,
    grace: Duration,
}

impl Server {
    /// Takes the address and the socket. A socket that nobody serves any more is replaced, and its directory is made.
    ///
    /// # Errors
    /// When either is taken or cannot be had; nothing is left behind then.
    pub async fn bind(listen: SocketAddr, socket: &Path) -> Result<Self, Error> {
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => Error::AddressInUse { address: listen },
            _ => Error::Listen { address: listen, source },
        };
        let http = TcpListener::bind(listen).await.map_err(refused)?;
        let address = http.local_addr().map_err(refused)?;
        let socket = StatusSocket::bind(socket).await?;
        Ok(Self { http, address, socket, grace: GRACE })
    }

    /// The address of metrics and health: the one asked for, with the kernel's choice for port 0.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` completes; then no new connection is taken, requests in progress get a short while to
    /// finish, and the socket is removed.
    pub async fn run<A: Answers>(self, views: Views<A>, stop: impl Future<Output = ()>) {
        let views = Arc::new(views);
        let (stopping, stopped) = watch::channel(false);
        let signal = |mut stopped: watch::Receiver<bool>| async move {
            // An error says that the sender is gone, which is a reason to stop as well.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let (listener, _claim) = self.socket.into_parts();
        let http = axum::serve(self.http, routes::http(views.clone())).with_graceful_shutdown(signal(stopped.clone()));
        let socket = axum::serve(listener, routes::socket(views)).with_graceful_shutdown(signal(stopped));
        let end = async {
            stop.await;
            stopping.send_replace(true);
            tokio::time::sleep(self.grace).await;
        };
        tokio::select! {
            // Neither ends, nor fails, before it is told to.
            _ = async { tokio::join!(http, socket) } => {}
            () = end => tracing::warn!("stopped while connections to metrics or status were still open"),
        }
    }
}
