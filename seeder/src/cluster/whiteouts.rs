//! Files of an override that take something away: their names are checked before anybody applies them.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use shoal_proto::image::layers::Whiteout;

use super::Problem;

/// Names every malformed whiteout below `folder`, and every folder that cannot be read.
pub(super) fn check(folder: &Path, problems: &mut Vec<Problem>) {
    let mut waiting = vec![folder.to_owned()];
    while let Some(directory) = waiting.pop() {
        let mut problem =
            |file: &Path, what: String| problems.push(Problem { file: file.to_owned(), line: 1, what });
        let listed = match std::fs::read_dir(&directory) {
            Ok(listed) => listed,
            Err(error) => {
                problem(&directory, format!("cannot be read: {error}, expected a folder of an override"));
                continue;
            }
        };
        for entry in listed.flatten() {
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match Whiteout::of_name(entry.file_name().as_bytes()) {
                Ok(Some(_)) if is_directory => {
                    problem(&path, "is a folder and takes something away, expected an empty file".to_owned());
                }
                Ok(_) if is_directory => waiting.push(path),
                Ok(_) => {}
                Err(error) => problem(&path, error.to_string()),
            }
        }
    }
}
