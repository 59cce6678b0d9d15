//! Bytes of one message, as hostile as they come: decoding never panics, and what it accepts encodes to what decodes to
//! the same.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    consensus::peer::hostile::message(bytes);
});
