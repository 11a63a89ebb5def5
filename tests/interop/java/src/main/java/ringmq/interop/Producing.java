package ringmq.interop;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageId;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.RPCHook;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.remoting.protocol.SerializeType;

/** Ways to send. What was stored is read back queue by queue and compared with what the broker answered. */
final class Producing {
    private Producing() {
    }

    /** Answers come in the header codec of the request; those of Apache's 5.x broker all come in JSON. */
    static void codec(World world) throws Exception {
        ConcurrentLinkedQueue<Integer> answered = new ConcurrentLinkedQueue<>();
        Set<SerializeType> codecs = Collections.synchronizedSet(new TreeSet<>());
        DefaultMQProducer producer = world.producer(new RPCHook() {
            @Override
            public void doBeforeRequest(String address, RemotingCommand request) {
            }

            @Override
            public void doAfterResponse(String address, RemotingCommand request, RemotingCommand response) {
                if (response != null) {
                    answered.add(request.getCode());
                    codecs.add(response.getSerializeTypeCurrentRPC());
                }
            }
        });
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        producer.send(World.message(topic, "T", "k"), queues.get(0));
        producer.maxOffset(queues.get(0));
        world.report.note("answers to " + new TreeSet<>(answered) + " in " + codecs);
        SerializeType asked = RemotingCommand.getSerializeTypeConfigInThisServer();
        world.report.equal(world.check("same_in_answers"),
            Set.of(Boolean.getBoolean("interop.reference") ? SerializeType.JSON : asked), codecs);
        world.report.check(world.check("of_name_server_and_broker"), answered.containsAll(List.of(105, 310, 30)), answered.toString());
    }

    static void sync(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        DefaultMQProducer producer = world.producer();
        Map<String, SendResult> sent = new TreeMap<>();
        for (int i = 0; i < 40; i++) {
            Message message = World.message(topic, "T", "k" + i);
            sent.put("k" + i, i % 2 == 0 ? producer.send(message) : producer.send(message, queues.get(i % queues.size())));
        }
        checkAnswers(world, sent);
        checkStored(world, topic, sent);
    }

