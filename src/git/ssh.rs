//! ssh: whom the key is shown to. libgit2 compares a host's key with the file `.ssh/known_hosts` of
//! a home folder that is ours alone; who is not in it is asked for nothing, and the sentence says
//! what to add. No agent, no configuration and no key of anybody's home is looked at.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use git2::cert::Cert;
use git2::{CertificateCheckStatus, Cred, CredentialType};
use sha2::{Digest, Sha256};
use url::Url;

use super::error::Kind;
use super::{Access, Error, runtime};

/// Port of ssh.
const PORT: u16 = 22;

/// libgit2 has one home folder for the whole process.
static HOME: Mutex<()> = Mutex::new(());

/// A connection's known hosts, and the key that the host has shown.
pub(super) struct KnownHosts {
    _alone: MutexGuard<'static, ()>,
    host: String,
    shown: RefCell<Option<Vec<u8>>>,
}

impl KnownHosts {
    /// Those of the access's home; while this lives, no other connection by ssh is made.
    pub(super) fn of(url: &Url, access: &Access) -> Result<Self, Error> {
        let alone = HOME.lock().unwrap_or_else(PoisonError::into_inner);
        let home = access.ssh_home.as_deref();
        runtime::home(home.unwrap_or(Path::new("/nonexistent")))?;
        let host = url.host_str().unwrap_or_default();
        Ok(Self {
            _alone: alone,
            host: match url.port() {
                Some(port) if port != PORT => format!("[{host}]:{port}"),
                _ => host.to_owned(),
            },
            shown: RefCell::new(None),
        })
    }

    /// Leaves the judgement to libgit2, which has read the file, and remembers what was judged.
    pub(super) fn look(&self, certificate: &Cert<'_>) -> CertificateCheckStatus {
        let key = certificate.as_hostkey().and_then(|key| key.hostkey());
        self.shown.replace(key.map(<[u8]>::to_vec));
        CertificateCheckStatus::CertificatePassthrough
    }

    /// The refusal of a host that is not known by the key that it has shown.
    pub(super) fn unknown(&self, url: &str) -> Error {
        let shown = self.shown.take().unwrap_or_default();
        let host = &self.host;
        Error::new(
            Kind::UnknownHost,
            match kind(&shown) {
                Some(kind) => format!(
                    "the host key of {url} is not known: it shows {kind} SHA256:{}; if that is its own, add this line to the key known_hosts of the Secret in repository.secretName: {host} {kind} {}",
                    STANDARD_NO_PAD.encode(Sha256::digest(&shown)),
                    STANDARD.encode(&shown),
                ),
                None => format!("{url} shows no host key that can be read"),
            },
        )
    }
}

/// The name that a key in ssh's own format begins with.
fn kind(key: &[u8]) -> Option<&str> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?)
        .ok()
        .filter(|name| name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic()))
}

/// What libgit2 asks for: first the user's name, then the key.
pub(super) fn credential(
    access: &Access,
    user: &str,
    asked_for: CredentialType,
) -> Result<Cred, git2::Error> {
    if asked_for.is_username() {
        return Cred::username(user);
    }
    let key = access.private_key.as_deref().unwrap_or_default();
    Cred::ssh_key_from_memory(user, None, key, None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_its_kind_and_rubbish_says_none() {
        assert_eq!(
            kind(b"\0\0\0\x0bssh-ed25519\0\0\0\x01x"),
            Some("ssh-ed25519")
        );
        for rubbish in [&b""[..], b"\0\0\0", b"\xff\xff\xff\xffx", b"\0\0\0\x02a\n"] {
            assert_eq!(kind(rubbish), None);
        }
    }
}
