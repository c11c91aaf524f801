//! The unix socket: one agent for each path, root alone may ask.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use super::Error;

const BACKLOG: u32 = 64;

/// A socket that is bound.
#[derive(Debug)]
pub(super) struct StatusSocket {
    listener: UnixListener,
    claim: Claim,
}

/// The right to a path, held until dropped; then the socket goes.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    /// Two agents that start at once would both find the socket of an earlier one stale, and the second would remove
    /// what the first has just bound. So the path belongs to whoever holds this lock, which the kernel lets go when its
    /// holder dies. The file stays: removing it would let two agents lock two files of one name.
    _lock: File,
}

impl StatusSocket {
    pub(super) async fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Socket { what, path, source }
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(failed("make the directory", directory))?;
        }
        let lock = lock(path)?;
        remove_stale(path).await?;
        let socket = UnixSocket::new_stream().map_err(failed("make a socket for", path))?;
        // The mode of an unbound socket is the mode of the file that bind makes (unix_bind, net/unix/af_unix.c), so
        // that there is no moment in which others may connect.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| failed("set the mode of", path)(errno.into()))?;
        socket.bind(path).map_err(failed("make", path))?;
        let claim = Claim { path: path.to_owned(), _lock: lock };
        let listener = socket.listen(BACKLOG).map_err(failed("listen on", path))?;
        Ok(Self { listener, claim })
    }

    /// The listener, and the claim that must outlive it.
    pub(super) fn into_parts(self) -> (UnixListener, Claim) {
        (self.listener, self.claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&name);
    let file = file.map_err(|source| Error::Socket { what: "make", path: name.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::SocketInUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(Error::Socket { what: "lock", path: name, source }),
    }
}

/// Removes a socket that nobody listens on.
async fn remove_stale(path: &Path) -> Result<(), Error> {
    let failed = |what| move |source| Error::Socket { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(Error::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    // A listener that holds no lock of ours is another program. Anything but a refusal (accepted, queue full, no right
    // to ask) says that it is alive.
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("replace the left-over"))
        }
        _ => Err(Error::SocketInUse { path: path.to_owned() }),
    }
}
