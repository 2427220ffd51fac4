//! See `mailtap_fuzz::collector`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::collector(bytes));
