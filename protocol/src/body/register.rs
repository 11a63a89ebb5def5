//! REGISTER_BROKER (103), in its two forms.

use std::collections::BTreeMap;
use std::io::Read;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Body, TopicConfig, TopicConfigSerializeWrapper, TopicFilterType};
use crate::fastjson::{self, JsonError};

/// The most bytes that a compressed body may expand to.
const EXPANDED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Brokers older than this send the bare wrapper.
const FULL_BODY_VERSION_MIN: i32 = 37;

/// What a broker tells a name server about its topics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegisterBrokerBody {
    pub filter_server_list: Vec<String>,
    pub topic_config_serialize_wrapper: TopicConfigSerializeWrapper,
}

impl Body for RegisterBrokerBody {}

/// Why a body is no registration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegisterBodyError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("the body is no whole zlib stream of at most {EXPANDED_BYTES_MAX} bytes")]
    Zlib,
    #[error("{field} of the compressed body does not fit")]
    Field { field: &'static str },
}

impl RegisterBrokerBody {
    /// Reads the body of a broker of this `MQVersion`. An empty body registers no topics.
    pub fn decode(body: &[u8], version: i32, compressed: bool) -> Result<Self, RegisterBodyError> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        if compressed {
            return Self::decode_compressed(body);
        }
        if version < FULL_BODY_VERSION_MIN {
            let topic_config_serialize_wrapper = fastjson::from_slice(body)?;
            return Ok(Self { topic_config_serialize_wrapper, ..Self::default() });
        }
        Ok(Self::from_json(body)?)
    }

    /// zlib of: DataVersion, count of topics, topics, filter servers, each a counted text. Brokers from 5.0 on append
    /// their static topics, which are not read.
    fn decode_compressed(body: &[u8]) -> Result<Self, RegisterBodyError> {
        let mut expanded = Vec::new();
        flate2::read::ZlibDecoder::new(body)
            .take(EXPANDED_BYTES_MAX as u64 + 1)
            .read_to_end(&mut expanded)
            .map_err(|_| RegisterBodyError::Zlib)?;
        if expanded.len() > EXPANDED_BYTES_MAX {
            return Err(RegisterBodyError::Zlib);
        }
        let mut rest = &expanded[..];
        let data_version = fastjson::from_slice(take_counted(&mut rest, "data version")?)?;
        let mut topic_config_table = BTreeMap::new();
        for _ in 0..take_len(&mut rest, "topic count")? {
            let topic = take_topic(take_counted(&mut rest, "topic")?)?;
            topic_config_table.insert(topic.topic_name.clone(), topic);
        }
        let filter_server_list = fastjson::from_slice(take_counted(&mut rest, "filter servers")?)?;
        Ok(Self {
            filter_server_list,
            topic_config_serialize_wrapper: TopicConfigSerializeWrapper { data_version, topic_config_table },
        })
    }
}

fn take_len(rest: &mut &[u8], field: &'static str) -> Result<usize, RegisterBodyError> {
    let (len, behind) = rest.split_first_chunk().ok_or(RegisterBodyError::Field { field })?;
    *rest = behind;
    usize::try_from(i32::from_be_bytes(*len)).map_err(|_| RegisterBodyError::Field { field })
}

fn take_counted<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], RegisterBodyError> {
    let len = take_len(rest, field)?;
    let (taken, behind) = rest.split_at_checked(len).ok_or(RegisterBodyError::Field { field })?;
    *rest = behind;
    Ok(taken)
}

/// `topic readQ writeQ perm filterType [attributesJson]`
fn take_topic(line: &[u8]) -> Result<TopicConfig, RegisterBodyError> {
    fn part<T>(part: Option<T>) -> Result<T, RegisterBodyError> {
        part.ok_or(RegisterBodyError::Field { field: "topic" })
    }
    let line = part(std::str::from_utf8(line).ok())?;
    let mut parts = line.splitn(6, ' ');
    let topic = part(parts.next().filter(|topic| !topic.is_empty()))?;
    let read_queue_nums = part(parts.next().and_then(|number| number.parse().ok()))?;
    let write_queue_nums = part(parts.next().and_then(|number| number.parse().ok()))?;
    let perm = part(parts.next().and_then(|number| number.parse().ok()))?;
    let topic_filter_type = part(parts.next().and_then(TopicFilterType::from_name))?;
    let attributes = match parts.next().map(str::trim) {
        None | Some("" | "null") => BTreeMap::new(),
        Some(json) => fastjson::from_slice(json.as_bytes())?,
    };
    let config = TopicConfig::new(topic, read_queue_nums, perm);
    Ok(TopicConfig { write_queue_nums, topic_filter_type, attributes, ..config })
}
