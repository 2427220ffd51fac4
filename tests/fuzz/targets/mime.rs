//! See `mailtap_fuzz::mime`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::mime(bytes));
