//! Bytes of an extent's index, as hostile as they come: decoding never panics, and what it accepts is what would be
//! written.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    engine::hostile::extent_index(bytes);
});
