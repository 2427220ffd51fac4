//! Whether the time of refusing a token tells how much of its MAC was right: tokens whose MAC is wrong in its first byte and in its last,
//! in random order, compared by Welch's t-test (as dudect does: Reparaz, Balasch, Verbauwhede, 2017), beside a comparison that stops at
//! the first difference, which has to be found out.
//!
//! `cargo bench --bench constant_time`; exits with 1 where a difference is found, or where the leaky comparison is not.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use data_encoding::BASE64URL_NOPAD;
use mailtap::identity::{MessageId, Pseudonym, Timestamp};
use mailtap::keys::ring::Keyring;
use mailtap::keys::token::{self, Open, Token};

const SAMPLES: usize = 400_000;
/// So many calls make up a sample: the clock is coarser than one of them.
const CALLS: usize = 8;
/// Beyond it, the two are taken to differ; dudect's threshold is 4.5 for "maybe", 10 for "surely".
const SURE: f64 = 10.0;

/// Times of two kinds of calls in random order, as t. Slow samples, which the system interrupted, are left out for both alike.
fn t(mut call: impl FnMut(bool)) -> f64 {
    let mut times = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let kind = rand::random::<bool>();
        let began = Instant::now();
        for _ in 0..CALLS {
            call(kind);
        }
        times.push((kind, began.elapsed().as_nanos() as f64));
    }
    let mut sorted: Vec<f64> = times.iter().map(|(_, nanos)| *nanos).collect();
    sorted.sort_by(f64::total_cmp);
    let limit = sorted[SAMPLES * 9 / 10];
    let [one, two] = [false, true].map(|kind| {
        let own: Vec<f64> = times
            .iter()
            .filter(|(of, nanos)| *of == kind && *nanos <= limit)
            .map(|(_, nanos)| *nanos)
            .collect();
        let (count, mean) = (own.len() as f64, own.iter().sum::<f64>() / own.len() as f64);
        let variance = own.iter().map(|nanos| (nanos - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    (one.0 - two.0) / (one.1 + two.1).sqrt()
}

fn main() {
    let ring = Keyring::new([7; 32], Timestamp::from_secs(1));
    let now = Timestamp::from_secs(1_795_000_000);
    let recipient = Some(Pseudonym::from([0x11; 12]));
    let open = Token::Open(Open { message: MessageId::new(now, 7), recipient, campaign: None });
    let good = token::sign(&open, ring.signing(now).unwrap());
    assert!(token::verify(&good, &ring).is_ok());
    let bytes = BASE64URL_NOPAD.decode(good.as_bytes()).unwrap();
    // The MAC stands at the end (docs/token-format.md) and has 16 bytes.
    let wrong = |from_end: usize| {
        let mut bytes = bytes.clone();
        let at = bytes.len() - from_end;
        bytes[at] ^= 1;
        BASE64URL_NOPAD.encode(&bytes)
    };
    let tokens = [wrong(16), wrong(1)];
    let verify = t(|last| {
        let refused = token::verify(black_box(&tokens[usize::from(last)]), &ring).is_err();
        assert!(black_box(refused));
    });
    let macs = [[1; 16], {
        let mut mac = [0; 16];
        mac[15] = 1;
        mac
    }];
    let leaky = t(|last| {
        let equal = black_box(&macs[usize::from(last)])
            .iter()
            .zip(black_box(&[0_u8; 16]))
            .all(|(a, b)| black_box(a) == b);
        assert!(!black_box(equal));
    });
    println!("refusing a token, MAC wrong in its first or last byte: t = {verify:.1}");
    println!("a comparison that stops at the first difference:       t = {leaky:.1}");
    if verify.abs() > SURE || leaky.abs() <= SURE {
        eprintln!("the first should be below {SURE}, the second beyond it");
        std::process::exit(1);
    }
}
