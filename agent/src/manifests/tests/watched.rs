use std::fs;

use inotify::Inotify;

use super::super::folder;
use super::super::watch::Watches;

#[test]
fn a_folder_that_appears_while_one_looks_is_watched_and_listed() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let inotify = Inotify::init().expect("the kernel notifies");
    let mut watches = Watches::new(inotify.watches());
    let late = dir.path().join("late");
    let later = late.join("later");
    let mut looks = 0;
    let scan = watches.cover_by(dir.path(), |path| {
        let scan = folder::scan(path);
        looks += 1;
        match looks {
            1 => fs::create_dir(&late).expect("our own"),
            2 => {
                fs::create_dir(&later).expect("our own");
                fs::write(later.join("a.yaml"), "").expect("our own");
            }
            _ => {}
        }
        scan
    });
    assert!(watches.is_watched(&late), "made after the first look");
    assert!(watches.is_watched(&later), "made after the second look");
    assert_eq!(scan.files, [later.join("a.yaml")], "what is in it is listed");
    fs::remove_dir_all(&late).expect("our own");
    watches.cover(dir.path());
    assert!(!watches.is_watched(&late) && watches.is_watched(dir.path()), "what is gone is not watched");
}

#[test]
fn a_folder_that_moved_out_is_watched_no_longer() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("a/b")).expect("our own");
    let inotify = Inotify::init().expect("the kernel notifies");
    let mut watches = Watches::new(inotify.watches());
    watches.cover(&root);
    assert_eq!(watches.count(), 3, "the root and two below it");
    fs::rename(root.join("a"), dir.path().join("out")).expect("our own");
    watches.cover(&root.join("a"));
    assert_eq!(watches.count(), 1, "the root alone");
}
