//! Bytes of a stream of appends, as hostile as they come: reading never panics, and what it accepts is read again from
//! what would be sent.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    consensus::peer::hostile::appends(bytes);
});
