//! Why is there no connection with a peer, and what is to be done about it?

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why no connection came about, or why a new one ended without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    PlainText,
    UnknownAuthority,
    NotNow,
    WrongName,
    NoCertificate,
    WrongPurpose,
    /// The other side refuses us and says so.
    ByPeer,
    HungUp,
    TimedOut,
    Other,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Refusal; 10] = [
        Refusal::PlainText,
        Refusal::UnknownAuthority,
        Refusal::NotNow,
        Refusal::WrongName,
        Refusal::NoCertificate,
        Refusal::WrongPurpose,
        Refusal::ByPeer,
        Refusal::HungUp,
        Refusal::TimedOut,
        Refusal::Other,
    ];

    /// What an error of the library, or of the connection below it, means.
    pub fn of(error: &io::Error) -> Refusal {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(error) => Self::of_tls(error),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Refusal::HungUp,
                io::ErrorKind::TimedOut => Refusal::TimedOut,
                _ => Refusal::Other,
            },
        }
    }

    /// What an error of the library means.
    pub fn of_tls(error: &Error) -> Refusal {
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Refusal::PlainText,
            Error::NoCertificatesPresented => Refusal::NoCertificate,
            Error::InvalidCertificate(why) => match why {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    Refusal::UnknownAuthority
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Refusal::NotNow,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Refusal::WrongName,
                CertificateError::InvalidPurpose
                | CertificateError::InvalidPurposeContext { .. } => Refusal::WrongPurpose,
                _ => Refusal::Other,
            },
            Error::AlertReceived(AlertDescription::CloseNotify) => Refusal::HungUp,
            Error::AlertReceived(_) => Refusal::ByPeer,
            _ => Refusal::Other,
        }
    }

    /// As in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::PlainText => "plain_text",
            Refusal::UnknownAuthority => "unknown_authority",
            Refusal::NotNow => "expired",
            Refusal::WrongName => "wrong_name",
            Refusal::NoCertificate => "no_certificate",
            Refusal::WrongPurpose => "wrong_purpose",
            Refusal::ByPeer => "refused_by_peer",
            Refusal::HungUp => "hung_up",
            Refusal::TimedOut => "timed_out",
            Refusal::Other => "failed",
        }
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        match self {
            Refusal::PlainText => "it speaks plain text: set cluster.tls in its configuration, too",
            Refusal::UnknownAuthority => {
                "its certificate was signed by nobody in cluster.tls.ca_file: have it issued by that authority, or add its own"
            }
            Refusal::NotNow => {
                "its certificate is over, or not valid yet: renew it (its files are read again by themselves), and compare the clocks"
            }
            Refusal::WrongName => {
                "its certificate does not bear the name cluster.tls.name asks for: have it issued with that DNS name"
            }
            Refusal::NoCertificate => {
                "it shows no certificate: set cluster.tls.certificate_file and key_file in its configuration"
            }
            Refusal::WrongPurpose => {
                "its certificate is for another use: nodes need `server auth`, gateways `client auth`"
            }
            Refusal::ByPeer => {
                "it refuses our certificate, and its log says why: look at cluster.tls of both sides"
            }
            Refusal::HungUp => {
                "it hung up: it refuses our certificate, speaks plain text, or ends; its log says which"
            }
            Refusal::TimedOut => "it did not greet in time",
            Refusal::Other => "look at cluster.tls of both sides",
        }
    }
}
