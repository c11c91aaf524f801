//! Folders that appear, move, vanish and are swapped as kubelet swaps a mounted ConfigMap.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::live::Followed;
use super::{policy, rules};

/// What kubelet's AtomicWriter does: a new hidden folder, a hidden link to it, swapped by renaming; visible links
/// through the hidden one are made once.
fn swap_config_map(volume: &Path, version: &str, files: &[(&str, String)]) {
    let data = volume.join(format!("..{version}"));
    fs::create_dir_all(&data).expect("our own");
    for (name, text) in files {
        let path = data.join(name);
        fs::create_dir_all(path.parent().expect("it is inside")).expect("our own");
        fs::write(path, text).expect("our own");
    }
    symlink(format!("..{version}"), volume.join("..data_tmp")).expect("our own");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("our own");
    for (name, _) in files {
        let first = Path::new(name).iter().next().expect("a name");
        let visible = volume.join(first);
        if visible.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(first), visible).expect("our own");
        }
    }
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let mut folder = Followed::start("", |dir| {
        swap_config_map(dir, "v1", &[("a.yaml", policy("a", 1)), ("sub/b.yaml", policy("b", 1))]);
    })
    .await;
    folder.expect("at the start", &[("a", 1), ("b", 1)]).await;
    let volume = folder.path("");
    swap_config_map(&volume, "v2", &[("a.yaml", policy("a", 2)), ("sub/b.yaml", policy("b", 2))]);
    let both = |this: &Followed| rules(&this.cluster, "a") == rules(&this.cluster, "b");
    folder.until("swapped, all at once", |this| rules(&this.cluster, "a") == Some(2), both).await;
    fs::remove_dir_all(folder.path("..v1")).expect("our own");
    swap_config_map(
        &volume,
        "v3",
        &[("a.yaml", policy("a", 3)), ("sub/b.yaml", policy("b", 3)), ("c.yaml", policy("c", 1))],
    );
    folder.expect("swapped again, with a new file", &[("a", 3), ("b", 3), ("c", 1)]).await;
    swap_config_map(&volume, "v4", &[("a.yaml", policy("a", 4))]);
    fs::remove_file(folder.path("sub")).expect("our own");
    fs::remove_file(folder.path("c.yaml")).expect("our own");
    folder.expect("files left out", &[("a", 4)]).await;
    folder.stop().await;
}

#[tokio::test]
async fn links_to_files_and_folders_elsewhere_are_followed() {
    let mut folder = Followed::start("in", |dir| {
        fs::create_dir_all(dir.join("in")).expect("our own");
        fs::create_dir_all(dir.join("out")).expect("our own");
        fs::write(dir.join("out/a.yaml"), policy("a", 1)).expect("our own");
        fs::write(dir.join("one.yaml"), policy("one", 1)).expect("our own");
        symlink("../one.yaml", dir.join("in/link.yaml")).expect("our own");
    })
    .await;
    folder.expect("a link to a file", &[("one", 1)]).await;
    folder.write("one.yaml", &policy("one", 2));
    folder.expect("written where the link leads", &[("one", 2)]).await;
    symlink("../out", folder.path("in/linked")).expect("our own");
    folder.expect("a link to a folder", &[("one", 2), ("a", 1)]).await;
    folder.write("out/a.yaml", &policy("a", 2));
    folder.expect("written in it", &[("one", 2), ("a", 2)]).await;
    symlink("..", folder.path("in/loop")).expect("our own");
    fs::remove_file(folder.path("in/linked")).expect("our own");
    fs::remove_file(folder.path("in/link.yaml")).expect("our own");
    folder.expect("no links left but one that leads back", &[("one", 2), ("a", 2)]).await;
    folder.stop().await;
}

#[tokio::test]
async fn nested_folders_appear_move_and_vanish() {
    let mut folder = Followed::start("", |_| ()).await;
    fs::create_dir_all(folder.path("x/y")).expect("our own");
    folder.write("x/y/a.yaml", &policy("a", 1));
    folder.expect("made and filled at once", &[("a", 1)]).await;
    folder.write("x/y/a.yaml", &policy("a", 2));
    folder.expect("written there", &[("a", 2)]).await;
    fs::create_dir_all(folder.path(".far/deep")).expect("our own");
    folder.write(".far/deep/b.yaml", &policy("b", 1));
    fs::rename(folder.path(".far"), folder.path("near")).expect("our own");
    folder.expect("a hidden folder made visible", &[("a", 2), ("b", 1)]).await;
    fs::rename(folder.path("x"), folder.path("z")).expect("our own");
    folder.write("z/y/c.yaml", &policy("c", 1));
    let keeps = |this: &Followed| rules(&this.cluster, "a") == Some(2);
    folder.until("renamed: never gone", |this| rules(&this.cluster, "c").is_some(), keeps).await;
    folder.write("z/y/a.yaml", &policy("a", 3));
    folder.expect("written under its new name", &[("a", 3), ("b", 1), ("c", 1)]).await;
    fs::rename(folder.path("near"), folder.path(".near")).expect("our own");
    fs::remove_dir_all(folder.path("z/y")).expect("our own");
    folder.expect("hidden and removed", &[]).await;
    fs::create_dir(folder.path("z/y")).expect("our own");
    folder.write("z/y/d.yaml", &policy("d", 1));
    folder.expect("made again", &[("d", 1)]).await;
    folder.stop().await;
}

