//! A frame that decodes, encodes to one that decodes to the same; every typed header takes any fields.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::{Codec, Frame, RemotingCommand, frame_len};
use ringmq_protocol::request::*;

fuzz_target!(|bytes: &[u8]| {
    let _ = frame_len(bytes, 1 << 20);
    let Ok(frame) = Frame::decode(bytes) else { return };
    let ext = &frame.header.ext;
    let _ = SendMessageRequest::decode(RequestCode::SEND_MESSAGE, ext);
    let _ = SendMessageRequest::decode(RequestCode::SEND_MESSAGE_V2, ext);
    let _ = PullMessageRequest::decode(ext);
    let _ = SearchOffsetRequest::decode(ext);
    let _ = RegisterBrokerRequest::decode(ext);

    let command =
        RemotingCommand::decode(&bytes.to_vec().into()).expect("what Frame takes, RemotingCommand takes");
    let fits_binary = command.ext.iter().all(|(key, _)| key.len() <= i16::MAX as usize);
    for codec in [Codec::Json, Codec::RocketMq] {
        let mut out = Vec::new();
        command.encode(codec, &mut out);
        match RemotingCommand::decode(&out.into()) {
            // Escaping can make a long header too long, and the binary codec knows no empty remark.
            Ok(again) if codec == Codec::Json || fits_binary => {
                assert_eq!(again.ext, command.ext);
                assert_eq!(again.body, command.body);
                assert_eq!(
                    (again.code, again.opaque, again.flag),
                    (command.code, command.opaque, command.flag)
                );
                assert_eq!(again.remark.unwrap_or_default(), command.remark.clone().unwrap_or_default());
            }
            Ok(_) => {}
            Err(error) => assert!(bytes.len() > 16 * 1024, "{error}"),
        }
    }
});
