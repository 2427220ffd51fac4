//! See `mailtap_fuzz::inbox`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::inbox(bytes));
