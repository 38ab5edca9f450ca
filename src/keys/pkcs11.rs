//! The `pkcs11` provider: KEKs in a token, an HSM mostly, which never gives them out.
//!
//! A wrap is `01 || nonce(12) || AES-256-GCM(DEK) || tag(16)`, with the context of `docs/FORMAT.md` section 11.2 as additional
//! data. Nonces are random, which is safe for 2^32 wraps under one KEK. Keys have no versions there: to rotate, another one is
//! made and named.
//!
//! The module of the token's maker runs in this process and blocks, so that each call has a thread of its own, as many as
//! calls may run. A call that never returns keeps its thread; when all do, further calls fail in time.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use async_trait::async_trait;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11 as Module};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use tokio::sync::{Semaphore, oneshot};
use zeroize::Zeroizing;

use crate::config::{Pkcs11 as Options, Secret};
use crate::domain::cmr::{Dek, Expected, KEY_BYTES, KeyBox, WrapContext};

use super::envelope::UNVERSIONED;
use super::{KekService, KeyError, Said, Wrapped, fill_random};

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Modules that this process has loaded. The standard knows one state for a process, so that none is ever unloaded.
static MODULES: Mutex<BTreeMap<PathBuf, Module>> = Mutex::new(BTreeMap::new());

/// One token.
pub(crate) struct Token {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
}

struct Shared {
    module: Module,
    options: Options,
    /// Sessions that nobody uses; as many as calls may run.
    idle: Mutex<Vec<Session>>,
    /// A PIN that was refused. It is not tried again: tokens lock themselves after a few wrong ones.
    refused: Mutex<Option<Secret>>,
}

impl Token {
    /// Loads the module; the token may be absent.
    ///
    /// # Errors
    /// The module cannot be loaded or does not begin to work.
    pub(crate) fn new(options: &Options, concurrency: usize) -> io::Result<Self> {
        let module = load(&options.module)?;
        let (idle, refused) = (Mutex::default(), Mutex::default());
        let shared = Shared { module, options: options.clone(), idle, refused };
        Ok(Self { shared: Arc::new(shared), places: Arc::new(Semaphore::new(concurrency)) })
    }

    /// Does one thing with the token, on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let gone = || KeyError::Unavailable(Said::new("the thread of a call has ended"));
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| gone())?;
        let shared = Arc::clone(&self.shared);
        let (tell, done) = oneshot::channel();
        // Not one of the runtime's threads: the end of a process waits for those, and a module may never return.
        let thread = thread::Builder::new().name("pkcs11".to_owned()).spawn(move || {
            let _place = place;
            let _is_heard = tell.send(shared.with_session(work)).is_ok();
        });
        thread.map_err(|_| gone())?;
        done.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl KekService for Token {
    async fn wrap(&self, kek: &str, ids: &Expected, dek: &Dek) -> Result<Wrapped, KeyError> {
        let (label, context) = (kek.to_owned(), context(kek, ids));
        let dek = KeyBox::holding(dek.expose());
        self.run(move |session| {
            let key = find(session, &label)?;
            let blob = encrypt(session, key, &context, &dek)?;
            Ok(Wrapped { blob, version: UNVERSIONED.to_owned() })
        })
        .await
    }

    async fn unwrap(&self, kek: &str, ids: &Expected, blob: &[u8]) -> Result<Dek, KeyError> {
        let (label, context) = (kek.to_owned(), context(kek, ids));
        let (mut nonce, sealed) = take_apart(blob)?;
        self.run(move |session| {
            let key = find(session, &label)?;
            let params = gcm(&mut nonce, &context)?;
            let opened = session.decrypt(&Mechanism::AesGcm(params), key, &sealed);
            let opened = opened.map_err(|error| sort_open(session, key, &error))?;
            super::dek_of(&Zeroizing::new(opened))
        })
        .await
    }

    async fn rewrap(&self, _: &str, _: &str, _: &Expected, _: &[u8]) -> Result<Option<Wrapped>, KeyError> {
        Ok(None)
    }

    async fn newest_version(&self, _kek: &str) -> Result<String, KeyError> {
        Ok(UNVERSIONED.to_owned())
    }
}

impl Shared {
    /// Lends a session. After a failure that may be the session's all of them are opened anew.
    fn with_session<T>(&self, work: impl FnOnce(&Session) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let idle = self.idle().pop();
        let session = idle.map_or_else(|| self.open(), Ok)?;
        let done = work(&session);
        match done {
            Err(KeyError::Unavailable(_)) => self.idle().clear(),
            _ => self.idle().push(session),
        }
        done
    }

    fn open(&self) -> Result<Session, KeyError> {
        let session = self.module.open_ro_session(self.slot()?).map_err(|e| sort(&e))?;
        let bad = |problem: &str| KeyError::BadLogin(Said::new(problem));
        let pin = self.options.pin.read().map_err(|problem| bad(&problem))?;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_ref().is_some_and(|refused| refused.expose() == pin.expose()) {
            return Err(bad("the PIN was refused before; it is not tried again until it is another one"));
        }
        let text = std::str::from_utf8(pin.expose()).map_err(|_| bad("the PIN is not UTF-8"))?;
        match session.login(UserType::User, Some(&AuthPin::new(text.into()))) {
            // The login is one for all sessions of a process.
            Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => *refused = None,
            Err(error) => {
                let sorted = sort(&error);
                if matches!(sorted, KeyError::BadLogin(_)) {
                    *refused = Some(pin);
                }
                return Err(sorted);
            }
        }
        Ok(session)
    }

