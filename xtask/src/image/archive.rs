//! Container images as `docker save` writes them and `ctr images import` reads them: a tar of layers, which are tars
//! themselves, with a configuration for each image and a manifest.
//!
//! The same content gives the same bytes: entries are sorted, belong to root and have the epoch as their time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What is put into a layer, by its path without a leading slash.
#[derive(Default)]
pub(crate) struct Tree(BTreeMap<String, (u32, Entry)>);

enum Entry {
    Folder,
    File(Vec<u8>),
    Link(String),
}

impl Tree {
    /// A file with its content; the folders around it come by themselves.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.insert(path, mode, Entry::File(content.into()))
    }

    /// A copy of a file of this machine.
    pub(crate) fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<&mut Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(self.file(path, mode, content))
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.insert(path, 0o777, Entry::Link(target.to_owned()))
    }

    /// A folder with other permissions than those which come by themselves, or an empty one.
    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.insert(path, mode, Entry::Folder)
    }

    fn insert(&mut self, path: &str, mode: u32, entry: Entry) -> &mut Self {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.0.entry(path[..end].to_owned()).or_insert((0o755, Entry::Folder));
        }
        self.0.insert(path.to_owned(), (mode, entry));
        self
    }

    /// The layer that holds all this.
    pub(crate) fn into_layer(self) -> Result<Rc<Layer>> {
        let mut builder = Builder::new(Vec::new());
        for (path, (mode, entry)) in &self.0 {
            let (kind, content) = match entry {
                Entry::Folder => (EntryType::Directory, [].as_slice()),
                Entry::File(content) => (EntryType::Regular, content.as_slice()),
                Entry::Link(_) => (EntryType::Symlink, [].as_slice()),
            };
            let mut header = header(kind, *mode, content.len());
            match entry {
                Entry::Link(target) => builder.append_link(&mut header, path, target),
                Entry::Folder => builder.append_data(&mut header, format!("{path}/"), content),
                Entry::File(_) => builder.append_data(&mut header, path, content),
            }
            .with_context(|| format!("cannot put {path} into a layer"))?;
        }
        let content = builder.into_inner()?;
        Ok(Rc::new(Layer { digest: digest(&content), content }))
    }
}

/// A finished layer, which several images may share.
pub(crate) struct Layer {
    digest: String,
    content: Vec<u8>,
}

/// An image of this machine's operating system.
pub(crate) struct Image {
    pub(crate) tags: Vec<String>,
    /// As OCI names it: `amd64`, `arm64`.
    pub(crate) architecture: &'static str,
    pub(crate) layers: Vec<Rc<Layer>>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
}

impl Image {
    fn config(&self) -> Result<Vec<u8>> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
        let mut config = json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
            "WorkingDir": "/",
        });
        for (name, words) in [("Entrypoint", &self.entrypoint), ("Cmd", &self.command)] {
            if !words.is_empty() {
                config[name] = json!(words);
            }
        }
        Ok(serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": self.layers.iter().map(|_| json!({"created": "1970-01-01T00:00:00Z"})).collect::<Vec<_>>(),
        }))?)
    }
}

/// Writes the images into one archive. A layer that several of them have is in it once.
pub(crate) fn write(images: &[Image], to: &mut impl Write) -> Result<()> {
    let mut builder = Builder::new(to);
    let mut written = BTreeSet::new();
    let mut manifest = Vec::new();
    for image in images {
        for layer in &image.layers {
            if written.insert(layer.digest.clone()) {
                append(&mut builder, &layer_name(layer), &layer.content)?;
            }
        }
        let config = image.config()?;
        let name = format!("{}.json", digest(&config));
        if written.insert(name.clone()) {
            append(&mut builder, &name, &config)?;
        }
        manifest.push(json!({
            "Config": name,
            "RepoTags": image.tags.iter().map(|tag| full_name(tag)).collect::<Vec<_>>(),
            "Layers": image.layers.iter().map(|layer| layer_name(layer)).collect::<Vec<_>>(),
        }));
    }
    append(&mut builder, "manifest.json", &serde_json::to_vec(&manifest)?)?;
    builder.into_inner()?.flush()?;
    Ok(())
}

