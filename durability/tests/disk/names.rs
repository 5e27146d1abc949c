//! What a power cut leaves of names, under each policy.

use crate::rig::{Rig, plain, strict};
use std::fs;
use std::os::unix::fs::MetadataExt;

fn both() -> Option<[(Rig, bool); 2]> {
    Some([(plain()?, false), (strict()?, true)])
}

#[test]
fn a_rename_is_durable_at_once_or_with_its_folder() {
    let Some(rigs) = both() else { return };
    for (rig, lost) in rigs {
        rig.synced("current", b"old");
        rig.synced("next", b"new");
        rig.sync_folder("");
        fs::rename(rig.path("next"), rig.path("current")).expect("renamed");
        assert_eq!(rig.read("current"), b"new");
        let loss = rig.cut();
        if lost {
            assert_eq!(loss.names, 2);
            assert_eq!(rig.names(""), ["current", "next"]);
            assert_eq!(rig.read("current"), b"old");
            assert_eq!(rig.read("next"), b"new");
            fs::rename(rig.path("next"), rig.path("current")).expect("renamed");
            rig.sync_folder("");
            assert_eq!(rig.cut().names, 0);
        }
        assert_eq!(rig.names(""), ["current"]);
        assert_eq!(rig.read("current"), b"new");
    }
}

#[test]
fn a_new_file_needs_its_folder_synced_to_be_found() {
    let Some(rigs) = both() else { return };
    for (rig, lost) in rigs {
        fs::create_dir_all(rig.path("logs/topic-0")).expect("folders");
        rig.sync_folder("");
        rig.synced("logs/topic-0/segment", b"records");
        rig.sync_folder("logs/topic-0");
        // The folder above was not synced: all below it is out of reach.
        rig.cut();
        if lost {
            assert_eq!(rig.names(""), ["logs"]);
            assert!(rig.names("logs").is_empty());
            fs::create_dir(rig.path("logs/topic-0")).expect("a folder");
            rig.synced("logs/topic-0/segment", b"records");
            rig.sync_folder("logs/topic-0");
            rig.sync_folder("logs");
            rig.cut();
        }
        assert_eq!(rig.read("logs/topic-0/segment"), b"records");
    }
}

#[test]
fn what_was_removed_comes_back_unless_its_folder_was_synced() {
    let Some(rigs) = both() else { return };
    for (rig, lost) in rigs {
        fs::create_dir(rig.path("folder")).expect("a folder");
        rig.synced("folder/file", b"bytes");
        rig.sync_folder("folder");
        rig.sync_folder("");
        // What comes back has the bytes that were synced, not those of its last hour.
        fs::write(rig.path("folder/file"), b"other").expect("written");
        fs::remove_dir_all(rig.path("folder")).expect("removed");
        assert!(rig.names("").is_empty());
        rig.cut();
        if lost {
            assert_eq!(rig.read("folder/file"), b"bytes");
            fs::remove_file(rig.path("folder/file")).expect("removed");
            rig.sync_folder("folder");
            fs::remove_dir(rig.path("folder")).expect("removed");
            rig.cut();
            assert_eq!(rig.names(""), ["folder"]);
            assert!(rig.names("folder").is_empty());
            fs::remove_dir(rig.path("folder")).expect("removed");
            rig.sync_folder("");
            rig.cut();
        }
        assert!(rig.names("").is_empty());
        drop(rig.disk);
        let left: Vec<_> = fs::read_dir(rig.backing.path())
            .expect("a folder")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_file_has_all_the_names_that_are_durable() {
    let Some(rig) = strict() else { return };
    for folder in ["one", "other"] {
        fs::create_dir(rig.path(folder)).expect("a folder");
    }
    rig.synced("one/file", b"bytes");
    rig.sync_folder("one");
    rig.sync_folder("");
    fs::rename(rig.path("one/file"), rig.path("other/file")).expect("renamed");
    rig.sync_folder("other");
    rig.cut();
    assert_eq!(rig.read("one/file"), b"bytes");
    let nlink = |path: &str| fs::metadata(rig.path(path)).expect("a file").nlink();
    assert_eq!(nlink("other/file"), 2);
    fs::remove_file(rig.path("one/file")).expect("removed");
    assert_eq!(nlink("other/file"), 1);
    rig.sync_folder("one");
    fs::hard_link(rig.path("other/file"), rig.path("link")).expect("linked");
    rig.cut();
    assert_eq!(rig.names(""), ["one", "other"]);
    assert_eq!(nlink("other/file"), 1);
}

#[test]
fn a_folder_that_moved_is_in_one_place() {
    let Some(rig) = strict() else { return };
    for folder in ["one", "other", "one/topic"] {
        fs::create_dir(rig.path(folder)).expect("a folder");
    }
    rig.synced("one/topic/file", b"bytes");
    for folder in ["one/topic", "one", "other", ""] {
        rig.sync_folder(folder);
    }
    fs::rename(rig.path("one/topic"), rig.path("other/moved")).expect("renamed");
    rig.cut();
    assert_eq!(rig.read("one/topic/file"), b"bytes");
    for synced in ["one", "other"] {
        fs::rename(rig.path("one/topic"), rig.path("other/moved")).expect("renamed");
        rig.sync_folder(synced);
        rig.cut();
        assert_eq!(rig.read("other/moved/file"), b"bytes");
        assert!(rig.names("one").is_empty());
        fs::rename(rig.path("other/moved"), rig.path("one/topic")).expect("renamed");
        rig.sync_folder("one");
    }
}

#[test]
fn refusals_are_those_of_any_file_system() {
    let Some(rigs) = both() else { return };
    for (rig, _) in rigs {
        fs::create_dir(rig.path("full")).expect("a folder");
        rig.synced("full/file", b"bytes");
        let code = |result: std::io::Result<()>| result.expect_err("refused").kind();
        use std::io::ErrorKind::*;
        assert_eq!(code(fs::remove_dir(rig.path("full"))), DirectoryNotEmpty);
        assert_eq!(code(fs::remove_dir(rig.path("full/file"))), NotADirectory);
        assert_eq!(code(fs::remove_file(rig.path("gone"))), NotFound);
        assert_eq!(code(fs::create_dir(rig.path("full"))), AlreadyExists);
        fs::create_dir(rig.path("empty")).expect("a folder");
        let onto = |to: &str| code(fs::rename(rig.path("empty"), rig.path(to)));
        assert_eq!(onto("full"), DirectoryNotEmpty);
        assert_eq!(onto("full/file"), NotADirectory);
        std::os::unix::fs::symlink("full/file", rig.path("link")).expect("a link");
        assert_eq!(rig.read("link"), b"bytes");
    }
}
