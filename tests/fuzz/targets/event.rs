//! See `mailtap_fuzz::event`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::event(bytes));
