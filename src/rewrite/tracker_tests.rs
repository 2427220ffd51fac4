//! What the rewriter signs, the tracker redirects to: a link that only one of them takes would end on an error page.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;

use proptest::prelude::*;

use super::target::{clean, judge};
use super::tests::plan;
use crate::tracker::target::Target;

fn taken(link: &str) -> bool {
    judge(&clean(link.into()), &plan(), &HashSet::new()).is_ok()
}

#[test]
fn hosts_and_ports_that_no_browser_takes_stay() {
    for link in [
        "https://e.com:65536/",
        "https://e.com:99999999999/",
        "https://1.2.3.999/",
        "https://1.2.3.4.5/",
        "https://0x100000000/",
        "https://e%00.com/",
        "https://e%2F.com/",
        "https://%zz.com/",
        "https://xn--a/",
        "https://\u{ad}/",
        "https://a\u{2f}\u{338}.com/",
        "https://[::1::2]/",
        "https://[12345::]/",
        "https://e\u{2028}.com/",
        "https://\u{fdd0}.com/",
    ] {
        assert_eq!(Target::parse(&clean(link.into())).is_ok(), taken(link), "{link}");
    }
    for link in [
        "https://e.com:443/",
        "https://1.2.3.4/",
        "https://0x7f.1/",
        "https://e_x.com",
        "https://e.com./",
        "https://xn--e1afmkfd.xn--p1ai/",
    ] {
        assert!(taken(link), "{link}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn what_is_signed_is_redirected_to(
        scheme in "(?i:https?)",
        host in "(\\PC|[a-z0-9]|[a-z]{1,9}|\\.|-|_|%[0-9a-fA-F]{2}|xn--|[0-9]{1,3}\\.|0x[0-9a-f]{1,9}|[!$&'()*+,;=~]|\u{ad}|\u{3002}|ß|\\[[0-9a-f:.]{1,12}\\]){1,6}",
        port in "(|:|:[0-9]{1,6})",
        tail in "(|/|\\?|#|\\\\)\\PC{0,20}",
    ) {
        let link = format!("{scheme}://{host}{port}{tail}");
        if taken(&link) {
            prop_assert_eq!(Target::parse(&clean(link.into())).err(), None);
        }
    }

    #[test]
    fn whatever_is_signed_is_redirected_to(link in "(https?:|http:)?//?\\PC{0,30}") {
        if taken(&link) {
            prop_assert_eq!(Target::parse(&clean(link.into())).err(), None);
        }
    }
}
