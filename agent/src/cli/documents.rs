//! Documents that are made from the program: compared with what the repository has, or written anew.

use std::path::PathBuf;

/// Compares a document under `docs/` with what it should be; `PORTCULLIS_WRITE_DOCS=1` writes it instead.
pub(crate) fn check(name: &str, expected: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "docs", name].iter().collect();
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let first = stored.lines().zip(expected.lines()).position(|(stored, expected)| stored != expected);
    assert!(
        stored == expected,
        "docs/{name} is stale (from line {}): PORTCULLIS_WRITE_DOCS=1 cargo test -p portcullis --lib documents writes it",
        first.map_or_else(|| stored.lines().count().min(expected.lines().count()), |line| line + 1)
    );
}
