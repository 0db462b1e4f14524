//! Every input of the corpus, and every one that once failed, through its target.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use shoal_fuzz::{TARGETS, pack_file};
use shoal_node::store::{Error, Store};

/// What all inputs may take in the repository.
const CORPUS_BYTES_MAX: usize = 200_000;

/// The inputs of a target, by the names of their files; `None` when this user may not read the repository.
fn inputs(target: &str) -> Option<Vec<(PathBuf, Vec<u8>)>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = Vec::new();
    for kind in ["corpus", "failed"] {
        let files = match fs::read_dir(here.join(kind).join(target)) {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                println!("skipped: the corpus cannot be read");
                return None;
            }
            Err(error) if error.kind() == ErrorKind::NotFound && kind == "failed" => continue,
            Err(error) => panic!("{kind}/{target}: {error}"),
        };
        for file in files {
            let path = file.unwrap().path();
            inputs.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    inputs.sort();
    Some(inputs)
}

#[test]
fn no_input_that_was_kept_breaks_its_target() {
    let mut bytes = 0;
    for (name, target) in TARGETS {
        let Some(inputs) = inputs(name) else { return };
        assert!(inputs.len() >= 5, "{name} has {} inputs", inputs.len());
        for (path, input) in inputs {
            println!("{}", path.display());
            target(&input);
            bytes += input.len();
        }
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes of inputs");
}

#[test]
fn a_store_opens_on_any_pack_and_serves_what_its_names_say() {
    let Some(inputs) = inputs("pack") else { return };
    for (path, input) in inputs {
        println!("{}", path.display());
        let (bytes, blocks) = pack_file(&input);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("packs")).unwrap();
        fs::write(folder.path().join("packs/00000001.pack"), &bytes).unwrap();
        let store = match Store::open(folder.path()) {
            Ok(store) => store,
            Err(Error::OtherVersion { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        // What a forger gave a right crc is found by its name.
        store.fsck(true).unwrap();
        assert!(store.fsck(true).unwrap().damaged.is_empty());
        for block in blocks.into_iter().flatten() {
            assert_eq!(store.get(&block.cid).unwrap(), Some(block));
        }
    }
}
