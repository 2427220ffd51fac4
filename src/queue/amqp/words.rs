//! What the client library and the broker say, in words that say what to do.
//!
//! - Layer: edge
//! - Takes: errors of the client library.
//! - Gives: a sentence each, without addresses and secrets.
//! - On failure: what is not known is said as it came.
//! - See: RFC 8446 section 6 (alerts), AMQP 0-9-1 section 1.2.

use std::error::Error;
use std::io;

use lapin::ErrorKind;
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::CertificateError;

/// An error in the middle of work.
pub(super) fn plain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// An error while a connection is made.
pub(super) fn connecting(error: &lapin::Error, uri: &AMQPUri, has_certificate: bool) -> String {
    match error.kind() {
        ErrorKind::IOError(error) => match tls_error(error) {
            Some(tls) => handshake(tls, &uri.authority.host, has_certificate),
            None => network(error, &uri.scheme),
        },
        ErrorKind::ProtocolError(error) => {
            let said = error.get_message().as_str();
            match said {
                said if said.starts_with("ACCESS_REFUSED") => {
                    let user = &uri.authority.userinfo.username;
                    format!(
                        "refuses the login of the user {user}; check the user in amqp.url and amqp.password_file ({said})"
                    )
                }
                said if said.starts_with("NOT_ALLOWED") => {
                    format!(
                        "{said}; check the virtual host at the end of amqp.url (%2f is /), and the user's permissions there"
                    )
                }
                said => said.to_owned(),
            }
        }
        _ => plain(error),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    let mut error: &(dyn Error + 'static) = error.get_ref()?;
    loop {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An I/O error shows what is in it, and not itself, as its source.
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match within {
            Some(within) => within,
            None => error.source()?,
        };
    }
}

fn handshake(error: &rustls::Error, host: &str, has_certificate: bool) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by nobody known; name the PEM file of its authority in amqp.ca_file (UnknownIssuer)".into()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("its certificate is not for {host}; write a name of the certificate in amqp.url ({error})"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => format!("its certificate has expired; renew it ({error})"),
        rustls::Error::InvalidCertificate(why) => format!("its certificate can't be used ({why})"),
        rustls::Error::AlertReceived(alert) if has_certificate => {
            format!("does not take amqp.client_certificate; is it signed by an authority that the broker knows? (alert {alert:?})")
        }
        rustls::Error::AlertReceived(alert) => format!(
            "ends TLS; does it ask for a certificate (amqp.client_certificate and amqp.client_key)? (alert {alert:?})"
        ),
        rustls::Error::InvalidMessage(_) => {
            "does not speak TLS at this port; the port for amqps:// is 5671 as a rule".into()
        }
        error => error.to_string(),
    }
}

fn network(error: &io::Error, scheme: &AMQPScheme) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused; does RabbitMQ run there, and is the port right (5672, with TLS 5671)?".into()
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => {
            let hint = match scheme {
                AMQPScheme::AMQP => "if the port speaks TLS, write amqps://",
                AMQPScheme::AMQPS => {
                    "does it speak TLS, and ask for a certificate (amqp.client_certificate)?"
                }
            };
            format!("closed the connection while it began; {hint} ({error})")
        }
        _ if error.to_string().contains("lookup address") => {
            format!("this name has no address; check the host in amqp.url ({error})")
        }
        _ => error.to_string(),
    }
}
