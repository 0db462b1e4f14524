//! Payloads' memory, kept from piece to piece.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What idle buffers of a process may hold together.
const IDLE_BYTES_MAX: usize = 16 << 20;
/// An allocator keeps smaller ones by itself.
const RECYCLED_BYTES_MIN: usize = 64 << 10;

static IDLE: Mutex<Idle> = Mutex::new(Idle::new());

struct Idle {
    buffers: Vec<Vec<u8>>,
    /// Capacity of all of them.
    bytes: usize,
}

/// The bytes of a payload. Its memory goes to the next one when it is dropped.
///
/// An allocator gives a megabyte back to the system as soon as it is free: without this, every piece costs hundreds of
/// page faults and is zeroed once by the kernel and once more by us, a seventh of what a transfer costs on both sides.
#[derive(Default)]
pub struct Buffer {
    /// As long as it ever was, so that a longer payload zeroes only what is new.
    memory: Vec<u8>,
    bytes: usize,
}

impl Buffer {
    /// A buffer of so many bytes whose content is anything: whoever asks fills it.
    pub fn of_any(bytes: usize) -> Self {
        let recycled = if bytes < RECYCLED_BYTES_MIN { None } else { idle().take(bytes) };
        let mut memory = recycled.unwrap_or_default();
        if memory.capacity() == 0 {
            // The allocator has zeroed pages: cheaper than to zero them here.
            memory = vec![0; bytes];
        } else if memory.len() < bytes {
            memory.resize(bytes, 0);
        }
        Self { memory, bytes }
    }

    pub fn into_vec(mut self) -> Vec<u8> {
        self.memory.truncate(self.bytes);
        std::mem::take(&mut self.memory)
    }
}

fn idle() -> MutexGuard<'static, Idle> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Idle {
    const fn new() -> Self {
        Self { buffers: Vec::new(), bytes: 0 }
    }

    /// The one that was used last, of those with so much room: a processor may still have it in its cache.
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let at = self.buffers.iter().rposition(|buffer| buffer.capacity() >= bytes)?;
        let buffer = self.buffers.remove(at);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Those that were idle longest go when there are too many.
    fn put(&mut self, buffer: Vec<u8>) {
        self.bytes += buffer.capacity();
        self.buffers.push(buffer);
        while self.bytes > IDLE_BYTES_MAX {
            let oldest = self.buffers.remove(0);
            self.bytes -= oldest.capacity();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.capacity() >= RECYCLED_BYTES_MIN {
            idle().put(std::mem::take(&mut self.memory));
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(memory: Vec<u8>) -> Self {
        let bytes = memory.len();
        Self { memory, bytes }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.bytes]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_is_long_enough_is_taken_and_the_first_goes_when_there_are_too_many() {
        let mut idle = Idle::new();
        for megabytes in [4, 2, 1] {
            idle.put(Vec::with_capacity(megabytes << 20));
        }
        assert_eq!(idle.take(5 << 20), None);
        assert_eq!(idle.take((1 << 20) + 1).unwrap().capacity(), 2 << 20);
        assert_eq!(idle.take(7).unwrap().capacity(), 1 << 20);
        idle.put(Vec::with_capacity(IDLE_BYTES_MAX - 1));
        assert_eq!((idle.bytes, idle.buffers.len()), (IDLE_BYTES_MAX - 1, 1), "the four megabytes went");
        idle.put(Vec::with_capacity(IDLE_BYTES_MAX + 1));
        assert_eq!((idle.bytes, idle.buffers.len()), (0, 0));
    }

    #[test]
    fn a_recycled_buffer_has_the_length_that_was_asked_for() {
        for bytes in [0, 1, RECYCLED_BYTES_MIN, 3 << 20, 1 << 20, 5 << 20] {
            // Room that was never used.
            drop(Buffer::from(Vec::with_capacity(bytes)));
            let mut buffer = Buffer::of_any(bytes);
            assert_eq!(buffer.len(), bytes);
            buffer.fill(7);
        }
    }

    #[test]
    fn a_buffer_is_the_vector_that_it_was_made_of() {
        let buffer = Buffer::from(vec![1, 2, 3]);
        assert_eq!(buffer.clone(), buffer);
        assert_ne!(Buffer::from(vec![1, 2]), buffer);
        let mut longer = Buffer::of_any(RECYCLED_BYTES_MIN);
        longer.fill(3);
        longer.bytes = 2;
        assert_eq!(longer.into_vec(), [3, 3]);
        assert_eq!(buffer.into_vec(), [1, 2, 3]);
    }
}
