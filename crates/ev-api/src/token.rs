//! Tokens as people carry them. Each names the pool's certificate authority by its fingerprint, so that whoever holds
//! the token recognises the pool before sending it anything.
//!
//! | token | form |
//! |---|---|
//! | join a pool, once | `EKT1-<fingerprint>-<secret>@<address>:<port>` |
//! | administer a pool | `EKA1-<fingerprint>-<secret>` |
//!
//! Fingerprint: BLAKE3 of the authority's certificate (DER), 64 hexadecimal digits. Secret: 32 hexadecimal digits.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

const JOIN: &str = "EKT1";
const ADMIN: &str = "EKA1";
const SECRET_DIGITS: usize = 32;

/// BLAKE3 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&blake3::Hash::from(self.0).to_hex(), f)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a token of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    #[error(
        "this is not a join token: it starts with {JOIN}- and ends with @ADDRESS:PORT. Make one with `ev host-token` on a host of the pool"
    )]
    NotJoin,
    #[error(
        "this is not an administrator's token: it starts with {ADMIN}-. Make one with `ev token-create` on a host of the pool"
    )]
    NotAdmin,
    #[error("the token is damaged: a part of it is missing or changed. Copy it again, whole")]
    Damaged,
}

/// What authorises one host to join, once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokenText {
    pub fingerprint: Fingerprint,
    pub secret: String,
    /// API address of a host of the pool.
    pub address: SocketAddr,
}

/// What authorises an administrator.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken {
    pub fingerprint: Fingerprint,
    pub secret: String,
}

fn parse_pair(text: &str) -> Result<(Fingerprint, String), BadToken> {
    let (fingerprint, secret) = text.split_once('-').ok_or(BadToken::Damaged)?;
    let hash = blake3::Hash::from_hex(fingerprint).map_err(|_| BadToken::Damaged)?;
    let plain = secret.len() == SECRET_DIGITS && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !plain {
        return Err(BadToken::Damaged);
    }
    Ok((Fingerprint(*hash.as_bytes()), secret.to_ascii_lowercase()))
}

impl FromStr for JoinTokenText {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let rest = text.trim().strip_prefix(JOIN).and_then(|rest| rest.strip_prefix('-')).ok_or(BadToken::NotJoin)?;
        let (pair, address) = rest.split_once('@').ok_or(BadToken::Damaged)?;
        let (fingerprint, secret) = parse_pair(pair)?;
        Ok(Self { fingerprint, secret, address: address.parse().map_err(|_| BadToken::Damaged)? })
    }
}

impl fmt::Display for JoinTokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{JOIN}-{}-{}@{}", self.fingerprint, self.secret, self.address)
    }
}

impl FromStr for AdminToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let rest = text.trim().strip_prefix(ADMIN).and_then(|rest| rest.strip_prefix('-')).ok_or(BadToken::NotAdmin)?;
        let (fingerprint, secret) = parse_pair(rest)?;
        Ok(Self { fingerprint, secret })
    }
}

impl fmt::Display for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ADMIN}-{}-{}", self.fingerprint, self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_damaged_ones_are_refused() {
        let join = JoinTokenText {
            fingerprint: Fingerprint::of(b"a"),
            secret: "0123456789abcdef0123456789abcdef".to_owned(),
            address: "10.0.0.1:7411".parse().unwrap(),
        };
        let text = join.to_string();
        assert!(text.parse::<JoinTokenText>().unwrap() == join);
        for (bad, why) in [
            ("", BadToken::NotJoin),
            ("EKA1-x", BadToken::NotJoin),
            (&text[..text.len() - 14], BadToken::Damaged),
            (&text.replace("-0123", "-012"), BadToken::Damaged),
            ("EKT1-@", BadToken::Damaged),
        ] {
            assert_eq!(bad.parse::<JoinTokenText>().err(), Some(why), "{bad}");
        }
        let admin = AdminToken { fingerprint: join.fingerprint, secret: join.secret };
        assert!(admin.to_string().parse::<AdminToken>().unwrap() == admin);
    }
}
