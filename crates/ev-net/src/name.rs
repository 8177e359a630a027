//! Which names the kernel takes for network interfaces.

/// Longest name, in bytes (`IFNAMSIZ` without its end).
pub(crate) const NAME_BYTES_MAX: usize = 15;

/// Whether the kernel takes `name` as it is. It would cut a longer one, and fill in a number for a `%`.
pub(crate) fn is_name(name: &str) -> bool {
    let bad = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | b'%' | 0);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(bad)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_that_the_kernel_would_change_are_refused() {
        for good in ["a", "br0", "ev12n0", "sixteen-bytes-1"] {
            assert!(super::is_name(good), "{good}");
        }
        for bad in ["", "sixteen-bytes-12", "a b", "a/b", "a:b", "tap%d", ".", "..", "a\0"] {
            assert!(!super::is_name(bad), "{bad:?}");
        }
    }
}
