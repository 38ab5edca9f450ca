//! A frame encrypted as most programs would: `aes-gcm`, a new `Vec` for each frame.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};

/// A key and its nonce counter.
pub(crate) struct Plain {
    key: Aes256Gcm,
    counter: u64,
}

impl Plain {
    pub(crate) fn new() -> Self {
        Self { key: Aes256Gcm::new(&[0x42; 32].into()), counter: 0 }
    }

    /// Returns ciphertext and tag, made as the library's own allocating call makes them.
    pub(crate) fn encrypt(&mut self, audio: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        self.counter += 1;
        let mut sealed = Vec::with_capacity(audio.len() + 16);
        sealed.extend_from_slice(audio);
        let tag = self
            .key
            .encrypt_inout_detached(&Nonce::from(nonce), &[], sealed.as_mut_slice().into())
            .expect("a frame is far below the cipher's limit");
        sealed.extend_from_slice(&tag);
        sealed
    }
}
