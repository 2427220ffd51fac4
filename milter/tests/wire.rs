//! Every command and reply, there and back; any bytes at all.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mailtap_milter::wire::{
    Actions, Command, Connect, EnvelopePath, Family, Frame, MacroLists, MacroPairs, MacroStage, Offer,
    Protocol, Reply, ReplyError, Texts,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// A text: any bytes but NUL.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8.., 0..40)
}

fn offer() -> impl Strategy<Value = Offer> {
    any::<(u32, u32, u32)>().prop_map(|(version, actions, protocol)| Offer {
        version,
        actions: Actions::from_bits(actions),
        protocol: Protocol::from_bits(protocol),
    })
}

fn one_frame(bytes: &[u8]) -> Frame<'_> {
    let (frame, size) = Frame::decode(bytes, 1 << 20).unwrap().unwrap();
    assert_eq!(size, bytes.len(), "one frame and nothing else");
    frame
}

fn command_survives(command: &Command<'_>) {
    let mut bytes = Vec::new();
    command.encode(&mut bytes);
    assert_eq!(&Command::decode(one_frame(&bytes)).unwrap(), command);
}

fn reply_survives(reply: &Reply<'_>) {
    let mut bytes = Vec::new();
    reply.encode(&mut bytes);
    assert_eq!(&Reply::decode(one_frame(&bytes)).unwrap(), reply);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_survive(offer in offer(), a in text(), b in text(), args in vec(text(), 0..4), port: u16, raw: Vec<u8>, stage: u8) {
        let joined = Texts::join(&args);
        let path = EnvelopePath { address: &a, args: Texts::new(&joined) };
        prop_assert_eq!(path.args.iter().map(<[u8]>::to_vec).collect::<Vec<_>>(), args);
        let pairs = MacroPairs::join(&[(&a, &b), (&b, &a)]);
        command_survives(&Command::Negotiate(offer));
        command_survives(&Command::Macros { stage, pairs: MacroPairs::new(&pairs) });
        for family in [Family::Unix, Family::Inet, Family::Inet6] {
            command_survives(&Command::Connect(Connect { host: &a, family, port, address: &b }));
        }
        command_survives(&Command::Connect(Connect { host: &a, family: Family::Unknown, port: 0, address: &[] }));
        command_survives(&Command::Helo(&a));
        command_survives(&Command::Mail(path));
        command_survives(&Command::Rcpt(path));
        command_survives(&Command::Header { name: &a, value: &b });
        command_survives(&Command::Body(&raw));
        command_survives(&Command::EndOfMessage(&raw));
        command_survives(&Command::Unknown(&a));
        for command in
            [Command::Data, Command::EndOfHeaders, Command::Abort, Command::Quit, Command::QuitNewConnection]
        {
            command_survives(&command);
        }
    }

    #[test]
    fn replies_survive(offer in offer(), a in text(), b in text(), index: u32, raw: Vec<u8>) {
        let lists = MacroLists::join(&[(MacroStage::Rcpt, &a), (MacroStage::EndOfMessage, &b)]);
        let macros = MacroLists::new(&lists);
        prop_assert_eq!(macros.iter().collect::<Vec<_>>(), [(3, a.as_slice()), (5, b.as_slice())]);
        reply_survives(&Reply::Negotiate { offer, macros });
        reply_survives(&Reply::ReplyCode(&a));
        reply_survives(&Reply::AddHeader { name: &a, value: &b });
        reply_survives(&Reply::InsertHeader { index, name: &a, value: &b });
        reply_survives(&Reply::ChangeHeader { index, name: &a, value: &b });
        reply_survives(&Reply::ReplaceBody(&raw));
        reply_survives(&Reply::AddRecipient(&a));
        reply_survives(&Reply::AddRecipientWithArgs { address: &a, args: &b });
        reply_survives(&Reply::DeleteRecipient(&a));
        reply_survives(&Reply::ChangeSender { address: &a, args: &b });
        reply_survives(&Reply::Quarantine(&a));
        for reply in [
            Reply::Continue, Reply::Accept, Reply::Reject, Reply::TempFail, Reply::Discard, Reply::Skip,
            Reply::Progress, Reply::Shutdown, Reply::ConnectionFailed,
        ] {
            reply_survives(&reply);
        }
    }

    /// What any bytes are read as is written so that it is read as the same again.
    #[test]
    fn any_bytes_settle(code in prop::sample::select(b"ODCHMRTLNBEAQKUcartydspfh+-2eqmib4".to_vec()), data: Vec<u8>) {
        let frame = Frame { code, data: &data };
        if let Ok(command) = Command::decode(frame) {
            command_survives(&command);
        }
        if let Ok(reply) = Reply::decode(frame) {
            reply_survives(&reply);
        }
    }

    #[test]
    fn any_bytes_are_frames_or_not(bytes: Vec<u8>, limit in 0_usize..300) {
        if let Ok(Some((frame, size))) = Frame::decode(&bytes, limit) {
            prop_assert!(frame.data.len() < limit);
            prop_assert_eq!(size, frame.data.len() + 5);
            let mut again = Vec::new();
            frame.encode(&mut again);
            prop_assert_eq!(again, &bytes[..size]);
        }
    }
}

