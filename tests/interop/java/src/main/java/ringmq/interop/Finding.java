package ringmq.interop;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Messages by one of their keys, by their unique id, and by their place. */
final class Finding {
    /** What the client makes of answers without a message. */
    private static final int NO_MESSAGE = 208;
    private static final int SHARED_COUNT = 5;
    /** Sent to each broker before everything is looked up again: more than two segments of a broker with the smallest ones. */
    private static final int FILL_BYTES = 12 << 20;
    private static final int FILL_STEP_BYTES = 1 << 20;

    private final World world;
    private final DefaultMQProducer producer;
    private final String topic;
    private final List<MessageQueue> queues;
    /** What was sent one by one to be found, with what the send was answered. */
    private final List<Message> sent = new ArrayList<>();
    private final List<SendResult> results = new ArrayList<>();

    private Finding(World world) throws Exception {
        this.world = world;
        this.producer = world.producer();
        this.topic = world.name("t");
        this.queues = world.createTopic(topic, 2);
    }

    static void find(World world) throws Exception {
        new Finding(world).run();
    }

    private void run() throws Exception {
        String other = world.name("other");
        MessageQueue elsewhere = world.createTopic(other, 1).get(0);
        MessageQueue first = queues.get(0);
        send(message("lonely", "only it"), first);
        send(message("red green  schlüssel-世界", "of several keys"), first);
        for (int i = 0; i < SHARED_COUNT; i++) {
            send(message("shared own-" + i, "shared " + i), first);
        }
        for (int i = 0; i < queues.size(); i++) {
            send(message("everywhere", "in queue " + i), queues.get(i));
        }
        send(message("large", "compressed ".repeat(2_000)), first);
        List<Message> batch = List.of(message("batched b-0", "batch 0"), message("batched b-1", "batch 1"));
        SendResult result = producer.send(batch, first);
        // Not what is looked for: the same keys in another topic.
        producer.send(new Message(other, "T", "lonely shared", "not it".getBytes(StandardCharsets.UTF_8)), elsewhere);

        long early = latestStored(sent.size() + batch.size());
        // An index may know seconds only: what comes now is told apart from what was before.
        Await.until(() -> System.currentTimeMillis() > early + 2_500);
        send(message("shared late", "shared late"), first);
        if (Boolean.getBoolean("interop.reference")) {
            // Apache's index is filled after the send is answered.
            Await.until(() -> !found("late", 1).isEmpty());
        }

        check("", early, result);
        for (MessageQueue queue : queues) {
            if (queue.getQueueId() == 0) {
                fill(queue);
            }
        }
        check("later.", early, result);
    }

    private void check(String when, long early, SendResult batch) throws Exception {
        equal(when + "one_key", List.of("only it"), found("lonely", 32));
        for (String key : List.of("red", "green", "schlüssel-世界")) {
            equal(when + "of_several." + key, List.of("of several keys"), found(key, 32));
        }
        List<String> shared = new ArrayList<>();
        for (int i = 0; i < SHARED_COUNT; i++) {
            equal(when + "own." + i, List.of("shared " + i), found("own-" + i, 32));
            shared.add("shared " + i);
        }
        equal(when + "before", shared, found("shared", 32, early - 60_000, early));
        equal(when + "after", List.of("shared late"), found("shared", 32, early + 1, Long.MAX_VALUE));
        equal(when + "long_before", "none 208", outcome("shared", 0, early - 3_600_000));
        equal(when + "long_after", "none 208", outcome("shared", early + 3_600_000, Long.MAX_VALUE));
        shared.add("shared late");
        equal(when + "several_messages", shared, found("shared", 32));
        equal(when + "newest", shared.subList(SHARED_COUNT - 1, SHARED_COUNT + 1), found("shared", 2));
        List<String> everywhere = new ArrayList<>();
        for (int i = 0; i < queues.size(); i++) {
            everywhere.add("in queue " + i);
        }
        // Brokers may have stored theirs in the same millisecond.
        equal(when + "every_broker", new TreeSet<>(everywhere), new TreeSet<>(found("everywhere", 32)));
        equal(when + "compressed", List.of("compressed ".repeat(2_000)), found("large", 32));
        equal(when + "batch", List.of("batch 0", "batch 1"), found("batched", 32));
        equal(when + "of_a_batch", List.of("batch 1"), found("b-1", 32));
        equal(when + "unknown_key", "none 208", outcome("nobody has it", 0, Long.MAX_VALUE));
        equal(when + "part_of_a_key", "none 208", outcome("share", 0, Long.MAX_VALUE));

        List<String> wrong = new ArrayList<>();
        for (int i = 0; i < results.size(); i++) {
            SendResult result = results.get(i);
            expect(wrong, "unique id " + i, sent.get(i), result.getMsgId(), result, view(result.getMsgId()));
            expect(wrong, "offset id " + i, sent.get(i), result.getMsgId(), result, view(result.getOffsetMsgId()));
        }
        world.report.check(world.check(when + "view"), wrong.isEmpty(), wrong.toString());
        // Apache's broker files the messages of a 5.x client's batch under an id of the batch, which nobody is told.
        if (!Boolean.getBoolean("interop.reference")) {
            List<String> bodies = new ArrayList<>();
            for (String id : batch.getMsgId().split(",")) {
                MessageExt message = view(id);
                bodies.add(message == null ? "absent" : body(message));
            }
            equal(when + "view_batch", List.of("batch 0", "batch 1"), bodies);
        }
        String id = results.get(0).getMsgId();
        equal(when + "view_unknown", null, view(id.substring(0, id.length() - 4) + "FFFE"));
    }

