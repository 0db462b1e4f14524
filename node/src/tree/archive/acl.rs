//! POSIX ACLs: as text in a tar, as an extended attribute everywhere else.
//!
//! ```text
//! attribute = version u32 = 2  entry*        (little endian)
//! entry     = tag u16  permissions u16  id u32
//! text      = "user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::---", a fourth field names the id again
//! ```

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Finds the number of a user, or of a group, by name.
pub(super) type FindId<'a> = &'a dyn Fn(bool, &str) -> Option<u32>;

/// The attribute that a text says. `None` when it cannot be understood; empty when it says no more than a mode.
pub(super) fn from_text(text: &str, find_id: FindId<'_>) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for part in
        text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty() && !part.starts_with('#'))
    {
        // A comment on effective rights may follow.
        let part = part.split(['\t', ' ', '#']).next().unwrap_or_default();
        let mut fields = part.split(':');
        let (kind, name) = (fields.next()?, fields.next()?);
        // Solaris and star leave the second field out for mask and other.
        let (name, permissions) = match fields.next() {
            Some(permissions) => (name, permissions),
            None if matches!(kind, "mask" | "m" | "other" | "o") => ("", name),
            None => return None,
        };
        let user = matches!(kind, "user" | "u");
        let tag = match (kind, name) {
            ("user" | "u", "") => USER_OBJ,
            ("user" | "u", _) => USER,
            ("group" | "g", "") => GROUP_OBJ,
            ("group" | "g", _) => GROUP,
            ("mask" | "m", "") => MASK,
            ("other" | "o", "") => OTHER,
            _ => return None,
        };
        let id = match tag {
            USER | GROUP => {
                let numbered = fields.next().and_then(|id| id.parse().ok()).or_else(|| name.parse().ok());
                numbered.or_else(|| find_id(user, name)).filter(|id| *id != NO_ID)?
            }
            _ => NO_ID,
        };
        let mut bits = 0;
        for letter in permissions.chars() {
            bits |= match letter {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return None,
            };
        }
        entries.push((tag, id, bits));
    }
    if entries.iter().all(|(tag, ..)| matches!(*tag, USER_OBJ | GROUP_OBJ | OTHER)) {
        return Some(Vec::new());
    }
    // As the kernel gives it back.
    entries.sort_unstable();
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(u16::to_le_bytes(permissions));
        bytes.extend(u32::to_le_bytes(id));
    }
    Some(bytes)
}

/// Whether an ACL is the three classes of a mode and nothing else.
pub(super) fn to_text(attribute: &[u8]) -> Option<String> {
    let entries = attribute.strip_prefix(&VERSION.to_le_bytes())?;
    let mut text = String::new();
    for entry in entries.chunks(8) {
        let &[tag_low, tag_high, permissions, _, a, b, c, d] = entry else { return None };
        let id = u32::from_le_bytes([a, b, c, d]);
        let (kind, named) = match u16::from_le_bytes([tag_low, tag_high]) {
            USER_OBJ => ("user", false),
            USER => ("user", true),
            GROUP_OBJ => ("group", false),
            GROUP => ("group", true),
            MASK => ("mask", false),
            OTHER => ("other", false),
            _ => return None,
        };
        let id = if named { id.to_string() } else { String::new() };
        let bit = |bit, letter| if permissions & bit != 0 { letter } else { '-' };
        let separator = if text.is_empty() { "" } else { "," };
        text += &format!("{separator}{kind}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(_: bool, _: &str) -> Option<u32> {
        None
    }

    #[test]
    fn a_text_is_the_attribute_that_the_kernel_gives() {
        // getfattr -n system.posix_acl_access after setfacl -m u:1000:rx,g:7:rw
        let text = "user::rw-,group:7:rw-,user:1000:r-x,group::r--,mask::rwx,other::---";
        let bytes = from_text(text, &nobody).unwrap();
        let expected = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 5, 0, 0xe8, 3, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[8, 0, 6, 0, 7, 0, 0, 0],
            &[16, 0, 7, 0, 255, 255, 255, 255],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(from_text(&to_text(&bytes).unwrap(), &nobody).unwrap(), bytes);
    }

    #[test]
    fn names_are_looked_up_unless_a_number_stands_beside_them() {
        let find = |user: bool, name: &str| (user && name == "lisa").then_some(502);
        let by_name = from_text("u::rwx,u:lisa:r,g::-,m:r,o:-", &find).unwrap();
        let by_number =
            from_text("user::rwx,user:lisa:r--:502,group::---,mask::r--,other::---", &nobody).unwrap();
        assert_eq!(by_name, by_number);
        assert_eq!(from_text("u::rwx,u:nobody-here:r,m::r", &find), None);
    }

    #[test]
    fn what_a_mode_says_is_no_attribute_and_nonsense_is_refused() {
        assert_eq!(from_text("user::rwx,group::r-x,other::r-x", &nobody).unwrap(), b"");
        for text in ["user", "user::rwz,mask::r", "wheel:1:rwx", "mask:1:rwx", "user:4294967295:r,mask::r"] {
            assert_eq!(from_text(text, &nobody), None, "{text}");
        }
    }
}
