//! Names of the operating system's users, for `peer` authentication.

/// The name of a user id, from /etc/passwd. A static binary has no other sources, and a sidecar needs none.
pub(super) fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    find(&passwd, uid).map(str::to_owned)
}

fn find(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_found_by_its_third_field() {
        let passwd = "root:x:0:0::/root:/bin/sh\n# x\nann:x:1000:0:::\nbob:x:1001:1000:::\n";
        assert_eq!(find(passwd, 1000), Some("ann"));
        assert_eq!(find(passwd, 0), Some("root"));
        assert_eq!(find(passwd, 7), None);
    }
}
