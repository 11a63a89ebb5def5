//! Questions of tools to clients.

use super::groups::consumer;
use super::*;
use ringmq_protocol::body::{ConsumerStatusBody, MessageQueue};
use ringmq_protocol::request::{
    ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest, GetConsumerStatusRequest,
};

const ONE: ConnectionId = ConnectionId(1);
const TWO: ConnectionId = ConnectionId(2);

fn running_info(client_id: &'static str) -> GetConsumerRunningInfoRequest<'static> {
    GetConsumerRunningInfoRequest {
        consumer_group: "g".into(),
        client_id: client_id.into(),
        jstack_enable: true,
    }
}

impl Fixture {
    /// Two members of group g, and one message.
    fn with_members() -> Fixture {
        let mut f = Fixture::new(FlushDiskType::Sync);
        f.send("T", 0, "", b"body");
        f.settle();
        f.beat(ONE, "one", consumer("g", "T", "*"));
        f.beat(TWO, "two", consumer("g", "T", "*"));
        f.answers.clear();
        f
    }

    fn question(&mut self) -> RemotingCommand {
        let at = self.answers.iter().position(|frame| !frame.is_response() && !frame.is_oneway());
        self.answers.remove(at.expect("a question"))
    }

    fn client_answers(&mut self, from: ConnectionId, answer: &RemotingCommand) {
        let mut bytes = Vec::new();
        answer.encode(Codec::Json, &mut bytes);
        let frame = Frame::decode(&bytes).unwrap();
        self.shard.on_frame(from, "10.1.2.3:4567".parse().unwrap(), &frame, &mut self.fx);
        self.collect();
    }
}

#[test]
fn the_answer_of_a_client_goes_to_the_tool_as_it_is() {
    let mut f = Fixture::with_members();
    let asked = f.request(RequestCode::GET_CONSUMER_RUNNING_INFO, &running_info("two"), &[]);
    let question = f.question();
    assert_eq!(question.code, RequestCode::GET_CONSUMER_RUNNING_INFO.0);
    assert_eq!((question.ext("clientId"), question.ext("jstackEnable")), (Some("two"), Some("true")));
    let ext = vec![("some".to_owned(), "thing".to_owned())];
    let answer = RemotingCommand::response(0, question.opaque, Some("well".into()), &ext, "{\"x\":1}");
    f.client_answers(ONE, &answer);
    assert!(f.answer(asked).is_none(), "Y2: it was not asked");
    f.client_answers(TWO, &answer);
    let told = f.answer(asked).unwrap();
    assert_eq!((told.code, told.remark.as_deref(), &told.body[..]), (0, Some("well"), &b"{\"x\":1}"[..]));
    assert_eq!(told.ext("some"), Some("thing"));
    f.client_answers(TWO, &answer);
    assert!(f.answer(asked).is_none(), "Y1");
    f.tick(limits::RELAY_MS);
    assert!(f.answer(asked).is_none() && f.shard.relay.next_deadline_ms().is_none(), "Y1");
}

#[test]
fn a_client_that_is_silent_gone_or_unknown_is_said_so() {
    let mut f = Fixture::with_members();
    let silent = f.request(RequestCode::GET_CONSUMER_RUNNING_INFO, &running_info("one"), &[]);
    f.tick(limits::RELAY_MS - 1);
    assert!(f.answer(silent).is_none());
    assert_eq!(f.shard.relay.next_deadline_ms(), Some(f.now.monotonic_ms + 1));
    let gone = f.request(RequestCode::GET_CONSUMER_RUNNING_INFO, &running_info("two"), &[]);
    f.tick(1);
    let told = f.answer(silent).unwrap();
    assert_eq!(told.code, ResponseCode::CONSUME_MSG_TIMEOUT.0);
    assert!(told.remark.unwrap().contains("<g> <one> did not answer in 10 s"));
    f.shard.on_closed(TWO, &mut f.fx);
    f.collect();
    let told = f.answer(gone).unwrap();
    assert_eq!((told.code, told.remark.unwrap().contains("left")), (ResponseCode::SYSTEM_ERROR.0, true));
    let unknown = f.request(RequestCode::GET_CONSUMER_RUNNING_INFO, &running_info("two"), &[]);
    let told = f.answer(unknown).unwrap();
    assert_eq!(
        (told.code, told.remark.unwrap().contains("not online")),
        (ResponseCode::SYSTEM_ERROR.0, true)
    );
}

#[test]
fn questions_are_bounded() {
    let mut f = Fixture::with_members();
    for _ in 0..limits::RELAYS_MAX {
        f.request(RequestCode::GET_CONSUMER_RUNNING_INFO, &running_info("one"), &[]);
    }
    let more = f.request(RequestCode::GET_CONSUMER_RUNNING_INFO, &running_info("one"), &[]);
    assert_eq!(f.answer(more).unwrap().code, ResponseCode::SYSTEM_BUSY.0);
    f.answers.clear();
    f.shard.on_closed(ONE, &mut f.fx);
    f.collect();
    assert_eq!(f.answers.iter().filter(|answer| answer.is_response()).count(), limits::RELAYS_MAX);
}

#[test]
fn a_message_to_be_consumed_directly_is_read_and_goes_along() {
    let mut f = Fixture::with_members();
    let pull = f.pull("T", 0, 0, "*");
    let answer = f.answer(pull).unwrap();
    let stored = messages(&answer.body).next().unwrap().unwrap();
    let directly = |position: u64| ConsumeMessageDirectlyRequest {
        consumer_group: "g".into(),
        client_id: Some("one".into()),
        msg_id: Some(format!("7F00000100002A9F{position:016X}").into()),
        topic: Some("T".into()),
        broker_name: Some("wrong".into()),
        topic_sys_flag: None,
        group_sys_flag: None,
    };
    let asked = directly(stored.physical_offset().0);
    f.request(RequestCode::CONSUME_MESSAGE_DIRECTLY, &asked, &[]);
    let check = |question: &RemotingCommand| {
        assert_eq!(question.body, stored.as_bytes());
        assert_eq!(question.ext("brokerName"), Some("b-0"));
        assert_eq!((question.ext("topicSysFlag"), question.ext("groupSysFlag")), (Some("0"), Some("0")));
    };
    check(&f.question());
    // From disk, too.
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    f.beat(ONE, "one", consumer("g", "T", "*"));
    f.answers.clear();
    f.request(RequestCode::CONSUME_MESSAGE_DIRECTLY, &asked, &[]);
    f.read_all();
    check(&f.question());
    for (wrong, code) in [
        (directly(stored.physical_offset().0 + 8), ResponseCode::SYSTEM_ERROR),
        (directly(1 << 40), ResponseCode::SYSTEM_ERROR),
        (
            ConsumeMessageDirectlyRequest { msg_id: Some("nonsense".into()), ..asked.clone() },
            ResponseCode::INVALID_PARAMETER,
        ),
    ] {
        let asked = f.request(RequestCode::CONSUME_MESSAGE_DIRECTLY, &wrong, &[]);
        f.read_all();
        let answer = f.answer(asked).unwrap();
        assert_eq!(answer.code, code.0, "{:?}", answer.remark);
    }
}

#[test]
fn the_status_of_a_group_is_gathered_from_its_members() {
    let mut f = Fixture::with_members();
    let status = |client: Option<&'static str>| GetConsumerStatusRequest {
        topic: "T".into(),
        group: "g".into(),
        client_addr: client.map(Into::into),
    };
    let code = RequestCode::INVOKE_BROKER_TO_GET_CONSUMER_STATUS;
    let answer = |question: &RemotingCommand, offset| {
        let message_queue_table = [(MessageQueue::new("T", "b-0", 0), offset)].into();
        let body = ConsumerStatusBody { message_queue_table, ..ConsumerStatusBody::default() }.to_json();
        RemotingCommand::response(0, question.opaque, None, &(), body)
    };
    let both = f.request(code, &status(None), &[]);
    let questions = [f.question(), f.question()];
    assert_eq!(questions[0].code, RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT.0);
    f.client_answers(ONE, &answer(&questions[0], 5));
    assert!(f.answer(both).is_none());
    f.client_answers(TWO, &answer(&questions[1], 6));
    let table = ConsumerStatusBody::from_json(&f.answer(both).unwrap().body).unwrap().consumer_table;
    let offsets: Vec<(&str, i64)> =
        table.iter().map(|(client, table)| (&**client, *table.values().next().unwrap())).collect();
    assert_eq!(offsets, [("one", 5), ("two", 6)]);

    // One that does not say is left out.
    let part = f.request(code, &status(None), &[]);
    let first = f.question();
    f.client_answers(ONE, &answer(&first, 7));
    f.shard.on_closed(TWO, &mut f.fx);
    f.collect();
    let table = ConsumerStatusBody::from_json(&f.answer(part).unwrap().body).unwrap().consumer_table;
    assert_eq!(table.keys().collect::<Vec<_>>(), ["one"]);
    let nobody = f.request(code, &status(Some("two")), &[]);
    assert_eq!(f.answer(nobody).unwrap().code, ResponseCode::SYSTEM_ERROR.0);
}
