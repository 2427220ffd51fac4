//! Why a message, a part or a link was left as it came: one closed list for logs, metrics and `--explain`.
//!
//! - Layer: decision
//! - Takes: nothing.
//! - Gives: a stable snake_case label and a sentence for people.
//! - On failure: cannot fail.

/// Builds the enum, its labels and its sentences from one table, so that none of them can be missing.
macro_rules! reasons {
    ($($variant:ident $label:literal $sentence:literal)+) => {
        /// Why something was not touched.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable label used in logs, metrics and `--explain`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }

            /// A sentence for people.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)+
                }
            }
        }
    };
}

reasons! {
    // The message.
    NothingAllowed "nothing_allowed" "The policy allows neither click nor open tracking for this message."
    NothingToRewrite "nothing_to_rewrite" "The message has no link to track and no place for a pixel."
    OptedOut "opted_out" "A header of the message opts out of tracking."
    DkimSigned "dkim_signed" "The message carries a DKIM or ARC signature that a change would break."
    AutoReply "auto_reply" "The message was sent by a machine in answer or on its own (Auto-Submitted)."
    Signed "signed" "The message or part is signed (multipart/signed)."
    Encrypted "encrypted" "The message or part is encrypted (multipart/encrypted)."
    Pkcs7 "pkcs7" "The message or part is S/MIME (application/pkcs7-mime)."
    InlinePgp "inline_pgp" "A text of the message holds an inline PGP block."
    Report "report" "The message is a report: a delivery status, a read receipt or a complaint."
    Invitation "invitation" "The message is a meeting invitation."
    MessageTooBig "message_too_big" "The message is larger than the configured limit."
    TooManyParts "too_many_parts" "The message has more MIME parts than the configured limit."
    TooDeep "too_deep" "The MIME parts are nested deeper than the configured limit."
    Nul "nul" "The message holds a NUL byte."
    BareCr "bare_cr" "The message holds a carriage return that ends no line."
    MixedLineEndings "mixed_line_endings" "The message mixes CRLF and bare LF as line endings."
    LongLine "long_line" "The message holds a line of more than 998 octets."
    BadHeader "bad_header" "A header block is malformed."
    DuplicateHeader "duplicate_header" "A MIME header or one of its parameters is given twice."
    BadBoundary "bad_boundary" "A multipart has no usable boundary, or its delimiters are missing or in disorder."
    BadMultipartEncoding "bad_multipart_encoding" "A multipart is labelled with a transfer encoding that it may not have."
    Internal "internal" "The rewriter contradicted itself; the message was left as it came."

    // A part.
    Attachment "attachment" "The part is an attachment: it has a name, or a disposition other than inline."
    NestedMessage "nested_message" "The part is a message of its own (message/rfc822)."
    NotText "not_text" "The part is neither HTML nor plain text."
    Calendar "calendar" "The part is a calendar entry."
    AmpOff "amp_off" "AMP parts are not rewritten by policy."
    AmpNeedsHttps "amp_needs_https" "The part is AMP HTML, which allows only https, and the tracking URL is http."
    AmpTooBig "amp_too_big" "The AMP part would pass the 200,000 bytes up to which it is shown."
    UnknownMultipart "unknown_multipart" "The part is a multipart of a kind that is not opened."
    NotABody "not_a_body" "The part is not what the reader sees as the body, such as a resource of multipart/related."
    UnknownEncoding "unknown_encoding" "The transfer encoding of the part is unknown."
    BadEncoding "bad_encoding" "The part breaks the rules of its transfer encoding."
    UnknownCharset "unknown_charset" "The charset of the part is unknown."
    UnsafeCharset "unsafe_charset" "The charset of the part cannot be patched safely (UTF-16, ISO-2022, HZ, UTF-7)."
    EmptyPart "empty_part" "The part is empty."
    NotHtml "not_html" "The part is labelled HTML but holds no markup."
    AmbiguousHtml "ambiguous_html" "HTML that programs read in different ways (markup in raw text of SVG, script within script)."
    TextOff "text_off" "Links in plain text are not tracked by policy."
    ClicksOff "clicks_off" "Links are not tracked in this message."
    OpensOff "opens_off" "Opens are not tracked in this message."
    NoLinks "no_links" "The part holds no link that is tracked."

    // A link, or the pixel.
    OtherScheme "other_scheme" "The link is neither http nor https."
    Relative "relative" "The link is relative."
    Fragment "fragment" "The link leads within the message."
    EmptyLink "empty_link" "The link is empty."
    BadUrl "bad_url" "The link is not a URL that a browser would follow."
    UserInfo "user_info" "The link holds a user name or password."
    Template "template" "The link is a template that nobody filled in."
    AlreadyTracked "already_tracked" "The link or the pixel is already ours."
    LinkOptOut "link_opt_out" "The link opts out of tracking, here or elsewhere in the message."
    Unsubscribe "unsubscribe" "The link unsubscribes."
    LoginLink "login_link" "The link logs in, confirms or is good for one time only."
    HostDenied "host_denied" "The host of the link is not tracked by policy."
    VisibleUrl "visible_url" "The link shows its own address as its text."
    UrlTooLong "url_too_long" "The link is longer than the configured limit."
    TooManyLinks "too_many_links" "The message has more links than the configured limit."
    LineTooLong "line_too_long" "The rewritten line would pass 998 octets."
    NotMinted "not_minted" "No tracking URL could be made for the link."
    UnknownEntity "unknown_entity" "The link holds a character reference that is not known."
    BadText "bad_text" "The link is no valid text in the charset of its part, or looks like text in another one."
    BrokenOverLines "broken_over_lines" "The link may go on in the next line of the text."
    UnclosedMarkup "unclosed_markup" "The HTML ends within a tag, comment or raw text, so a pixel has no safe place."
    BadPixelTemplate "bad_pixel_template" "The pixel template is not ASCII, has no {url} in a quoted attribute, or is too long."
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn labels_are_distinct_snake_case() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(
            labels
                .iter()
                .all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') || *label == "pkcs7")
        );
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::ALL.len());
    }

    #[test]
    fn every_reason_is_a_sentence() {
        assert!(Reason::ALL.iter().all(|reason| reason.explain().ends_with('.')));
    }
}
