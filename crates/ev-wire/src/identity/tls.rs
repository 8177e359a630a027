//! TLS configurations of pool members: version 1.3, both sides with a certificate of the pool's authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ev_core::ids::PoolId;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{Fingerprint, NotAMember, Peer, authority};

/// Why an identity can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("reading {} failed: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the certificate or key is not in PEM form: restore the file, or have this machine join the pool again")]
    NotPem,
    #[error(transparent)]
    NotAMember(#[from] NotAMember),
    #[error("the certificate is of pool {of}, the authority of another: have this machine join the pool again")]
    OtherPool { of: PoolId },
    #[error(
        "the certificate, its key and the pool's authority don't fit together ({0}): have this machine join the pool again"
    )]
    Unfit(String),
}

/// A member's certificate with its key, and the authority of its pool.
pub struct Identity {
    peer: Peer,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Identity {
    /// From PEM files.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(certificate: &Path, key: &Path, authority_certificate: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
        };
        Self::from_pem(&read(certificate)?, &read(key)?, &read(authority_certificate)?)
    }

    /// From PEM texts.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn from_pem(certificate: &str, key: &str, authority_certificate: &str) -> Result<Self, IdentityError> {
        let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| IdentityError::NotPem)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| IdentityError::NotPem)?;
        let authority =
            CertificateDer::from_pem_slice(authority_certificate.as_bytes()).map_err(|_| IdentityError::NotPem)?;
        let peer = Peer::of_certificate(&leaf)?;
        if authority::pool_of_authority(&authority) != Some(peer.pool) {
            return Err(IdentityError::OtherPool { of: peer.pool });
        }
        let roots = roots_of(authority.clone())?;
        let identity = Self { peer, chain: vec![leaf, authority.clone()], key, authority, roots };
        // The configurations are built once here, so that a key that does not fit is found now.
        identity.build_server_config().map_err(|error| IdentityError::Unfit(error.to_string()))?;
        Ok(identity)
    }

    /// Who this is.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Fingerprint of the pool's authority.
    #[must_use]
    pub fn authority_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.authority)
    }

    /// For serving members: TLS 1.3, a client certificate of the pool's authority required.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::new(self.build_server_config().expect("it was built when the identity was loaded"))
    }

    /// For connecting to members: TLS 1.3, own certificate shown, the server's has to be of the pool's authority.
    /// The server name to ask for is [`server_name`].
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .expect("it was built for the server when the identity was loaded");
        Arc::new(config)
    }

    /// For the HTTPS API: a client certificate of the pool's authority is taken (other hosts show theirs) and none is
    /// required (a token is, by the API); TLS 1.2 for older clients.
    #[must_use]
    pub fn api_server_config(&self) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .allow_unauthenticated()
            .build()
            .expect("it was built when the identity was loaded");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .expect("it was built when the identity was loaded");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn build_server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
    }
}

/// For a client without a certificate of its own (the `ev` command): the server's has to be of this authority.
///
/// # Errors
/// When the text is not a certificate.
pub fn client_config_for_authority(authority_certificate_pem: &str) -> Result<Arc<ClientConfig>, IdentityError> {
    let authority =
        CertificateDer::from_pem_slice(authority_certificate_pem.as_bytes()).map_err(|_| IdentityError::NotPem)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .with_root_certificates(roots_of(authority)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// For a server that belongs to no pool yet, with a certificate that its clients know by fingerprint.
///
/// # Errors
/// When certificate and key are damaged or don't fit.
pub fn server_config_for(certificate_pem: &str, key_pem: &str) -> Result<Arc<ServerConfig>, IdentityError> {
    let leaf = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| IdentityError::NotPem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| IdentityError::NotPem)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .map_err(|error| IdentityError::Unfit(error.to_string()))?;
    Ok(Arc::new(config))
}

/// The name to ask a member of `pool` for, whatever its address.
#[must_use]
pub fn server_name(pool: PoolId) -> ServerName<'static> {
    ServerName::try_from(server_name_text(pool)).expect("a UUID and a fixed ending are a DNS name")
}

pub(super) fn server_name_text(pool: PoolId) -> String {
    format!("{pool}.evenkeel.invalid")
}

/// Who is at the other end of a finished handshake, from the certificates that it showed.
///
/// # Errors
/// When it showed none, or one that names no member.
pub fn peer_of_certificates(certificates: Option<&[CertificateDer<'_>]>) -> Result<Peer, NotAMember> {
    Peer::of_certificate(certificates.and_then(<[_]>::first).ok_or(NotAMember)?)
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn roots_of(authority: CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| IdentityError::Unfit(error.to_string()))?;
    Ok(Arc::new(roots))
}
