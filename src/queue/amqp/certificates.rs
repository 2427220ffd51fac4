//! The broker's authority, and the client's own certificate and key: read, and looked at before they are used.
//!
//! - Layer: edge
//! - Takes: PEM files.
//! - Gives: what the client library wants.
//! - On failure: every file that can't be used, with its key in the configuration and the remedy; never what is in it.
//! - Limits: files of 1 MiB.
//! - See: RFC 7468 (PEM), RFC 5280 (versions of certificates).

use std::fmt;
use std::path::{Path, PathBuf};

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use crate::service::files;

const MAX_FILE_BYTES: u64 = 1024 * 1024;
const CA: &str = "amqp.ca_file";
const CERTIFICATE: &str = "amqp.client_certificate";
const KEY: &str = "amqp.client_key";

/// A file that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The key of the configuration that names it.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why, and what to do.
    pub why: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.key, self.path.display(), self.why)
    }
}

/// Reads the files and looks whether they can be used: the authority's, and the client's certificate and key.
///
/// # Errors
/// Each file that can't be used.
pub fn load(ca_file: Option<&Path>, client: Option<(&Path, &Path)>) -> Result<OwnedTLSConfig, Vec<Unusable>> {
    let mut faults = Vec::new();
    let mut some = |loaded: Result<Vec<u8>, Unusable>| loaded.map_err(|fault| faults.push(fault)).ok();
    let authority = ca_file.and_then(|path| some(authority(path)));
    let own = client.and_then(|(pem, key)| {
        let (certificate, secret) = (some(read(CERTIFICATE, pem)), some(read(KEY, key)));
        let (certificate, secret) = (certificate?, secret?);
        some(pair((pem, &certificate), (key, &secret)).map(|()| certificate)).map(|pem| (pem, secret))
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(OwnedTLSConfig {
        identity: own.map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key }),
        cert_chain: authority.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Unusable> {
    files::read_limited(path, MAX_FILE_BYTES).map_err(|error| unusable(key, path, error.to_string()))
}

fn authority(path: &Path) -> Result<Vec<u8>, Unusable> {
    let bytes = read(CA, path)?;
    let certificates = certificates(CA, path, &bytes)?;
    let (usable, _) = RootCertStore::empty().add_parsable_certificates(certificates);
    match usable {
        0 => {
            Err(unusable(CA, path, "none of its certificates can be read as an authority's; export it anew"))
        }
        _ => Ok(bytes),
    }
}

fn certificates(
    key: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let whose = match key {
        CA => "the authority that signed the broker's certificate",
        _ => "the client's own certificate, with those between it and its authority",
    };
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => {
            let why =
                format!("has no certificate (-----BEGIN CERTIFICATE-----); name the PEM file of {whose}");
            Err(unusable(key, path, why))
        }
        Err(error) => {
            Err(unusable(key, path, format!("is no good PEM ({error}); name the PEM file of {whose}")))
        }
    }
}

/// Whether certificate and key can be used, and belong together.
fn pair(certificate: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<(), Unusable> {
    let chain = certificates(CERTIFICATE, certificate.0, certificate.1)?;
    let private = PrivateKeyDer::from_pem_slice(key.1).map_err(|error| {
        let encrypted = key.1.windows(9).any(|window| window == b"ENCRYPTED");
        let why = match error {
            _ if encrypted => {
                "has a key with a passphrase; take it off: openssl pkey -in FILE -out NEW".into()
            }
            pem::Error::NoItemsFound => {
                format!("has no private key (-----BEGIN PRIVATE KEY-----); name the key of {CERTIFICATE}")
            }
            error => format!("is no good PEM ({error}); name the key of {CERTIFICATE}"),
        };
        unusable(KEY, key.0, why)
    })?;
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, private, &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let certificate = certificate.0.display();
            let why =
                format!("does not belong to the certificate {certificate}; name the key it was made with");
            Err(unusable(KEY, key.0, why))
        }
        Err(rustls::Error::InvalidCertificate(error)) => {
            Err(unusable(CERTIFICATE, certificate.0, own_certificate(&error)))
        }
        Err(error) => Err(unusable(KEY, key.0, format!("can't be used ({error}); make a key of RSA or EC"))),
    }
}

fn own_certificate(error: &CertificateError) -> String {
    let said = error.to_string();
    if said.contains("UnsupportedCertVersion") {
        return "is an X.509 certificate of version 1; have the authority sign it as version 3, with extensions (openssl x509 -req \
                -extfile …)"
            .into();
    }
    format!("can't be used ({said}); have the authority make another")
}

fn unusable(key: &'static str, path: &Path, why: impl Into<String>) -> Unusable {
    Unusable { key, path: path.to_owned(), why: why.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    fn own(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_belongs_together_is_taken() {
        let files = Files(tempfile::tempdir().unwrap());
        let (certificate, key) = own("client");
        let (ca, certificate) = (files.put("ca.pem", &own("ca").0), files.put("own.pem", &certificate));
        let key = files.put("own.key", &key);
        let loaded = load(Some(&ca), Some((&certificate, &key))).unwrap();
        assert!(loaded.cert_chain.is_some() && loaded.identity.is_some());
        assert!(load(None, None).unwrap().identity.is_none());
    }

    type Case<'a> = (Option<&'a Path>, Option<(&'a Path, &'a Path)>, &'a str, &'a Path, &'a str);

    #[test]
    fn each_file_that_is_of_no_use_is_named_with_its_key_and_the_remedy() {
        let files = Files(tempfile::tempdir().unwrap());
        let ((certificate, own_key), (_, other_key)) = (own("client"), own("other"));
        let certificate = files.put("own.pem", &certificate);
        let (key, other_key) = (files.put("own.key", &own_key), files.put("other.key", &other_key));
        let (empty, broken) =
            (files.put("empty", "none"), files.put("broken", "-----BEGIN CERTIFICATE-----\n"));
        let locked = files.put(
            "locked",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_certificate = files.put("none.pem", no_certificate);
        let gone = files.0.path().join("gone");
        let cases: [Case<'_>; 9] = [
            (Some(&empty), None, CA, &empty, "has no certificate"),
            (Some(&broken), None, CA, &broken, "is no good PEM"),
            (Some(&no_certificate), None, CA, &no_certificate, "can be read as an authority's"),
            (Some(&gone), None, CA, &gone, "No such file"),
            (None, Some((&certificate, &other_key)), KEY, &other_key, "does not belong to the certificate"),
            (None, Some((&certificate, &certificate)), KEY, &certificate, "has no private key"),
            (None, Some((&certificate, &locked)), KEY, &locked, "with a passphrase"),
            (None, Some((&key, &key)), CERTIFICATE, &key, "has no certificate"),
            (None, Some((&no_certificate, &key)), CERTIFICATE, &no_certificate, "can't be used"),
        ];
        for (ca, client, config, path, why) in cases {
            let faults = load(ca, client).unwrap_err();
            let [fault] = &faults[..] else { panic!("{faults:?}") };
            assert!((fault.key, &*fault.path) == (config, path) && fault.why.contains(why), "{fault}");
        }
        assert_eq!(load(Some(&empty), Some((&gone, &gone))).unwrap_err().len(), 3, "all at once");
    }
}