#[tokio::test]
async fn the_folder_itself_vanishes_and_comes_back() {
    let mut folder = Followed::start("above/root", |dir| {
        fs::create_dir_all(dir.join("above/root/sub")).expect("our own");
        fs::write(dir.join("above/root/sub/a.yaml"), policy("a", 1)).expect("our own");
    })
    .await;
    folder.expect("at the start", &[("a", 1)]).await;
    fs::rename(folder.path("above/root"), folder.path("above/elsewhere")).expect("our own");
    folder.until("moved away", |this| this.names().is_empty() && !this.told.is_empty(), |_| true).await;
    assert!(folder.told[0].contains("the folder is gone"), "{:?}", folder.told);
    fs::rename(folder.path("above/elsewhere"), folder.path("above/root")).expect("our own");
    folder.expect("moved back", &[("a", 1)]).await;
    folder.write("above/root/sub/a.yaml", &policy("a", 2));
    folder.expect("and followed", &[("a", 2)]).await;
    fs::remove_dir_all(folder.path("above")).expect("our own");
    folder.expect("removed with the folder above it", &[]).await;
    fs::create_dir_all(folder.path("above/root")).expect("our own");
    folder.write("above/root/b.yaml", &policy("b", 1));
    folder.expect("made again", &[("b", 1)]).await;
    folder.write("above/root/b.yaml", &policy("b", 2));
    folder.expect("and followed once more", &[("b", 2)]).await;
    folder.stop().await;
}

#[tokio::test]
async fn a_burst_comes_in_few_batches_and_loses_nothing() {
    let mut folder = Followed::start("", |_| ()).await;
    let names: Vec<String> = (0..200).map(|index| format!("p{index}")).collect();
    for name in &names {
        folder.write(&format!("{name}.yaml"), &policy(name, 1));
    }
    for name in &names {
        folder.write(&format!("{name}.yaml"), &policy(name, 2));
    }
    let expected: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 2)).collect();
    folder.expect("a burst", &expected).await;
    assert!(folder.count < 100, "400 writes came in {} batches", folder.count);
    folder.stop().await;
}

/// Folders that are made while the one above them is being looked at are neither missed nor left unwatched.
#[tokio::test]
async fn folders_made_in_haste_are_all_watched() {
    let mut folder = Followed::start("", |_| ()).await;
    let paths: Vec<String> = (0..100).map(|index| format!("n{index}/x/y/z/p{index}.yaml")).collect();
    for version in 1..=2 {
        let root = folder.path("");
        let files = paths.clone();
        let writer = std::thread::spawn(move || {
            for (index, path) in files.iter().enumerate() {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("it is inside")).expect("our own");
                fs::write(path, policy(&format!("p{index}"), version)).expect("our own");
                std::thread::yield_now();
            }
        });
        let names: Vec<String> = (0..100).map(|index| format!("p{index}")).collect();
        let expected: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), version)).collect();
        folder.expect("all of them", &expected).await;
        writer.join().expect("it does not fail");
    }
    folder.stop().await;
}

#[tokio::test]
async fn changes_are_found_when_notifications_were_lost() {
    let mut folder = Followed::start("", |dir| fs::write(dir.join("a.yaml"), policy("a", 1)).expect("our own")).await;
    folder.expect("at the start", &[("a", 1)]).await;
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("Linux has it");
    let queue: usize = queue.trim().parse().expect("it is a number");
    // Nothing is awaited here, so the follower, on the same thread, cannot take any of these out of the queue.
    for _ in 0..queue {
        fs::write(folder.path(".noise"), "").expect("our own");
        fs::remove_file(folder.path(".noise")).expect("our own");
    }
    folder.write("b.yaml", &policy("b", 1));
    fs::remove_file(folder.path("a.yaml")).expect("our own");
    folder.expect("after an overflow", &[("b", 1)]).await;
    folder.write("b.yaml", &policy("b", 2));
    folder.expect("and followed as before", &[("b", 2)]).await;
    folder.stop().await;
}
