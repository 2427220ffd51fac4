//! See `mailtap_fuzz::returned`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::returned(bytes));