fn append(builder: &mut Builder<impl Write>, name: &str, content: &[u8]) -> Result<()> {
    builder
        .append_data(&mut header(EntryType::Regular, 0o644, content.len()), name, content)
        .with_context(|| format!("cannot write {name}"))
}

fn header(kind: EntryType, mode: u32, length: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(length as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn layer_name(layer: &Layer) -> String {
    format!("{}.tar", layer.digest)
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name under which a container runtime looks an image up: kubelet asks for `docker.io/library/portcullis:dev`
/// where a pod says `portcullis:dev`.
pub(crate) fn full_name(tag: &str) -> String {
    let tag = if tag.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
        tag.to_owned()
    } else {
        format!("{tag}:latest")
    };
    match tag.split_once('/') {
        // The part before the first slash is a registry if it looks like the name of a machine.
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => tag,
        Some(_) => format!("docker.io/{tag}"),
        None => format!("docker.io/library/{tag}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use serde_json::Value;

    use super::*;

    fn images() -> Vec<Image> {
        let mut base = Tree::default();
        base.link("bin/sh", "busybox").file("bin/busybox", 0o755, "program").folder("tmp", 0o1777);
        let base = base.into_layer().expect("a layer");
        let mut own = Tree::default();
        own.file("/own", 0o755, vec![7; 2_000]);
        let own = own.into_layer().expect("a layer");
        let image = |tag: &str, layers| Image {
            tags: vec![tag.to_owned()],
            architecture: "amd64",
            layers,
            entrypoint: vec!["/own".into()],
            command: Vec::new(),
        };
        vec![image("one:dev", vec![Rc::clone(&base), own]), image("two:dev", vec![base])]
    }

    fn archive() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&images(), &mut bytes).expect("an archive");
        bytes
    }

    fn read(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("its content");
            assert_eq!(entry.header().mtime().expect("a time"), 0, "times would differ from build to build");
            let mode = entry.header().mode().expect("a mode");
            found.insert(entry.path().expect("a path").display().to_string(), (mode, content));
        }
        found
    }

    #[test]
    fn what_the_manifest_names_is_there_and_has_its_digest() {
        let files = read(&archive());
        let manifest: Value = serde_json::from_slice(&files["manifest.json"].1).expect("a manifest");
        assert_eq!(manifest[0]["RepoTags"][0], "docker.io/library/one:dev");
        assert_eq!(manifest[0]["Layers"][0], manifest[1]["Layers"][0], "the images share a layer");
        assert_eq!(files.len(), 5, "two layers, two configurations and the manifest");
        for image in manifest.as_array().expect("images") {
            let name = image["Config"].as_str().expect("a name");
            let config: Value = serde_json::from_slice(&files[name].1).expect("a configuration");
            for (layer, id) in image["Layers"]
                .as_array()
                .expect("layers")
                .iter()
                .zip(config["rootfs"]["diff_ids"].as_array().expect("ids"))
            {
                let content = &files[layer.as_str().expect("a name")].1;
                assert_eq!(id.as_str().expect("an id"), format!("sha256:{}", digest(content)));
            }
        }
    }

    #[test]
    fn a_layer_has_its_folders_before_what_is_in_them() {
        let image = &images()[0];
        let mut names = Vec::new();
        for entry in tar::Archive::new(image.layers[0].content.as_slice()).entries().expect("a tar") {
            names.push(entry.expect("an entry").path().expect("a path").display().to_string());
        }
        assert_eq!(names, ["bin/", "bin/busybox", "bin/sh", "tmp/"]);
        assert_eq!(read(&image.layers[0].content)["tmp/"].0, 0o1777, "its own mode");
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(archive(), archive());
    }

    #[test]
    fn tags_are_written_as_runtimes_look_them_up() {
        let rows = [
            ("portcullis:dev", "docker.io/library/portcullis:dev"),
            ("portcullis", "docker.io/library/portcullis:latest"),
            ("someone/portcullis:1", "docker.io/someone/portcullis:1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("localhost:5000/portcullis", "localhost:5000/portcullis:latest"),
        ];
        for (tag, expected) in rows {
            assert_eq!(full_name(tag), expected, "{tag}");
        }
    }
}
