//! Certificates: who they are for, and who is not let in.

use std::sync::Arc;

use ev_core::ids::{MemberId, PoolId};
use ev_wire::identity::{
    Fingerprint, Identity, IdentityError, Peer, PoolAuthority, Role, client_config_for_authority, client_config_pinned,
    create_authority, new_key_and_request, peer_of_certificates, self_signed, server_config_for, server_name,
    sign_request,
};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use uuid::Uuid;

fn pool() -> PoolId {
    PoolId(Uuid::from_u128(0xabc))
}

fn identity(authority: &PoolAuthority, member: u64, role: Role) -> Identity {
    let key = new_key_and_request().unwrap();
    let peer = Peer { pool: authority.pool(), member: MemberId(member), role };
    let certificate = sign_request(authority, &key.request_pem, peer, "h1", &["127.0.0.1".parse().unwrap()]).unwrap();
    Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap()
}

/// A handshake in memory: what each side learns of the other.
fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
) -> Result<(Option<Peer>, Option<Peer>), rustls::Error> {
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((peer_of_certificates(server.peer_certificates()).ok(), peer_of_certificates(client.peer_certificates()).ok()))
}

#[test]
fn members_of_one_pool_know_each_other_by_their_certificates() {
    let authority = create_authority(pool()).unwrap();
    let (one, two) = (identity(&authority, 1, Role::Host), identity(&authority, 2, Role::Quorum));
    let known = handshake(one.client_config(), two.server_config(), server_name(pool())).unwrap();
    assert_eq!(known, (Some(one.peer()), Some(two.peer())));
    assert_eq!(two.peer(), Peer { pool: pool(), member: MemberId(2), role: Role::Quorum });
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let ours = identity(&create_authority(pool()).unwrap(), 1, Role::Host);
    // The same pool identity does not help: the authority's key is another one.
    let theirs = identity(&create_authority(pool()).unwrap(), 2, Role::Host);
    assert!(handshake(ours.client_config(), theirs.server_config(), server_name(pool())).is_err());
    assert!(handshake(theirs.client_config(), ours.server_config(), server_name(pool())).is_err());
}

#[test]
fn a_client_without_a_certificate_is_for_the_api_only() {
    let authority = create_authority(pool()).unwrap();
    let host = identity(&authority, 1, Role::Host);
    let client = client_config_for_authority(authority.certificate_pem()).unwrap();
    assert!(handshake(Arc::clone(&client), host.server_config(), server_name(pool())).is_err());
    let by_address = ServerName::try_from("127.0.0.1").unwrap();
    let (nobody, known) = handshake(client, host.api_server_config(), by_address).unwrap();
    assert_eq!((nobody, known), (None, Some(host.peer())));
}

#[test]
fn a_fingerprint_finds_a_pools_authority_or_a_server_itself_and_nobody_else() {
    let authority = create_authority(pool()).unwrap();
    let host = identity(&authority, 1, Role::Host);
    let joiner = client_config_pinned(authority.fingerprint());
    let anything = || ServerName::try_from("127.0.0.1").unwrap();
    assert!(handshake(Arc::clone(&joiner), host.api_server_config(), anything()).is_ok());
    assert_eq!(host.authority_fingerprint(), authority.fingerprint());

    let own = self_signed("enlist.evenkeel.invalid").unwrap();
    let server = server_config_for(&own.certificate_pem, &own.key_pem).unwrap();
    let fingerprint = Fingerprint::of(&CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).unwrap());
    assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
    assert!(handshake(client_config_pinned(fingerprint), Arc::clone(&server), anything()).is_ok());
    assert!(handshake(joiner, server, anything()).is_err());
    let impostor = identity(&create_authority(pool()).unwrap(), 1, Role::Host);
    let pinned = client_config_pinned(authority.fingerprint());
    assert!(handshake(pinned, impostor.api_server_config(), anything()).is_err());
}

#[test]
fn an_impostor_that_shows_the_right_authority_beside_its_own_certificate_is_refused() {
    let authority = create_authority(pool()).unwrap();
    let impostor_authority = create_authority(pool()).unwrap();
    let key = new_key_and_request().unwrap();
    let peer = Peer { pool: pool(), member: MemberId(1), role: Role::Host };
    let leaf = sign_request(&impostor_authority, &key.request_pem, peer, "h1", &[]).unwrap();
    // `Identity` puts the authority that it is given into the chain, whoever issued the certificate.
    let impostor = Identity::from_pem(&leaf, &key.key_pem, authority.certificate_pem()).unwrap();
    let pinned = client_config_pinned(authority.fingerprint());
    let name = ServerName::try_from("127.0.0.1").unwrap();
    assert!(handshake(pinned, impostor.api_server_config(), name).is_err());
}

#[test]
fn what_does_not_fit_together_is_found_when_it_is_loaded() {
    let authority = create_authority(pool()).unwrap();
    let (key, other_key) = (new_key_and_request().unwrap(), new_key_and_request().unwrap());
    let peer = Peer { pool: pool(), member: MemberId(1), role: Role::Host };
    let certificate = sign_request(&authority, &key.request_pem, peer, "h1", &[]).unwrap();
    let load = |certificate: &str, key: &str, authority: &str| Identity::from_pem(certificate, key, authority);
    let wrong_key = load(&certificate, &other_key.key_pem, authority.certificate_pem());
    assert!(matches!(wrong_key, Err(IdentityError::Unfit(_))));
    let other_pool = create_authority(PoolId(Uuid::from_u128(1))).unwrap();
    let wrong_pool = load(&certificate, &key.key_pem, other_pool.certificate_pem());
    assert!(matches!(wrong_pool, Err(IdentityError::OtherPool { .. })));
    assert!(matches!(load("rubbish", &key.key_pem, authority.certificate_pem()), Err(IdentityError::NotPem)));
    let not_a_member = load(authority.certificate_pem(), &key.key_pem, authority.certificate_pem());
    assert!(matches!(not_a_member, Err(IdentityError::NotAMember(_))));
}

#[test]
fn a_damaged_or_foreign_request_is_not_signed() {
    let authority = create_authority(pool()).unwrap();
    let peer = Peer { pool: pool(), member: MemberId(1), role: Role::Host };
    assert!(sign_request(&authority, "rubbish", peer, "h1", &[]).is_err());
    let request = new_key_and_request().unwrap().request_pem;
    let mut lines: Vec<String> = request.lines().map(str::to_owned).collect();
    let swapped: String = lines[2].chars().map(|c| if c == 'A' { 'B' } else { 'A' }).collect();
    lines[2] = swapped;
    assert!(sign_request(&authority, &lines.join("\n"), peer, "h1", &[]).is_err());
}

#[test]
fn an_authority_comes_back_from_its_texts() {
    let authority = create_authority(pool()).unwrap();
    let again = PoolAuthority::from_pem(authority.certificate_pem(), &authority.key_pem()).unwrap();
    assert_eq!((again.pool(), again.fingerprint()), (pool(), authority.fingerprint()));
    let member = identity(&again, 3, Role::Host);
    let before = identity(&authority, 1, Role::Host);
    assert!(handshake(member.client_config(), before.server_config(), server_name(pool())).is_ok());
}
