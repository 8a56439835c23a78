//! libgit2's process-wide settings, made once before anything else of it is used: no configuration
//! but our own, every hash verified, no connection waited for without end, and no certificate read
//! before there is somebody to show one.

use std::collections::HashSet;
use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use git2::{ConfigLevel, opts};
use sha2::{Digest, Sha256};

use super::Error;

/// How long a connection may take to come about, in milliseconds.
const CONNECT_TIMEOUT: i32 = 15_000;
/// How long a server may keep silent, in milliseconds.
const SERVER_TIMEOUT: i32 = 60_000;

/// Makes the settings, the first time that it is called.
#[allow(unsafe_code)]
pub(super) fn prepare() -> Result<(), Error> {
    static PREPARED: OnceLock<Result<(), String>> = OnceLock::new();
    let made = PREPARED.get_or_init(|| {
        // Not by git2, which points OpenSSL to the machine's certificates first: to parse them all takes
        // longer, and more memory, than most of what is done here without a connection.
        libgit2_sys::init();
        opts::strict_hash_verification(true);
        opts::strict_object_creation(true);
        let levels = [
            ConfigLevel::ProgramData,
            ConfigLevel::System,
            ConfigLevel::XDG,
            ConfigLevel::Global,
        ];
        for level in levels {
            // SAFETY: libgit2's settings are not synchronized. `get_or_init` lets one thread in and
            // holds all others back, and every use of libgit2 in this crate comes after it.
            unsafe { opts::set_search_path(level, "") }.map_err(|e| e.message().to_owned())?;
        }
        // SAFETY: as above.
        unsafe {
            opts::set_verify_owner_validation(false)
                .and_then(|()| opts::set_server_connect_timeout_in_milliseconds(CONNECT_TIMEOUT))
                .and_then(|()| opts::set_server_timeout_in_milliseconds(SERVER_TIMEOUT))
        }
        .map_err(|e| e.message().to_owned())
    });
    made.clone()
        .map_err(|why| Error::checkout(format!("can't set libgit2 up: {why}")))
}

/// Where libgit2 looks for `.ssh/known_hosts`. The caller lets nobody else connect by ssh meanwhile.
#[allow(unsafe_code)]
pub(super) fn home(folder: &Path) -> Result<(), Error> {
    let path = CString::new(folder.as_os_str().as_bytes())
        .map_err(|_| Error::checkout("the home folder of ssh can't be named"))?;
    // SAFETY: libgit2 copies the path; who reads it holds the lock that our caller holds.
    let done = unsafe {
        libgit2_sys::git_libgit2_opts(libgit2_sys::GIT_OPT_SET_HOMEDIR as c_int, path.as_ptr())
    };
    if done < 0 {
        return Err(Error::checkout("the home folder of ssh can't be set"));
    }
    Ok(())
}

/// Lets certificates chain to those that this machine trusts, as long as this process lives. That it has
/// none is no error: who connects will be told whom it can't trust.
#[allow(unsafe_code)]
pub(super) fn trust_machine() {
    static TRUSTED: Once = Once::new();
    TRUSTED.call_once(|| {
        let found = openssl_probe::probe();
        // SAFETY: both add to OpenSSL's certificate store, which has a lock of its own, and `call_once`
        // holds all others back meanwhile.
        unsafe {
            let _ = found.cert_file.map(|file| opts::set_ssl_cert_file(file));
            let _ = found.cert_dir.map(|folder| opts::set_ssl_cert_dir(folder));
        }
    });
}

/// Lets certificates chain to those in `file` too, for as long as this process lives.
#[allow(unsafe_code)]
pub(super) fn trust(file: &Path) -> Result<(), Error> {
    static TRUSTED: Mutex<Option<HashSet<[u8; 32]>>> = Mutex::new(None);
    let pem = std::fs::read(file).map_err(|e| {
        Error::file(
            format_args!("read the certificates in {}", file.display()),
            &e,
        )
    })?;
    let mut trusted = TRUSTED.lock().unwrap_or_else(PoisonError::into_inner);
    if trusted
        .get_or_insert_default()
        .insert(Sha256::digest(&pem).into())
    {
        // SAFETY: it adds to OpenSSL's certificate store, which has a lock of its own; the mutex
        // keeps a second caller from libgit2's context meanwhile.
        unsafe { opts::set_ssl_cert_file(file) }.map_err(|_| {
            Error::checkout(
                "repository.caBundle, or the key ca.crt of the repository's Secret, holds no certificate in PEM",
            )
        })?;
    }
    Ok(())
}
