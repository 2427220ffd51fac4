//! TLS by certificate files, which may change while they are in use.
//!
//! - Layer: edge
//! - Takes: for each tracking host its names and the files of its certificate and key.
//! - Gives: rustls's configuration; the certificate by the name that the client asks for.
//! - On failure: `TlsError` at the start; later a pair that is broken changes nothing, and is told once.
//! - Limits: files of 1 MiB; keys that others than owner and group can read are refused.
//! - See: RFC 6066 section 3 (SNI), RFC 7301 (ALPN), RFC 7468 (PEM).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::happenings::{CertificateLoaded, CertificateRejected};
use super::settings::TlsFiles;
use crate::service::files;

const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Reading or writing by everybody, and writing by the group.
const TOO_OPEN: u32 = 0o027;

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// No PEM of the kind that is wanted.
    #[error("{}: no {what} in PEM form", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// Everybody can read the key, or the group can write it.
    #[error("{path}: others can read this key; run: chmod 640 {path}", path = .path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key don't belong together, or are of a kind that can't be used.
    #[error("{}: {error}", .path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: rustls::Error,
    },
}

/// The certificates in use.
#[derive(Debug)]
pub(super) struct Certificates {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    names: Vec<String>,
    files: TlsFiles,
    current: ArcSwap<CertifiedKey>,
    /// What was looked at last, whether it could be used or not.
    seen: Mutex<[Option<Stamp>; 2]>,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    /// Of its rights and owner, too: what was refused for them is looked at again once they are mended.
    changed: (i64, i64),
    inode: u64,
    bytes: u64,
}

impl Certificates {
    /// Reads all pairs; each with the names of its host.
    pub(super) fn open(hosts: &[(Vec<String>, TlsFiles)]) -> Result<Self, TlsError> {
        let entry = |(names, files): &(Vec<String>, TlsFiles)| {
            let seen = Mutex::new(stamps(files));
            let current = ArcSwap::from_pointee(load(files)?);
            Ok(Entry { names: names.clone(), files: files.clone(), current, seen })
        };
        Ok(Self { entries: hosts.iter().map(entry).collect::<Result<_, TlsError>>()? })
    }

    /// Reads again the pairs that changed; with `asked`, all.
    pub(super) fn refresh(&self, asked: bool) {
        for entry in &self.entries {
            let mut seen = entry.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let now = stamps(&entry.files);
            if now == *seen && !asked {
                continue;
            }
            *seen = now;
            match load(&entry.files) {
                Ok(pair) => {
                    entry.current.store(Arc::new(pair));
                    CertificateLoaded { certificate: &entry.files.certificate }.emit();
                }
                Err(error) => CertificateRejected { error: &error }.emit(),
            }
        }
    }

    /// Of the host with this name, else of the first.
    fn of(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let is = |entry: &&Entry| {
            name.is_some_and(|name| entry.names.iter().any(|own| own.eq_ignore_ascii_case(name)))
        };
        let entry = self.entries.iter().find(is).or_else(|| self.entries.first())?;
        Some(entry.current.load_full())
    }
}

/// By the name that the client asks for.
#[derive(Debug)]
struct ByName(Arc<Certificates>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.of(hello.server_name())
    }
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub(super) fn server_config(certificates: Arc<Certificates>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName(certificates)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn load(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let TlsFiles { certificate, key } = files;
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| TlsError::Pem { path: certificate.clone(), what: "certificate" })?;
    let mode =
        fs::metadata(key).map_err(|error| TlsError::Read { path: key.clone(), error })?.permissions().mode();
    if mode & TOO_OPEN != 0 {
        return Err(TlsError::OpenToOthers { path: key.clone() });
    }
    let mut bytes = read(key)?;
    let secret = PrivateKeyDer::from_pem_slice(&bytes);
    zeroize::Zeroize::zeroize(&mut bytes);
    let secret = secret.map_err(|_| TlsError::Pem { path: key.clone(), what: "private key" })?;
    CertifiedKey::from_der(chain, secret, &rustls::crypto::ring::default_provider())
        .map_err(|error| TlsError::Pair { path: certificate.clone(), error })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    files::read_limited(path, MAX_FILE_BYTES).map_err(|error| TlsError::Read { path: path.to_owned(), error })
}

fn stamps(files: &TlsFiles) -> [Option<Stamp>; 2] {
    [&files.certificate, &files.key].map(|path| {
        let meta = fs::metadata(path).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Stamp { modified: meta.modified().ok(), changed, inode: meta.ino(), bytes: meta.len() })
    })
}
