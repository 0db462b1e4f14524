//! Host expressions: `node[001-256,300]`, one name or many.

use shoal_proto::host::HostName;

/// Most hosts of one cluster, and of one expression.
pub const HOSTS_MAX: usize = 65_536;

/// All names that an expression means, in the order in which it says them: text and brackets in any number, numbers and
/// ranges of numbers in a bracket. A range is as wide as its first number is written: `[001-256]` keeps the zeros.
///
/// # Errors
/// What is wrong, and what was expected instead.
pub fn expand(expression: &str) -> Result<Vec<HostName>, String> {
    let mut names = vec![String::new()];
    let mut rest = expression;
    while !rest.is_empty() {
        let (text, bracket) = rest.split_once('[').map_or((rest, None), |(text, after)| (text, Some(after)));
        if text.contains(']') {
            return Err(format!("{expression:?} has a ] without its ["));
        }
        names.iter_mut().for_each(|name| name.push_str(text));
        let Some(bracket) = bracket else { break };
        let (inside, after) =
            bracket.split_once(']').ok_or_else(|| format!("{expression:?} has a [ without its ]"))?;
        let numbers = numbers(expression, inside)?;
        if names.len() * numbers.len() > HOSTS_MAX {
            return Err(format!("{expression:?} means more than {HOSTS_MAX} hosts"));
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{number}")))
            .collect();
        rest = after;
    }
    names.iter().map(|name| name.parse().map_err(|error| format!("{expression:?} is {error}"))).collect()
}

fn numbers(expression: &str, inside: &str) -> Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    for item in inside.split(',').map(str::trim) {
        let wrong = |why: &str| format!("{item:?} in {expression:?} {why}");
        let number = |text: &str| match text.parse::<u32>() {
            Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
            _ => Err(wrong("is no number and no range, such as 300 or 001-256")),
        };
        let Some((first, last)) = item.split_once('-') else {
            number(item)?;
            numbers.push(item.to_owned());
            continue;
        };
        let (from, to) = (number(first)?, number(last)?);
        if to < from {
            return Err(wrong("is a range that ends before it begins"));
        }
        if last.starts_with('0') && last.len() != first.len() {
            return Err(wrong("is a range whose ends are padded differently, expected such as 001-010"));
        }
        if (to - from) as usize >= HOSTS_MAX {
            return Err(wrong(&format!("is a range of more than {HOSTS_MAX} hosts")));
        }
        let width = first.len();
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(expression: &str) -> Vec<String> {
        expand(expression).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_keep_their_zeros_and_brackets_multiply() {
        assert_eq!(names("login"), ["login"]);
        assert_eq!(names("n[08-11,300]x"), ["n08x", "n09x", "n10x", "n11x", "n300x"]);
        assert_eq!(names("n[9-11]"), ["n9", "n10", "n11"]);
        assert_eq!(names("r[1-2]n[01, 02]"), ["r1n01", "r1n02", "r2n01", "r2n02"]);
        assert_eq!(names("node[001-256,300]").len(), 257);
        assert_eq!(names("[1-2]"), ["1", "2"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_expression() {
        for (expression, why) in [
            ("n[1-", "[ without its ]"),
            ("n1]", "] without its ["),
            ("n[]", "is no number and no range"),
            ("n[a-b]", "is no number and no range"),
            ("n[+1]", "is no number and no range"),
            ("n[5-3]", "ends before it begins"),
            ("n[1-010]", "padded differently"),
            ("n[0-70000]", "more than 65536 hosts"),
            ("n[1-300]x[1-300]", "more than 65536 hosts"),
            ("n[1-2].example.org", "not a host name"),
            ("", "not a host name"),
        ] {
            let error = expand(expression).unwrap_err();
            assert!(error.contains(why) && error.contains(expression), "{expression}: {error}");
        }
    }
}
