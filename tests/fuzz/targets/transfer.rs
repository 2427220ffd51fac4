//! See `mailtap_fuzz::transfer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::transfer(bytes));
