//! See `mailtap_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::message(bytes));