    static void async(World world) throws Exception {
        String topic = world.name("t");
        world.createTopic(topic, 2);
        int count = 300;
        Map<String, SendResult> sent = Collections.synchronizedMap(new TreeMap<>());
        ConcurrentLinkedQueue<String> errors = new ConcurrentLinkedQueue<>();
        CountDownLatch answers = new CountDownLatch(count);
        for (int i = 0; i < count; i++) {
            String key = "k" + i;
            world.producer().send(World.message(topic, "T", key), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    sent.put(key, result);
                    answers.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    errors.add(key + ": " + e);
                    answers.countDown();
                }
            });
        }
        world.report.check(world.check("all_answered"), answers.await(Await.SECONDS, TimeUnit.SECONDS),
            answers.getCount() + " of " + count + " sends without an answer");
        world.report.check(world.check("no_errors"), errors.isEmpty(), errors.toString());
        checkAnswers(world, new TreeMap<>(sent));
        checkStored(world, topic, new TreeMap<>(sent));
    }

    static void oneway(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        List<String> keys = new ArrayList<>();
        for (int i = 0; i < 50; i++) {
            keys.add("k" + i);
            if (i % 2 == 0) {
                world.producer().sendOneway(World.message(topic, "T", "k" + i));
            } else {
                world.producer().sendOneway(World.message(topic, "T", "k" + i), queues.get(i % queues.size()));
            }
        }
        boolean all = Await.until(() -> world.storedCount(topic) >= keys.size());
        world.report.check(world.check("all_stored"), all, world.storedCount(topic) + " of " + keys.size());
        world.report.equal(world.check("each_once"), "", world.readAll(topic, keys.size()).differenceFrom(keys));
    }

    static void batch(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        List<Message> messages = new ArrayList<>();
        List<String> keys = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            Message message = World.message(topic, "Tag" + i % 3, "k" + i);
            message.putUserProperty("n", "№" + i);
            message.setFlag(i);
            messages.add(message);
            keys.add("k" + i);
        }
        MessageQueue queue = queues.get(queues.size() - 1);
        SendResult first = world.producer().send(messages.subList(0, 20), queue);
        SendResult second = world.producer().send(messages.subList(20, 59), queue);
        SendResult one = world.producer().send(messages.subList(59, 60), queue);

        world.report.equal(world.check("status"), List.of(SendStatus.SEND_OK, SendStatus.SEND_OK, SendStatus.SEND_OK),
            List.of(first.getSendStatus(), second.getSendStatus(), one.getSendStatus()));
        world.report.equal(world.check("first_offsets"), List.of(0L, 20L, 59L),
            List.of(first.getQueueOffset(), second.getQueueOffset(), one.getQueueOffset()));
        world.report.equal(world.check("one_offset_id_each"), 20, first.getOffsetMsgId().split(",").length);
        world.report.equal(world.check("one_unique_key_each"), 39, second.getMsgId().split(",").length);

        Inbox stored = world.readAll(topic, keys.size());
        world.report.equal(world.check("each_once"), "", stored.differenceFrom(keys));
        List<String> order = stored.all().stream().map(MessageExt::getKeys).toList();
        world.report.equal(world.check("order_within_queue"), keys, order);
        List<String> entryIds = new ArrayList<>();
        for (SendResult result : List.of(first, second, one)) {
            entryIds.addAll(Arrays.asList(result.getMsgId().split(",")));
        }
        List<String> storedIds = stored.all().stream().map(MessageExt::getMsgId).toList();
        // The 5.x client puts a unique key for the batch as a whole in the request header, beside those of the entries. A
        // broker that lays the header's properties over each entry's, as Apache's does, stores that one for all of them.
        boolean ofBatches = new TreeSet<>(storedIds.subList(0, 20)).size() == 1 && new TreeSet<>(storedIds).size() == 3;
        world.report.check(world.check("unique_keys"), storedIds.equals(entryIds) || ofBatches, storedIds + " for " + entryIds);
        Map<String, MessageExt> byKey = stored.byKey();
        boolean same = true;
        for (int i = 0; i < messages.size(); i++) {
            MessageExt got = byKey.get("k" + i);
            same &= got != null && Arrays.equals(messages.get(i).getBody(), got.getBody()) && got.getFlag() == i
                && ("Tag" + i % 3).equals(got.getTags()) && ("№" + i).equals(got.getUserProperty("n"));
        }
        world.report.check(world.check("bodies_flags_tags_properties"), same, "a message of a batch differs from what was sent");

        SendResult anywhere = world.producer().send(List.of(World.message(topic, "T", "a"), World.message(topic, "T", "b")));
        world.report.equal(world.check("to_a_queue_of_the_client's_choice"), SendStatus.SEND_OK, anywhere.getSendStatus());
    }

    /** Messages of one key go to one queue, and are read from it in the order in which they were sent. */
    static void selector(World world) throws Exception {
        String topic = world.name("t");
        world.createTopic(topic, 3);
        Map<Integer, Set<MessageQueue>> queuesOfOrder = new TreeMap<>();
        List<String> keys = new ArrayList<>();
        for (int step = 0; step < 8; step++) {
            for (int order = 0; order < 10; order++) {
                String key = "o" + order + "-" + step;
                SendResult result = world.producer().send(World.message(topic, "T", key),
                    (queues, message, of) -> queues.get((Integer) of % queues.size()), order);
                queuesOfOrder.computeIfAbsent(order, o -> new TreeSet<>()).add(result.getMessageQueue());
                keys.add(key);
            }
        }
        world.report.check(world.check("one_queue_per_key"), queuesOfOrder.values().stream().allMatch(q -> q.size() == 1),
            queuesOfOrder.toString());
        Inbox stored = world.readAll(topic, keys.size());
        world.report.equal(world.check("each_once"), "", stored.differenceFrom(keys));
        boolean ordered = true;
        for (int order = 0; order < 10; order++) {
            String prefix = "o" + order + "-";
            List<String> steps = stored.all().stream().map(MessageExt::getKeys).filter(k -> k.startsWith(prefix)).toList();
            ordered &= steps.equals(keys.stream().filter(k -> k.startsWith(prefix)).toList());
        }
        world.report.check(world.check("order_within_key"), ordered, "a key's messages are out of order");
    }

    /** A topic that nobody made: the first send makes it, and a consumer finds it. */
    static void autoCreate(World world) throws Exception {
        String topic = world.name("t");
        List<String> keys = new ArrayList<>();
        TreeSet<String> sentTo = new TreeSet<>();
        for (int i = 0; i < 20; i++) {
            SendResult result = world.producer().send(World.message(topic, "T", "k" + i));
            keys.add("k" + i);
            sentTo.add(result.getMessageQueue().getBrokerName());
            if (i == 0) {
                world.report.equal(world.check("first_send"), SendStatus.SEND_OK, result.getSendStatus());
            }
        }
        // Each broker makes the topic at its first message and then tells the name server. A client that looks for news between
        // the first broker's and the second's sends the rest to the first one only.
        boolean routed = Await.until(() -> sentTo.equals(
            world.queues(topic).stream().map(MessageQueue::getBrokerName).collect(Collectors.toCollection(TreeSet::new))));
        world.report.check(world.check("routed"), routed, "sent to " + sentTo + ", the route shows " + world.queues(topic));
        world.report.equal(world.check("each_once"), "", world.readAll(topic, keys.size()).differenceFrom(keys));
        Inbox inbox = new Inbox();
        world.pushInto(inbox, world.name("g"), topic, "*");
        world.report.check(world.check("consumed"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
    }

    /** Messages flow to every broker of the route, and each broker stores only what was sent to it. */
    static void bothShards(World world) throws Exception {
        TreeSet<String> brokers = world.brokers();
        String wanted = System.getProperty("interop.brokers");
        if (wanted != null) {
            world.report.equal(world.check("brokers_in_route"), Integer.parseInt(wanted), brokers.size());
        }
        String topic = world.name("t");
        world.createTopic(topic, 2);
        Inbox inbox = new Inbox();
        DefaultMQProducer producer = world.producer();
        world.pushInto(inbox, world.name("g"), topic, "*");
        Map<String, Integer> sentTo = new TreeMap<>();
        Map<String, Set<String>> answeredBy = new TreeMap<>();
        List<String> keys = new ArrayList<>();
        for (int i = 0; i < 40; i++) {
            SendResult result = producer.send(World.message(topic, "T", "k" + i));
            String broker = result.getMessageQueue().getBrokerName();
            sentTo.merge(broker, 1, Integer::sum);
            MessageId id = MessageDecoder.decodeMessageId(result.getOffsetMsgId());
            answeredBy.computeIfAbsent(broker, b -> new TreeSet<>()).add(id.getAddress().toString());
            keys.add("k" + i);
        }
        world.report.check(world.check("all_arrive"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        Map<String, Integer> readFrom = new TreeMap<>();
        Map<String, Set<String>> storedBy = new TreeMap<>();
        for (MessageExt message : inbox.all()) {
            readFrom.merge(message.getBrokerName(), 1, Integer::sum);
            storedBy.computeIfAbsent(message.getBrokerName(), b -> new TreeSet<>()).add(message.getStoreHost().toString());
        }
        world.report.note("sent to " + sentTo + ", read from " + readFrom + ", stored by " + storedBy);
        world.report.equal(world.check("sent_to_every_broker"), brokers, new TreeSet<>(sentTo.keySet()));
        world.report.equal(world.check("read_where_sent"), sentTo, readFrom);
        world.report.equal(world.check("stored_where_answered"), answeredBy, storedBy);
        Set<String> addresses = new TreeSet<>();
        storedBy.values().forEach(addresses::addAll);
        world.report.check(world.check("one_address_per_broker"),
            storedBy.values().stream().allMatch(a -> a.size() == 1) && addresses.size() == brokers.size(), storedBy.toString());
    }

    private static void checkAnswers(World world, Map<String, SendResult> sent) throws Exception {
        List<String> wrong = new ArrayList<>();
        for (Map.Entry<String, SendResult> entry : sent.entrySet()) {
            SendResult result = entry.getValue();
            if (result.getSendStatus() != SendStatus.SEND_OK || result.getMessageQueue() == null || result.getMsgId() == null
                || !"DefaultRegion".equals(result.getRegionId())) {
                wrong.add(entry.getKey() + " " + result + " region " + result.getRegionId());
            }
            MessageDecoder.decodeMessageId(result.getOffsetMsgId());
        }
        world.report.check(world.check("answers"), wrong.isEmpty(), wrong.toString());
    }

    /** What the answers said (queue, offset, unique key, position in the log) is where and how the messages are found. */
    private static void checkStored(World world, String topic, Map<String, SendResult> sent) throws Exception {
        Inbox stored = world.readAll(topic, sent.size());
        world.report.equal(world.check("each_once"), "", stored.differenceFrom(sent.keySet()));
        List<String> wrong = new ArrayList<>();
        for (MessageExt message : stored.all()) {
            SendResult result = sent.get(message.getKeys());
            MessageId id = MessageDecoder.decodeMessageId(result.getOffsetMsgId());
            if (!World.queueOf(message).equals(result.getMessageQueue()) || message.getQueueOffset() != result.getQueueOffset()
                || !message.getMsgId().equals(result.getMsgId()) || id.getOffset() != message.getCommitLogOffset()
                || !id.getAddress().equals(message.getStoreHost())) {
                wrong.add(message + " answered as " + result);
            }
        }
        world.report.check(world.check("stored_as_answered"), wrong.isEmpty(), wrong.toString());
        stored.offsets().forEach((queue, offsets) -> {
            for (int i = 0; i < offsets.size(); i++) {
                if (offsets.get(i) != i) {
                    wrong.add(queue + " has offset " + offsets.get(i) + " in place " + i);
                }
            }
        });
        world.report.check(world.check("offsets_without_gaps"), wrong.isEmpty(), wrong.toString());
    }
}
