//! See `mailtap_fuzz::html`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::html(bytes));
