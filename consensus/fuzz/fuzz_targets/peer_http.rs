//! Bytes of a connection between members, as hostile as they come: reading heads and bodies never panics, and neither
//! do the checks of a request.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    consensus::peer::hostile::http(bytes);
});
