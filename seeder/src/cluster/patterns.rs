//! Patterns of a cluster file that no path could ever match: a list that silently does nothing is worse than none.

use shoal_node::tree::exclude::Excludes;

/// What is wrong with a pattern; `None` when some path can match it.
pub(super) fn never_matches(pattern: &str) -> Option<String> {
    let expected = "expected a path from the top such as /var/log/*, or the end of one such as *.o";
    let wrong = |why: &str| Some(format!("pattern {pattern:?} {why}, {expected}"));
    if pattern.starts_with("+ ") || pattern.starts_with("- ") || pattern == "!" {
        return wrong("is a rule of a list that includes and excludes, and a list here only names paths");
    }
    if pattern.trim() != pattern {
        return wrong("begins or ends with a space");
    }
    if let Err(error) = Excludes::new([pattern]) {
        return wrong(&format!("can never match ({error})"));
    }
    let inside = pattern.strip_prefix('/').unwrap_or(pattern);
    let inside = inside.strip_suffix('/').unwrap_or(inside);
    for component in inside.split('/') {
        let why = match component {
            "" => "can never match: it has two slashes in a row",
            "." | ".." => "can never match: no path has . or .. in it",
            _ if component.contains('\0') => "can never match: no name has a NUL in it",
            _ if component.len() > 255 && !component.contains(['*', '[', '\\']) => {
                "can never match: no name is longer than 255 bytes"
            }
            _ => continue,
        };
        return wrong(why);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_path_matches_is_told_from_what_some_path_does() {
        for good in
            ["/var/log/*", "*.journal", "/etc/mtab", "cache/", "**/x", "a/b", "dir/***", "...", "[.]/x"]
        {
            assert_eq!(never_matches(good), None, "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", "/", "//", "a//b", "./a", "/a/../b", "a/..", "[a", "+ /x", "!", " /x", "/x ", &long] {
            assert!(never_matches(bad).is_some_and(|why| why.contains("expected")), "{bad:?}");
        }
    }
}
