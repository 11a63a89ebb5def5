//! How messages are shown.

use std::io::Write;

use ringmq_client::MessageExt;
use ringmq_tools::units::format_time;
use serde_json::{Map, Value, json};

/// Marks the message of an empty line, as RocketMQ stores no empty bodies: its body is the line's end.
pub(crate) const EMPTY_LINE: &str = "RINGMQ_EMPTY_LINE";
pub(crate) const EMPTY_LINE_BODY: &[u8] = b"\n";

/// The line that a message is.
pub(crate) fn line(message: &MessageExt) -> &[u8] {
    let is_empty = message.message.property(EMPTY_LINE) == Some("true");
    if is_empty && *message.message.body == *EMPTY_LINE_BODY { b"" } else { &message.message.body }
}

/// A message as JSON. The body is text if it is UTF-8, else base64 under another name.
pub(crate) fn message_json(message: &MessageExt, broker: Option<&str>) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_string(), value);
    };
    put("topic", json!(message.message.topic));
    if let Some(broker) = broker {
        put("broker", json!(broker));
    }
    put("queue", json!(message.queue_id.0));
    put("offset", json!(message.queue_offset.0));
    put("message_id", json!(message.message_id()));
    put("offset_message_id", json!(message.offset_message_id().to_string()));
    put("stored", json!(format_time(message.store_timestamp.0)));
    put("born", json!(format_time(message.born_timestamp.0)));
    put("born_host", json!(message.born_host.to_string()));
    put("reconsume_times", json!(message.reconsume_times));
    let properties: Map<String, Value> =
        message.message.properties.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    put("properties", Value::Object(properties));
    match std::str::from_utf8(line(message)) {
        Ok(text) => put("body", json!(text)),
        Err(_) => put("body_base64", json!(base64(line(message)))),
    }
    Value::Object(object)
}

pub(crate) fn print_json(value: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")
}

/// A line of text for people.
pub(crate) fn print(text: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ];
        for (plain, encoded) in pairs {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }
}
