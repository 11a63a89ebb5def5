//! Reads back everything a restarted broker has, through ordinary requests.

use super::Failure;
use super::history::{QueueContents, QueueKey, Survey, queues_of};
use super::load::{GROUP, expect, pull_request, pulled};
use crate::Raw;
use ringmq_protocol::body::{Body, TopicConfigSerializeWrapper};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Fields, RemotingCommand};
use ringmq_protocol::request::{
    GetMaxOffsetRequest, GetMinOffsetRequest, OffsetResponse, QueryConsumerOffsetRequest,
};
use ringmq_protocol::types::QueueId;
use std::net::SocketAddr;
use std::thread;

/// All queues of the load from their minimum to their maximum, what the group has committed, and all topics.
pub fn survey(addresses: &[SocketAddr]) -> Result<Survey, Failure> {
    let mut all = Survey::default();
    let shards: Vec<Result<Survey, Failure>> = thread::scope(|scope| {
        let threads: Vec<_> = addresses
            .iter()
            .zip(0u16..)
            .map(|(address, shard)| scope.spawn(move || survey_shard(*address, shard)))
            .collect();
        let ended = |_| Err(Failure("a thread of the survey panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(ended)).collect()
    });
    for shard in shards {
        let shard = shard?;
        all.queues.extend(shard.queues);
        all.topics.extend(shard.topics);
        all.log_bytes += shard.log_bytes;
    }
    Ok(all)
}

/// Sends a request and waits for its answer, on a connection with nothing else under way.
pub fn call(
    connection: &mut Raw,
    code: RequestCode,
    fields: &dyn Fields,
) -> Result<RemotingCommand, Failure> {
    let opaque = connection.send(code, fields, Vec::new())?;
    loop {
        match connection.receive()? {
            Some(frame) if frame.is_response() && frame.opaque == opaque => return Ok(frame),
            Some(frame) if frame.is_response() => {
                return Err(Failure(format!("an answer to something else than {code}: {frame:?}")));
            }
            Some(_) => {}
            None => return Err(Failure(format!("the broker closed the connection on {code}"))),
        }
    }
}

fn survey_shard(address: SocketAddr, shard: u16) -> Result<Survey, Failure> {
    let mut connection = Raw::try_connect(address)?;
    let mut survey = Survey::default();
    let answer = call(&mut connection, RequestCode::GET_ALL_TOPIC_CONFIG, &())?;
    expect(&answer, &[ResponseCode::SUCCESS])?;
    let topics = TopicConfigSerializeWrapper::from_json(&answer.body)?;
    for (name, config) in topics.topic_config_table {
        survey.topics.insert((shard, name), config.write_queue_nums);
    }
    for queue in queues_of(shard) {
        let (contents, log_end) =
            survey_queue(&mut connection, queue).map_err(Failure::during(format!("reading {queue}")))?;
        survey.log_bytes = survey.log_bytes.max(log_end);
        survey.queues.insert(queue, contents);
    }
    Ok(survey)
}

fn survey_queue(connection: &mut Raw, queue: QueueKey) -> Result<(QueueContents, u64), Failure> {
    let (topic, queue_id) = (queue.topic, QueueId(queue.queue));
    let min = GetMinOffsetRequest { topic: topic.into(), queue_id };
    let max = GetMaxOffsetRequest { topic: topic.into(), queue_id, committed: true };
    let committed = QueryConsumerOffsetRequest {
        consumer_group: GROUP.into(),
        topic: topic.into(),
        queue_id,
        set_zero_if_not_found: None,
    };
    let mut offset = |code, fields: &dyn Fields| -> Result<Option<u64>, Failure> {
        let answer = call(connection, code, fields)?;
        match expect(&answer, &[ResponseCode::SUCCESS, ResponseCode::QUERY_NOT_FOUND])? {
            ResponseCode::SUCCESS => {
                Ok(Some(OffsetResponse::decode(&answer.header().ext)?.offset.try_into()?))
            }
            _ => Ok(None),
        }
    };
    let missing = || Failure("no offset".to_owned());
    let mut contents = QueueContents {
        min: offset(RequestCode::GET_MIN_OFFSET, &min)?.ok_or_else(missing)?,
        max: offset(RequestCode::GET_MAX_OFFSET, &max)?.ok_or_else(missing)?,
        committed: offset(RequestCode::QUERY_CONSUMER_OFFSET, &committed)?,
        messages: Vec::new(),
    };
    let (mut next, mut log_end) = (contents.min, 0);
    while next < contents.max {
        let answer = call(connection, RequestCode::PULL_MESSAGE, &pull_request(queue, next, 0))?;
        let pulled = pulled(queue, &answer)?;
        if pulled.next <= next {
            let remark = answer.remark.unwrap_or_default();
            return Err(Failure(format!("a pull at {next} of {} makes no progress: {remark}", contents.max)));
        }
        if answer.code == ResponseCode::PULL_OFFSET_MOVED.0 {
            // Deleted while it was read: it begins there now.
            contents.messages.clear();
            contents.min = pulled.next;
        }
        contents.messages.extend(pulled.messages);
        (next, log_end) = (pulled.next, log_end.max(pulled.log_end));
    }
    Ok((contents, log_end))
}
