//! See `mailtap_fuzz::keyring`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::keyring(bytes));
