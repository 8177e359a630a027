//! Who is who: a pool's certificate authority, its members' certificates, and TLS that accepts nobody else.
//!
//! A member's certificate carries, as a URI among its alternative names, `evenkeel:pool/<pool>/host/<member>` (or
//! `…/quorum/<member>`), and the DNS name `<pool>.evenkeel.invalid` that clients ask for (SNI), so that one port can
//! serve several pools. Certificates have no meaningful end (2000 to 2100): a skewed clock must not stop a pool, and
//! a member is put out by the pool state, not by waiting for its certificate to expire.

mod authority;
mod pinned;
mod tls;

use std::fmt;
use std::str::FromStr;

use ev_core::ids::{MemberId, PoolId};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use authority::{
    AuthorityError, NewKey, PoolAuthority, SelfSigned, create_authority, new_key_and_request, self_signed, sign_request,
};
pub use pinned::client_config_pinned;
pub use tls::{
    Identity, IdentityError, client_config_for_authority, peer_of_certificates, server_config_for, server_name,
};

/// What a member may do by its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs VMs; may send commands for the pool state.
    Host,
    /// Votes and nothing else.
    Quorum,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Quorum => "quorum",
        }
    }
}

/// The other end of a connection, as its certificate proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    pub pool: PoolId,
    pub member: MemberId,
    pub role: Role,
}

const URI_PREFIX: &str = "evenkeel:pool/";

impl Peer {
    /// The URI that stands in the certificate.
    fn to_uri(self) -> String {
        format!("{URI_PREFIX}{}/{}/{}", self.pool, self.role.word(), self.member)
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(URI_PREFIX)?.split('/');
        let pool = PoolId(parts.next()?.parse().ok()?);
        let role = match parts.next()? {
            "host" => Role::Host,
            "quorum" => Role::Quorum,
            _ => return None,
        };
        let member = MemberId(parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { pool, member, role })
    }

    /// Read a certificate. It says nothing about who issued it: TLS checks that.
    ///
    /// # Errors
    /// When it is not a certificate of a pool member.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, NotAMember> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| NotAMember)?;
        let names = parsed.subject_alternative_name().ok().flatten().ok_or(NotAMember)?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Self::from_uri(uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(peer), None) => Ok(peer),
            _ => Err(NotAMember),
        }
    }
}

/// A certificate that names no pool member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate names no member of a pool: use one that the pool issued when this machine joined")]
pub struct NotAMember;

/// BLAKE3 of a certificate, 64 hexadecimal digits: short enough to be carried by hand in a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate.as_ref()).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| BadFingerprint)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = BadFingerprint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
