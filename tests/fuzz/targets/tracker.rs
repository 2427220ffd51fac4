//! See `mailtap_fuzz::tracker`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mailtap_fuzz::tracker(bytes));
