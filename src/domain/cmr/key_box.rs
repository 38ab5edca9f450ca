//! The 32 bytes of a key in memory: never copied, wiped when dropped.
//!
//! Where they lie is decided by whoever starts the process, see [`KeyMemory`]: this part of the program asks for a place as
//! others ask the allocator. Where nobody has decided, and where no place is left, they lie in a box on the heap.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use zeroize::Zeroize;

use super::keys::KEY_BYTES;

/// One place for a key. It lives as long as the process, and is lent to one [`KeyBox`] after the other.
pub type KeyPlace = &'static mut [u8; KEY_BYTES];

/// Memory that is better than the heap for keys.
pub trait KeyMemory: Send + Sync {
    /// Lends a place; `None` when none is left. Whoever answers `None` has counted it.
    fn lend(&self) -> Option<KeyPlace>;

    /// Takes a place back; it was wiped.
    fn take_back(&self, place: KeyPlace);
}

static MEMORY: OnceLock<&'static dyn KeyMemory> = OnceLock::new();

/// Says where keys are to lie from now on. The first answer holds for as long as the process lives.
pub fn keep_keys_in(memory: &'static dyn KeyMemory) {
    MEMORY.get_or_init(|| memory);
}

/// The bytes of a key, in one place until they are dropped. Not `Clone`; `Debug` prints the type name only.
pub struct KeyBox(Place);

enum Place {
    /// Empty only while it is dropped.
    Lent(Option<KeyPlace>, &'static dyn KeyMemory),
    Heap(Box<[u8; KEY_BYTES]>),
}

impl KeyBox {
    /// Makes a key whose bytes `fill` writes in place, so that no copy of them stays on the stack. They are zero before.
    ///
    /// # Errors
    /// Whatever `fill` answers; no key exists then.
    pub fn filled_by<E>(fill: impl FnOnce(&mut [u8; KEY_BYTES]) -> Result<(), E>) -> Result<Self, E> {
        let mut key = Self::default();
        fill(&mut key)?;
        Ok(key)
    }

    /// Holds a copy of these bytes.
    pub fn holding(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut key = Self::default();
        key.copy_from_slice(bytes);
        key
    }

    fn zero(memory: Option<&'static dyn KeyMemory>) -> Self {
        let lent = memory.and_then(|memory| Some(Place::Lent(Some(memory.lend()?), memory)));
        Self(lent.unwrap_or_else(|| Place::Heap(Box::new([0; KEY_BYTES]))))
    }
}

/// All zero, to be filled in place.
impl Default for KeyBox {
    fn default() -> Self {
        Self::zero(MEMORY.get().copied())
    }
}

impl Deref for KeyBox {
    type Target = [u8; KEY_BYTES];

    fn deref(&self) -> &[u8; KEY_BYTES] {
        match &self.0 {
            Place::Lent(place, _) => place.as_deref().expect(LENT),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for KeyBox {
    fn deref_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        match &mut self.0 {
            Place::Lent(place, _) => place.as_deref_mut().expect(LENT),
            Place::Heap(bytes) => bytes,
        }
    }
}

const LENT: &str = "a place is given back by drop alone";

impl Drop for KeyBox {
    fn drop(&mut self) {
        self.zeroize();
        if let Place::Lent(place, memory) = &mut self.0
            && let Some(place) = place.take()
        {
            memory.take_back(place);
        }
    }
}

impl fmt::Debug for KeyBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBox")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// One place, which tells what came back.
    struct One {
        place: Mutex<Option<KeyPlace>>,
    }

    impl KeyMemory for One {
        fn lend(&self) -> Option<KeyPlace> {
            self.place.lock().unwrap().take()
        }

        fn take_back(&self, place: KeyPlace) {
            assert_eq!(*place, [0; KEY_BYTES], "wiped before it comes back");
            *self.place.lock().unwrap() = Some(place);
        }
    }

    #[test]
    fn a_place_is_lent_wiped_and_lent_again() {
        let one = One { place: Mutex::new(Some(Box::leak(Box::new([0; KEY_BYTES])))) };
        let memory: &'static One = Box::leak(Box::new(one));
        let mut first = KeyBox::zero(Some(memory));
        first.fill(7);
        assert!(memory.place.lock().unwrap().is_none());
        let second = KeyBox::zero(Some(memory));
        assert!(matches!(second.0, Place::Heap(_)), "no place is left");
        drop(first);
        drop(second);
        assert!(memory.place.lock().unwrap().is_some());
        assert_eq!(*KeyBox::zero(Some(memory)), [0; KEY_BYTES]);
    }

    #[test]
    fn a_key_that_could_not_be_filled_does_not_exist() {
        assert_eq!(KeyBox::filled_by(|_| Err("no entropy")).unwrap_err(), "no entropy");
        let key = KeyBox::filled_by::<()>(|key| {
            assert_eq!(*key, [0; KEY_BYTES]);
            key.fill(9);
            Ok(())
        });
        assert_eq!(*key.unwrap(), [9; KEY_BYTES]);
        assert_eq!(format!("{:?}", KeyBox::zero(None)), "KeyBox");
    }
}
