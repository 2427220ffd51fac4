//! See `mailtap_fuzz::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::frame(bytes));
