//! Which cluster, and how to reach it.

use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use super::Error;

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(10);

/// Which cluster to watch, and as which node's agent.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The kubeconfig; without it `KUBECONFIG`, then the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it, if not the current one.
    pub context: Option<String>,
    /// This node. Without it all Nodes are read, and no taint is removed.
    pub node: Option<String>,
}

/// A cluster that can be asked. Nothing has been sent yet.
#[derive(Clone)]
pub struct Connection {
    pub(super) client: Client,
    pub(super) node: Option<String>,
    /// The API server's URL.
    pub server: String,
}

/// Finds the cluster: by the kubeconfig that was given, by `KUBECONFIG`, or by the service account of the pod that this is.
///
/// # Errors
/// No cluster can be found, or what describes it is of no use.
pub async fn connect(settings: &Settings) -> Result<Connection, Error> {
    let mut config = find(settings).await?;
    // Retrying is done here, where it is told.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    let server = config.cluster_url.to_string();
    let failed = |error: kube::Error| Error::Client { server: server.clone(), reason: error.to_string() };
    let client = Client::try_from(config).map_err(failed)?;
    Ok(Connection { client, node: settings.node.clone(), server })
}

async fn find(settings: &Settings) -> Result<Config, Error> {
    let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
    let (read, path) = match &settings.kubeconfig {
        Some(path) => (Kubeconfig::read_from(path).map(Some), path.clone()),
        // Several files, as kubectl takes them.
        None => (Kubeconfig::from_env(), std::env::var_os("KUBECONFIG").unwrap_or_default().into()),
    };
    let refused =
        |error: kube::config::KubeconfigError| Error::Kubeconfig { path: path.clone(), reason: error.to_string() };
    match read.map_err(refused)? {
        Some(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(refused),
        None => Config::incluster().map_err(|error| Error::NoCluster { reason: error.to_string() }),
    }
}
