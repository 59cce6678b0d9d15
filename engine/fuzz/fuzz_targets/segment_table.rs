//! Bytes of the segment table, as hostile as they come: decoding never panics, and what it accepts is what would be
//! written.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    engine::hostile::segment_table(bytes);
});
