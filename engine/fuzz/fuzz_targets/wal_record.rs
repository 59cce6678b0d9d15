//! Bytes of a WAL segment, as hostile as they come: decoding never panics, and what it accepts encodes to the same
//! bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    engine::wal::decode_hostile(bytes);
});