    private static void expect(List<String> wrong, String what, Message sent, String id, SendResult result, MessageExt got) {
        if (got == null) {
            wrong.add(what + " is absent");
        } else if (!Arrays.equals(sent.getBody(), got.getBody()) || !sent.getKeys().equals(got.getKeys())
            || !id.equals(got.getMsgId()) || got.getQueueOffset() != result.getQueueOffset()
            || got.getQueueId() != result.getMessageQueue().getQueueId()) {
            wrong.add(what + " is " + got);
        }
    }

    private Message message(String keys, String body) {
        return new Message(topic, "T", keys, body.getBytes(StandardCharsets.UTF_8));
    }

    private void send(Message message, MessageQueue queue) throws Exception {
        results.add(producer.send(message, queue));
        sent.add(message);
    }

    /** Pushes what was sent before out of the segment that is being written, where segments are small. */
    private void fill(MessageQueue queue) throws Exception {
        byte[] body = new byte[FILL_STEP_BYTES];
        Random random = new Random(queue.hashCode());
        for (int done = 0; done < FILL_BYTES; done += FILL_STEP_BYTES) {
            random.nextBytes(body);
            producer.send(new Message(topic, "T", "filler", body), queue);
        }
    }

    /** When the last message so far was stored, once the broker lets it be read. */
    private long latestStored(int count) throws Exception {
        return world.readAll(topic, count).all().stream().mapToLong(MessageExt::getStoreTimestamp).max().orElseThrow();
    }

    private List<String> found(String key, int max) throws Exception {
        return found(key, max, 0, Long.MAX_VALUE);
    }

    /** The bodies of what is found, in the order of their store times. */
    private List<String> found(String key, int max, long begin, long end) throws Exception {
        List<MessageExt> messages = new ArrayList<>();
        try {
            messages.addAll(producer.queryMessage(topic, key, max, begin, end).getMessageList());
        } catch (MQClientException e) {
            if (e.getResponseCode() != NO_MESSAGE) {
                throw e;
            }
        }
        messages.sort(Comparator.comparing(MessageExt::getStoreTimestamp).thenComparing(MessageExt::getBrokerName,
            Comparator.nullsFirst(Comparator.naturalOrder())).thenComparing(MessageExt::getCommitLogOffset));
        return messages.stream().map(Finding::body).collect(Collectors.toList());
    }

    private String outcome(String key, long begin, long end) throws Exception {
        try {
            return "found " + producer.queryMessage(topic, key, 32, begin, end).getMessageList().size();
        } catch (MQClientException e) {
            return "none " + e.getResponseCode();
        }
    }

    /** Null if there is none. */
    private MessageExt view(String id) throws Exception {
        try {
            return producer.viewMessage(topic, id);
        } catch (MQBrokerException e) {
            return null;
        } catch (MQClientException e) {
            if (e.getResponseCode() != NO_MESSAGE) {
                throw e;
            }
            return null;
        }
    }

    private static String body(MessageExt message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    private void equal(String name, Object expected, Object actual) {
        world.report.equal(world.check(name), expected, actual);
    }
}
