//! The pool's certificate authority and the certificates that it issues.

use std::net::IpAddr;

use ev_core::ids::PoolId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Fingerprint, Peer, tls};

const AUTHORITY_NAME_PREFIX: &str = "Evenkeel pool ";

/// Why a key or certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("making or reading a certificate failed: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("the pool's authority certificate can't be read: restore it from another host of the pool")]
    BadAuthority,
    #[error("the certificate request can't be used ({0}): make a new one on the joining machine")]
    BadRequest(rcgen::Error),
}

/// The pool's certificate authority with its private key.
pub struct PoolAuthority {
    pool: PoolId,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl std::fmt::Debug for PoolAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolAuthority").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// Make a new pool's authority.
///
/// # Errors
/// When the system gives no randomness.
pub fn create_authority(pool: PoolId) -> Result<PoolAuthority, AuthorityError> {
    let key = KeyPair::generate()?;
    let mut params = long_lived(&format!("{AUTHORITY_NAME_PREFIX}{pool}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(PoolAuthority { pool, certificate_pem: certificate.pem(), certificate: certificate.der().clone(), key })
}

impl PoolAuthority {
    /// Take up an authority from its PEM texts.
    ///
    /// # Errors
    /// When they are not of an authority that [`create_authority`] made.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| AuthorityError::BadAuthority)?;
        let pool = pool_of_authority(&certificate).ok_or(AuthorityError::BadAuthority)?;
        let key = KeyPair::from_pem(key_pem)?;
        Ok(Self { pool, certificate_pem: certificate_pem.to_owned(), certificate, key })
    }

    #[must_use]
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, PEM (PKCS #8). Whoever has it can make members of the pool.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

/// The pool that an authority's certificate is of.
pub(super) fn pool_of_authority(certificate: &CertificateDer<'_>) -> Option<PoolId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    name.strip_prefix(AUTHORITY_NAME_PREFIX)?.parse().ok().map(PoolId)
}

/// A new private key and the request for a certificate of its public half.
pub struct NewKey {
    /// PEM (PKCS #8); stays on the machine that made it.
    pub key_pem: String,
    /// PEM, to be sent to the pool master.
    pub request_pem: String,
}

/// Make a key for a member to be.
///
/// # Errors
/// When the system gives no randomness.
pub fn new_key_and_request() -> Result<NewKey, AuthorityError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?;
    Ok(NewKey { key_pem: key.serialize_pem(), request_pem: request.pem()? })
}

/// Issue the certificate for a request. Only the public key is taken from the request, and the proof that the asker
/// has the private one; everything else is what the pool master says: who it is (`member`), under which `name` it
/// is shown, and the addresses that its API is reached at.
///
/// # Errors
/// When the request is damaged or not signed by its own key.
pub fn sign_request(
    authority: &PoolAuthority,
    request_pem: &str,
    member: Peer,
    name: &str,
    addresses: &[IpAddr],
) -> Result<String, AuthorityError> {
    let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(AuthorityError::BadRequest)?;
    let mut params = long_lived(name);
    params.serial_number = Some(random_serial());
    params.subject_alt_names = vec![
        SanType::URI(Ia5String::try_from(member.to_uri())?),
        SanType::DnsName(Ia5String::try_from(tls::server_name_text(member.pool))?),
        SanType::DnsName(Ia5String::try_from("localhost")?),
    ];
    params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(&authority.certificate, &authority.key)?;
    Ok(params.signed_by(&request.public_key, &issuer)?.pem())
}

/// A key with a certificate that it signed itself, known by its fingerprint.
pub struct SelfSigned {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Make a certificate for a server that belongs to no pool yet, to be reached under `dns_name`.
///
/// # Errors
/// When the system gives no randomness.
pub fn self_signed(dns_name: &str) -> Result<SelfSigned, AuthorityError> {
    let key = KeyPair::generate()?;
    let mut params = long_lived(dns_name);
    params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(dns_name)?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&key)?;
    Ok(SelfSigned { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

fn long_lived(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn random_serial() -> SerialNumber {
    SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes())
}