#[test]
fn known_bytes() {
    let mut bytes = Vec::new();
    Command::Negotiate(Offer::POSTFIX).encode(&mut bytes);
    assert_eq!(bytes, *b"\0\0\0\x0dO\0\0\0\x06\0\0\x01\xff\0\x1f\xff\xff");
    bytes.clear();
    let connect = Connect { host: b"[127.0.0.1]", family: Family::Inet, port: 25, address: b"127.0.0.1" };
    Command::Connect(connect).encode(&mut bytes);
    assert_eq!(bytes, *b"\0\0\0\x1aC[127.0.0.1]\x004\0\x19127.0.0.1\0");
    bytes.clear();
    Reply::InsertHeader { index: 1, name: b"X", value: b" y" }.encode(&mut bytes);
    assert_eq!(bytes, *b"\0\0\0\x0ai\0\0\0\x01X\0 y\0");
}

/// The quirks of peers that commands are read with.
#[test]
fn commands_are_read_leniently() {
    let decode = |code, data| Command::decode(Frame { code, data }).unwrap();
    // Postfix's own bounces: a single NUL.
    assert_eq!(decode(b'M', b"\0"), Command::Mail(EnvelopePath { address: b"", args: Texts::default() }));
    assert_eq!(decode(b'H', b"no end"), Command::Helo(b"no end"));
    assert_eq!(decode(b'L', b"Name\0"), Command::Header { name: b"Name", value: b"" });
    let unknown = Connect { host: b"x", family: Family::Unknown, port: 0, address: b"" };
    assert_eq!(decode(b'C', b"x\0"), Command::Connect(unknown));
    assert_eq!(decode(b'C', b"x\0?\0"), Command::Connect(unknown));
    assert!(Command::decode(Frame { code: b'O', data: &[0; 11] }).is_err());
    assert!(Command::decode(Frame { code: b'Z', data: b"" }).is_err());
}

/// What Postfix drops a filter for.
#[test]
fn replies_are_read_strictly() {
    let decode = |code, data| Reply::decode(Frame { code, data });
    assert_eq!(decode(b'p', b"x"), Err(ReplyError::Extra { code: b'p', extra: 1 }));
    assert_eq!(decode(b'y', b"550 no"), Err(ReplyError::Unterminated { code: b'y' }));
    assert_eq!(decode(b'm', b"\0\0"), Err(ReplyError::Short { code: b'm', length: 2 }));
    assert_eq!(decode(b'h', b"a\0b\0c"), Err(ReplyError::Extra { code: b'h', extra: 1 }));
    assert_eq!(decode(b'?', b""), Err(ReplyError::Unknown { code: b'?' }));
}