    fn slot(&self) -> Result<Slot, KeyError> {
        for slot in self.module.get_slots_with_token().map_err(|e| sort(&e))? {
            let info = self.module.get_token_info(slot);
            if info.is_ok_and(|info| info.label().trim_end() == self.options.token_label.trim_end()) {
                return Ok(slot);
            }
        }
        Err(KeyError::Unavailable(Said::new("there is no token of this label")))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads a module and has it begin, once for this process.
fn load(path: &Path) -> io::Result<Module> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let module = Module::new(path).map_err(io::Error::other)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(io::Error::other(error)),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

/// Finds the one key of a label, and sees that the token keeps it to itself.
fn find(session: &Session, label: &str) -> Result<ObjectHandle, KeyError> {
    let wanted = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    let denied = |why| KeyError::Denied { why, source: Said::new("by its attributes") };
    let found = session.find_objects(&wanted).map_err(|e| sort(&e))?;
    let key = match found.as_slice() {
        // Without a login the keys are there and not shown.
        [] if !is_logged_in(session)? => return Err(KeyError::Unavailable(Said::new("the login has ended"))),
        [] => return Err(denied("there is no such key")),
        [key] => *key,
        _ => return Err(denied("several keys have its label")),
    };
    let kept = session.get_attributes(
        key,
        &[AttributeType::Extractable, AttributeType::Sensitive, AttributeType::ValueLen],
    );
    let kept = kept.map_err(|e| sort(&e))?;
    let has = |attribute: Attribute| kept.contains(&attribute);
    if !has(Attribute::Extractable(false)) || !has(Attribute::Sensitive(true)) {
        return Err(denied("it can be taken out of the token"));
    }
    if !has(Attribute::ValueLen(cryptoki::types::Ulong::from(u64::try_from(KEY_BYTES).unwrap_or(u64::MAX)))) {
        return Err(denied("it has not 256 bits"));
    }
    Ok(key)
}

fn is_logged_in(session: &Session) -> Result<bool, KeyError> {
    let info = session.get_session_info().map_err(|e| sort(&e))?;
    Ok(matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser))
}

fn gcm<'a>(nonce: &'a mut [u8; NONCE_BYTES], context: &'a [u8]) -> Result<GcmParams<'a>, KeyError> {
    let tag_bits = u64::try_from(TAG_BYTES * 8).unwrap_or_default();
    GcmParams::new(nonce, context, tag_bits.into()).map_err(|e| sort(&e))
}

/// Seals a DEK: version, a fresh nonce, ciphertext and tag.
fn encrypt(
    session: &Session,
    key: ObjectHandle,
    context: &[u8],
    dek: &[u8; KEY_BYTES],
) -> Result<Vec<u8>, KeyError> {
    let mut nonce = [0; NONCE_BYTES];
    fill_random(&mut nonce)?;
    let mut blob = vec![VERSION];
    blob.extend_from_slice(&nonce);
    let params = gcm(&mut nonce, context)?;
    blob.extend(session.encrypt(&Mechanism::AesGcm(params), key, dek).map_err(|e| sort(&e))?);
    Ok(blob)
}

fn context(kek: &str, ids: &Expected) -> Vec<u8> {
    WrapContext { tenant: ids.tenant, recording: ids.recording, key: ids.key, kek_name: kek }.canonical()
}

fn take_apart(blob: &[u8]) -> Result<([u8; NONCE_BYTES], Vec<u8>), KeyError> {
    let bad = || KeyError::BadEnvelope("not a wrapped key of a token");
    let (&[version], rest) = blob.split_first_chunk().ok_or_else(bad)?;
    let (nonce, sealed) = rest.split_first_chunk().ok_or_else(bad)?;
    if version != VERSION || sealed.len() != KEY_BYTES + TAG_BYTES {
        return Err(bad());
    }
    Ok((*nonce, sealed.to_vec()))
}

/// Sorts what a token answers to bytes that it shall open. Modules have several words for a wrong tag, SoftHSM2 that something has
/// failed; a token that still encrypts under the same key is well, and the bytes are wrong.
fn sort_open(session: &Session, key: ObjectHandle, error: &TokenError) -> KeyError {
    let is_opening = matches!(error, TokenError::Pkcs11(_, Function::Decrypt));
    if is_opening && encrypt(session, key, &[], &[0; KEY_BYTES]).is_ok() {
        return KeyError::BadEnvelope("wrong key or context");
    }
    sort(error)
}

/// Sorts a failure. What is not named here are sessions that have ended, tokens that are away, and what only the maker knows.
fn sort(error: &TokenError) -> KeyError {
    use RvError as Code;
    let said = Said::new(&error.to_string());
    let TokenError::Pkcs11(code, _) = error else { return KeyError::Unavailable(said) };
    let is_login = matches!(
        code,
        Code::PinIncorrect
            | Code::PinInvalid
            | Code::PinLenRange
            | Code::PinExpired
            | Code::PinLocked
            | Code::UserPinNotInitialized
    );
    if is_login {
        return KeyError::BadLogin(said);
    }
    let is_other_key = matches!(
        code,
        Code::KeyFunctionNotPermitted
            | Code::KeyTypeInconsistent
            | Code::KeySizeRange
            | Code::MechanismInvalid
            | Code::MechanismParamInvalid
    );
    if is_other_key {
        return KeyError::Denied { why: "it is not a key to encrypt with", source: said };
    }
    KeyError::Unavailable(said)
}
